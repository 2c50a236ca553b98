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
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec

from dray.base import digest as digests
from dray.base import reference
from dray.base.errors import InvalidParameter, NotFound
from dray.oci import image as oci
from dray.oci.image import IMAGE_NAME, REF_NAME, Descriptor, Index
from dray.oci.platform import Platform
from dray.store.images.model import Image
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


class Archive:
    """An archive on its way out: an iterator of chunks, blocking, that keeps what it consists of from being collected
    until it is closed."""

    def __init__(self, chunks: Iterator[bytes], held: ExitStack) -> None:
        self._chunks = chunks
        self._held = held

    def __iter__(self) -> Archive:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the content."""
        self._held.close()

    def __del__(self) -> None:
        self.close()  # nobody has asked for the first chunk


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An image to save, and the canonical name that it shall have in the archive."""

    image: Image
    name: str | None


def save(images: Images, names: Sequence[str], *, platforms: Sequence[Platform] = ()) -> Archive:
    """Return the archive of the named images.

    names: references or ids. A repository without tag or digest means all its tags; what is named by id or digest
    has no name in the archive.
    platforms: only these manifests of a multi-platform image

    Raises at once, before the first chunk: NotFound for an unknown image or platform or one whose content is not
    here, InvalidParameter without names.
    """
    if not names:
        raise InvalidParameter("at least one image is needed")
    with ExitStack() as stack:
        lease = stack.enter_context(images.hold(named=True))
        index: list[Descriptor] = []
        items: dict[str, _Item] = {}
        blobs: dict[str, int] = {}
        extra: dict[str, bytes] = {}
        wanted = [one for word in names for one in _wanted(images, word)]
        for one in wanted:
            target, founds = _chosen(images, one.image, platforms, extra)
            for descriptor in images.blobs(target) if target.digest not in extra else _flat(images, founds):
                if lease.add(descriptor.digest):
                    blobs[descriptor.digest] = descriptor.size
            for descriptor in _flat(images, founds):
                if descriptor.digest not in blobs:  # removed between the look and the lease
                    raise NotFound(f"content of image {one.image.id} is not here: pull it again")
            if (entry := _entry(target, one.name)) not in index:
                index.append(entry)
            _describe(items, founds, one.name)
        files = {_path(digest): data for digest, data in extra.items()}
        files["index.json"] = oci.encode(Index(schema_version=2, media_type=oci.OCI_INDEX, manifests=index))
        files["manifest.json"] = msgspec.json.encode(list(items.values()))
        files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
        for one in wanted:
            images.notify("save", one.image)
        return Archive(_write(images, files, blobs), stack.pop_all())


def _wanted(images: Images, word: str) -> list[_Wanted]:
    """Return what a word of the user means (moby `daemon/containerd/image_exporter.go`)."""
    try:
        image = images.resolve(word)
    except NotFound:
        if not (tags := _repository(images, word)):
            raise
        return tags
    if image.name is None or "@" in word:
        return [_Wanted(image, None)]
    return _repository(images, word) or [_Wanted(image, image.name)]


def _repository(images: Images, word: str) -> list[_Wanted]:
    """Return all tags of the repository that `word` is the bare name of; none if it is more than that."""
    try:
        parsed = reference.parse(word)
    except InvalidParameter:
        return []
    if parsed.tag or parsed.digest:
        return []
    return [_Wanted(images.resolve(name), name) for name in images.tags_in(parsed.name)]


def _flat(images: Images, founds: Sequence[Found]) -> Iterator[Descriptor]:
    for found in founds:
        yield from images.blobs(found.descriptor)


def _chosen(
    images: Images, image: Image, platforms: Sequence[Platform], extra: dict[str, bytes]
) -> tuple[Descriptor, list[Found]]:
    """Return what to name in the archive, and the manifests that go in.

    Several platforms out of more make a new index; it goes to `extra` by its digest.
    """
    shown = image.tags[0] if image.tags else image.id
    if not platforms:
        founds = [found for found in images.founds(image.target) if images.complete(found.descriptor)]
        if not founds:
            raise NotFound(f"content of image {shown} is not here: pull it again")
        best = images.choose(image.target)  # an old reader sees the first only
        return image.target, sorted(founds, key=lambda found: found.descriptor != best.descriptor)
    founds = []
    for platform in platforms:
        try:
            found = images.choose(image.target, platform)
        except NotFound:
            raise NotFound(f"image {shown} does not provide the platform ({platform})") from None
        if not images.complete(found.descriptor):
            raise NotFound(f"image {shown}: content of the platform ({platform}) is not here: pull it for that")
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
