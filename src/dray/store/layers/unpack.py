"""One layer's blob into a directory: decompress, verify, extract, in a single pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

from dray.base.errors import InvalidParameter
from dray.store.layers.extract import Applied, Extractor, Lower
from dray.store.layers.headers import TarReader
from dray.store.layers.stream import Budget, Decompressed, ForwardReader, detect
from dray.store.snapshots import LayerSource

Result = TypeVar("Result")

_INLINE = 256 << 10  # below this a thread costs more than it brings


class _Watched:
    """Passes reads through and tells how far they have come."""

    def __init__(self, file: BinaryIO, tell: Callable[[int], None]) -> None:
        self._file = file
        self._tell = tell
        self._read = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._read += len(data)
        self._tell(self._read)
        return data


def unpack_layer(
    layer: LayerSource,
    directory: str | os.PathLike[str],
    *,
    overlay: bool,
    lower: Lower | None = None,
    tell: Callable[[int], None] | None = None,
    budget: Budget | None = None,
) -> Applied:
    """Extract `layer` into `directory`; `tell` hears how many bytes of the blob were read.

    InvalidParameter if the tar is hostile or damaged or is not what `diff_id` says; NeedsLower see `extract`. What
    was written by then is left for the caller to remove.
    """
    bound = budget or Budget(directory)

    def extract(reader: ForwardReader) -> Applied:
        return Extractor(directory, overlay=overlay, budget=bound, lower=lower).apply(TarReader(reader))

    return consume(layer, bound, extract, tell=tell)


def consume(
    layer: LayerSource,
    budget: Budget,
    read: Callable[[ForwardReader], Result],
    *,
    tell: Callable[[int], None] | None = None,
    through: Callable[[Iterator[bytes]], Iterator[bytes]] | None = None,
) -> Result:
    """Return what `read` makes of a layer's tar, once all of it is what `diff_id` says; InvalidParameter if not.

    through: sees every chunk of the tar on its way
    """
    with layer.open() as file:
        source = _Watched(file, tell) if tell else file
        size = os.fstat(file.fileno()).st_size
        hashed = not layer.verified or bool(detect(_peek(file)))
        chunks = Decompressed(source, budget, threaded=size > _INLINE, hashed=hashed)
        try:
            reader = ForwardReader(through(iter(chunks)) if through else iter(chunks))
            result = read(reader)
            reader.drain()
        except RecursionError:
            raise InvalidParameter(f"layer {layer.diff_id} is nested too deeply") from None
        finally:
            chunks.close()
    if hashed and chunks.digest != layer.diff_id:
        raise InvalidParameter(
            f"wrong diff id calculated on extraction: {chunks.digest}, the image config says {layer.diff_id}"
        )
    return result


def _peek(file: BinaryIO) -> bytes:
    return os.pread(file.fileno(), 6, 0)
