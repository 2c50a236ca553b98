"""The one place that names every implementation: builds the house from a configuration, and serves it.

Order of start: records → shims found again → network put right → what ended is settled → sockets answer. Order of
stop: sockets close, and that is all: containers, their shims and the network stay as they are (`live-restore`),
unless the configuration says otherwise.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dray.base.errors import Conflict
from dray.base.files import remove_tree, write_atomic
from dray.daemon import subids, systemd
from dray.daemon.config import DaemonConfig
from dray.daemon.listening import listeners_of
from dray.daemon.registries import registry_settings, shown_by_info
from dray.daemon.settings import cdi_spec_dirs, defaults, network_config, runtimes
from dray.engine import apparmor, mapped, security
from dray.engine.archives import Archives
from dray.engine.checkpoints import Checkpoints
from dray.engine.commits import Commits
from dray.engine.containers import Containers
from dray.engine.control import Control
from dray.engine.creation import Creator, Defaults
from dray.engine.editing import Editor
from dray.engine.events import Events
from dray.engine.execs import ExecTable, ExecVerbs
from dray.engine.facts import FactFinder
from dray.engine.health import HealthChecks
from dray.engine.host import has_apparmor
from dray.engine.images import ImageVerbs
from dray.engine.launch import Launcher
from dray.engine.layout import Layout
from dray.engine.lifecycle import Lifecycle
from dray.engine.model import ContainerRecord
from dray.engine.mountsources import MountSources, owner_of_key
from dray.engine.networks import NetworkVerbs
from dray.engine.peers import Peers
from dray.engine.registry import Registry
from dray.engine.remap import Remap
from dray.engine.spec import machine
from dray.engine.streams import Streams
from dray.engine.supervision import Supervisor
from dray.engine.system import Settings, System
from dray.engine.transfers import Transfers
from dray.engine.volumes import VolumeVerbs
from dray.engine.volumetransfer import VolumeTransfer
from dray.linux import cgroups
from dray.linux.cgroups import capabilities
from dray.network.controller import Controller
from dray.network.dns.service import Service
from dray.plugins.registry import Plugins
from dray.registry.remote import RemoteRegistries
from dray.server.authorization import AuthorizationPlugins
from dray.server.backends import Backends
from dray.server.listeners import Servers, refuse_taken
from dray.shim.spawn import Zygote
from dray.shim.tasks import Tasks
from dray.store.content import ContentStore
from dray.store.drivers import open_driver
from dray.store.images import Images
from dray.store.metadata import Metadata
from dray.volumes.local import Volumes
from dray.volumes.table import VolumeTable

if TYPE_CHECKING:
    from dray.store.recipes.discarding import Discarder

log = logging.getLogger("dray.daemon")


class House:
    """Everything of one daemon, built but not yet started."""

    def __init__(self, config: DaemonConfig, zygote: Zygote) -> None:
        self.config = config
        self.machine_goes_down = False  # then no container runs on
        self.discarder: Discarder | None = None
        self._loop = asyncio.get_running_loop()
        self.layout = Layout(config["data-root"], config["exec-root"])
        self.layout.prepare()
        root = self.layout.data_root
        self.limits = capabilities()
        self.remap = Remap(subids.resolve(config["userns-remap"]))
        self.metadata = Metadata(self.layout.database)
        self.snapshots = open_driver(root, self.metadata, config["storage-driver"])
        self.content = ContentStore(f"{root}/content")
        self.events = Events()
        self.images = Images(self.metadata, self.content, self.snapshots, on_event=self._image_event)
        self.volumes = Volumes(f"{root}/volumes", self.metadata, owner=self.remap.owner)
        self.plugins = Plugins()
        self.volume_table = VolumeTable(self.volumes, self.plugins, self.metadata)
        self.sources = MountSources(self.volume_table, self.snapshots, self.remap)
        self.controller = Controller(self.metadata, network_config(config, self.remap.maps), zygote, self.plugins)
        self.registry = Registry(self.metadata)
        self.registries = RemoteRegistries(registry_settings(config.values, file=config.file))
        settings = defaults(config)
        self.resolver = Service(zygote, config["exec-root"])
        self.peers = Peers(self.registry, self.layout, settings, self.resolver)
        self.execs = ExecTable(
            self.registry, self.events, self.layout, machine.read(self.limits.version).capabilities
        )
        self.health = HealthChecks(self.registry, self.execs, self.events)
        self.tasks = Tasks(zygote)
        launcher = Launcher(
            self.registry,
            self.events,
            self.tasks,
            self.controller,
            self.snapshots,
            self.sources,
            self.volume_table,
            self.layout,
            settings,
            FactFinder(self.registry, self.snapshots, self.layout, settings, cgroup_version=self.limits.version),
            self.peers,
            self.remap,
        )
        self.lifecycle = Lifecycle(
            self.registry,
            self.events,
            launcher,
            self.controller,
            self.snapshots,
            self.peers,
            default_stop_timeout=config["default-stop-timeout"],
            removed=self._container_removed,
        )
        self.supervisor = Supervisor(
            self.registry, self.lifecycle, self.execs, self.health, self.events, self.layout
        )
        self.tasks.listener = self.supervisor
        self.lifecycle.started = self.health.start
        self.health.restart = self.lifecycle.restart_unhealthy
        self.zygote = zygote
        commits = Commits(self.images, self.registry, self.lifecycle, self.snapshots, self.events)
        self.image_verbs = ImageVerbs(self.images, self.registry, self.events, commits)
        self.volume_verbs = VolumeVerbs(self.volume_table, self.registry, self.events)
        self._defaults = settings
        self.backends = self._backends(settings)

    def _backends(self, settings: Defaults) -> Backends:
        creator = Creator(
            self.registry,
            self.image_verbs,
            self.snapshots,
            self.volume_table,
            self.controller,
            self.events,
            self.layout,
            settings,
            limits=self.limits,
            remap=self.remap,
        )
        containers = Containers(
            self.registry, creator, self.lifecycle, self.image_verbs, self.snapshots, self.events, self.layout
        )
        self._transfers = Transfers(
            self.images,
            self.registries,
            downloads=self.config["max-concurrent-downloads"],
            uploads=self.config["max-concurrent-uploads"],
            download_attempts=self.config["max-download-attempts"],
        )
        self._system = System(
            self.registry,
            containers,
            self.image_verbs,
            self.volume_verbs,
            self.plugins,
            self._settings(settings),
            self.registries,
            limits=self.limits,
            listeners=lambda: self.events.listeners,
        )
        checkpoints = Checkpoints(
            self.registry,
            self.lifecycle,
            self.events,
            self.layout,
            self.zygote,
            lambda: self.config["experimental"],
        )
        return Backends(
            system=self._system,
            containers=containers,
            lifecycle=Control(self.registry, self.lifecycle, self.events, checkpoints),
            checkpoints=checkpoints,
            streams=Streams(self.registry, self.events, self.zygote, self.layout),
            archives=Archives(self.registry, self.snapshots, self.sources, self.events, self.layout, self.remap),
            execs=ExecVerbs(self.registry, self.execs),
            images=self.image_verbs,
            transfer=self._transfers,
            networks=NetworkVerbs(self.controller, self.registry, self.events, self.peers),
            volumes=self.volume_verbs,
            volume_transfer=VolumeTransfer(self.volume_table, self.registry, self.events),
            events=self.events,
            authorization=self._authorization(),
            editing=Editor(
                self.registry,
                creator,
                self.lifecycle,
                self.events,
                limits=self.limits,
                cpus=len(os.sched_getaffinity(0)),
            ),
        )

    def _authorization(self) -> AuthorizationPlugins | None:
        names = self.config["authorization-plugins"]
        return AuthorizationPlugins(names, self.plugins) if names else None

    def _settings(self, settings: Defaults) -> Settings:
        config = self.config
        return Settings(
            id=_engine_id(self.layout),
            data_root=self.layout.data_root,
            storage_driver=self.snapshots.name,
            logging_driver=settings.log_driver,
            default_runtime=settings.runtime,
            runtimes=settings.runtimes,
            labels=config["labels"],
            experimental=config["experimental"],
            debug=config.log_level == "debug",
            live_restore=config["live-restore"],
            min_api_version=config["min-api-version"],
            security_options=_security_options(config),
            authorization=config["authorization-plugins"],
            cdi_spec_dirs=cdi_spec_dirs(config),
            address_pools=[(pool["base"], int(pool["size"])) for pool in config["default-address-pools"]],
            **shown_by_info(self.registries.settings),
        )

    @property
    def engine_id(self) -> str:
        """The engine's id, as `info` tells it."""
        return _engine_id(self.layout)

    @property
    def hostname(self) -> str:
        """The machine's name."""
        return os.uname().nodename

    def apply(self, config: DaemonConfig) -> None:
        """Take over a configuration that differs in what `reload.RELOADABLE` names."""
        self.config = config
        names = {"debug": logging.DEBUG, "warn": logging.WARNING, "fatal": logging.CRITICAL}
        level = config.log_level
        logging.getLogger().setLevel(names.get(level) or getattr(logging, level.upper()))
        self.registries.settings = registry_settings(config.values, file=config.file)
        self._defaults.runtime = config["default-runtime"]
        self._defaults.runtimes.clear()
        self._defaults.runtimes.update(runtimes(config))
        self._defaults.cdi_spec_dirs[:] = cdi_spec_dirs(config)
        self._transfers.set_limits(
            downloads=config["max-concurrent-downloads"],
            uploads=config["max-concurrent-uploads"],
            download_attempts=config["max-download-attempts"],
        )
        self._system.settings = self._settings(self._defaults)
        self.backends.authorization = self._authorization()

    def _container_removed(self, record: ContainerRecord) -> None:
        """The layers of an image that was removed by force go with its last container."""
        if not self.image_verbs.exists(record.image_id):
            self.lifecycle.later(asyncio.to_thread(self.images.collect))

    def _image_event(self, action: str, actor: str, attributes: Mapping[str, str]) -> None:
        """Hand an image's event, from whatever thread, to the loop."""
        self._loop.call_soon_threadsafe(self.events.publish, "image", action, actor, attributes)

    async def start(self) -> None:
        """Bring back everything that was acknowledged earlier; afterwards the engine may be asked."""
        self.registry.load(self.snapshots.name)
        self._refuse_orphans()
        if has_apparmor():
            await asyncio.to_thread(apparmor.ensure)
        ended = await self.supervisor.reattach(self.tasks)
        await self.remap.open(self.zygote)
        await asyncio.to_thread(mapped.check, self.layout.data_root, self.snapshots.name, self.remap)
        live = {one.id: one for one in self.registry if one.state.running and one.task is not None}
        halfway = await self.controller.start(
            {key: one.record.endpoints for key, one in live.items()},
            pids={key: one.state.pid for key, one in live.items()},
        )
        await self.peers.adopt(halfway)
        self._adopt_volumes()
        await self.supervisor.settle(ended)
        self.lifecycle.later(self._warm())
        self._sweep()
        self.lifecycle.later(asyncio.to_thread(self._repair_images))

    def _repair_images(self) -> None:
        self.images.repair()
        if self.config["discard-compressed-layers"]:
            from dray.store.recipes.discarding import Discarder

            discarder = Discarder(self.images, self.metadata)
            self.images.written = discarder.wake
            self.discarder = discarder
            self._system.layers_status = discarder.summary
            discarder.start()

    def _refuse_orphans(self) -> None:
        """Refuse to leave running containers of another storage driver without a daemon."""
        running = [
            record
            for record in self.registry.hidden
            if record.state.running and os.path.exists(self.layout.task(record.id))
        ]
        if running:
            names = ", ".join(record.name for record in running)
            raise Conflict(
                f"containers of storage driver {running[0].driver} are running ({names}): stop them under "
                f"--storage-driver={running[0].driver} before you use {self.snapshots.name}"
            )

    def _adopt_volumes(self) -> None:
        """Take over the volumes of containers that ran; what no container has is unmounted."""
        running: dict[str, dict[str, str]] = {}
        for one in self.registry:
            if one.state.running:
                for point in one.record.mounts:
                    if point.mount_id:
                        running.setdefault(point.name, {})[point.mount_id] = one.id
        self.volume_table.adopt(running)
        self.volumes.release_unused(running)

    async def _warm(self) -> None:
        """Have the default seccomp profile compiled before the first container wants it."""
        facts = machine.read(self.limits.version)
        names = tuple(security.capabilities([], [], available=facts.capabilities))
        await self.zygote.warm(security.default_seccomp(names, facts.architecture, facts.kernel))

    def _sweep(self) -> None:
        """Remove what creations and removals that a killed daemon left half-done have on disk."""
        known = {container.id for container in self.registry} | {record.id for record in self.registry.hidden}
        for info in self.snapshots.list():
            if info.kind != "committed" and owner_of_key(info.key) not in known:
                self.snapshots.remove(info.key)
        for name in os.listdir(self.layout.containers):
            if name not in known:
                os.rename(self.layout.container(name), self.layout.container_trash(name))
        self.lifecycle.later(asyncio.to_thread(_empty, self.layout.trash))

    async def stop(self) -> None:
        """Let go of everything; containers are stopped if `live-restore` is off, or the whole machine goes down."""
        if not self.config["live-restore"] or self.machine_goes_down:
            await self.lifecycle.shut_down(self.config["shutdown-timeout"])
        await self.lifecycle.finish_ends()
        await self.supervisor.stop()
        idle = not any(one.state.running for one in self.registry)
        await self.resolver.stop(end=idle)
        await self.controller.close(wipe=idle)
        self.remap.close()
        if idle:
            cgroups.prune(self.config["cgroup-parent"] or "/dray")
        if self.discarder is not None:
            await asyncio.to_thread(self.discarder.close)
        await asyncio.to_thread(self.snapshots.close)
        self.metadata.close()


