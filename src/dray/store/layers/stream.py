"""Layer streams: decompression by magic number, the digest of what comes out, and a forward reader over it.

A `Feed` yields chunks of decompressed bytes. `Decompressed` makes them in a thread of its own, because gunzip,
zstd and SHA-256 give up the interpreter lock: on two cores a layer is decompressed while it is written. Only the
magic number decides the format (gzip, zstd, xz, bzip2, plain tar); media types of archives are often wrong.

Bombs: `Budget` bounds what may come out by the free space of the file system that receives it and, past a fair
start, by the ratio to what went in.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, cast

from dray.base.errors import InvalidParameter, Unavailable

CHUNK = 1 << 20
_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\x00", "xz"), (b"BZh", "bzip2"))
_ZSTD_WINDOW = 128 << 20
_XZ_MEMORY = 256 << 20


class Readable(Protocol):
    """Anything with a blocking `read`; b"" is the end."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes."""


def detect(head: bytes) -> str:
    """Name the compression of a stream by its first bytes: gzip, zstd, xz, bzip2 or "" for none."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return "zstd"  # a skippable frame comes first (zstd:chunked, pzstd)
    return ""


class Budget:
    """How much may come out of a stream.

    ratio: the largest believable expansion; gzip cannot exceed 1032, zstd can without bound
    limit: bytes in total, None for what leaves `reserve` free on the file system of `path`
    """

    fair_start = 64 << 20

    def __init__(
        self, path: str | os.PathLike[str], *, limit: int | None = None, ratio: int = 1100, reserve: int = 64 << 20
    ) -> None:
        self._path = os.fspath(path)
        self._limit = limit
        self._ratio = ratio
        self._reserve = reserve
        self._checked = 0
        self._measure()

    def _measure(self) -> None:
        status = os.statvfs(self._path)
        self._free = status.f_bavail * status.f_frsize - self._reserve

    def expanded(self, produced: int, consumed: int) -> None:
        """Refuse an expansion that no honest compressor reaches; InvalidParameter."""
        if produced > self.fair_start and produced > consumed * self._ratio:
            raise InvalidParameter(
                f"layer expands more than {self._ratio} times ({consumed} bytes to over {produced}): "
                "refused as a decompression bomb"
            )

    def write(self, total: int) -> None:
        """Refuse to write beyond the limit; `total` counts the bytes of file data about to be on disk."""
        if self._limit is not None and total > self._limit:
            raise InvalidParameter(f"layer unpacks to more than {self._limit} bytes, the limit for one layer")
        if total - self._checked > self._free:
            raise Unavailable(f"no space left below {self._path} to unpack the layer: free some and try again")
        if total - self._checked > 32 << 20:
            self._checked = total
            self._measure()


class _Counting:
    """Counts what is read, and gives back a few bytes that were peeked at."""

    def __init__(self, source: Readable, head: bytes) -> None:
        self._source = source
        self._head = head
        self.consumed = 0

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._source.read(size)
        self.consumed += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Xz:
    """lzma with a bound on memory, over concatenated streams."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._left = b""
        self._decoder: object | None = None

    def read(self, size: int = -1, /) -> bytes:
        import lzma

        while True:
            if self._decoder is None:
                self._left = (self._left or self._source.read(CHUNK)).lstrip(b"\0")  # stream padding
                if not self._left:
                    return b""
                self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            decoder = self._decoder
            assert isinstance(decoder, lzma.LZMADecompressor)
            data = b""
            if decoder.needs_input and not self._left:
                self._left = self._source.read(CHUNK)
                if not self._left:
                    raise EOFError("compressed stream ended before its end marker")
            given, self._left = self._left, b""
            data = decoder.decompress(given, size)
            if decoder.eof:
                self._left, self._decoder = decoder.unused_data, None
            if data:
                return data


