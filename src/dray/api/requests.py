"""What a request asks for, decoded: the values that pass from the server to the engine and back besides the models.

`Connection`, `Upload` and `Download` are how bytes pass; the server implements the first two, the engine yields
the third.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

import msgspec

from dray.api.models import Mount, PortBinding

Download = AsyncIterator[bytes]
"""The bytes of a streamed response, in chunks of any size. Closed (`aclose`) when the client goes."""

RAW_STREAM = "application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = "application/vnd.docker.multiplexed-stream"


class Detached(NamedTuple):
    """A client's socket taken out of the HTTP server; its head is already written.

    `fd` belongs to the receiver and is blocking. `leftover` was sent by the client behind its request and comes
    before what can be read from `fd`. Multiplexed output has stdcopy headers; chunked output has HTTP chunk
    framing and ends with the empty chunk; websocket means RFC 6455 frames, never stdcopy.
    """

    fd: int
    leftover: bytes = b""
    multiplexed: bool = False
    chunked: bool = False
    websocket: bool = False


class Connection(Protocol):
    """The client's connection while its request is being answered.

    Until one of the two methods is called an error can still be raised and becomes a normal response; each may
    be called once, and afterwards the socket is the caller's.
    """

    @property
    def version(self) -> tuple[int, int]:
        """The API version of the request."""

    @property
    def detached(self) -> bool:
        """Whether the socket was taken already."""

    async def hijack(self, *, tty: bool) -> Detached:
        """Answer an attach or exec start (101 or 200) and give the socket up."""

    async def chunked_response(self, *, tty: bool) -> Detached:
        """Answer a logs request with the head of a chunked 200 and give the socket up."""


class Upload(Protocol):
    """A request body that is not held in memory. It can be read once, by one of the two ways."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body's bytes."""

    def pipe(self) -> AbstractAsyncContextManager[int]:
        """Pump the body into a pipe while the block runs; yields the read end, which the block may read in a thread.

        The read end is closed when the block ends. A client that goes away ends the pipe; the block then fails
        with ConnectionResetError on exit.
        """


class Progress(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One message of a progress stream (jsonmessage.JSONMessage)."""

    stream: str = ""
    status: str = ""
    progress_detail: dict[str, Any] | None = msgspec.field(name="progressDetail", default=None)
    progress: str = ""
    id: str = ""
    aux: Any = None


ProgressStream = AsyncIterator[Progress]
"""Progress messages. An error raised before the first is a normal response, later it is the stream's last line."""


class PathStat(msgspec.Struct, kw_only=True, frozen=True):
    """What HEAD and GET of a container's archive tell of the path; `mode` is Go's os.FileMode, `mtime` RFC 3339."""

    name: str
    size: int
    mode: int
    mtime: str
    link_target: str = msgspec.field(name="linkTarget", default="")


class CreateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The query of a container's creation. `platform` is `os[/arch[/variant]]` or empty."""

    name: str = ""
    platform: str = ""


class EditRequest(msgspec.Struct, kw_only=True):
    """What `dray edit` changes of a container: dray's own. What is not named stays.

    port_bindings: by container port, each instead of what that port had; mounts_remove: places in the container
    """

    env: list[str] = msgspec.field(name="Env", default_factory=list)
    env_remove: list[str] = msgspec.field(name="EnvRemove", default_factory=list)
    labels: dict[str, str] = msgspec.field(name="Labels", default_factory=dict)
    labels_remove: list[str] = msgspec.field(name="LabelsRemove", default_factory=list)
    port_bindings: dict[str, list[PortBinding]] = msgspec.field(name="PortBindings", default_factory=dict)
    ports_remove: list[str] = msgspec.field(name="PortsRemove", default_factory=list)
    binds: list[str] = msgspec.field(name="Binds", default_factory=list)
    mounts: list[Mount] = msgspec.field(name="Mounts", default_factory=list)
    mounts_remove: list[str] = msgspec.field(name="MountsRemove", default_factory=list)
    name: str = msgspec.field(name="Name", default="")


class CheckpointRequest(msgspec.Struct, kw_only=True):
    """What writes a container down (Docker's experimental API; no schema). `exit`: and stops it."""

    checkpoint_id: str = msgspec.field(name="CheckpointID", default="")
    checkpoint_dir: str = msgspec.field(name="CheckpointDir", default="")
    exit: bool = msgspec.field(name="Exit", default=False)


class LogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a log and how. Times are Unix nanoseconds, 0 for open; `tail` None is all."""

    stdout: bool = False
    stderr: bool = False
    follow: bool = False
    timestamps: bool = False
    details: bool = False
    tail: int | None = None
    since: int = 0
    until: int = 0


class AttachOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which streams to attach; `logs` replays what was written before, `stream` follows."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    stream: bool = False
    logs: bool = False
    detach_keys: str = ""


class RemoveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to remove a container: kill it first, its anonymous volumes too, or only a link."""

    force: bool = False
    volumes: bool = False
    link: bool = False


class CommitOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The query of a commit; `changes` are Dockerfile instructions, one per line."""

    container: str
    repo: str = ""
    tag: str = ""
    comment: str = ""
    author: str = ""
    pause: bool = True
    changes: tuple[str, ...] = ()


class ImportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The query of an image import; `source` is a URL, or `-` for the request's body."""

    source: str = "-"
    repo: str = ""
    tag: str = ""
    message: str = ""
    changes: tuple[str, ...] = ()
    platform: str = ""


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The query and headers of a classic build; an unset number is 0, an unset text empty."""

    dockerfile: str = "Dockerfile"
    tags: tuple[str, ...] = ()
    remote: str = ""
    quiet: bool = False
    no_cache: bool = False
    pull: bool = False
    remove: bool = True
    force_remove: bool = False
    squash: bool = False
    build_args: Mapping[str, str | None] = msgspec.field(default_factory=dict)
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    cache_from: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    network_mode: str = ""
    platform: str = ""
    target: str = ""
    memory: int = 0
    memory_swap: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    cgroup_parent: str = ""
    shm_size: int = 0
    isolation: str = ""
    security_opt: tuple[str, ...] = ()
    ulimits: tuple[dict[str, Any], ...] = ()
    outputs: tuple[dict[str, Any], ...] = ()
    build_id: str = ""
    session: str = ""
    auths: Mapping[str, Any] = msgspec.field(default_factory=dict)


class BuildPruneOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What of the build cache to keep, in bytes; 0 is no limit."""

    all: bool = False
    reserved_space: int = 0
    max_used_space: int = 0
    min_free_space: int = 0


class PingStatus(NamedTuple):
    """What `_ping` tells in headers besides the version."""

    builder_version: str = "1"
    swarm: str = "inactive"
    experimental: bool = False
