"""`dray edit`: change environment, labels, published ports, mounts and name of a container that exists.

The container keeps its id, its writable layer, its logs and its volumes: what is replaced is the ask in its record, by
one write. So at any moment there is either the old container or the new one, whatever dies in between:

    resume noted → stopped → new volumes made → RECORD WRITTEN → started

A daemon killed before the write finds the old ask at its next start, after it the new one; the note makes it start
the container again, since it ran. If the new ask cannot be started (a port is taken), the old one is put back.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from collections.abc import Iterable
from contextlib import AsyncExitStack

import msgspec

from dray.api import models as api
from dray.api.requests import EditRequest
from dray.base import failpoints
from dray.base.errors import Conflict, DrayError, InvalidParameter, NotFound, NotModified, Unsupported
from dray.engine import mounts, validate
from dray.engine.creation import Creator
from dray.engine.events import Events
from dray.engine.lifecycle import Lifecycle
from dray.engine.model import Container, ContainerRecord, MountPoint, event_attributes
from dray.engine.registry import Registry
from dray.linux.cgroups.facilities import Capabilities

_KEPT = ("config", "host_config", "mounts")


class Editor:
    """See the module's text; the `Editing` backend of the server."""

    def __init__(
        self,
        registry: Registry,
        creator: Creator,
        lifecycle: Lifecycle,
        events: Events,
        *,
        limits: Capabilities,
        cpus: int,
    ) -> None:
        self._registry = registry
        self._creator = creator
        self._lifecycle = lifecycle
        self._events = events
        self._limits = limits
        self._cpus = cpus
        self._under_way: set[str] = set()

    async def edit(self, ref: str, request: EditRequest) -> list[str]:
        """Change a container; return warnings. A running one is stopped and started."""
        container = self._registry.find(ref)
        if container.id in self._under_way:
            raise Conflict(f"container {container.name} is being edited already")
        self._under_way.add(container.id)
        try:
            return await self._edit(container, request)
        finally:
            self._under_way.discard(container.id)

    async def _edit(self, container: Container, request: EditRequest) -> list[str]:
        status = container.state.status
        if status in ("removing", "dead", "paused"):
            hint = ": unpause it first" if status == "paused" else ""
            raise Conflict(f"container {container.name} is {status} and cannot be edited{hint}")
        if request.name and request.name.removeprefix("/") != container.name:
            self._registry.check_name(request.name)
        new, fresh = draft(container.record, request)
        warnings = validate.validate(new.config, new.host_config, self._limits, cpus=self._cpus)
        ran = status in ("running", "restarting")
        if ran:
            await self._stop(container)
        failpoints.reach("edit.stopped")
        try:
            async with AsyncExitStack() as undo:
                await self._creator.add_mounts(new, fresh, undo)
                failpoints.reach("edit.volumes")
                old = await self._adopt(container, new, request.name)
                undo.pop_all()
        except BaseException:
            if ran:
                await self._start_again(container)
            raise
        for point in fresh:
            self._creator.let_go(point, container.id)
        failpoints.reach("edit.written")
        self._events.publish("container", "edit", container.id, event_attributes(container))
        if ran:
            await self._start_or_put_back(container, old)
        return warnings

    async def _stop(self, container: Container) -> None:
        container.record.resume = True
        self._registry.save(container)
        await self._registry.sync()
        failpoints.reach("edit.noted")
        container.stop_requested = True  # neither its restart policy nor --rm may act
        try:
            with contextlib.suppress(NotModified):
                await self._lifecycle.stop(container)
        except BaseException:
            container.record.resume = False
            raise
        finally:
            container.stop_requested = False

    async def _adopt(self, container: Container, new: ContainerRecord, name: str) -> ContainerRecord:
        """Put the new ask into the record, by one write; return the old one."""
        async with container.lock:
            if self._registry.get(container.id) is not container or container.state.status == "removing":
                raise NotFound(f"No such container: {container.id}")
            if container.state.running:
                raise Conflict(
                    f"container {container.name} was started while it was being edited; nothing was changed"
                )
            old = msgspec.structs.replace(container.record)
            self._write(container, new, name)
        await self._registry.sync()
        return old

    def _write(self, container: Container, ask: ContainerRecord, name: str) -> None:
        record = container.record
        before = {field: getattr(record, field) for field in _KEPT}
        for field in _KEPT:
            setattr(record, field, getattr(ask, field))
        try:
            if name and name.removeprefix("/") != record.name:
                self._registry.rename(container, name)  # writes the record
            else:
                self._registry.save(container)
        except BaseException:
            for field, value in before.items():
                setattr(record, field, value)
            raise

    async def _start_or_put_back(self, container: Container, old: ContainerRecord) -> None:
        try:
            with contextlib.suppress(NotModified):
                await self._lifecycle.start(container)
            failpoints.reach("edit.started")
        except DrayError as error:
            async with container.lock:
                self._write(container, old, old.name)
            await self._registry.sync()
            await self._start_again(container)
            raise type(error)(f"the edited container does not start, and is as it was: {error}") from error

    async def _start_again(self, container: Container) -> None:
        """Start the container as it was; why that fails is in its state."""
        with contextlib.suppress(DrayError, asyncio.CancelledError):
            await self._lifecycle.start(container)


