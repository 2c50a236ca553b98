"""The record of a container, and the container as it lives in the daemon.

ask (`config`, `host_config`, `networking`: the API request, untouched) → record (`ContainerRecord`: the ask plus
what the engine decided) → spec (OCI config.json) → task (processes). A record is written to the `container`
table before anything that depends on it is acknowledged; `Container` adds what lives only as long as the daemon:
the lock, the task, the waiting clients.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from dray.api.models import ContainerConfig, HostConfig, NetworkingConfig
from dray.network.model import Endpoint
from dray.shim.model import AttachRequest, ExitStatus
from dray.shim.tasks import Task

KIND = "container"
Status = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]


class HealthProbe(msgspec.Struct):
    """One result of a health check; times are unix nanoseconds."""

    start: int
    end: int
    exit_code: int
    output: str


class Health(msgspec.Struct):
    """The state of a container's health check: `starting`, `healthy` or `unhealthy`, and the last five probes."""

    status: str = "starting"
    failing_streak: int = 0
    log: list[HealthProbe] = []


class State(msgspec.Struct):
    """What a container does; times are unix nanoseconds, 0 is never."""

    status: Status = "created"
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: int = 0
    finished_at: int = 0
    health: Health | None = None

    @property
    def running(self) -> bool:
        """True while there are processes (paused ones too)."""
        return self.status in ("running", "paused")


class MountPoint(msgspec.Struct):
    """A mount the user asked for, resolved: where it comes from and how it is mounted.

    `options` are mount words for the spec; `create_source` makes a missing bind source a directory, as `-v` does.
    """

    type: str  # bind, volume, tmpfs, image
    destination: str
    source: str = ""
    name: str = ""
    driver: str = ""
    mode: str = ""
    rw: bool = True
    propagation: str = ""
    options: list[str] = []
    create_source: bool = False
    copy: bool = False
    anonymous: bool = False
    mount_id: str = ""  # a volume's: names this run's use of it to its driver
    subpath: str = ""  # the part of the volume or image that is shown
    image_id: str = ""  # of an image mount; `chain_id` is its top layer
    chain_id: str = ""
    idmap: str = ""  # owners shifted: "container:host:count", several apart by commas
    tmpfs_flag: bool = False  # asked by --tmpfs, which inspect does not list among the mounts


class ContainerRecord(msgspec.Struct):
    """Everything that must be remembered of a container."""

    id: str
    name: str
    created: int
    config: ContainerConfig
    host_config: HostConfig
    image_id: str
    image_ref: str
    path: str
    args: list[str]
    driver: str
    networking: NetworkingConfig | None = None
    manifest_digest: str = ""
    platform: str = "linux"
    mounts: list[MountPoint] = []
    state: State = msgspec.field(default_factory=State)
    endpoints: list[Endpoint] = []
    restart_count: int = 0
    manually_stopped: bool = False
    remove_volumes: bool = False  # a removal (or an unfinished creation) takes the anonymous volumes too
    log_path: str = ""
    resume: bool = False  # it ran when an edit began: a daemon that is killed meanwhile starts it


class Exec(Struct, eq=False):
    """A further process of a container, from its creation until the container is gone.

    lapsed: it never started, and the container's run that it was made for is over
    """

    id: str
    container_id: str
    process: dict[str, Any]
    tty: bool
    open_stdin: bool
    open_stdout: bool
    open_stderr: bool
    privileged: bool
    detach_keys: str
    user: str
    command: list[str]
    console_size: list[int] | None = None
    pid: int = 0
    running: bool = False
    started: bool = False
    lapsed: bool = False
    exit_code: int | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event)


class Container(Struct, eq=False):
    """A container in the daemon: its record and what lives only as long as the daemon does.

    `lock` serialises the verbs that change state. `pending` are clients that attached before the start.
    """

    record: ContainerRecord
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    task: Task | None = None
    execs: dict[str, Exec] = field(default_factory=dict)
    pending: list[tuple[AttachRequest, int]] = field(default_factory=list)
    exit_waiters: set[asyncio.Future[ExitStatus]] = field(default_factory=set)
    removal_waiters: set[asyncio.Future[ExitStatus]] = field(default_factory=set)
    stop_requested: bool = False
    restart_timer: asyncio.Task[None] | None = None
    health_loop: asyncio.Task[None] | None = None
    giving_up: asyncio.Task[None] | None = None  # the end of a run that is unhealthy
    opening: set[asyncio.Event] = field(default_factory=set)  # log readers that have not opened the files yet
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # set while no exit is being handled

    @property
    def id(self) -> str:
        """The container's 64-digit id."""
        return self.record.id

    @property
    def name(self) -> str:
        """The container's name, without a leading slash."""
        return self.record.name

    @property
    def state(self) -> State:
        """The record's state."""
        return self.record.state


def event_attributes(container: Container) -> dict[str, str]:
    """Return the actor attributes of a container's events: its labels, image and name."""
    config = container.record.config
    return {**(config.labels or {}), "image": config.image or "", "name": container.name}


def encode(record: ContainerRecord) -> bytes:
    """Return the record as it is stored."""
    return _encoder.encode(record)


def decode(data: bytes) -> ContainerRecord:
    """Read a stored record."""
    return _decoder.decode(data)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(ContainerRecord)
