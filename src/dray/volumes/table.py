"""All volumes of the daemon, whatever their driver: by name, with who holds them.

Volumes of the `local` driver are `local.Volumes`'; of a plugin's volumes there is a record (kind `plugin-volume`), so
that a name leads to its plugin also while that does not run. A name is one volume, whoever made it.

Holders. A *hold* keeps a volume from being removed while a container that names it is being made (from then on the
container's record does). A *mount* is that of one run of a container, named by a random id: the first mounts the volume, the last gone
unmounts it; a plugin is told of each, and counts for itself. After a restart the mounts of containers
that still run are taken over as they are (`adopt`).

Verbs of one volume wait for each other (an asyncio.Lock a name, first come first served), so an unmount that is
still under way ends before the next mount begins. Blocking work of the local driver runs on threads of its own: a
file server that does not answer holds up those who wait for that volume, and nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from dray.base import failpoints
from dray.base.errors import Conflict, DrayError, InvalidParameter, NotFound, Unsupported
from dray.base.records import Change, Records
from dray.plugins.registry import VOLUME, PluginRefused, Plugins
from dray.volumes.local import ANONYMOUS, Volume, Volumes, check_name, needs_mount
from dray.volumes.remote import RemoteDriver, RemoteVolume

log = logging.getLogger(__name__)

_KIND = "plugin-volume"
T = TypeVar("T")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Volume).decode


class VolumeTable:
    """Volumes by name. Belongs to the event loop."""

    def __init__(self, local: Volumes, plugins: Plugins, records: Records) -> None:
        self.local = local
        self._plugins = plugins
        self._records = records
        self._remote = {key: _decode(value) for key, value in records.scan(_KIND)}
        self._scopes: dict[str, str] = {}
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}  # with how many want it
        self._holds: dict[str, dict[str, str]] = {}
        self._mounts: dict[str, dict[str, str]] = {}  # volume → mount id → who

    # -- what is known without asking

    def known(self, name: str) -> Volume | None:
        """Return a volume's record; None for one that only a plugin may know."""
        return self._remote.get(name) or (self.local.inspect(name) if self.local.exists(name) else None)

    def is_anonymous(self, name: str) -> bool:
        """Tell whether a volume was made without a name."""
        remote = self._remote.get(name)
        return ANONYMOUS in remote.labels if remote is not None else self.local.is_anonymous(name)

    def scope(self, driver: str) -> str:
        """Return a driver's scope as far as it is known: `local` or `global`."""
        return self._scopes.get(driver, "local")

    def holders(self, name: str) -> set[str]:
        """Return who holds a volume, by container id: creations under way and running containers."""
        return {*self._holds.get(name, {}).values(), *self._mounts.get(name, {}).values()}

    def adopt(self, running: Mapping[str, Mapping[str, str]]) -> None:
        """At start: take over the mounts of containers that ran when the daemon ended (volume → mount id →
        container id)."""
        for name, holders in running.items():
            if self.known(name) is not None:
                self._mounts.setdefault(name, {}).update(holders)

    # -- the verbs

    async def create(
        self,
        name: str,
        *,
        driver: str = "",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        holder: str = "",
    ) -> tuple[Volume, bool]:
        """Make a volume, or return the one that has the name; the flag tells whether it was made.

        driver: "" is the existing volume's, or `local`; holder: keeps it from being removed until `let_go`
        Errors are Docker's: NotFound for an unknown driver, Conflict for a name another driver has.
        """
        async with self._lock(name):
            volume, made = await self._create(name, driver, dict(options or {}), dict(labels or {}))
            if holder:
                self._holds.setdefault(volume.name, {})[holder] = holder
            return volume, made

    async def _create(
        self, name: str, driver: str, options: dict[str, str], labels: dict[str, str]
    ) -> tuple[Volume, bool]:
        if name:
            check_name(name)
        existing = self.known(name) if name else None
        gone = existing is not None and existing.driver != "local" and await self._vanished(existing)
        if gone:
            self._records.write([Change(_KIND, name, None)])
            del self._remote[name]
            existing = None
        if existing is not None and driver and existing.driver != driver:
            raise Conflict(
                f"create {name}: conflict: driver '{existing.driver}' already has volume '{name}': "
                "volume name must be unique"
            )
        if existing is None and name and not driver and not gone:
            found = await self._probe(name)  # a plugin may have one of that name that was made elsewhere
            if found is not None:
                volume = Volume(name, "", found[0], time.time_ns(), labels, options)
                self._save(volume)
                return volume, False
        driver = existing.driver if existing else driver or "local"
        if existing is not None and driver != "local":
            return existing, False
        if driver == "local":
            return self.local.create(name, options=options, labels=labels), existing is None
        if not name:
            name, labels = secrets.token_hex(32), {ANONYMOUS: "", **labels}
        return await self._create_remote(name, driver, options, labels), True

    async def _vanished(self, volume: Volume) -> bool:
        """Tell whether a plugin says that it has no such volume (any more); Conflict if somebody uses it."""
        try:
            await (await RemoteDriver.of(self._plugins, volume.driver)).get(volume.name)
        except PluginRefused:
            pass
        except DrayError:
            return False  # it cannot be asked: its record counts
        else:
            return False
        if self.holders(volume.name):
            raise Conflict(
                f"create {volume.name}: driver '{volume.driver}' says that there is no such volume, but containers use "
                "it: remove them first, or remove the volume with force"
            )
        return True

    async def _create_remote(
        self, name: str, driver: str, options: dict[str, str], labels: dict[str, str]
    ) -> Volume:
        try:
            remote = await RemoteDriver.of(self._plugins, driver)
        except NotFound as error:
            raise NotFound(f"create {name}: error looking up volume plugin {driver}: {error}") from None
        try:
            await remote.create(name, options)
        except DrayError as error:
            raise type(error)(f"create {name}: {error}") from error
        if driver not in self._scopes:
            with contextlib.suppress(DrayError):
                self._scopes[driver] = await remote.scope()
        volume = Volume(name, "", driver, time.time_ns(), labels, options)
        self._save(volume)
        return volume

    def _save(self, volume: Volume) -> None:
        self._records.write([Change(_KIND, volume.name, _encode(volume))])
        self._remote[volume.name] = volume

    def let_go(self, name: str, holder: str) -> None:
        """Give up a hold of `create`."""
        _drop(self._holds, name, holder)

    async def inspect(self, name: str) -> tuple[Volume, dict[str, Any]]:
        """Return a volume and its plugin's status; NotFound. A name that nobody here knows is asked of all plugins."""
        volume = self.known(name)
        if volume is None:
            found = await self._probe(name)
            if found is None:
                raise NotFound(f"get {name}: no such volume")
            driver, said = found
            return Volume(name, said.mountpoint, driver), said.status
        if volume.driver == "local":
            return volume, {}
        try:
            said = await (await RemoteDriver.of(self._plugins, volume.driver)).get(name)
        except PluginRefused as error:
            raise NotFound(f"get {name}: {error}") from error
        return msgspec.structs.replace(volume, mountpoint=said.mountpoint), said.status

    async def _probe(self, name: str) -> tuple[str, RemoteVolume] | None:
        plugins, _ = await self._plugins.all(VOLUME)
        for plugin in plugins:
            with contextlib.suppress(DrayError):
                return plugin.name, await RemoteDriver(plugin, self._plugins).get(name)
        return None

    async def list(self) -> tuple[list[Volume], list[str]]:
        """Return all volumes, by name, with a warning for every plugin that could not be asked.

        Each plugin's own list counts; the volumes of one that does not answer are shown from their records.
        """
        volumes = {volume.name: volume for volume in self.local.list()}
        plugins, warnings = await self._plugins.all(VOLUME)
        answers = await asyncio.gather(
            *(RemoteDriver(plugin, self._plugins).list() for plugin in plugins), return_exceptions=True
        )
        answered = set()
        for plugin, answer in zip(plugins, answers, strict=True):
            if isinstance(answer, DrayError):
                warnings.append(str(answer))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                answered.add(plugin.name)
                for said in answer:
                    record = self._remote.get(said.name) or Volume(said.name, driver=plugin.name)
                    if record.driver == plugin.name:
                        volumes.setdefault(said.name, msgspec.structs.replace(record, mountpoint=said.mountpoint))
        for volume in self._remote.values():
            if volume.driver not in answered:
                volumes.setdefault(volume.name, volume)
        return [volumes[name] for name in sorted(volumes)], warnings

    async def remove(
        self, name: str, *, force: bool = False, users: Callable[[], Sequence[str]] = tuple
    ) -> Volume | None:
        """Remove a volume and all its files; None if there was none and `force` is set.

        users: tells which containers have it, asked once nobody else can touch the volume any more
        NotFound, Conflict in Docker's words while it is in use.
        """
        async with self._lock(name):
            volume = self.known(name)
            if volume is None:
                found = await self._probe(name)
                volume = Volume(name, driver=found[0]) if found else None
            if volume is None:
                if force:
                    return None
                raise NotFound(f"get {name}: no such volume")
            in_use = list(dict.fromkeys([*users(), *sorted(self.holders(name))]))
            if in_use:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(in_use)}]")
            if volume.driver == "local":
                await _in_thread(self.local.remove, name, force=force)
            else:
                await self._remove_remote(volume, force=force)
            return volume

    async def _remove_remote(self, volume: Volume, *, force: bool) -> None:
        try:
            await (await RemoteDriver.of(self._plugins, volume.driver)).remove(volume.name)
        except DrayError as error:
            if not force:
                raise type(error)(f"remove {volume.name}: {error}") from error
            log.warning("volume %s is forgotten, but its plugin did not remove it: %s", volume.name, error)
        self._records.write([Change(_KIND, volume.name, None)])
        self._remote.pop(volume.name, None)

    async def rename(self, name: str, new: str, others: Callable[[], Sequence[Change]]) -> Volume:
        """Give a local volume another name.

        others: returns what is to be written in the same transaction, asked once nobody else can touch the volume
        any more; it raises to forbid
        """
        check_name(new)
        first, second = sorted((name, new))
        if first == second:
            raise InvalidParameter(f"rename {name}: the new name is the old one")
        async with self._lock(first), self._lock(second):
            volume, _ = await self.inspect(name)
            if volume.driver != "local":
                raise Unsupported(f"rename {name}: only its driver {volume.driver} could rename this volume")
            if self.known(new) is not None or await self._probe(new) is not None:
                raise Conflict(f"rename {name}: there is a volume {new} already")
            changes = others()
            if holders := self.holders(name):
                raise Conflict(
                    f"rename {name}: volume is in use - [{', '.join(sorted(holders))}]: stop them first"
                )
            return self.local.rename(name, new, changes)

    # -- what containers see

    async def mount(self, name: str, mount_id: str, *, user: str) -> str:
        """Make a volume ready for one run of a container (`user`) and return its directory on the host."""
        volume = self.known(name)
        if volume is not None and volume.driver == "local" and not needs_mount(volume):
            self._mounts.setdefault(name, {})[mount_id] = user
            return volume.mountpoint
        async with self._lock(name):
            volume = self.known(name)
            if volume is None:
                raise NotFound(f"get {name}: no such volume")
            if volume.driver == "local":
                source = (await _in_thread(self.local.mounts_for, name)).source
            else:
                source = await self._mount_remote(volume, mount_id)
            self._mounts.setdefault(name, {})[mount_id] = user
            return source

    async def _mount_remote(self, volume: Volume, mount_id: str) -> str:
        try:
            driver = await RemoteDriver.of(self._plugins, volume.driver)
            return await driver.mount(volume.name, mount_id)
        except DrayError as error:
            raise type(error)(f"error while mounting volume '{volume.name}': {error}") from error

    def let_go_at_once(self, name: str, mount_id: str) -> bool:
        """Give back what `mount` gave, if nothing has to be unmounted for it; tell whether that was all."""
        volume = self.known(name)
        if mount_id not in self._mounts.get(name, ()):
            return True
        if volume is None or volume.driver != "local" or needs_mount(volume):
            return False
        _drop(self._mounts, name, mount_id)
        return True

    async def unmount(self, name: str, mount_id: str) -> None:
        """Give back what `mount` gave; the last to do so unmounts it. A plugin that fails is logged, no more."""
        volume = self.known(name)
        if volume is None or self.let_go_at_once(name, mount_id):
            return
        async with self._lock(name):
            _drop(self._mounts, name, mount_id)
            if volume.driver != "local":
                try:
                    await (await RemoteDriver.of(self._plugins, volume.driver)).unmount(name, mount_id)
                except DrayError as error:
                    log.warning("volume %s could not be unmounted: %s", name, error)
            elif not self._mounts.get(name) and self.local.exists(name):
                with contextlib.suppress(Conflict):  # somebody on the host uses it; the next time, then
                    await _in_thread(self.local.release, name)
                failpoints.reach("stop.unmounted")

    @contextlib.asynccontextmanager
    async def mounted(self, name: str, *, user: str) -> AsyncIterator[str]:
        """Have a volume mounted for the time of a block; yields its directory."""
        mount_id = secrets.token_hex(32)
        source = await self.mount(name, mount_id, user=user)
        try:
            yield source
        finally:
            await self.unmount(name, mount_id)

    async def size(self, name: str) -> int:
        """Return the bytes of a local volume's files; -1 for a plugin's, which only it could tell."""
        if not self.local.exists(name):
            return -1
        return await _in_thread(self.local.size, name)

    # -- locks

    @contextlib.asynccontextmanager
    async def _lock(self, name: str) -> AsyncIterator[None]:
        if not name:
            yield
            return
        lock, waiting = self._locks.get(name) or (asyncio.Lock(), 0)
        self._locks[name] = lock, waiting + 1
        try:
            async with lock:
                yield
        finally:
            waiting = self._locks[name][1] - 1
            self._locks[name] = lock, waiting
            if not waiting:
                del self._locks[name]


def _drop(table: dict[str, dict[str, str]], name: str, holder: str) -> None:
    if holders := table.get(name):
        holders.pop(holder, None)
        if not holders:
            del table[name]


async def _in_thread(function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Run blocking work on a thread of its own: what hangs must not use up the threads of a pool."""
    import threading

    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = function(*arguments, **named)
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="volume", daemon=True).start()
    return await future
