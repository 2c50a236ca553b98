"""What the server needs of the engine: one small protocol per group of verbs.

Everything is decoded before it gets here, in the newest API version's terms: `ref` is a container's id, unique
id prefix or name as the client wrote it; results are `api.models` of the newest version (the server shapes them
for older clients). Failures are the kinds of `base.errors`; `NotModified` is the 304 of start and stop.

All coroutines run on the event loop and must not block it. A client that goes away cancels the coroutine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, Protocol

from msgspec import Struct

from dray.api import models
from dray.api.filters import Filters
from dray.api.requests import (
    AttachOptions,
    BuildOptions,
    BuildPruneOptions,
    CommitOptions,
    Connection,
    CreateOptions,
    Download,
    EditRequest,
    ImportOptions,
    LogOptions,
    PathStat,
    PingStatus,
    ProgressStream,
    RemoveOptions,
    Upload,
)
from dray.server.call import Call
from dray.server.httpserver import StreamResponse


class Containers(Protocol):
    """Containers as objects."""

    async def create(
        self,
        options: CreateOptions,
        config: models.ContainerConfig,
        host_config: models.HostConfig,
        networking_config: models.NetworkingConfig,
    ) -> models.ContainerCreateResponse:
        """Create a container. NotFound `No such image: x` makes clients pull; Conflict if the name is taken."""

    async def list_containers(
        self, *, all: bool, limit: int, size: bool, filters: Filters
    ) -> list[models.ContainerSummary]:
        """List containers, newest first; `limit` 0 is no limit, a limit implies `all`."""

    async def inspect(self, ref: str, *, size: bool) -> models.ContainerInspectResponse:
        """Return everything known of one container."""

    async def rename(self, ref: str, name: str) -> None:
        """Give a container another name."""

    async def update(self, ref: str, request: models.ContainerUpdateRequest) -> models.ContainerUpdateResponse:
        """Change resources and restart policy; zero values leave things as they are."""

    async def remove(self, ref: str, options: RemoveOptions) -> None:
        """Remove a container; Conflict if it runs and force is not set."""

    async def prune(self, filters: Filters) -> models.ContainerPruneReport:
        """Remove stopped containers."""

    async def top(self, ref: str, ps_args: str) -> models.ContainerTopResponse:
        """List the processes of a running container."""

    async def changes(self, ref: str) -> list[models.FilesystemChange]:
        """Compare a container's root filesystem with its image."""

    def stats(self, ref: str, *, stream: bool, one_shot: bool) -> AsyncIterator[models.ContainerStatsResponse]:
        """Yield resource usage, one record a second; a single record unless `stream`."""


class Lifecycle(Protocol):
    """Containers as processes."""

    async def start(self, ref: str, *, checkpoint: str, checkpoint_dir: str, detach_keys: str) -> None:
        """Start; NotModified if running already, Conflict if paused."""

    async def stop(self, ref: str, *, signal: str, timeout: int | None) -> None:
        """Stop; `timeout` in seconds, negative waits for ever, None is the container's own. NotModified if stopped."""

    async def restart(self, ref: str, *, signal: str, timeout: int | None) -> None:
        """Stop if running, then start."""

    async def kill(self, ref: str, *, signal: str) -> None:
        """Send a signal (name or number; empty is SIGKILL). Conflict if not running."""

    async def pause(self, ref: str) -> None:
        """Freeze all processes."""

    async def unpause(self, ref: str) -> None:
        """Let frozen processes run on."""

    async def wait(self, ref: str, condition: str) -> Awaitable[models.ContainerWaitResponse]:
        """Register for an exit and return the future result; nothing that happens after the return is missed.

        `condition` is `not-running`, `next-exit` or `removed`. The result is cancelled when the client goes.
        """

    async def resize(self, ref: str, height: int, width: int) -> None:
        """Set the size of a running container's terminal."""


class Checkpoints(Protocol):
    """Containers' processes, written down."""

    async def create(self, ref: str, name: str, *, directory: str, leave_running: bool) -> None:
        """Write a running container down; `directory` "" is the container's own."""

    def list_checkpoints(self, ref: str, *, directory: str) -> list[str]:
        """Return the names."""

    async def remove(self, ref: str, name: str, *, directory: str) -> None:
        """Remove one; NotFound."""