# --- the new ask ----------------------------------------------------------------------------------------------


def draft(record: ContainerRecord, request: EditRequest) -> tuple[ContainerRecord, list[MountPoint]]:
    """Return the record as it shall be, and the mount points that are new; the argument stays as it is. Pure."""
    config = msgspec.structs.replace(record.config)
    host = msgspec.structs.replace(record.host_config)
    config.env = _environment(record.config.env or [], request)
    gone = set(request.labels_remove)
    labels = {name: value for name, value in (config.labels or {}).items() if name not in gone}
    _must_be_there(gone, config.labels or {}, "label")
    config.labels = {**labels, **request.labels}
    _ports(config, host, request)
    points, fresh = _mounts(record, config, host, request)
    return msgspec.structs.replace(record, config=config, host_config=host, mounts=points), fresh


def _must_be_there(names: Iterable[str], known: Iterable[str], what: str) -> None:
    missing = sorted(set(names) - set(known))
    if missing:
        raise InvalidParameter(f"there is no {what} {missing[0]} to remove")


def _environment(now: list[str], request: EditRequest) -> list[str]:
    names = [entry.partition("=")[0] for entry in now]
    _must_be_there(request.env_remove, names, "environment variable")
    changed = {entry.partition("=")[0]: entry for entry in request.env}
    kept = [
        changed.pop(name, entry)
        for name, entry in zip(names, now, strict=True)
        if name not in request.env_remove or name in changed
    ]
    return [*kept, *changed.values()]


def _ports(config: api.ContainerConfig, host: api.HostConfig, request: EditRequest) -> None:
    bindings = dict(host.port_bindings or {})
    removed = [port if "/" in port else f"{port}/tcp" for port in request.ports_remove]
    _must_be_there(removed, bindings, "published port")
    bindings = {port: bound for port, bound in bindings.items() if port not in removed}
    host.port_bindings = {**bindings, **request.port_bindings}
    if request.port_bindings:
        config.exposed_ports = {
            **(config.exposed_ports or {}),
            **dict.fromkeys(request.port_bindings, api.Empty()),
        }


def _mounts(
    record: ContainerRecord, config: api.ContainerConfig, host: api.HostConfig, request: EditRequest
) -> tuple[list[MountPoint], list[MountPoint]]:
    asked = api.HostConfig(binds=request.binds, mounts=request.mounts, volume_driver=host.volume_driver)
    fresh = mounts.resolve(api.ContainerConfig(), asked, mounts_of=lambda ref: ())
    removed = {posixpath.normpath(target) for target in request.mounts_remove}
    _must_be_there(removed, [point.destination for point in record.mounts], "mount at")
    touched = removed | {point.destination for point in fresh}
    if touched and any(point.type == "image" for point in [*record.mounts, *fresh]):
        raise Unsupported("mounts of a container with a mounted image cannot be edited: create the container anew")
    for point in fresh:
        if point.type == "volume" and not point.name:
            raise InvalidParameter(f"the new volume at {point.destination} needs a name: NAME:{point.destination}")
    host.binds = [text for text in host.binds or () if _target(text) not in touched] + request.binds
    host.mounts = [one for one in host.mounts if posixpath.normpath(one.target) not in touched] + request.mounts
    host.tmpfs = {
        path: words for path, words in (host.tmpfs or {}).items() if posixpath.normpath(path) not in touched
    }
    volumes = {
        path: options
        for path, options in (config.volumes or {}).items()
        if posixpath.normpath(path) not in touched
    }
    config.volumes = volumes or None
    kept = [point for point in record.mounts if point.destination not in touched]
    order = sorted([*kept, *fresh], key=lambda point: (point.destination.count("/"), point.destination))
    return order, fresh


def _target(bind: str) -> str:
    pieces = bind.split(":")
    return posixpath.normpath(pieces[1] if len(pieces) > 1 else pieces[0])
