"""`docker load`: archives of `docker save` (old and new) and OCI layouts, several images in each.

An archive with an `index.json` is read as an OCI layout (image-spec image-layout.md), one with only a
`manifest.json` as a Docker archive, whose manifests are made here just as containerd makes them (`core/images/
archive/importer.go`), so that the same archive gets the same image id.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
from msgspec import Struct

from dray.base import reference
from dray.base.errors import InvalidParameter, NotFound
from dray.base.malformed import MALFORMED
from dray.oci.image import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    IMAGE_NAME,
    OCI_LAYER_ZSTD,
    REF_NAME,
    Descriptor,
    Index,
    parse_config,
    parse_document,
)
from dray.oci.platform import Platform, host
from dray.store.content import Lease
from dray.store.images.model import Image
from dray.store.images.service import Images
from dray.store.layers.stream import Readable, detect
from dray.store.transfer.progress import LayerProgress, Report, silent
from dray.store.transfer.spool import Spooled, spool


class _ArchiveItem(msgspec.Struct, rename="pascal"):
    """One image of a Docker archive's manifest.json."""

    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


class _DockerManifest(msgspec.Struct, rename="camel", omit_defaults=False):
    """The manifest that is made for an image of a Docker archive; field order is containerd's."""

    schema_version: int
    media_type: str
    config: dict[str, object]
    layers: list[dict[str, object]]


class _Wanted(Struct, frozen=True):
    """An image found in an archive: its target and the canonical names it asks for."""

    target: Descriptor
    names: list[str]


class Loaded(Struct, frozen=True):
    """What `load` has brought in: the image, and the familiar names it was given (none: `<none>`)."""

    image: Image
    names: tuple[str, ...]


_items = msgspec.json.Decoder(list[_ArchiveItem])
_encoder = msgspec.json.Encoder()


def load(
    images: Images,
    stream: Readable,
    *,
    progress: Report = silent,
    platforms: Sequence[Platform] = (),
    quiet: bool = False,
) -> list[Loaded]:
    """Load every image of the archive in `stream`; blocking, to be called in a worker thread.

    progress: receives the messages (see `progress`), from worker threads
    platforms: bring in only these platforms of a multi-platform image (empty: all that the archive has)
    quiet: no progress, only the `Loaded image` lines

    InvalidParameter if the archive is damaged, hostile or no image archive; then nothing is listed. The images are
    durable when this returns.
    """
    bars = None if quiet else LayerProgress(progress, "Loading layer")
    with images.hold() as lease, ThreadPoolExecutor(2, "spool") as pool:
        spooled = spool(stream, images.content, lease, pool)
        wanted = _oci(images, spooled) if spooled.find("index.json") else _docker(images, spooled, lease)
        for item in wanted:
            _check(images, item, platforms)
            for platform in platforms or [host()]:
                images.unpack(item.target, platform, bars)
        spooled.settle()
        loaded = [_admit(images, item, progress) for item in wanted]
    images.collect()
    return loaded


def _admit(images: Images, item: _Wanted, report: Report) -> Loaded:
    """Give an image its names, and say so."""
    image = images.put(item.names, item.target)
    familiar = tuple(reference.parse(name).familiar for name in item.names)
    images.notify("load", image, name=familiar[0] if familiar else None)
    for name in familiar:
        report({"stream": f"Loaded image: {name}\n"})
    if not familiar:
        report({"stream": f"Loaded image ID: {image.id}\n"})
    return Loaded(image, familiar)


def _check(images: Images, item: _Wanted, wanted: Sequence[Platform]) -> None:
    """Refuse an image of which nothing can be used, or not what was asked for."""
    try:
        for platform in wanted or (None,):
            images.choose(item.target, platform)
    except NotFound:
        if wanted:
            names = ", ".join(map(str, wanted))
            raise NotFound(f"the archive does not provide the specified platform ({names})") from None
        raise InvalidParameter(
            f"invalid archive: the content of image {item.target.digest} is not in it"
        ) from None
    if not images.complete(item.target):
        raise InvalidParameter(f"invalid archive: layers of image {item.target.digest} are missing")


# --- OCI layout


def _oci(images: Images, spooled: Spooled) -> list[_Wanted]:
    index = spooled.find("index.json")
    assert index is not None
    document = parse_document(images.content.read(index.digest))
    if not isinstance(document, Index):
        raise InvalidParameter("invalid archive: index.json is no index")
    found: dict[str, _Wanted] = {}
    for descriptor in document.manifests or ():
        if not images.content.has(descriptor.digest):
            raise InvalidParameter(f"invalid archive: {descriptor.digest}, named in index.json, is not in it")
        target = Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size)
        names = found.setdefault(descriptor.digest, _Wanted(target, [])).names
        annotations = descriptor.annotations or {}
        name = annotations.get(IMAGE_NAME) or annotations.get(REF_NAME)
        if name and (canonical := _canonical(name)) and canonical not in names:
            names.append(canonical)
    if not found:
        raise InvalidParameter("invalid archive: no images in index.json")
    return list(found.values())


def _canonical(name: str) -> str | None:
    """Return the canonical form of a name in an archive, None if it is not usable as one."""
    try:
        return reference.parse(name).tagged().canonical
    except InvalidParameter:
        return None


# --- Docker archive


def _docker(images: Images, spooled: Spooled, lease: Lease) -> list[_Wanted]:
    listing = spooled.find("manifest.json")
    if listing is None:
        raise InvalidParameter("invalid archive: it has neither index.json nor manifest.json: is it made by save?")
    try:
        items = _items.decode(images.content.read(listing.digest))
    except MALFORMED as error:
        raise InvalidParameter(f"invalid archive: manifest.json: {error}") from error
    found: dict[str, _Wanted] = {}
    for item in items:
        target = _compose(images, spooled, item, lease)
        names = found.setdefault(target.digest, _Wanted(target, [])).names
        for tag in item.repo_tags or ():
            canonical = reference.parse(tag).tagged().canonical
            if canonical not in names:
                names.append(canonical)
    return list(found.values())


def _compose(images: Images, spooled: Spooled, item: _ArchiveItem, lease: Lease) -> Descriptor:
    """Make the manifest of an image of a Docker archive."""
    config = spooled.find(item.config)
    if config is None:
        raise InvalidParameter(f"invalid archive: image config {item.config} not found")
    parse_config(images.content.read(config.digest))
    layers: list[dict[str, object]] = []
    for name in item.layers or ():
        layer = spooled.find(name)
        if layer is None:
            raise InvalidParameter(f"invalid archive: layer {name} not found")
        layers.append(_descriptor(_layer_type(images, layer), layer))
    manifest = _DockerManifest(2, DOCKER_MANIFEST, _descriptor(DOCKER_CONFIG, config), layers)
    data = _encoder.encode(manifest)
    return Descriptor(media_type=DOCKER_MANIFEST, digest=images.content.put(data, lease=lease), size=len(data))


def _descriptor(media_type: str, blob: Descriptor) -> dict[str, object]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}


def _layer_type(images: Images, layer: Descriptor) -> str:
    with images.content.open(layer.digest) as file:
        kind = detect(file.read(6))
    return {"": DOCKER_LAYER, "gzip": DOCKER_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}.get(kind, DOCKER_LAYER)
