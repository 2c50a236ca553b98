"""`docker commit`: an image of what a container has changed.

The container's writable layer becomes a layer on top of those of the container's own image, whatever has become of
that image's names; its configuration becomes the image's, with `changes` applied. Mount points and files that the
engine has put there itself are left out, as are volumes.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeVar

import msgspec

from dray.api import models as api
from dray.api.requests import CommitOptions
from dray.base import reference
from dray.base.errors import Conflict, InvalidParameter, NotFound
from dray.engine import clock, initfiles
from dray.engine.events import Events
from dray.engine.merge import merged
from dray.engine.model import Container, ContainerRecord, event_attributes
from dray.engine.registry import Registry
from dray.oci import image as oci
from dray.oci import platform as platforms
from dray.oci.image import ContainerConfig, Descriptor, History, ImageConfig, Manifest, RootFS
from dray.store.content import Lease
from dray.store.images import Image, Images
from dray.store.images.reading import Found
from dray.store.layers.diff import write_layer
from dray.store.snapshots import Change, Snapshots
from dray.store.transfer.changes import apply_changes

T = TypeVar("T")

if TYPE_CHECKING:  # it makes containers, which are made of images, which are made here
    from dray.engine.lifecycle import Lifecycle


class Commits:
    """Makes images of containers."""

    def __init__(
        self, images: Images, registry: Registry, lifecycle: Lifecycle, snapshots: Snapshots, events: Events
    ) -> None:
        self._images = images
        self._registry = registry
        self._lifecycle = lifecycle
        self._snapshots = snapshots
        self._events = events

    async def commit(self, options: CommitOptions, config: api.ContainerConfig | None) -> str:
        """Make an image of a container, name it if asked to; return its id.

        The container is frozen meanwhile, unless `pause` is off: its files are then copied while they change.
        """
        container = self._registry.find(options.container)
        status = container.state.status
        if status in ("dead", "removing"):
            what = "which is Dead" if status == "dead" else "which is being removed"
            raise Conflict(f"You cannot commit container {container.id} {what}")
        name = _name(options)
        document = _config(container.record, options, config)
        paused = options.pause and await self._pause(container)
        try:
            image = await asyncio.to_thread(self._make, container.record, document, options, name)
        finally:
            if paused:
                with contextlib.suppress(Conflict, NotFound):  # killed or removed meanwhile
                    await self._lifecycle.unpause(container)
        told = {"comment": options.comment, "imageID": image.id, "imageRef": name.familiar if name else ""}
        self._events.publish("container", "commit", container.id, event_attributes(container) | told)
        return image.id

    async def _pause(self, container: Container) -> bool:
        """Freeze a container that runs; tell whether that was done."""
        if container.state.status != "running":
            return False
        try:
            await self._lifecycle.pause(container)
        except Conflict:
            return False  # it ends this moment, or somebody else has frozen it
        return True

    def _make(
        self,
        record: ContainerRecord,
        config: ContainerConfig,
        options: CommitOptions,
        name: reference.Reference | None,
    ) -> Image:
        with self._images.hold() as lease:
            base = self._base(record)
            layer = self._layer(record.id, base.manifest.media_type or "", lease)
            document = _document(base, config, options, record, layer)
            target = self._write(base, document, layer, lease)
            self._images.unpack(target, base.platform)
            image = self._images.put([name.canonical] if name else [], target)
        if name is not None:
            self._images.notify("tag", image, name=name.familiar)
        return image

    def _base(self, record: ContainerRecord) -> Found:
        """Return the manifest that the container was made of."""
        try:
            image = self._images.resolve(record.image_id)
        except NotFound:
            raise NotFound(
                f"the image of container {record.id} ({record.image_id}) is gone: commit needs its layers"
            ) from None
        for found in self._images.founds(image.target):
            if found.descriptor.digest == record.manifest_digest:
                return found
        return self._images.choose(image.target, platforms.host())

    def _layer(self, container_id: str, manifest_type: str, lease: Lease) -> Descriptor | None:
        """Store the container's changes as a layer, uncompressed; None if there are none."""
        changes = initfiles.without(self._snapshots.changes(container_id))
        if not changes:
            return None
        media_type = oci.OCI_LAYER if manifest_type == oci.OCI_MANIFEST else oci.DOCKER_LAYER
        with self._images.content.ingest(lease=lease) as ingest:
            for chunk in write_layer(self._snapshots.upper(container_id), _complete(changes)):
                ingest.write(chunk)
            size = ingest.offset
            return Descriptor(media_type=media_type, digest=ingest.commit(), size=size)

    def _write(self, base: Found, config: ImageConfig, layer: Descriptor | None, lease: Lease) -> Descriptor:
        content = self._images.content

        def put(data: bytes, media_type: str) -> Descriptor:
            return Descriptor(media_type=media_type, digest=content.put(data, lease=lease), size=len(data))

        kind = base.manifest.media_type or oci.OCI_MANIFEST
        described = put(oci.encode(config), oci.OCI_CONFIG if kind == oci.OCI_MANIFEST else oci.DOCKER_CONFIG)
        layers = [*(base.manifest.layers or []), *([layer] if layer else [])]
        missing = [one.digest for one in layers if not content.has(one.digest)]
        if missing:
            raise NotFound(f"content of the container's image is missing: {', '.join(missing)}")
        manifest = Manifest(schema_version=2, media_type=kind, config=described, layers=layers)
        return put(oci.encode(manifest), kind)


