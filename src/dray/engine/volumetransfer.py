"""A volume under another name, and its files as a tar: what Docker lacks.

    POST /volumes/{name}/rename?name=NEW     204
    GET  /volumes/{name}/export              application/x-tar
    PUT  /volumes/{name}/import              the volume; made if there is none of that name, else it must be empty

A rename is one transaction of the records: the volume and every container that names it. The directory follows; a
daemon killed in between moves it when it starts (`volumes.local`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from dray.api import models as api
from dray.api.requests import Download, Upload
from dray.base.errors import Conflict, Unsupported
from dray.base.files import owned_fd
from dray.base.records import Change
from dray.engine import model
from dray.engine.archives.view import guard
from dray.engine.bodies import joined, read_body, stream_of
from dray.engine.events import Events
from dray.engine.model import Container, ContainerRecord
from dray.engine.registry import Registry
from dray.store.layers.copyin import copy_in
from dray.store.layers.tarwriter import END, TreeWriter
from dray.store.layers.walk import write_below
from dray.volumes.table import VolumeTable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class VolumeTransfer:
    """Renames, exports and imports volumes."""

    def __init__(self, volumes: VolumeTable, registry: Registry, events: Events) -> None:
        self._volumes = volumes
        self._registry = registry
        self._events = events

    async def rename(self, name: str, new: str) -> None:
        """Give a local volume another name; Conflict while a container that has it runs, or if the name is taken."""
        changed: list[tuple[Container, ContainerRecord]] = []

        def changes() -> list[Change]:
            users = [one for one in self._registry if _names(one.record, name)]
            running = [one.id for one in users if one.state.running or one.lock.locked()]
            if running:
                raise Conflict(
                    f"rename {name}: volume is in use by running containers - [{', '.join(running)}]: stop them first"
                )
            root = os.path.dirname(self._volumes.local.inspect(name).mountpoint)
            source = f"{os.path.dirname(root)}/{new}/_data"
            changed.extend((one, _renamed(one.record, name, new, source)) for one in users)
            return [Change(model.KIND, one.id, model.encode(record)) for one, record in changed]

        await self._volumes.rename(name, new, changes)
        for container, record in changed:
            container.record = record
        await self._registry.sync()
        self._events.publish("volume", "rename", new, {"driver": "local", "oldName": name})

    async def export(self, name: str) -> Download:
        """Return a volume's files as a tar stream. It may be in use: files that change meanwhile are as they are met."""
        context = self._volumes.mounted(name, user="export")
        source = await context.__aenter__()
        try:
            root = os.open(source, _DIRECTORY)
        except BaseException:
            await context.__aexit__(None, None, None)
            raise

        def chunks() -> Iterator[bytes]:
            with owned_fd(root):
                writer = TreeWriter()
                yield from writer.entry(root, b".", b"./")  # its owner and mode, which `docker export` leaves out
                yield from write_below(root, writer)
                yield END

        async def stream() -> Download:
            try:
                async for chunk in stream_of(joined(chunks())):
                    yield chunk
            finally:
                await context.__aexit__(None, None, None)

        return stream()

    async def import_(self, name: str, content: Upload) -> api.Volume:
        """Unpack a tar into a new or empty volume; nothing is left of a volume that was made for a tar that is bad.

        Conflict if it has files already, InvalidParameter for a damaged or hostile tar, Unavailable on a full disk.
        """
        volume, made = await self._volumes.create(name, holder="import")
        if volume.driver != "local":
            self._volumes.let_go(name, "import")
            raise Unsupported(f"import {name}: a volume of the driver {volume.driver} cannot be imported into")
        if made:
            self._events.publish("volume", "create", name, {"driver": volume.driver})
        try:
            async with self._volumes.mounted(name, user="import") as source:

                def work(stream: BinaryIO) -> None:
                    with owned_fd(os.open(source, _DIRECTORY | os.O_NOFOLLOW)) as root:
                        if any(entry != "lost+found" for entry in os.listdir(root)):
                            raise Conflict(f"import {name}: the volume has files already: import into a new one")
                        copy_in(stream, root, b"", guard=guard, own_root=True)

                await read_body(content, work)
        except BaseException:
            self._volumes.let_go(name, "import")
            if made:
                await self._volumes.remove(name, force=True)
                self._events.publish("volume", "destroy", name, {"driver": volume.driver})
            raise
        self._volumes.let_go(name, "import")
        await self._registry.sync()
        return api.Volume(name=name, driver=volume.driver, mountpoint=volume.mountpoint, scope="local")


def _names(record: ContainerRecord, volume: str) -> bool:
    return any(point.type == "volume" and point.name == volume for point in record.mounts)


def _renamed(record: ContainerRecord, old: str, new: str, source: str) -> ContainerRecord:
    """Return a container's record with a volume's new name wherever it has the old one."""
    points = [
        msgspec.structs.replace(point, name=new, source=source)
        if point.type == "volume" and point.name == old
        else point
        for point in record.mounts
    ]
    host = record.host_config
    binds = [new + text[len(old) :] if text.startswith(f"{old}:") else text for text in host.binds or []]
    asked = [
        msgspec.structs.replace(mount, source=new) if mount.type == "volume" and mount.source == old else mount
        for mount in host.mounts
    ]
    host = msgspec.structs.replace(host, binds=binds if host.binds is not None else None, mounts=asked)
    return msgspec.structs.replace(record, mounts=points, host_config=host)
