"""What images take of the disk, each byte counted once.

    blobs       what was loaded, pulled or pushed, compressed or not: bytes of the files below content/blobs
    layers      the same unpacked: apparent bytes of the regular files in layers (a hard link counts once, a directory
                nothing), also of layers that only a container still stands on
    transfers   what has arrived of blobs whose transfer goes on or was broken off, below content/ingest

An image's own size is that of its blobs and layers. What several images have in common is in the size of each, and is
their *shared* size; what is left of an image's size is what its removal frees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dray.base.errors import DrayError
from dray.store.images.model import Image
from dray.store.images.service import Images
from dray.store.snapshots import Info

Part = tuple[str, str]  # ("blob", digest) or ("layer", chain id): an uncompressed layer may bear one name for both


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes on disk.

    reclaimable: of blobs and layers, what goes when every unused image is removed
    shared: of each image by id, what another image has, too
    """

    blobs: int
    layers: int
    transfers: int
    reclaimable: int
    shared: dict[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return self.blobs + self.layers + self.transfers


def measure(images: Images, used: Iterable[str]) -> Usage:
    """Measure; `used` are the ids of images that have containers. Blocking: it looks at every blob."""
    infos = images.snapshots.list()
    blobs: dict[Part, int] = {("blob", digest): size for digest, size in images.content.walk()}
    layers: dict[Part, int] = {
        ("layer", info.key): images.snapshots.usage(info.key).size for info in infos if info.kind == "committed"
    }
    sizes = blobs | layers
    parts = {image.id: _parts(images, image) & sizes.keys() for image in images.list()}
    counts = Counter(part for own in parts.values() for part in own)
    kept = _under_containers(infos).union(*(parts.get(image, set()) for image in used))
    return Usage(
        blobs=sum(blobs.values()),
        layers=sum(layers.values()),
        transfers=images.content.incoming(),
        reclaimable=sum(size for part, size in sizes.items() if part not in kept),
        shared={
            image: sum(sizes[part] for part in own if counts[part] > 1) for image, own in parts.items()
        },
    )  # fmt: skip


def _parts(images: Images, image: Image) -> set[Part]:
    try:
        parts: set[Part] = {("blob", blob.digest) for blob in images.blobs(image.target)}
        return parts | {("layer", key) for key in images.chains(image.target)}
    except DrayError:
        return {("blob", image.id)}  # damaged: what it consists of cannot be told


def _under_containers(infos: Sequence[Info]) -> set[Part]:
    """Return the layers that containers stand on."""
    below = {info.key: info.parent for info in infos}
    found: set[Part] = set()
    for info in infos:
        key = info.parent if info.kind != "committed" else None
        while key is not None and ("layer", key) not in found:
            found.add(("layer", key))
            key = below.get(key)
    return found