def _complete(changes: list[Change]) -> list[Change]:
    """Add the directories above what changed: without its own entry a directory would lose nothing here, but other
    tools would give it attributes of their own."""
    known = {change.path for change in changes}
    added: dict[str, Change] = {}
    for change in changes:
        above = change.path.rpartition("/")[0]
        while above and above not in known and above not in added:
            added[above] = Change(above, "C")
            above = above.rpartition("/")[0]
    return [*changes, *added.values()]


def _name(options: CommitOptions) -> reference.Reference | None:
    if not options.repo:
        return None
    parsed = reference.parse(options.repo)
    if parsed.digest is not None:
        raise InvalidParameter("refusing to create a tag with a digest reference")
    return parsed.with_tag(options.tag) if options.tag else parsed.tagged()


def _config(
    record: ContainerRecord, options: CommitOptions, config: api.ContainerConfig | None
) -> ContainerConfig:
    """Return the image's configuration: what was asked for, changed, completed by the container's own."""
    asked = _converted(record.config if config is None else config, ContainerConfig)
    apply_changes(asked, options.changes)
    complete = merged(_converted(asked, api.ContainerConfig), record.config)
    document = _converted(complete, ContainerConfig)
    document.on_build = asked.on_build
    return document


def _converted(value: object, kind: type[T]) -> T:
    """Change between the API's form of a configuration and the image's: the same names, but no nulls in one."""
    fields = {key: item for key, item in msgspec.to_builtins(value).items() if item is not None}
    return msgspec.convert(fields, kind)


def _document(
    base: Found,
    config: ContainerConfig,
    options: CommitOptions,
    record: ContainerRecord,
    layer: Descriptor | None,
) -> ImageConfig:
    created = clock.rfc3339(clock.now())
    step = History(
        created=created,
        created_by=" ".join(record.config.cmd or []),
        author=options.author or None,
        comment=options.comment or None,
        empty_layer=layer is None,
    )
    below = base.config
    return ImageConfig(
        created=created,
        author=options.author or None,
        architecture=below.architecture,
        os=below.os,
        variant=below.variant,
        os_version=below.os_version,
        os_features=below.os_features,
        config=config,
        rootfs=RootFS(diff_ids=[*(below.rootfs.diff_ids or []), *([layer.digest] if layer else [])]),
        history=[*(below.history or []), step],
        comment=options.comment or None,
    )