def decompressor(source: Readable) -> tuple[Readable, _Counting, str]:
    """Return (reader of the plain bytes, counter of what it consumed, compression's name)."""
    head = b""
    while len(head) < 6 and (more := source.read(6 - len(head))):
        head += more
    kind = detect(head)
    counting = _Counting(source, head)
    if kind == "gzip":
        from isal import igzip

        unzip: Callable[..., Readable] = igzip.IGzipFile
        return unzip(fileobj=counting, mode="rb"), counting, kind
    if kind == "zstd":
        import zstandard

        context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        plain = cast("BinaryIO", counting)
        return context.stream_reader(plain, read_size=CHUNK, read_across_frames=True), counting, kind
    if kind == "xz":
        return _Xz(counting), counting, kind
    if kind == "bzip2":
        import bz2

        return bz2.BZ2File(cast("BinaryIO", counting)), counting, kind
    return counting, counting, kind


class Decompressed:
    """The chunks of a compressed stream and, at its end, `digest` of them all.

    Iterate to the end, then read `digest`; `close` stops it early. Errors of the stream are raised from the
    iterator as InvalidParameter.
    """

    def __init__(self, source: Readable, budget: Budget, *, threaded: bool = True, hashed: bool = True) -> None:
        self._source = source
        self._budget = budget
        self._hash = hashlib.sha256() if hashed else None
        self._stopped = False
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(maxsize=6)
        self._thread = threading.Thread(target=self._produce, name="layer", daemon=True) if threaded else None
        if self._thread:
            self._thread.start()

    def _chunks(self) -> Iterator[bytes]:
        produced = 0
        try:
            plain, counting, kind = decompressor(self._source)
            while data := plain.read(CHUNK):
                produced += len(data)
                if kind:
                    self._budget.expanded(produced, counting.consumed)
                if self._hash:
                    self._hash.update(data)
                yield data
        except (OSError, EOFError, ValueError, MemoryError) as error:
            raise _unreadable(error) from error
        except Exception as error:
            if type(error).__name__ in ("ZstdError", "LZMAError", "error", "IsalError"):
                raise _unreadable(error) from error
            raise

    def _produce(self) -> None:
        try:
            for data in self._chunks():
                if self._stopped:
                    return
                self._queue.put(data)
        except BaseException as error:
            self._queue.put(error)
        else:
            self._queue.put(None)

    def __iter__(self) -> Iterator[bytes]:
        if self._thread is None:
            yield from self._chunks()
            return
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    @property
    def digest(self) -> str:
        """The digest of everything that came out; to be read after the last chunk."""
        assert self._hash is not None
        return "sha256:" + self._hash.hexdigest()

    def close(self) -> None:
        """Stop, whether or not the end was reached."""
        self._stopped = True
        if self._thread is None:
            return
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(0.01)


def _unreadable(error: BaseException) -> InvalidParameter:
    return InvalidParameter(f"layer cannot be decompressed (truncated or damaged): {error}")


class ForwardReader:
    """Exact reads from chunks, without copying where a chunk holds all of it."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._data = b""
        self._view = memoryview(b"")
        self._at = 0
        self.position = 0

    def _refill(self) -> bool:
        for data in self._chunks:
            if data:
                self._data, self._view, self._at = data, memoryview(data), 0
                return True
        return False

    def take(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end of the stream."""
        start, end = self._at, self._at + size
        if end <= len(self._data):
            self._at = end
            self.position += size
            return self._data[start:end]
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield `size` bytes in the pieces they came in; fewer only at the end of the stream."""
        while size:
            left = len(self._data) - self._at
            if not left:
                if not self._refill():
                    return
                continue
            count = min(left, size)
            piece = self._view[self._at : self._at + count]
            self._at += count
            self.position += count
            size -= count
            yield piece

    def skip(self, size: int) -> int:
        """Pass over `size` bytes; return how many there were."""
        end = self._at + size
        if end <= len(self._data):
            self._at = end
            self.position += size
            return size
        return sum(len(piece) for piece in self.pieces(size))

    def drain(self) -> None:
        """Read to the end, so that the digest covers everything."""
        while self._refill():
            self.position += len(self._data)
        self._data, self._view, self._at = b"", memoryview(b""), 0