class Streams(Protocol):
    """Containers' output and input. The methods end when the socket is handed over, or later; not before."""

    async def attach(self, ref: str, options: AttachOptions, connection: Connection) -> None:
        """Hijack the connection and connect it to the container's streams."""

    async def logs(self, ref: str, options: LogOptions, connection: Connection) -> None:
        """Answer with `connection.chunked_response` and write the log to it."""


class Archives(Protocol):
    """Containers' files."""

    async def export(self, ref: str) -> Download:
        """Return the root filesystem as a tar stream."""

    async def stat(self, ref: str, path: str) -> PathStat:
        """Describe one path in a container."""

    async def read(self, ref: str, path: str) -> tuple[PathStat, Download]:
        """Return a path in a container as a tar stream."""

    async def write(
        self, ref: str, path: str, content: Upload, *, no_overwrite_dir_non_dir: bool, copy_uid_gid: bool
    ) -> None:
        """Unpack a tar stream (plain, gzip, bzip2, xz or zstd) into a directory of a container."""


class Execs(Protocol):
    """Further processes in running containers."""

    async def create(self, ref: str, config: models.ExecConfig) -> models.IDResponse:
        """Prepare an exec; Conflict if the container does not run or is paused."""

    async def start(self, id: str, options: models.ExecStartConfig, connection: Connection | None) -> None:
        """Run a prepared exec; `connection` is None when detached. A program that cannot be started is an error
        before the hijack and text in the stream after it."""

    async def inspect(self, id: str) -> models.ExecInspectResponse:
        """Return what is known of an exec."""

    async def resize(self, id: str, height: int, width: int) -> None:
        """Set the size of an exec's terminal."""


class Images(Protocol):
    """Images present on the host. `platform` arguments are the client's JSON text or `os/arch`, or empty."""

    async def list_images(
        self, *, all: bool, filters: Filters, shared_size: bool, manifests: bool, identity: bool
    ) -> list[models.ImageSummary]:
        """List images."""

    async def inspect(self, name: str, *, manifests: bool, platform: str) -> models.ImageInspect:
        """Return everything known of one image."""

    async def history(self, name: str, *, platform: str) -> list[models.ImageHistoryResponseItem]:
        """Return the steps that made an image, newest first."""

    async def attestations(
        self, name: str, *, platforms: tuple[str, ...], types: tuple[str, ...], statement: bool
    ) -> list[models.AttestationStatement]:
        """Return the attestations attached to an image."""

    async def tag(self, name: str, repo: str, tag: str) -> None:
        """Give an image one more name."""

    async def remove(
        self, name: str, *, force: bool, no_prune: bool, platforms: tuple[str, ...]
    ) -> list[models.ImageDeleteResponseItem]:
        """Remove a name, and the image with its last name."""

    async def prune(self, filters: Filters) -> models.ImagePruneReport:
        """Remove unused images."""

    async def commit(self, options: CommitOptions, config: models.ContainerConfig | None) -> models.IDResponse:
        """Make an image of a container."""


class Transfer(Protocol):
    """Images coming and going. `auth` is None when the client sent none (or nonsense, which is ignored)."""

    def pull(
        self, image: str, tag: str, *, platform: str, auth: models.AuthConfig | None, meta: Mapping[str, str]
    ) -> ProgressStream:
        """Pull one tag or digest, or all tags when `tag` is empty and `image` has none."""

    def push(
        self, name: str, tag: str, *, platform: str, auth: models.AuthConfig | None, meta: Mapping[str, str]
    ) -> ProgressStream:
        """Push one tag, or all when `tag` is empty."""

    def import_(self, options: ImportOptions, content: Upload) -> ProgressStream:
        """Make an image of a root filesystem's tar stream."""

    def load(self, content: Upload, *, quiet: bool, platforms: tuple[str, ...]) -> ProgressStream:
        """Load images from a docker archive or an OCI layout."""

    async def save(self, names: tuple[str, ...], *, platforms: tuple[str, ...]) -> Download:
        """Return images as one archive."""

    async def search(
        self, term: str, *, limit: int, filters: Filters, auth: models.AuthConfig | None
    ) -> list[models.ImageSearchResult]:
        """Search a registry."""

    async def distribution(self, name: str, *, auth: models.AuthConfig | None) -> models.DistributionInspect:
        """Ask a registry for an image's descriptor and platforms."""


