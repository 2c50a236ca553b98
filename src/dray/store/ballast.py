"""Room kept for the moment when a disk is full: a file that takes space, and gives it up piece by piece.

The engine must write a little in order to free a lot (`rm` appends to the database's log before the directory goes).
A full disk would forbid just that, so some space is taken while there is plenty. Only writes that make nothing new
may ask for it: with a create paid from it, nothing would be left for the removal.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SIZE = 1 << 20
_PIECE = 1 << 15  # small: what a removal leaves of it, a creation may take
_PLENTY = 8 * SIZE  # free space from which the ballast is filled up again


class Ballast:
    """The file at `path`. Not thread-safe: its owner serialises the calls."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size
        self.refill()

    def release(self) -> bool:
        """Give up a piece; tell whether there was one."""
        if self._size == 0:
            return False
        self._size = max(0, self._size - _PIECE)
        os.ftruncate(self._fd, self._size)
        return True

    def refill(self) -> None:
        """Take the space again, if there is plenty; some microseconds when nothing is to be done."""
        if self._size >= SIZE:
            return
        disk = os.fstatvfs(self._fd)
        if disk.f_bavail * disk.f_frsize < _PLENTY:
            return
        with contextlib.suppress(OSError):  # someone else was quicker: next time
            os.posix_fallocate(self._fd, 0, SIZE)
        self._size = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file; the space stays taken."""
        os.close(self._fd)
