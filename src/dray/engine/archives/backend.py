"""The `Archives` backend of the server: containers' files as tars, in and out.

A container that does not run is locked while its file system is put together and, for writing, until that is done,
so that it cannot start on a root that is mounted twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO

from dray.api.requests import Download, PathStat, Upload
from dray.base.errors import Conflict, DrayError, Forbidden, InvalidParameter, NotFound
from dray.engine import rootfs
from dray.engine.archives import paths
from dray.engine.archives.view import (
    MissingPoints,
    Point,
    View,
    check_writable,
    guard,
    is_kernel,
    of_running,
    of_stopped,
)
from dray.engine.bodies import joined, read_body, stream_of
from dray.engine.events import Events
from dray.engine.layout import Layout
from dray.engine.model import Container, ContainerRecord, event_attributes
from dray.engine.mountsources import MountSources, unpin
from dray.engine.registry import Registry
from dray.engine.remap import ROOT, Remap
from dray.engine.spec import resolve_user
from dray.linux import usernamespaces
from dray.store.layers.copyin import copy_in
from dray.store.layers.tarwriter import END, TreeWriter
from dray.store.layers.walk import write_below, write_tree
from dray.store.snapshots import Snapshots

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENDING = 250  # looks at a container whose process is gone but whose end is not recorded yet, 20 ms apart
_NETWORK_FILES = ("hosts", "hostname", "resolv.conf")


class Archives:
    """Stat, read and write paths in containers; export whole containers."""

    def __init__(
        self,
        registry: Registry,
        snapshots: Snapshots,
        sources: MountSources,
        events: Events,
        layout: Layout,
        remap: Remap,
    ) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._sources = sources
        self._events = events
        self._layout = layout
        self._remap = remap

    # -- verbs ---------------------------------------------------------------------------------------------

    async def export(self, ref: str) -> Download:
        """Return the root file system as a tar stream, without what is mounted in it."""
        container = self._registry.find(ref)
        mount = self._snapshots.mounts(container.id)

        def chunks() -> Iterator[bytes]:
            with rootfs.mounted(mount) as root:
                yield from write_tree(root)

        self._publish("export", container)
        return stream_of(joined(chunks()))

    async def stat(self, ref: str, path: str) -> PathStat:
        """Describe one path."""
        view = await self._view(self._registry.find(ref))
        try:
            return (await asyncio.to_thread(_find, view, path, ref))[0]
        finally:
            view.close()

    async def read(self, ref: str, path: str) -> tuple[PathStat, Download]:
        """Return a path as a tar stream, its entries named after the path's last component."""
        container = self._registry.find(ref)
        view = await self._view(container)
        try:
            found, place = await asyncio.to_thread(_find, view, path, ref)
        except BaseException:
            view.close()
            raise
        self._publish("archive-path", container)
        return found, stream_of(joined(_read(view, place)))

    async def write(
        self, ref: str, path: str, content: Upload, *, no_overwrite_dir_non_dir: bool, copy_uid_gid: bool
    ) -> None:
        """Unpack a tar stream into a directory."""
        container = self._registry.find(ref)
        user = container.record.config.user if copy_uid_gid else ""
        async with self._writable(container) as view:
            base = await asyncio.to_thread(_destination, view, path, ref)
            check_writable(view, base, read_only_root=container.record.host_config.readonly_rootfs)

            def work(stream: BinaryIO) -> None:
                owner = _owner(view.root, user) if user else None
                with usernamespaces.acting_as(*(ROOT if view.maps is None else view.maps.root)):
                    copy_in(
                        stream,
                        view.root,
                        os.fsencode(base),
                        guard=guard,
                        owner=owner,
                        keep_kinds=no_overwrite_dir_non_dir,
                        maps=view.maps,
                    )

            try:
                await read_body(content, work)
            except OSError as error:
                raise _told(error) from error
        self._publish("extract-to-dir", container)

    def _publish(self, action: str, container: Container) -> None:
        self._events.publish("container", action, container.id, event_attributes(container))

    # -- views ---------------------------------------------------------------------------------------------

    async def _view(self, container: Container) -> View:
        """Look at a container, for reading."""
        while True:
            view = await self._running(container)
            if view is not None:
                return view
            async with container.lock:
                if container.state.running:
                    continue
                try:
                    return await self._stopped(container, writable=False)
                except MissingPoints:
                    (await self._stopped(container, writable=True)).close()
                    return await self._stopped(container, writable=False)

    @contextlib.asynccontextmanager
    async def _writable(self, container: Container) -> AsyncIterator[View]:
        """Look at a container, for writing."""
        while True:
            view = await self._running(container)
            if view is not None:
                try:
                    yield view
                finally:
                    view.close()
                return
            async with container.lock:
                if container.state.running:
                    continue
                view = await self._stopped(container, writable=True)
                try:
                    yield view
                finally:
                    view.close()
                return

    async def _running(self, container: Container) -> View | None:
        """Look at a running container; None if it does not run."""
        for _ in range(_ENDING):
            if not container.state.running:
                return None
            points = [_point(point.destination, rw=point.rw) for point in container.record.mounts]
            view = of_running(container.state.pid, container.id, points)
            if view is not None:
                return view
            await asyncio.sleep(0.02)
        raise Conflict(
            f"container {container.id} has no process any more, but its end is not known yet: try again"
        )

    async def _stopped(self, container: Container, *, writable: bool) -> View:
        record = container.record
        if self._registry.get(container.id) is None or record.state.status in ("removing", "dead"):
            raise Conflict(f"container {container.id} is being removed")
        mount = self._snapshots.mounts(container.id)[0]
        place = self._layout.container(container.id)
        remap = self._remap if self._remap.maps_of(record.host_config) is not None else None
        try:
            await self._sources.prepare(record)
            points = await asyncio.to_thread(self._points, record, remap is not None)
            return await asyncio.to_thread(of_stopped, mount, points, place, writable=writable, remap=remap)
        finally:
            unpin(self._layout.task(container.id))  # the view has its own clones
            with contextlib.suppress(OSError):
                os.rmdir(self._layout.task(container.id))
            await self._sources.release(record)

    def _points(self, record: ContainerRecord, mapped: bool) -> list[Point]:
        """Return what the container sees mounted when it runs, except what only a run has (tmpfs, /dev …)."""
        points = []
        for mount in self._sources.pinned(record, self._layout.task(record.id), mapped=mapped):
            if mount.type != "tmpfs":
                recursive = "bind" not in mount.options
                points.append(_point(mount.destination, mount.source, rw=mount.rw, recursive=recursive))
        asked = {point.destination for point in points}
        directory = self._layout.container(self._files_of(record))
        for name in _NETWORK_FILES:
            if f"/etc/{name}" not in asked and os.path.exists(f"{directory}/{name}"):
                rw = not record.host_config.readonly_rootfs
                points.append(_point(f"/etc/{name}", f"{directory}/{name}", rw=rw, recursive=False))
        return points

    def _files_of(self, record: ContainerRecord) -> str:
        """Return whose hosts, hostname and resolv.conf a container uses."""
        mode = record.host_config.network_mode
        if not mode.startswith("container:"):
            return record.id
        other = self._registry.get(mode.removeprefix("container:"))
        return record.id if other is None else self._files_of(other.record)