def _empty(directory: str) -> None:
    for name in os.listdir(directory):
        remove_tree(f"{directory}/{name}")


def _security_options(config: DaemonConfig) -> list[str]:
    """Return what `info` says of the kernel's confinement, in dockerd's order and form."""
    found = ["name=apparmor"] if has_apparmor() else []
    found.append(f"name=seccomp,profile={config['seccomp-profile']}")
    if config["userns-remap"]:
        found.append("name=userns")
    if os.path.exists("/proc/self/ns/cgroup"):
        found.append("name=cgroupns")
    if config["no-new-privileges"]:
        found.append("name=no-new-privileges")
    return found


def _engine_id(layout: Layout) -> str:
    """Return the engine's id, made once per data root."""
    import uuid

    path = Path(layout.data_root, "engine-id")
    if not path.exists():
        write_atomic(path, str(uuid.uuid4()).encode())
    return path.read_text()


async def serve(config: DaemonConfig, zygote: Zygote) -> int:
    """Run the daemon until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    loop.add_signal_handler(signal.SIGHUP, log.info, "still starting, with the configuration just read")
    listeners = listeners_of(config)
    refuse_taken(listeners)
    house = House(config, zygote)
    servers = Servers(house.backends)
    try:
        await house.start()
        await servers.listen(listeners)
        gc.freeze()
        gc.enable()
        for address in servers.addresses:
            log.info("API listen on %s", address)
        loop.add_signal_handler(signal.SIGHUP, _reload, house)
        systemd.notify("READY=1")
        await done.wait()
        house.machine_goes_down = await asyncio.to_thread(systemd.machine_goes_down)
        run_on = house.config["live-restore"] and not house.machine_goes_down
        log.info("shutting down; containers %s", "run on" if run_on else "are stopped")
        systemd.notify("STOPPING=1")
    finally:
        await servers.close()
        await house.stop()
    return 0


def _reload(house: House) -> None:
    from dray.daemon.reload import reload

    systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    reload(house)
    systemd.notify("READY=1")
