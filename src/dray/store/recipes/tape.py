"""What a layer's tar consists of besides the contents of its files.

A tape is the plain tar cut into pieces, in order: bytes that it holds itself (headers, padding, the archive's end,
files that cannot be read back), and stretches of files of the unpacked layer. It is what tar-split keeps, without
knowing anything of tar when it is played: sparse files are several stretches, and what a later entry of the same tar
has replaced is simply held. On disk, inside one zstd frame:

    kind u8, little-endian
    1  length u32, then that many bytes
    2  length of the path u16, offset in the file u64, length u64, crc32 u32, then the path
    0  the end

A path is that of the tar's entry. It is resolved in the layer's directory as the extractor resolved it, so that no
link in it leads out, and what is not a regular file is never opened for reading.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

import zstandard

from dray.base.errors import DrayError, InvalidParameter
from dray.store.layers.headers import REGULAR, Entry, TarReader
from dray.store.layers.stream import ForwardReader
from dray.store.layers.tree import Tree, clean

_HELD = struct.Struct("<BI")
_STRETCH = struct.Struct("<BHQQI")
_END, _BYTES, _FILE = 0, 1, 2
_CHUNK = 1 << 20
_SMALL = 128  # bytes of content that are held rather than looked up in a file
_REPLACED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Damaged(DrayError):
    """A file of an unpacked layer is not what it was; the message names the file."""


class TapeWriter:
    """Writes a tape to `file`, which stays the caller's."""

    def __init__(self, file: BinaryIO) -> None:
        self._out = zstandard.ZstdCompressor(level=9).stream_writer(file, closefd=False)
        self._held: list[bytes] = []
        self._size = 0
        self._path = b""
        self._at = self._length = self._crc = 0

    def hold(self, data: bytes | memoryview) -> None:
        """Append bytes of the tape's own."""
        self._end_stretch()
        self._held.append(bytes(data))
        self._size += len(data)
        if self._size >= _CHUNK:
            self._end_held()

    def stretch(self, path: bytes, at: int, data: memoryview) -> None:
        """Append what the file `path` has at the offset `at`, which is `data`."""
        if path != self._path or at != self._at + self._length:
            self._end_stretch()
            self._end_held()
            self._path, self._at = path, at
        self._crc = zlib.crc32(data, self._crc)
        self._length += len(data)

    def _end_held(self) -> None:
        if self._size:
            self._out.write(_HELD.pack(_BYTES, self._size) + b"".join(self._held))
            self._held, self._size = [], 0

    def _end_stretch(self) -> None:
        if self._length:
            head = _STRETCH.pack(_FILE, len(self._path), self._at, self._length, self._crc)
            self._out.write(head + self._path)
        self._path, self._at, self._length, self._crc = b"", 0, 0, 0

    def close(self) -> None:
        """Write what is left and the end."""
        self._end_stretch()
        self._end_held()
        self._out.write(bytes([_END]))
        self._out.close()  # type: ignore[no-untyped-call]


class _Tapped(ForwardReader):
    """Gives everything but the data of files to the tape as it passes."""

    def __init__(self, chunks: Iterator[bytes], tape: TapeWriter) -> None:
        super().__init__(chunks)
        self._tape = tape

    def take(self, size: int) -> bytes:
        data = b"".join(super().pieces(size))
        self._tape.hold(data)
        return data

    def skip(self, size: int) -> int:
        passed = 0
        for piece in super().pieces(size):
            self._tape.hold(piece)
            passed += len(piece)
        return passed

    def drain(self) -> None:
        while self.skip(_CHUNK):
            pass


def record(chunks: Iterator[bytes], directory: str | os.PathLike[str], tape: TapeWriter) -> None:
    """Write the tape of the plain tar in `chunks`, which is unpacked in `directory`; InvalidParameter if it is none.

    Every byte that the tape leaves to a file was compared with that file.
    """
    source = _Tapped(chunks, tape)
    reader = TarReader(source)
    tree = Tree(directory)
    try:
        for entry in reader:
            if entry.type == REGULAR and entry.size > _SMALL:
                _record_file(reader, entry, tree, tape)
        source.drain()
    finally:
        tree.close()
    tape.close()


def _record_file(reader: TarReader, entry: Entry, tree: Tree, tape: TapeWriter) -> None:
    try:
        path = clean(entry.name)
        fd = _open(tree, path) if len(path) < 1 << 16 else -1
    except (OSError, InvalidParameter):
        fd, path = -1, b""  # a whiteout, or replaced by a later entry
    pieces = iter(entry.sparse or [(0, entry.size)])
    at = left = 0
    try:
        for data in reader.data(entry):
            view = data
            while view:
                if not left:
                    at, left = next(pieces)
                part = view[:left]
                if fd >= 0 and os.pread(fd, len(part), at) == part:
                    tape.stretch(path, at, part)
                else:
                    tape.hold(part)
                at, left, view = at + len(part), left - len(part), view[len(part) :]
    finally:
        if fd >= 0:
            os.close(fd)


def _open(tree: Tree, path: bytes) -> int:
    """Open a regular file of a layer; OSError or InvalidParameter if there is none."""
    above, _, base = path.rpartition(b"/")
    if not base:
        raise InvalidParameter("no file has that name")
    fd = os.open(base, _READ, dir_fd=tree.directory(above, make=False))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidParameter("not a regular file")
    return fd


class _Exact(Protocol):
    """What a tape is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes."""


def play(file: BinaryIO, directory: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the plain tar of the tape in `file`; Damaged names the file of the layer that has changed."""
    source = zstandard.ZstdDecompressor().stream_reader(file, closefd=False)
    tree = Tree(directory)
    last, fd = b"", -1
    try:
        while (kind := _take(source, 1)[0]) != _END:
            if kind == _BYTES:
                (length,) = struct.unpack("<I", _take(source, _HELD.size - 1))
                yield _take(source, length)
                continue
            count, at, length, crc = struct.unpack("<HQQI", _take(source, _STRETCH.size - 1))
            path = _take(source, count)
            if path != last or fd < 0:
                if fd >= 0:
                    os.close(fd)
                    fd = -1
                fd, last = _reopen(tree, path), path
            yield from _stretch(fd, path, at, length, crc)
    finally:
        if fd >= 0:
            os.close(fd)
        tree.close()
        source.close()  # type: ignore[no-untyped-call]


def _reopen(tree: Tree, path: bytes) -> int:
    try:
        return _open(tree, path)
    except (OSError, InvalidParameter) as error:
        if isinstance(error, OSError) and error.errno not in _REPLACED:
            raise
        raise Damaged(f"its unpacked file /{os.fsdecode(path)} is gone or replaced") from None


def _stretch(fd: int, path: bytes, at: int, length: int, crc: int) -> Iterator[bytes]:
    found, end = 0, at + length
    while at < end:
        data = os.pread(fd, min(_CHUNK, end - at), at)
        if not data:
            break
        found = zlib.crc32(data, found)
        at += len(data)
        if at == end and found != crc:
            break
        yield data
    else:
        return
    raise Damaged(f"its unpacked file /{os.fsdecode(path)} was changed")


def _take(source: _Exact, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.read(size - len(data))
        if not more:
            raise Damaged("its recipe is cut off")
        data = data + more if data else more
    return data
