"""Launching a container: the reversible steps from a record to a running task.

volumes → network → files → spec → task. Each step puts its undoing on the caller's exit stack; the caller pops
them all once the task runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from dray.api import models as api
from dray.base import failpoints
from dray.base.errors import Conflict, InvalidParameter
from dray.base.files import remove_tree
from dray.engine import links, shm, spec
from dray.engine.creation import Defaults
from dray.engine.events import Events
from dray.engine.facts import FactFinder
from dray.engine.laps import Laps
from dray.engine.layout import Layout
from dray.engine.model import Container, ContainerRecord, MountPoint
from dray.engine.mountsources import MountSources, unpin, view_key
from dray.engine.peers import Peers
from dray.engine.registry import Registry
from dray.engine.remap import ROOT, Remap, UserNamespace
from dray.engine.sandbox import sandbox_ask
from dray.engine.validate.options import storage_size
from dray.logs import attributes
from dray.network import containerfiles, hostfiles
from dray.network.controller import Controller
from dray.network.model import Attachment, Endpoint
from dray.runtime.model import Mount
from dray.runtime.served import FUSE_OVERLAY, mapping_words
from dray.shim.model import LogSpec, MountSpec, TaskCreate
from dray.shim.tasks import Task, Tasks
from dray.store.snapshots import SizedSnapshots, Snapshots
from dray.volumes.table import VolumeTable

log = logging.getLogger(__name__)

_MOUNT_ROOM = 256 << 10  # bytes: what xfs reserves for a directory, and some more


class Launcher:
    """Turns records into tasks."""

    def __init__(
        self,
        registry: Registry,
        events: Events,
        tasks: Tasks,
        networks: Controller,
        snapshots: Snapshots,
        sources: MountSources,
        volumes: VolumeTable,
        layout: Layout,
        defaults: Defaults,
        facts: FactFinder,
        peers: Peers,
        remap: Remap,
    ) -> None:
        self._registry = registry
        self._events = events
        self._tasks = tasks
        self._networks = networks
        self._snapshots = snapshots
        self._sources = sources
        self._volumes = volumes
        self.layout = layout
        self._defaults = defaults
        self._facts = facts
        self._peers = peers
        self._remap = remap

    async def launch(
        self, container: Container, undo: AsyncExitStack, *, checkpoint: str = ""
    ) -> tuple[Task, list[Endpoint]]:
        """Start a container's task, from a checkpoint's folder if one is named; return it and the endpoints it got."""
        record = container.record
        laps = Laps()
        user = self._remap.of(record, self._registry.find)
        owner = ROOT if user is None else user.maps.root
        # In networks with names a link is a name that the resolver knows, and part of the endpoint.
        linked = links.resolve(record, self._registry.get)
        undo.push_async_callback(self._sources.release, record)
        await self._sources.prepare(record)
        laps.lap("mounts")
        failpoints.reach("start.mounts")
        attachment = await self._networks.attach(record.id, sandbox_ask(record, user))
        laps.lap("network")
        undo.push_async_callback(self._networks.detach, record.id, attachment.endpoints)
        _remember_networks(record, attachment.endpoints)
        try:
            resolving = self._peers.resolving(record, attachment.endpoints)
            resolver = self._peers.open(record, attachment, resolving)
            undo.callback(self._peers.gone, record.id, attachment.endpoints)
            if resolver is not None:
                await asyncio.sleep(0)  # it is asked now, and made while we go on
            self._write_files(record, attachment, linked, resolving, owner=owner)
            laps.lap("files")
            run_dir = self.layout.task(record.id)
            _clear(run_dir)
            os.makedirs(f"{run_dir}/rootfs", 0o700)
            undo.callback(_clear, run_dir)
            if record.host_config.ipc_mode == "shareable":
                shm.mount(run_dir, record.host_config.shm_size, owner)
                undo.callback(shm.unmount, run_dir)
            mounts = self._sources.pinned(record, run_dir, mapped=user is not None)
            self._write_spec(run_dir, self._spec(record, attachment, linked, mounts, user))
            laps.lap("spec")
            failpoints.reach("start.files")
            request, descriptors = self._request(record, attachment, run_dir, user)
            if checkpoint:
                request = msgspec.structs.replace(request, restore=checkpoint)
            if resolver is not None:
                await resolver  # it was being made meanwhile
            laps.lap("names")
            failpoints.reach("start.named")
            pending, container.pending = container.pending, []
            with self._room_to_mount(record):
                task = await self._tasks.create(request, descriptors=descriptors, attachments=pending)
            if mounts is not record.mounts:
                unpin(run_dir)  # the container has its own clones
        finally:
            attachment.close()
        laps.lap("task")
        failpoints.reach("start.task")
        log.debug("start of %s: %s", record.name, laps)
        for endpoint in attachment.endpoints:
            self._network_event("connect", record, endpoint)
        for point in record.mounts:
            if point.type == "volume":
                self._volume_event("mount", record, point)
        return task, attachment.endpoints

    @contextlib.contextmanager
    def _room_to_mount(self, record: ContainerRecord) -> Iterator[None]:
        """Let a container of limited size have a little more meanwhile: overlayfs makes a directory when it is
        mounted, and one that is full would come up read-only, so that nobody could remove anything from it."""
        size = storage_size(record.host_config)
        if not size or not isinstance(self._snapshots, SizedSnapshots):
            yield
            return
        self._snapshots.resize(record.id, size + _MOUNT_ROOM)
        try:
            yield
        finally:
            self._snapshots.resize(record.id, size)

    # -- files ---------------------------------------------------------------------------------------------

    def _write_files(
        self,
        record: ContainerRecord,
        attachment: Attachment,
        linked: list[links.Link],
        resolving: hostfiles.Resolving,
        *,
        owner: tuple[int, int],
    ) -> None:
        """Write the container's own hosts, hostname and resolv.conf ; on the host's network it has the host's names as well."""
        host, config = record.host_config, record.config
        if host.network_mode.startswith("container:"):
            return
        files = {
            "hostname": f"{config.hostname}\n",
            "hosts": hostfiles.hosts(
                hostname=config.hostname,
                domainname=config.domainname,
                endpoints=attachment.endpoints,
                extra_hosts=host.extra_hosts or [],
                links=[(link.address, link.names) for link in linked],
                origin=_hosts_of_the_host() if host.network_mode == "host" else "",
                host_gateway=self._defaults.host_gateways or self._networks.host_gateway(attachment.endpoints),
            ),
            "resolv.conf": self._peers.resolv_conf(resolving, attachment.endpoints),
        }
        containerfiles.write(self.layout.container(record.id), files, owner)

    # -- spec ----------------------------------------------------------------------------------------------

    @staticmethod
    def _write_spec(run_dir: str, document: dict[str, Any]) -> None:
        with open(f"{run_dir}/config.json", "wb") as file:
            file.write(msgspec.json.encode(document))

    def _spec(
        self,
        record: ContainerRecord,
        attachment: Attachment,
        linked: list[links.Link],
        mounts: Sequence[MountPoint],
        user: UserNamespace | None,
    ) -> dict[str, Any]:
        variables = [line for link in linked for line in link.variables]
        facts = self._facts.find(record, attachment, linked_env=variables, mounts=mounts, user=user)
        document = spec.build(record.config, record.host_config, facts)
        if record.host_config.device_requests:
            from dray.engine import cdi

            cdi.apply(document, cdi.find(record.host_config.device_requests, self._defaults.cdi_spec_dirs))
        return document

    # -- task ----------------------------------------------------------------------------------------------

    def _request(
        self, record: ContainerRecord, attachment: Attachment, run_dir: str, user: UserNamespace | None
    ) -> tuple[TaskCreate, list[int]]:
        descriptors, kinds = [], []
        if attachment.netns is not None:
            descriptors.append(attachment.netns)
            kinds.append("network")
        if attachment.userns is not None:
            descriptors.append(attachment.userns)
            kinds.append("user")
        offset = len(descriptors)
        descriptors += attachment.hold_fds
        kinds += ["hold"] * len(attachment.hold_fds)
        config, host = record.config, record.host_config
        runtime = self._runtime(host.runtime)
        rows_columns = host.console_size if host.console_size and any(host.console_size) else None
        request = TaskCreate(
            id=record.id,
            run_dir=run_dir,
            state_dir=self.layout.container(record.id),
            rootfs=[
                MountSpec(
                    type=mount.type,
                    source=mount.source,
                    options=[*mount.options, *_mapping(mount, user)],
                    target=mount.target,
                )
                for mount in self._snapshots.mounts(record.id)
            ],
            tty=config.tty,
            open_stdin=config.open_stdin,
            stdin_once=config.stdin_once,
            console_size=(rows_columns[0], rows_columns[1]) if rows_columns else None,
            log=self._log(record),
            owner=ROOT if user is None else user.maps.root,
            runtime=str(runtime.get("path", "")),
            runtime_args=list(runtime.get("runtimeArgs", [])),
            fds=kinds,
            forwards=[
                (protocol, offset + index, address, port) for protocol, index, address, port in attachment.forwards
            ],
        )
        return request, descriptors

    def _runtime(self, name: str) -> dict[str, Any]:
        """Return the path and arguments of an external runtime; nothing for the built-in one."""
        if name == "dray":
            return {}
        if name not in self._defaults.runtimes:  # it was when the container was made
            raise InvalidParameter(f"unknown or invalid runtime name: {name}")
        return dict(self._defaults.runtimes[name])

    def _log(self, record: ContainerRecord) -> LogSpec:
        log = record.host_config.log_config
        return LogSpec(
            driver=log.type,
            path=record.log_path,
            options=log.config,
            attributes=attributes.resolve(
                log.config,
                labels=record.config.labels or {},
                env=record.config.env or [],
                fields={
                    "Command": " ".join([record.path, *record.args]),
                    "DaemonName": "dray",
                    "FullID": record.id,
                    "ID": record.id[:12],
                    "ImageFullID": record.image_id,
                    "ImageID": record.image_id.removeprefix("sha256:")[:12],
                    "ImageName": record.image_ref,
                    "Name": record.name,
                },
            ),
        )

    # -- afterwards ----------------------------------------------------------------------------------------

    def stopped(self, container: Container, endpoints: list[Endpoint]) -> None:
        """Give back what a run had on the host, and tell so."""
        record = container.record
        if record.host_config.ipc_mode == "shareable":
            shm.unmount(self.layout.task(record.id))
        for endpoint in endpoints:
            self._network_event("disconnect", record, endpoint)
        for point in record.mounts:
            if point.type == "volume":
                self._volume_event("unmount", record, point)

    def forget(self, container: Container) -> None:
        """Move a container's directories out of the way; the trash is emptied later."""
        trash = self.layout.container_trash(container.id)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.layout.container(container.id), trash)
        _clear(self.layout.task(container.id))
        for index, point in enumerate(container.record.mounts):
            if point.type == "image" and self._snapshots.exists(view_key(container.id, index)):
                self._snapshots.remove(view_key(container.id, index))

    def release_volumes(self, record: ContainerRecord) -> Coroutine[Any, Any, None]:
        """Give the volumes of a run back: unmounted when nobody else has them. The rest is for the background: a
        plugin may take its time, and the next run need not wait for volumes that are this one's."""
        return self._sources.give_back(self._sources.taken(record))

    async def remove_anonymous_volumes(self, container: Container) -> None:
        """Remove the volumes that were made for this container alone."""
        for point in container.record.mounts:
            if point.type == "volume" and self._volumes.is_anonymous(point.name):
                others = (one for one in self._registry if one is not container)
                if any(point.name == other.name for one in others for other in one.record.mounts):
                    continue
                with contextlib.suppress(Conflict):  # somebody took it over meanwhile
                    await self._volumes.remove(point.name, force=True)

    def _network_event(self, action: str, record: ContainerRecord, endpoint: Endpoint) -> None:
        told = {"container": record.id, "name": endpoint.network_name, "type": endpoint.driver}
        self._events.publish("network", action, endpoint.network_id, told)

    def _volume_event(self, action: str, record: ContainerRecord, point: MountPoint) -> None:
        told = {"container": record.id, "driver": point.driver}
        if action == "mount":
            told |= {
                "destination": point.destination,
                "propagation": point.propagation,
                "read/write": "true" if point.rw else "false",
            }
        self._events.publish("volume", action, point.name, told)


def _mapping(mount: Mount, user: UserNamespace | None) -> Sequence[str]:
    """Return the options that show a root with the ids of a user namespace."""
    if user is None:
        return ()
    return mapping_words(user.maps) if mount.type == FUSE_OVERLAY else ("idmap",)


def _hosts_of_the_host() -> str:
    try:
        with open("/etc/hosts", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _clear(run_dir: str) -> None:
    """Remove a task directory, once nothing is mounted in it any more."""
    unpin(run_dir)
    shm.unmount(run_dir)
    remove_tree(run_dir)


def _remember_networks(record: ContainerRecord, endpoints: list[Endpoint]) -> None:
    """Note the networks' ids, which inspect shows also after the run."""
    asked = dict((record.networking.endpoints_config if record.networking else None) or {})
    for endpoint in endpoints:
        settings = asked.setdefault(endpoint.network_name, api.EndpointSettings())
        settings.network_id = endpoint.network_id
    record.networking = api.NetworkingConfig(endpoints_config=asked) if asked else None
