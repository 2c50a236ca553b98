"""`docker save`: images as one archive that old and new tools read (as Docker makes since version 25).

    blobs/sha256/<hex>    everything the images consist of
    index.json            the OCI side: one descriptor for each name
    manifest.json         the Docker side: config, layers and tags of each image
    oci-layout            {"imageLayoutVersion": "1.0.0"}
    repositories          left out: it names layers of a format that is gone since Docker 1.10

The same images give the same bytes: members are sorted, their times are zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from dray.base import digest as digests
from dray.base import reference
from dray.base.errors import InvalidParameter, NotFound
from dray.oci import image as oci
from dray.oci.image import IMAGE_NAME, REF_NAME, Descriptor, Index
from dray.oci.platform import Platform
from dray.store.images.model import DANGLING, Image
from dray.store.images.reading import Found
from dray.store.images.service import Images
from dray.store.layers import tarwriter
from dray.store.layers.headers import DIRECTORY

_CHUNK = 1 << 20


class _Item(msgspec.Struct, rename="pascal"):
    """One image in manifest.json."""

    config: str
    repo_tags: list[str] | None
    layers: list[str]


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)


def save(images: Images, names: Sequence[str], *, platforms: Sequence[Platform] = ()) -> Iterator[bytes]:
    """Return the archive of the named images in chunks; blocking iteration.

    names: references or ids; a bare repository means its `latest`, as everywhere
    platforms: only these manifests of a multi-platform image

    Raises at once, before the first chunk: NotFound for an unknown image or platform, InvalidParameter without names.
    """
    if not names:
        raise InvalidParameter("at least one image is needed")
    index: list[Descriptor] = []
    items: dict[str, _Item] = {}
    blobs: dict[str, int] = {}
    extra: dict[str, bytes] = {}
    for word in names:
        image = images.resolve(word)
        target, founds = _chosen(images, image, platforms, extra)
        for descriptor in images.blobs(target) if target.digest not in extra else _flat(images, founds):
            if images.content.has(descriptor.digest):
                blobs[descriptor.digest] = descriptor.size
        name = None if image.name is None or image.name.startswith(DANGLING) else image.name
        if (entry := _entry(target, name)) not in index:
            index.append(entry)
        _describe(items, founds, name)
    files = {_path(digest): data for digest, data in extra.items()}
    files["index.json"] = oci.encode(Index(schema_version=2, media_type=oci.OCI_INDEX, manifests=index))
    files["manifest.json"] = msgspec.json.encode(list(items.values()))
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    return _write(images, files, blobs)


def _flat(images: Images, founds: Sequence[Found]) -> Iterator[Descriptor]:
    for found in founds:
        yield from images.blobs(found.descriptor)


def _chosen(
    images: Images, image: Image, platforms: Sequence[Platform], extra: dict[str, bytes]
) -> tuple[Descriptor, list[Found]]:
    """Return what to name in the archive, and the manifests that go in.

    Several platforms out of more make a new index; it goes to `extra` by its digest.
    """
    if not platforms:
        founds = [found for found in images.founds(image.target) if images.complete(found.descriptor)]
        return image.target, founds or [images.choose(image.target)]
    founds = []
    for platform in platforms:
        try:
            found = images.choose(image.target, platform)
        except NotFound:
            raise NotFound(
                f"image {image.tags[0] if image.tags else image.id} does not provide the platform ({platform})"
            ) from None
        if found not in founds:
            founds.append(found)
    if len(founds) == 1:
        return founds[0].descriptor, founds
    data = oci.encode(
        Index(schema_version=2, media_type=oci.OCI_INDEX, manifests=[found.descriptor for found in founds])
    )
    target = Descriptor(media_type=oci.OCI_INDEX, digest=digests.of(data), size=len(data))
    extra[target.digest] = data
    return target, founds


def _entry(target: Descriptor, name: str | None) -> Descriptor:
    annotations = None
    if name is not None:
        annotations = {IMAGE_NAME: name, REF_NAME: reference.parse(name).tag or ""}
        annotations = {key: value for key, value in annotations.items() if value}
    return Descriptor(
        media_type=target.media_type,
        digest=target.digest,
        size=target.size,
        platform=target.platform,
        annotations=annotations,
    )


def _describe(items: dict[str, _Item], founds: Sequence[Found], name: str | None) -> None:
    """Add to manifest.json; the tag goes to the first manifest, an old reader can give it only once."""
    for position, found in enumerate(founds):
        item = items.setdefault(
            found.descriptor.digest,
            _Item(
                _path(found.manifest.config.digest),
                None,
                [_path(layer.digest) for layer in found.manifest.layers or ()],
            ),
        )
        if name is not None and position == 0 and (parsed := reference.parse(name)).tag:
            item.repo_tags = sorted({*(item.repo_tags or ()), parsed.familiar})


def _write(images: Images, files: dict[str, bytes], blobs: dict[str, int]) -> Iterator[bytes]:
    sources = {_path(digest): (digest, size) for digest, size in blobs.items()}
    with images.hold() as lease:
        for digest in blobs:
            lease.add(digest)
        for folder in (b"blobs/", b"blobs/sha256/"):
            yield tarwriter.header(folder, kind=DIRECTORY, mode=0o755)
        for name in sorted({*files, *sources}):
            if name in files:
                yield tarwriter.member(name.encode(), files[name])
                continue
            digest, size = sources[name]
            yield tarwriter.header(name.encode(), size=size)
            with images.content.open(digest) as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
            yield tarwriter.padding(size)
        yield tarwriter.END