class Builds(Protocol):
    """The builder."""

    def build(self, options: BuildOptions, context: Upload) -> ProgressStream:
        """Build an image; output flows while the context is still being read."""

    async def cancel(self, build_id: str) -> None:
        """Cancel the build of that id."""

    async def prune(self, options: BuildPruneOptions, filters: Filters) -> models.BuildPruneReport:
        """Remove build cache."""


class Networks(Protocol):
    """Networks."""

    async def create(self, request: models.NetworkCreateRequest) -> models.NetworkCreateResponse:
        """Create a network."""

    async def list_networks(self, filters: Filters) -> list[models.NetworkSummary]:
        """List networks."""

    async def inspect(self, ref: str, *, verbose: bool, scope: str) -> models.NetworkInspect:
        """Return everything known of one network."""

    async def remove(self, ref: str) -> None:
        """Remove a network that nothing is connected to."""

    async def connect(self, ref: str, request: models.NetworkConnectRequest) -> None:
        """Connect a container."""

    async def disconnect(self, ref: str, request: models.NetworkDisconnectRequest) -> None:
        """Disconnect a container."""

    async def prune(self, filters: Filters) -> models.NetworkPruneReport:
        """Remove unused networks."""


class Volumes(Protocol):
    """Volumes."""

    async def create(self, request: models.VolumeCreateRequest) -> models.Volume:
        """Create a volume, or return the one of that name and driver."""

    async def list_volumes(self, filters: Filters) -> models.VolumeListResponse:
        """List volumes."""

    async def inspect(self, name: str) -> models.Volume:
        """Return one volume."""

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove a volume; Conflict if it is in use."""

    async def prune(self, filters: Filters) -> models.VolumePruneReport:
        """Remove unused anonymous volumes, or all unused ones with the filter `all`."""


class VolumeTransfer(Protocol):
    """Volumes under other names, and their files."""

    async def rename(self, name: str, new: str) -> None:
        """Give a volume another name; Conflict while it is in use or if the name is taken."""

    async def export(self, name: str) -> Download:
        """Return a volume's files as a tar stream."""

    async def import_(self, name: str, content: Upload) -> models.Volume:
        """Unpack a tar into a new or empty volume; Conflict if it has files already."""


class System(Protocol):
    """The engine itself."""

    def ping(self) -> PingStatus:
        """Return what `_ping` tells; must be quick, it is on every client's path."""

    async def info(self) -> models.SystemInfo:
        """Describe the engine and its host."""

    async def version(self) -> models.SystemVersion:
        """Name the engine's version and its parts'."""

    async def disk_usage(self, *, types: tuple[str, ...], verbose: bool) -> models.DiskUsage:
        """Tell what takes disk space; `types` of container, image, volume, build-cache, empty for all."""

    async def authenticate(self, auth: models.AuthConfig) -> models.AuthResponse:
        """Try credentials against their registry; Unauthorized if it refuses them."""


class Events(Protocol):
    """What happens."""

    def subscribe(self, *, since: int, until: int, filters: Filters) -> AsyncIterator[models.EventMessage]:
        """Yield events, those since `since` first (Unix nanoseconds; 0: from now on), until `until` (0: for ever).

        The subscription holds from the call on, not from the first iteration.
        """


class Authorization(Protocol):
    """Who decides about requests. Both verbs raise Forbidden for a denial, Internal if nobody could decide."""

    async def request(self, call: Call, path: str) -> dict[str, Any]:
        """Decide about a request that is about to be handled; return what was shown, for `response`."""

    async def response(self, shown: dict[str, Any], response: StreamResponse) -> None:
        """Decide about its answer, before it is sent (a stream: after it has been)."""


class Editing(Protocol):
    """Changing containers that exist."""

    async def edit(self, ref: str, request: EditRequest) -> list[str]:
        """Change a container; return warnings."""


class Backends(Struct, kw_only=True):
    """Everything behind the API. A part that is None answers 501, naming what is missing.

    Fixed but for `authorization`, which follows a reload of the configuration.
    """

    system: System
    containers: Containers | None = None
    lifecycle: Lifecycle | None = None
    streams: Streams | None = None
    archives: Archives | None = None
    execs: Execs | None = None
    images: Images | None = None
    transfer: Transfer | None = None
    builds: Builds | None = None
    networks: Networks | None = None
    volumes: Volumes | None = None
    volume_transfer: VolumeTransfer | None = None
    events: Events | None = None
    authorization: Authorization | None = None
    editing: Editing | None = None
    checkpoints: Checkpoints | None = None
