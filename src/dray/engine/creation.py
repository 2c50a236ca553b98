"""Creating a container: from the ask to a written record.

The steps are reversible and stand on one exit stack: name → snapshot → volumes → record. Nothing is left of a
creation that fails, and a daemon killed in the middle leaves nothing that is listed (an unlisted snapshot is
removed at the next start).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from msgspec import Struct, field

from dray.api import models as api
from dray.api.requests import CreateOptions
from dray.base import digest
from dray.base.errors import Conflict, InvalidParameter, NotFound, Unsupported
from dray.base.files import remove_tree
from dray.engine import clock, initfiles, links, mapped, merge, mounts, names, rootfs, updating, validate
from dray.engine.events import Events
from dray.engine.images import ImageVerbs, container_config
from dray.engine.layout import Layout
from dray.engine.model import Container, ContainerRecord, MountPoint
from dray.engine.mountsources import view_key
from dray.engine.registry import Registry
from dray.engine.remap import Remap
from dray.engine.validate.options import restart_policy, storage_size
from dray.linux.cgroups.facilities import Capabilities
from dray.logs import registry as log_drivers
from dray.network.controller import Controller
from dray.store.snapshots import SizedSnapshots, Snapshots
from dray.volumes.local import ANONYMOUS, copy_up
from dray.volumes.table import VolumeTable


class Defaults(Struct, kw_only=True):
    """What the daemon's configuration gives to containers that do not say. `runtime`, `runtimes` and `cdi_spec_dirs`
    follow a reload of the configuration; the others are fixed."""

    runtime: str = "dray"
    runtimes: dict[str, Any] = field(default_factory=dict)
    log_driver: str = "json-file"
    log_opts: dict[str, str] = field(default_factory=dict)
    shm_size: int = 64 << 20
    ipc_mode: str = "private"
    cgroupns_mode: str = "private"
    no_new_privileges: bool = False
    ulimits: dict[str, Any] = field(default_factory=dict)
    seccomp_profile: str = "builtin"
    cgroup_parent: str = ""
    dns: list[str] = field(default_factory=list)
    dns_search: list[str] = field(default_factory=list)
    dns_options: list[str] = field(default_factory=list)
    network: str = "bridge"
    init: bool = False
    init_path: str = ""
    host_gateways: list[str] = field(default_factory=list)
    resolv_conf: str = "/etc/resolv.conf"
    cdi_spec_dirs: list[str] = field(default_factory=list)


class Creator:
    """Makes containers."""

    def __init__(
        self,
        registry: Registry,
        images: ImageVerbs,
        snapshots: Snapshots,
        volumes: VolumeTable,
        networks: Controller,
        events: Events,
        layout: Layout,
        defaults: Defaults,
        *,
        limits: Capabilities,
        remap: Remap,
    ) -> None:
        self._registry = registry
        self._images = images
        self._snapshots = snapshots
        self._volumes = volumes
        self._networks = networks
        self._layout = layout
        self._defaults = defaults
        self._events = events
        self._limits = limits
        self._remap = remap
        self._cpus = len(os.sched_getaffinity(0))
        self._working_directories: set[tuple[str | None, str]] = set()  # that images have: chain id, path

    async def create(
        self,
        options: CreateOptions,
        config: api.ContainerConfig,
        host: api.HostConfig,
        networking: api.NetworkingConfig,
    ) -> tuple[Container, list[str]]:
        """Create a container; return it with warnings for the user."""
        host = self._with_defaults(host)
        warnings = validate.validate(config, host, self._limits, cpus=self._cpus)
        self._remap.check(host)
        if not config.image:
            merge.command(config)  # there being no command is what dockerd complains of then
        image = self._images.find(config.image, options.platform)
        merged = merge.merged(config, container_config(image))
        await self._images.ready(image)
        path, args = merge.command(merged)
        container_id = digest.new_id()
        merged.hostname = merged.hostname or self._hostname(host, container_id)
        points = mounts.resolve(merged, host, mounts_of=lambda ref: self._other(ref).record.mounts)
        await self._find_images(points)
        self._check_references(host)
        async with AsyncExitStack() as undo:
            name = options.name or names.random_name(self._registry.is_taken)
            self._registry.reserve(name, container_id)
            undo.callback(self._registry.release, name.removeprefix("/"))
            record = ContainerRecord(
                id=container_id,
                name=name.removeprefix("/"),
                created=clock.now(),
                config=merged,
                host_config=host,
                networking=self._networking(networking, host.network_mode),
                image_id=image.id,
                image_ref=config.image,
                manifest_digest=image.manifest,
                path=path,
                args=args,
                driver=self._snapshots.name,
                mounts=points,
            )
            directory = self._layout.container(container_id)
            if host.log_config.type != "none":
                record.log_path = f"{directory}/{container_id}-json.log"
            self._announce(record, undo)
            os.mkdir(directory, 0o700)
            undo.callback(remove_tree, directory)
            self._snapshots.prepare(container_id, image.chain_id)
            undo.callback(self._snapshots.remove, container_id)
            if size := storage_size(host):
                self._limit(container_id, size)
            initfiles.mark(self._snapshots.upper(container_id))
            self._make_working_directory(record, image.chain_id)
            await self._prepare_mounts(record, undo)
            record.state.status, record.remove_volumes = "created", False
            container = Container(record)
            undo.callback(self._registry.remove, container)
            self._registry.add(container)
            await self._registry.sync()
            undo.pop_all()
        for point in points:  # from here on the record tells who uses them
            if point.type == "volume":
                self._volumes.let_go(point.name, container_id)
        return container, warnings

    def check_update(self, request: api.ContainerUpdateRequest) -> list[str]:
        """Check an update as a creation is checked; return warnings. What this machine cannot limit is taken out."""
        asked = api.HostConfig(**{name: getattr(request, name) for name in updating.UPDATABLE})
        warnings = validate.validate_resources(asked, self._limits, cpus=self._cpus, update=True)
        for name in updating.UPDATABLE:
            setattr(request, name, getattr(asked, name))
        restart_policy(request.restart_policy)
        return warnings

    async def _find_images(self, points: list[MountPoint]) -> None:
        """Find the images that are to be mounted, and have their layers unpacked."""
        for point in points:
            if point.type == "image":
                image = self._images.find(point.source)
                await self._images.ready(image)
                point.image_id, point.chain_id = image.id, image.chain_id or ""

    def _limit(self, key: str, size: int) -> None:
        """Limit what the container may write, where the storage driver can."""
        if not isinstance(self._snapshots, SizedSnapshots):
            raise Unsupported(f"--storage-opt size is not supported by the storage driver {self._snapshots.name}")
        self._snapshots.limit(key, size)

    def _make_working_directory(self, record: ContainerRecord, chain_id: str | None) -> None:
        """Make the working directory if the image has none, so that files can be copied there before the start.

        With mapped owners it is the start that makes it.
        """
        path = record.config.working_dir
        known = (chain_id, path)
        if path in ("", "/") or known in self._working_directories or self._remap.maps_of(record.host_config):
            return
        layers = self._snapshots.mounts(record.id)
        with rootfs.mounted(layers) as root:
            try:
                os.close(rootfs.open_in(root, path, os.O_PATH))
            except FileNotFoundError:
                pass
            except OSError:
                return  # the start has the words for it
            else:
                self._working_directories.add(known)
                return
        with rootfs.mounted(layers, read_only=False) as root, contextlib.suppress(OSError):
            rootfs.make_directories(root, path)

    def _announce(self, record: ContainerRecord, undo: AsyncExitStack) -> None:
        """Write a creation that makes anonymous volumes down as a removal, which it is until it succeeds: a daemon
        killed in between finishes it, volumes included."""
        fresh = [point for point in record.mounts if point.type == "volume" and not point.name]
        for point in fresh:
            point.name, point.anonymous = digest.new_id(), True
        if fresh:
            record.state.status, record.remove_volumes = "removing", True
            self._registry.save(Container(record))
            undo.callback(self._registry.remove, Container(record))

    def _with_defaults(self, ask: api.HostConfig) -> api.HostConfig:
        """Fill in the daemon's defaults, as inspect shows them."""
        defaults = self._defaults
        host = msgspec.structs.replace(ask)
        if host.network_mode in ("", "default"):
            host.network_mode = defaults.network
        host.ipc_mode = host.ipc_mode or defaults.ipc_mode
        if not host.cgroupns_mode:
            host.cgroupns_mode = defaults.cgroupns_mode
        host.shm_size = host.shm_size or defaults.shm_size
        host.runtime = host.runtime or defaults.runtime
        if host.runtime != "dray" and host.runtime not in defaults.runtimes:
            raise InvalidParameter(f"unknown or invalid runtime name: {host.runtime}")
        driver = host.log_config.type or defaults.log_driver
        options = host.log_config.config
        if not host.log_config.type or (driver == defaults.log_driver and not options):
            options = {**defaults.log_opts, **options}
        log_drivers.validate(driver, options)
        host.log_config = api.LogConfig(type=driver, config=options)
        if host.memory > 0 and host.memory_swap == 0:
            host.memory_swap = 2 * host.memory
        host.oom_kill_disable = bool(host.oom_kill_disable)
        host.restart_policy = msgspec.structs.replace(host.restart_policy, name=host.restart_policy.name or "no")
        return host

    def _networking(self, ask: api.NetworkingConfig, mode: str) -> api.NetworkingConfig | None:
        """Return the ask about networks by the networks' names; `default` is what the mode says."""
        named: dict[str, api.EndpointSettings] = {}
        for word, settings in (ask.endpoints_config or {}).items():
            name = mode if word == "default" else word
            if not name.startswith("container:"):
                with contextlib.suppress(
                    NotFound
                ):  # a network that is not there is an error at start, as in Docker
                    name = self._networks.resolve(name).name
                named[name] = settings
        return api.NetworkingConfig(endpoints_config=named) if named else None

    @staticmethod
    def _hostname(host: api.HostConfig, container_id: str) -> str:
        if host.network_mode == "host" or host.uts_mode == "host":
            return os.uname().nodename
        return container_id[:12]

    def _check_references(self, host: api.HostConfig) -> None:
        """Containers whose processes are to be seen, or that are linked to (by id from here on), must exist. One whose network is to be
        joined may still be made before the start, as in dockerd."""
        for mode in (host.ipc_mode, host.pid_mode):
            if mode.startswith("container:"):
                self._other(mode.removeprefix("container:"))
        if host.network_mode in links.DEFAULT_NETWORK:
            for index, text in enumerate(host.links or ()):
                assert host.links is not None
                name, alias = links.parse(text)
                try:
                    child = self._other(name)
                except InvalidParameter as error:
                    raise InvalidParameter(f"could not get container for {name}: {error}") from error
                while (mode := child.record.host_config.network_mode).startswith("container:"):
                    child = self._other(mode.removeprefix("container:"))  # whose network it is
                if mode == "host":
                    raise InvalidParameter(
                        "conflicting options: host type networking can't be used with links. This would result in "
                        "undefined behavior"
                    )
                host.links[index] = f"{child.id}:{alias}"

    def _other(self, reference: str) -> Container:
        """Find a container that a creation names. InvalidParameter if there is none: to NotFound, which dockerd does
        not answer here either, clients pull the image."""
        try:
            return self._registry.find(reference)
        except NotFound as error:
            raise InvalidParameter(str(error)) from error

    async def _prepare_mounts(self, record: ContainerRecord, undo: AsyncExitStack) -> None:
        """Create the volumes a container asks for, filled from the image where it has content there."""
        for index, point in enumerate(record.mounts):
            if point.type == "volume":
                await self._prepare_volume(record, point, undo)
            elif point.type == "image":
                self._snapshots.prepare(view_key(record.id, index), point.chain_id or None, read_only=True)
                undo.callback(self._snapshots.remove, view_key(record.id, index))
            elif point.type == "bind" and not point.create_source and not os.path.lexists(point.source):
                raise _no_source(point)
        fresh = [point for point in record.mounts if point.type == "volume" and point.copy and not point.subpath]
        if fresh:
            await self._fill(record, fresh)

    async def add_mounts(self, record: ContainerRecord, fresh: list[MountPoint], undo: AsyncExitStack) -> None:
        """Create the volumes that a stopped container is to have besides its own (`let_go` them afterwards)."""
        for point in fresh:
            if point.type == "volume":
                await self._prepare_volume(record, point, undo)
            elif point.type == "bind" and not point.create_source and not os.path.lexists(point.source):
                raise _no_source(point)
        filled = [point for point in fresh if point.type == "volume" and point.copy and not point.subpath]
        if filled:
            await self._fill(record, filled)

    def let_go(self, point: MountPoint, container_id: str) -> None:
        """Leave it to the container's record to tell that a new mount's volume is used."""
        if point.type == "volume":
            self._volumes.let_go(point.name, container_id)

    async def _prepare_volume(self, record: ContainerRecord, point: MountPoint, undo: AsyncExitStack) -> None:
        options = next((mount.volume_options for mount in record.host_config.mounts
                        if mount.target == point.destination), None)  # fmt: skip
        labels = dict(options.labels) if options else {}
        driver_options = dict(options.driver_config.options) if options and options.driver_config else {}
        if point.anonymous:
            labels[ANONYMOUS] = ""
        volume, made = await self._volumes.create(
            point.name, driver=point.driver, options=driver_options, labels=labels, holder=record.id
        )
        undo.callback(self._volumes.let_go, volume.name, record.id)
        if made:
            undo.push_async_callback(self._take_back, volume.name, record.id)
            self._events.publish("volume", "create", volume.name, {"driver": volume.driver})
        point.name, point.source, point.driver = volume.name, volume.mountpoint, volume.driver

    async def _take_back(self, name: str, holder: str) -> None:
        """Remove a volume that was made for a container whose creation failed."""
        self._volumes.let_go(name, holder)
        with contextlib.suppress(Conflict):  # another container has found it meanwhile
            await self._volumes.remove(name, force=True)

    async def _fill(self, record: ContainerRecord, points: list[MountPoint]) -> None:
        """Copy what the image has at a new volume's place into it; only volumes whose place the image has are
        mounted for that."""
        wanted = await asyncio.to_thread(self._filled_places, record, points)
        async with AsyncExitStack() as undo:
            sources = []
            for point in wanted:
                mounted = self._volumes.mounted(point.name, user=record.id)
                sources.append(await undo.enter_async_context(mounted))
            if wanted:
                await asyncio.to_thread(self._copy_up, record, wanted, sources)

    def _filled_places(self, record: ContainerRecord, points: list[MountPoint]) -> list[MountPoint]:
        found = []
        with rootfs.mounted(self._snapshots.mounts(record.id)) as root:
            for point in points:
                with contextlib.suppress(OSError):  # the image has nothing there
                    os.close(rootfs.open_in(root, point.destination, os.O_RDONLY | os.O_DIRECTORY))
                    found.append(point)
        return found

    def _copy_up(self, record: ContainerRecord, points: list[MountPoint], sources: list[str]) -> None:
        layers = self._snapshots.mounts(record.id)
        shifted = self._remap.maps_of(record.host_config) is not None  # volumes have the ids of the host
        with mapped.mounted(layers[0], self._remap) if shifted else rootfs.mounted(layers) as root:
            for point, volume in zip(points, sources, strict=True):
                try:
                    source = rootfs.open_in(root, point.destination, os.O_RDONLY | os.O_DIRECTORY)
                except OSError:
                    continue  # the image has nothing there
                try:
                    copy_up(volume, source)
                finally:
                    os.close(source)


def _no_source(point: MountPoint) -> InvalidParameter:
    return InvalidParameter(
        f'invalid mount config for type "bind": bind source path does not exist: {point.source}'
    )
