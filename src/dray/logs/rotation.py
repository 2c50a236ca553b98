"""Log files that stay below a size: rotation and compression.

    NAME            what is being written
    NAME.1[.gz]     the one before, and so on up to NAME.<max_files - 1>[.gz]

The file is only ever appended to. A record is written whole or not at all: what a full disk left of one is cut
off again, and so is, on opening, what a crash left. Rotation happens between two records, as soon as the file has
reached its size (moby loggerutils). Compression is done by a forked child with low priority; the next rotation
waits for it, so there is never more than one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from dray.linux import libc

_BLOCK = 1 << 20
_TAIL = 1 << 20  # how far back the end of the last whole record is looked for


class RotatingFile:
    """An append-only file with its rotated predecessors; owns the descriptor and the compressor."""

    def __init__(
        self,
        path: str,
        *,
        max_size: int,
        max_files: int,
        compress: bool,
        ends: bytes = b"",
        head: bytes = b"",
        whole: Callable[[int, int], int] | None = None,
    ) -> None:
        """`max_size` -1 never rotates.

        ends: what ends a record and stands nowhere else; b"" if records cannot be told apart by that
        head: what every file begins with
        whole: given a descriptor and its size, where its last whole record ends; by default found by `ends`
        """
        self._path = path
        self._max_size = max_size
        self._max_files = max_files
        self._compress = compress
        self._ends = ends
        self._head = head
        self._whole = whole or self._whole_by_end
        self._compressor = 0
        self._fd = -1
        self._size = 0
        self._open()

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o640)
        size = os.fstat(self._fd).st_size
        self._size = self._whole(self._fd, size) if size else 0
        if self._size < size:
            os.ftruncate(self._fd, self._size)
        if not self._size and self._head:
            self._append(self._head)

    def _whole_by_end(self, fd: int, size: int) -> int:
        start = max(0, size - _TAIL)
        whole = os.pread(fd, size - start, start).rfind(self._ends) + 1
        return start + whole if whole or not start else size

    @property
    def size(self) -> int:
        """Bytes in the current file."""
        return self._size

    def write(self, data: bytes) -> None:
        """Append records; the file is rotated where a record ends if the size is reached within `data`."""
        if self._max_size < 0:
            self._append(data)
            return
        position = 0
        while position < len(data):
            if self._size >= self._max_size:
                self._rotate()
            cut = len(data)
            if self._ends and self._size + cut - position > self._max_size:
                room = self._max_size - self._size
                cut = data.find(self._ends, position + max(0, room - 1)) + 1 or len(data)
            self._append(data[position:cut] if position or cut < len(data) else data)
            position = cut

    def _append(self, data: bytes) -> None:
        if self._fd < 0:
            with contextlib.suppress(OSError):
                self._open()
            if self._fd < 0:
                return
        view = memoryview(data)
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, view[written:])
        except OSError:  # a full disk: the records are lost, but no half one stays
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            return
        self._size += written

    def _rotate(self) -> None:
        self.wait()
        names = [self._path, *(f"{self._path}.{number}" for number in range(1, self._max_files))]
        try:
            for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
                for suffix in ("", ".gz"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(older + suffix)
                for suffix in ("", ".gz") if newer != self._path else ("",):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(newer + suffix, older + suffix)
            if self._max_files < 2:
                os.unlink(self._path)
        except OSError:
            return  # go on with the file there is
        os.close(self._fd)
        self._fd, self._size = -1, 0
        with contextlib.suppress(OSError):
            self._open()
        if self._compress and self._max_files > 1:
            self._compressor = _start_compressor(names[1])

    def wait(self) -> None:
        """Wait until no compressor runs."""
        if self._compressor:
            with contextlib.suppress(ChildProcessError):  # the process's own reaper may have been first
                os.waitpid(self._compressor, 0)
            self._compressor = 0

    def close(self) -> None:
        """Close the file. A running compressor goes on by itself."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _start_compressor(path: str) -> int:
    """Fork a child that replaces `path` by `path`.gz; return its pid."""
    try:
        pid = os.fork()
    except OSError:
        return 0  # the file stays as it is, which readers understand
    if pid:
        return pid
    try:
        libc.close_range(3)
        os.nice(10)
        compress(path)
    finally:
        os._exit(0)


def compress(path: str) -> None:
    """Replace the file at `path` by `path`.gz in one step."""
    from isal import isal_zlib

    target, beside = path + ".gz", path + ".gz.tmp"
    with open(path, "rb") as source, open(beside, "wb") as sink:
        os.fchmod(sink.fileno(), 0o640)
        deflate = isal_zlib.compressobj(level=1, wbits=31)
        while block := source.read(_BLOCK):
            sink.write(deflate.compress(block))
        sink.write(deflate.flush())
    os.rename(beside, target)
    os.unlink(path)
