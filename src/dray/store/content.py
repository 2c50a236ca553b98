"""Content-addressed blobs.

    <root>/blobs/sha256/<hex>     a blob, whole and checked, 0600; directories 0700
    <root>/ingest/<name>/data     what has arrived of one
    <root>/ingest/<name>/ref      the key of a resumable ingest; without it the ingest dies with its process
    <root>/ingest/<name>/parts    which parts of it have arrived, see `partial`
    <root>/recipes/sha256/<hex>   what a blob that was dropped is made from again, see `recipes.book`

Invariants:

* A blob gets its name by rename(2) after its data is on disk (fdatasync) and its digest and size were checked
  over every byte; whatever bears a digest's name is that content.
* Nothing that a `Lease` covers is collected. A lease is taken before the first byte of an object is written and
  given up after the records that reference it are. A collection also spares whatever was leased at any time
  since it began, so it never races with a writer (containerd's garbage collection keeps the same rule).
* A lease lives in memory: after a crash nothing is leased, and what no record references goes at next start.
* A blob that a transfer has brought in whole bears a bookmark (an ingest with nothing but its `ref`) until what
  refers to it is recorded: when the transfer breaks off elsewhere, the next one finds it.
* A blob that has a recipe is here like any other: it is made when it is opened. Only its file may be missing.
* What a broken-off transfer has left, bookmarked blobs too, goes when it was not touched for `STALE` seconds, or for `STALE_TIGHT` when the
  file system has less than a twentieth of its space left (`expire`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from dray.base import digest as digests
from dray.base import failpoints
from dray.base.errors import Conflict, InvalidParameter, NotFound
from dray.base.files import remove_tree, sync_directory, write_atomic
from dray.store.partial import PART, Partial, Shelf, partial_size
from dray.store.recipes.book import Book, Tell

_CHUNK = 1 << 20
STALE = 24 * 3600  # seconds that a broken-off transfer waits to be taken up again
STALE_TIGHT = 3600  # the same while space is short: a disk that has just become full is what often breaks one off


class Lease:
    """Protects digests from collection while it is open; a context manager. Thread-safe."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store
        self.digests: set[str] = set()

    def add(self, digest: str) -> bool:
        """Protect `digest` from here on; tell whether its blob is in the store."""
        return self._store._protect(self, digest)

    def close(self) -> None:
        """Give up the protection."""
        self._store._release(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Ingest:
    """A blob on its way in: `write`, then `commit` or `abort`. A context manager that aborts what is not
    committed, except that a resumable ingest (`ref`) keeps what has arrived. Not thread-safe."""

    def __init__(
        self, store: ContentStore, folder: Path, expected: str | None, lease: Lease | None, *, keep: bool
    ):
        self._store = store
        self._folder = folder
        self._expected = expected
        self._lease = lease
        self._keep = keep
        self._hash = digests.hasher(expected) if expected else hashlib.sha256()
        self._algorithm = digests.parse(expected)[0] if expected else "sha256"
        self._fd = os.open(folder / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.offset = 0
        while chunk := os.read(self._fd, _CHUNK):
            self._hash.update(chunk)
            self.offset += len(chunk)

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        self._hash.update(data)
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self.offset += written
            view = view[written:]

    @property
    def digest(self) -> str:
        """The digest of what has arrived."""
        return f"{self._algorithm}:{self._hash.hexdigest()}"

    def _check(self, size: int | None) -> str:
        digest = self.digest
        if size is not None and size != self.offset:
            raise InvalidParameter(f"unexpected size: blob has {self.offset} bytes, its descriptor says {size}")
        if self._expected is not None and digest != self._expected:
            raise InvalidParameter(f"unexpected digest: content is {digest}, expected {self._expected}")
        return digest

    def stage(self, *, size: int | None = None) -> str:
        """Check digest and size and let this process read the blob already; return its digest.

        It has no name on disk until `commit`, which may run in another thread meanwhile. Errors as `commit`.
        """
        try:
            digest = self._check(size)
        except BaseException:
            self.abort()
            raise
        self._store._stage(digest, self._folder / "data", self._lease)
        return digest

    def commit(self, *, size: int | None = None) -> str:
        """Check digest and size, put the blob on disk under its name, return its digest.

        InvalidParameter if the content is not what was expected; the ingest is then removed.
        """
        try:
            digest = self._check(size)
            if not self._store._adopt(digest, self._lease):
                os.fdatasync(self._fd)
                self._store._install(self._folder / "data", digest)
        except BaseException:
            self.abort()
            raise
        self._finish(remove=True)
        return digest

    def abort(self) -> None:
        """Drop what has arrived, resumable or not."""
        self._finish(remove=True)

    def _finish(self, *, remove: bool) -> None:
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        self._store._close_ingest(self._folder, remove=remove)

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *_: object) -> None:
        self._finish(remove=not self._keep)


class ContentStore:
    """Blobs by digest below `root`. Thread-safe; one process at a time."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)
        self._ingests = self._root / "ingest"
        for folder in (self._root / "blobs" / "sha256", self._root / "blobs" / "sha512", self._ingests):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()  # leases, open ingests, and the moment a blob appears or goes
        self._collecting = threading.Lock()
        self.recipes = Book(self._root)
        self._leases: set[Lease] = set()
        self._spared: set[str] | None = None  # digests leased or committed since the running collection began
        self._open: set[Path] = set()
        self._staged: dict[str, Path] = {}  # checked, not yet on disk: where the data is
        for folder in self._ingests.iterdir():
            if not (folder / "ref").exists():
                remove_tree(folder)
        self.expire()

    # --- reading

    def path(self, digest: str) -> Path:
        """Return where a blob is, or would be."""
        algorithm, digits = digests.parse(digest)
        return self._root / "blobs" / algorithm / digits

    def has(self, digest: str) -> bool:
        """Tell whether a blob is here."""
        return digest in self._staged or digest in self.recipes or os.path.exists(self.path(digest))

    def size(self, digest: str) -> int:
        """Return a blob's size; NotFound if it is not here."""
        if (head := self.recipes.head(digest)) is not None:
            return head.size
        with self.open(digest) as file:
            return os.fstat(file.fileno()).st_size

    def taken(self, digest: str) -> int:
        """Return the bytes on disk that stand for a blob: its own, or those of what it is made from again."""
        own = self.recipes.taken(digest)
        with contextlib.suppress(FileNotFoundError):
            own += os.stat(self.path(digest)).st_size
        return own

    def open(self, digest: str, tell: Tell | None = None) -> BinaryIO:
        """Open a blob for unbuffered reading; NotFound if it is not here.

        One that was dropped is made again first, which `tell` hears of; see `recipes.book.Book.open` for the errors.
        """
        if (staged := self._staged.get(digest)) is not None:
            with contextlib.suppress(FileNotFoundError):  # it gets its name just now
                return open(staged, "rb", buffering=0)
        with contextlib.suppress(FileNotFoundError):
            return open(self.path(digest), "rb", buffering=0)
        if digest in self.recipes:
            return self.recipes.open(digest, tell)
        try:
            return open(self.path(digest), "rb", buffering=0)  # its recipe went just now, for the blob is back
        except FileNotFoundError:
            raise NotFound(f"content {digest}: not found") from None

    def read(self, digest: str, *, limit: int = 8 << 20) -> bytes:
        """Return a small blob (a manifest, a config), its digest checked again.

        InvalidParameter if it is larger than `limit` or was changed on disk.
        """
        with self.open(digest) as file:
            data = file.read(limit + 1)
            while len(data) <= limit and (more := file.read(limit + 1 - len(data))):
                data += more
        if len(data) > limit:
            raise InvalidParameter(f"content {digest} is larger than {limit} bytes")
        check = digests.hasher(digest)
        check.update(data)
        if check.hexdigest() != digests.parse(digest)[1]:
            raise InvalidParameter(f"content {digest} was changed on disk: remove it and load or pull it again")
        return data

    def walk(self) -> Iterator[tuple[str, int]]:
        """Yield (digest, bytes on disk) of every blob."""
        seen = set()
        for algorithm in ("sha256", "sha512"):
            for entry in os.scandir(self._root / "blobs" / algorithm):
                with contextlib.suppress(FileNotFoundError):
                    digest = f"{algorithm}:{entry.name}"
                    seen.add(digest)
                    yield digest, entry.stat().st_size + self.recipes.taken(digest)
        for head in self.recipes.heads():
            if head.digest not in seen:
                yield head.digest, self.recipes.taken(head.digest)

    def incoming(self) -> int:
        """Return the bytes that have arrived of blobs that are not whole yet (holes do not count)."""
        total = 0
        for folder in list(self._ingests.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                total += partial_size(folder)
        return total

    # --- writing

    def lease(self) -> Lease:
        """Open a lease; close it when the records that reference its digests are written."""
        lease = Lease(self)
        with self._lock:
            self._leases.add(lease)
        return lease

    def ingest(self, *, expected: str | None = None, ref: str | None = None, lease: Lease | None = None) -> Ingest:
        """Begin a blob; `expected` is the digest that it must have.

        With `ref`, what has arrived survives the process and a later ingest of that ref goes on at its
        `offset`. Conflict if an ingest of that ref is open.
        """
        if expected is not None:
            digests.parse(expected)
        name = secrets.token_hex(8) if ref is None else hashlib.sha256(ref.encode()).hexdigest()
        folder = self._ingests / name
        with self._lock:
            if folder in self._open:
                raise Conflict(f"content for {ref} is being written already")
            self._open.add(folder)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            if ref is not None:
                write_atomic(folder / "ref", ref.encode(), durable=False)
            return Ingest(self, folder, expected, lease, keep=ref is not None)
        except BaseException:
            self._close_ingest(folder, remove=ref is None)
            raise

    def partial(self, digest: str, size: int, *, lease: Lease | None = None, part_size: int = PART) -> Partial:
        """Begin, or go on with, a blob of known digest and size that arrives in parts.

        What has arrived survives the process. Conflict if it is being written already.
        """
        digests.parse(digest)
        folder = self._partial_folder(digest)
        with self._lock:
            if folder in self._open:
                raise Conflict(f"content {digest} is being written already")
            self._open.add(folder)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            write_atomic(folder / "ref", digest.encode(), durable=False)
            return Partial(Shelf(self, lease), folder, digest, size, part_size=part_size)
        except BaseException:
            self._close_ingest(folder, remove=not (folder / "parts").exists())
            raise

    def _partial_folder(self, digest: str) -> Path:
        return self._ingests / hashlib.sha256(f"part {digest}".encode()).hexdigest()

    def forget_bookmarks(self, names: Iterable[str]) -> None:
        """These digests are referred to by records now (or shall go)."""
        for folder in map(self._partial_folder, names):
            with self._lock:
                if folder not in self._open and not (folder / "data").exists():
                    remove_tree(folder)

    def _bookmarks(self) -> set[str]:
        found = set()
        for folder in list(self._ingests.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if not (folder / "data").exists():
                    found.add((folder / "ref").read_text())
        return found

    def put(self, data: bytes, *, lease: Lease | None = None, expected: str | None = None) -> str:
        """Store a small blob; return its digest."""
        digest = expected or digests.of(data)
        if lease is not None and lease.add(digest):
            check = digests.hasher(digest)
            check.update(data)
            if check.hexdigest() == digests.parse(digest)[1]:
                return digest
        with self.ingest(expected=digest, lease=lease) as ingest:
            ingest.write(data)
            return ingest.commit()

    # --- removal

    def delete(self, digest: str) -> int:
        """Remove a blob, leased or not (it proved damaged); return the bytes freed, 0 if it was not here."""
        size = self.recipes.drop(digest)
        with contextlib.suppress(FileNotFoundError):
            own = os.stat(path := self.path(digest)).st_size
            os.unlink(path)
            size += own
        return size

    def discard(self, digest: str) -> bool:
        """Drop the file of a blob that has a recipe, unless somebody has just leased it; tell whether that was done."""
        with self._lock:
            if digest not in self.recipes or self.leases(digest) > 1:
                return False
            os.unlink(self.path(digest))
        failpoints.reach("discard.dropped")
        return True

    def leases(self, digest: str) -> int:
        """Return how many leases cover a blob."""
        return sum(1 for lease in self._leases if digest in lease.digests)

    def restore(self, digest: str) -> None:
        """Make a blob that was dropped again, for good; the errors of `open`."""
        if not os.path.exists(self.path(digest)):
            with self.ingest(expected=digest) as ingest:
                for data in self.recipes.stream(digest):
                    ingest.write(data)
                ingest.commit()
            failpoints.reach("restore.made")
        self.recipes.drop(digest)

    def expire(self) -> int:
        """Remove what broken-off transfers have left for too long; return how many. Those that go on stay."""
        status = os.statvfs(self._ingests)
        limit = time.time() - (STALE_TIGHT if status.f_bavail * 20 < status.f_blocks else STALE)
        count = 0
        for folder in list(self._ingests.iterdir()):
            with self._lock, contextlib.suppress(FileNotFoundError):
                data = folder / "data"
                touched = (data if data.exists() else folder / "ref").stat().st_mtime
                if folder not in self._open and touched < limit:
                    remove_tree(folder)
                    count += 1
        return count

    def collect(self, mark: Callable[[], set[str]]) -> tuple[int, int]:
        """Remove every blob that `mark()` does not return and no lease covers; return (count, bytes).

        `mark` runs after the collection has begun, so what it misses because it was just being written is spared.
        """
        with self._collecting:
            with self._lock:
                self._spared = {digest for lease in self._leases for digest in lease.digests}
            try:
                return self._sweep(mark() | self._bookmarks())
            finally:
                with self._lock:
                    self._spared = None

    def _sweep(self, live: set[str]) -> tuple[int, int]:
        count = freed = 0
        for digest, size in list(self.walk()):
            if digest in live:
                continue
            with self._lock:
                if self._spared is not None and digest not in self._spared:
                    self.recipes.drop(digest)
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.path(digest))
                    count, freed = count + 1, freed + size
        return count, freed

    # --- for Lease, Ingest and Partial

    def _protect(self, lease: Lease, digest: str) -> bool:
        with self._lock:
            lease.digests.add(digest)
            if self._spared is not None:
                self._spared.add(digest)
            return self.has(digest)

    def _release(self, lease: Lease) -> None:
        with self._lock:
            self._leases.discard(lease)

    def _adopt(self, digest: str, lease: Lease | None) -> bool:
        """Protect a finished blob for its writer; tell whether the store has it already."""
        with self._lock:
            if lease is not None:
                lease.digests.add(digest)
            if self._spared is not None:
                self._spared.add(digest)
            return os.path.exists(self.path(digest))

    def _stage(self, digest: str, data: Path, lease: Lease | None) -> None:
        with self._lock:
            if lease is not None:
                lease.digests.add(digest)
            self._staged[digest] = data

    def _install(self, data: Path, digest: str) -> None:
        target = self.path(digest)
        os.rename(data, target)
        sync_directory(target.parent)

    def _close_ingest(self, folder: Path, *, remove: bool) -> None:
        with self._lock:
            self._open.discard(folder)
            self._staged = {digest: data for digest, data in self._staged.items() if data.parent != folder}
            if remove:
                remove_tree(folder)
