"""A blob that arrives in parts, in any order, and goes on where it was broken off.

    <root>/ingest/<name>/data     the blob at its full length, with holes where nothing has arrived
    <root>/ingest/<name>/parts    little-endian 64-bit numbers: part size, blob size, then for each part the bytes
                                  that have arrived of it, from its beginning
    <root>/ingest/<name>/ref      the blob's digest; alone: a bookmark, see `content`

Invariants:

* Data is written before `parts` says so; `parts` follows at the latest `JOURNAL` bytes later. Both survive a killed
  process (they are in the page cache); after a power loss `parts` may promise more than there is, which the digest
  finds out.
* SHA-256 needs its bytes in order, so the hash follows the contiguous prefix: of the bytes that are written where it
  stands it takes the very buffer, what came earlier it reads back from the page cache. At the last byte of the blob
  there is therefore next to nothing left to be hashed.
* Nobody can read the blob before `stage` has compared length and digest over every byte.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from dray.base import digest as digests
from dray.base.errors import InvalidParameter

if TYPE_CHECKING:
    from dray.store.content import ContentStore, Lease

PART = 32 << 20  # bytes; design note 012 has the measurements
JOURNAL = 256 << 10
_READ = 1 << 20
_NUMBER = struct.Struct("<Q")


def partial_size(folder: Path) -> int:
    """Return how many bytes an ingest holds; FileNotFoundError if there is none (any more), or only a bookmark."""
    journal = folder / "parts"
    if not journal.exists():
        return (folder / "data").stat().st_size
    data = journal.read_bytes()
    numbers = [number for (number,) in _NUMBER.iter_unpack(data[: len(data) // _NUMBER.size * _NUMBER.size])]
    return sum(numbers[2:])


class WrongDigest(InvalidParameter):
    """The content is not what its digest says."""


class Shelf:
    """The content store as one `Partial` sees it."""

    def __init__(self, store: ContentStore, lease: Lease | None) -> None:
        self._store = store
        self._lease = lease

    def stage(self, digest: str, data: Path) -> None:
        """Let this process read the checked blob from `data`."""
        self._store._stage(digest, data, self._lease)

    def install(self, digest: str, data: Path) -> None:
        """Give the blob its name, unless there is one of that name."""
        if not self._store._adopt(digest, self._lease):
            self._store._install(data, digest)

    def leave(self, folder: Path, *, remove: bool, bookmark: bool = False) -> None:
        """End the ingest; what has arrived stays unless `remove`. `bookmark`: let the blob, which nothing may refer
        to yet, stay for a while."""
        if bookmark:
            for name in ("data", "parts"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(folder / name)
            os.utime(folder / "ref")
        self._store._close_ingest(folder, remove=remove and not bookmark)


class Partial:
    """A blob on its way in. Threads may write different parts at a time; one part has one writer at a time."""

    def __init__(self, shelf: Shelf, folder: Path, digest: str, size: int, *, part_size: int = PART) -> None:
        self.digest = digest
        self.size = size
        self._shelf = shelf
        self._folder = folder
        self._part_size = part_size
        self._count = max(1, -(-size // part_size))
        self._done = [0] * self._count
        self._saved = [0] * self._count
        self._hash = digests.hasher(digest)
        self._hashed = 0
        self._hashing = threading.Lock()
        self._fd = os.open(folder / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._journal = os.open(folder / "parts", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except BaseException:
            os.close(self._fd)
            raise
        try:
            self._restore()
        except BaseException:
            self._close()
            raise
        self.resumed = self.received  # bytes that were here already

    def _restore(self) -> None:
        """Take up what an earlier ingest has left, if it was cut into the same parts; else begin anew."""
        words = 2 + self._count
        data = os.pread(self._journal, words * _NUMBER.size + 1, 0)
        if len(data) == words * _NUMBER.size:
            part_size, size, *done = struct.unpack(f"<{words}Q", data)
            bounds = [self.bounds(part) for part in range(self._count)]
            fits = all(count <= end - start for count, (start, end) in zip(done, bounds, strict=True))
            if (part_size, size) == (self._part_size, self.size) and fits:
                self._done, self._saved = list(done), list(done)
                return
        os.ftruncate(self._journal, 0)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._journal, struct.pack(f"<{words}Q", self._part_size, self.size, *self._done), 0)

    def bounds(self, part: int) -> tuple[int, int]:
        """Return where a part begins and ends (exclusive) in the blob."""
        start = part * self._part_size
        return start, min(start + self._part_size, self.size)

    def position(self, part: int) -> int:
        """Return the offset in the blob of the first byte that is missing of a part."""
        return part * self._part_size + self._done[part]

    def missing(self) -> list[int]:
        """Return the parts that are not whole, lowest first."""
        return [part for part in range(self._count) if self.position(part) < self.bounds(part)[1]]

    @property
    def received(self) -> int:
        """How many bytes are here."""
        return sum(self._done)

    # --- writing

    def write(self, part: int, data: bytes | memoryview) -> None:
        """Append to a part; OSError of write(2) comes through, and what was written before it counts."""
        view = memoryview(data)
        if self.position(part) + len(view) > self.bounds(part)[1]:
            raise InvalidParameter(f"part {part} of {self.digest} has more bytes than belong to it")
        at = self.position(part)
        while view:
            written = os.pwrite(self._fd, view, self.position(part))
            self._done[part] += written
            view = view[written:]
        if self._done[part] - self._saved[part] >= JOURNAL or self.position(part) == self.bounds(part)[1]:
            self._save(part)
        if self._hashing.acquire(blocking=False):
            try:
                if self._hashed == at:
                    self._hash.update(data)
                    self._hashed += len(data)
                self._follow()
            finally:
                self._hashing.release()

    def _save(self, part: int) -> None:
        os.pwrite(self._journal, _NUMBER.pack(self._done[part]), (2 + part) * _NUMBER.size)
        self._saved[part] = self._done[part]

    def _prefix(self) -> int:
        """Return how many bytes from the beginning are here without a hole."""
        for part in range(self._hashed // self._part_size, self._count):
            if (position := self.position(part)) < self.bounds(part)[1]:
                return position
        return self.size

    def _follow(self) -> None:
        """Hash what has arrived in order and is not hashed yet. Under `_hashing`."""
        while self._hashed < (prefix := self._prefix()):
            data = os.pread(self._fd, min(_READ, prefix - self._hashed), self._hashed)
            if not data:
                break  # shorter than `parts` promises: the length or the digest will tell
            self._hash.update(data)
            self._hashed += len(data)

    # --- the end of it

    def stage(self) -> None:
        """Compare length and digest, and let this process read the blob; WrongDigest if it is another one.

        The blob has no name on disk until `commit`.
        """
        with self._hashing:
            self._follow()
        if self._hashed != self.size:
            raise WrongDigest(f"unexpected size: {self._hashed} bytes of {self.digest}, expected {self.size}")
        digest = f"{self.digest.partition(':')[0]}:{self._hash.hexdigest()}"
        if digest != self.digest:
            raise WrongDigest(f"unexpected digest: content is {digest}, expected {self.digest}")
        self._shelf.stage(self.digest, self._folder / "data")

    def commit(self) -> None:
        """Put a staged blob on disk under its name."""
        try:
            os.fdatasync(self._fd)
            self._shelf.install(self.digest, self._folder / "data")
        except BaseException:
            self._finish(remove=True)
            raise
        self._finish(remove=True, bookmark=True)

    def keep(self) -> None:
        """End for now; a later ingest of this digest goes on from here."""
        if self._fd >= 0:
            for part in range(self._count):
                if self._saved[part] != self._done[part]:
                    self._save(part)
            self._finish(remove=not self.received)

    def drop(self) -> None:
        """Remove everything that has arrived."""
        self._finish(remove=True)

    def _finish(self, *, remove: bool, bookmark: bool = False) -> None:
        if self._fd >= 0:
            self._close()
            self._shelf.leave(self._folder, remove=remove, bookmark=bookmark)

    def _close(self) -> None:
        os.close(self._fd)
        os.close(self._journal)
        self._fd = -1
