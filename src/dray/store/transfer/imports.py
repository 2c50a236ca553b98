"""`docker import`: a root file system's tar becomes an image of one layer.

The layer is stored uncompressed or as gzip, whichever the stream was; other compressions are turned into a plain
tar, since other tools may not read them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from dray.oci import image as oci
from dray.oci.image import ContainerConfig, Descriptor, History, ImageConfig, Manifest, RootFS
from dray.oci.platform import Platform, host
from dray.store.content import Lease
from dray.store.images.model import Image
from dray.store.images.service import Images
from dray.store.layers.stream import Budget, Decompressed, Readable
from dray.store.transfer.changes import apply_changes
from dray.store.transfer.progress import LayerProgress, Report, silent


class _Kept:
    """Passes a stream through and keeps count."""

    def __init__(self, stream: Readable, bars: LayerProgress) -> None:
        self._stream = stream
        self._bars = bars
        self._read = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._read += len(data)
        self._bars("importing", self._read, 0 if data else self._read)
        return data


def _layer(images: Images, stream: Readable, lease: Lease, bars: LayerProgress) -> Descriptor:
    """Store the tar, decompressed; its digest is the diff id."""
    budget = Budget(images.content.path("sha256:" + 64 * "0").parent)
    chunks = Decompressed(_Kept(stream, bars), budget, hashed=False)
    try:
        with images.content.ingest(lease=lease) as ingest:
            for chunk in _within(chunks, budget):
                ingest.write(chunk)
            size = ingest.offset
            return Descriptor(media_type=oci.DOCKER_LAYER, digest=ingest.commit(), size=size)
    finally:
        chunks.close()


def _within(chunks: Decompressed, budget: Budget) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        budget.write(total)
        yield chunk


def _now() -> str:
    seconds, fraction = divmod(time.time_ns(), 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


def import_image(
    images: Images,
    stream: Readable,
    *,
    reference: str | None = None,
    message: str = "",
    source: str = "-",
    changes: Sequence[str] = (),
    platform: Platform | None = None,
    progress: Report = silent,
) -> Image:
    """Make an image of the tar in `stream` (any compression), name it `reference` (canonical) if given; `source` is
    where it came from, for its history.

    InvalidParameter for a bad change or a damaged or hostile tar; nothing is listed then. Blocking.
    """
    config = ContainerConfig()
    apply_changes(config, changes)
    wanted = platform or host()
    with images.hold() as lease:
        layer = _layer(images, stream, lease, LayerProgress(progress, "Importing"))
        created = _now()
        document = ImageConfig(
            created=created,
            architecture=wanted.architecture,
            os=wanted.os,
            variant=wanted.variant,
            config=config,
            rootfs=RootFS(diff_ids=[layer.digest]),
            history=[History(created=created, comment=message or f"Imported from {source}")],
            comment=message or None,
        )
        data = oci.encode(document)
        described = Descriptor(
            media_type=oci.DOCKER_CONFIG, digest=images.content.put(data, lease=lease), size=len(data)
        )
        manifest = oci.encode(
            Manifest(schema_version=2, media_type=oci.DOCKER_MANIFEST, config=described, layers=[layer])
        )
        target = Descriptor(
            media_type=oci.DOCKER_MANIFEST,
            digest=images.content.put(manifest, lease=lease),
            size=len(manifest),
        )
        images.unpack(target, wanted)
        image = images.put([reference] if reference else [], target)
    images.notify("import", image)
    return image