def _point(destination: str, source: str = "", *, rw: bool, recursive: bool = True) -> Point:
    return Point(destination=destination, source=source, rw=rw, recursive=recursive)


# -- blocking work on a view -------------------------------------------------------------------------------


def _find(view: View, path: str, ref: str) -> tuple[PathStat, paths.Place]:
    try:
        place = paths.find(view.root, path)
    except OSError as error:
        raise _missing(error, path, ref) from None
    view.adopt(place.parent)
    if is_kernel(place.parent):
        raise _no_such_file(path, ref)
    return place.stat, place


def _destination(view: View, path: str, ref: str) -> str:
    """Return the directory that `path` leads to, from the root, links resolved."""
    try:
        resolved = paths.evaluate(view.root, paths.absolute(path))
        fd = rootfs.open_in(view.root, resolved)
    except OSError as error:
        raise _missing(error, path, ref) from None
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise InvalidParameter("extraction point is not a directory")
        guard(fd)
    finally:
        os.close(fd)
    return resolved


def _no_such_file(path: str, ref: str) -> NotFound:
    return NotFound(f"Could not find the file {path} in container {ref}")


def _missing(error: OSError, path: str, ref: str) -> DrayError:
    if error.errno == errno.ENOENT:
        return _no_such_file(path, ref)
    return InvalidParameter(f"{path} in container {ref}: {(error.strerror or '').lower()}")


def _told(error: OSError) -> Exception:
    """Return the kind of error that a failed write is."""
    place = os.fsdecode(error.filename or "")
    if error.errno == errno.EROFS:
        return Forbidden(f"/{place}: read-only file system")
    if error.errno == errno.EBUSY:
        return Conflict(f"/{place}: device or resource busy: something is mounted there, it cannot be replaced")
    return error


def _owner(root: int, user: str) -> tuple[int, int]:
    """Return the numbers of the container's user, by the container's own files."""
    passwd, group = (rootfs.read_small_file(root, f"/etc/{name}") for name in ("passwd", "group"))
    found = resolve_user(passwd, group, user)
    return found.uid, found.gid


def _read(view: View, place: paths.Place) -> Iterator[bytes]:
    """Yield the tar of a place; closes the view."""
    try:
        writer = TreeWriter(view.maps)
        base, name = os.fsencode(place.base), os.fsencode(place.stat.name)
        yield from writer.entry(place.parent, base, name)
        fd = _open_directory(view, place) if stat.S_ISDIR(place.mode) else None
        if fd is not None and not is_kernel(fd):

            def enter(path: bytes, below: int) -> bool:
                return view.enters(f"{place.path}/{os.fsdecode(path)}".lstrip("/"), below)

            yield from write_below(fd, writer, prefix=name.rstrip(b"/") + b"/", enter=enter)
        yield END
    finally:
        view.close()


def _open_directory(view: View, place: paths.Place) -> int | None:
    try:
        fd = os.open(place.base, _DIRECTORY, dir_fd=place.parent)
    except (NotADirectoryError, FileNotFoundError):
        return None  # swapped or gone by now
    view.adopt(fd)
    return fd
