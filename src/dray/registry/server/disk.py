"""Objects as files below a root.

    <root>/lock            held (flock) by the one process that uses the root
    <root>/<key>           an object, 0600; folders 0700
    <root>/<folder>/data   an upload, appended to until it is renamed to its key
    <root>/tmp/            small objects being written; emptied at the start

Bytes are synced before they get their name by rename(2), folders before anybody is told of what is new in them. So a
crash at any moment leaves an object whole or absent, and what was told is there.

No lock is held while the disk syncs: the file system's journal writes for all who wait at once (design note 013 has
the measurements). Uploads in progress are not synced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

from dray.base.errors import Conflict
from dray.base.files import owned_fd, remove_tree, sync_directory
from dray.registry.server.storage import NOTHING, Entry, Stat

Rename: TypeAlias = tuple[Path, Path]  # where a file is, and where it belongs


def _forget(names: Iterable[Rename]) -> None:
    """Remove what was written and has no name yet."""
    for source, _ in names:
        source.unlink(missing_ok=True)


class FileReader:
    """A part of a file."""

    def __init__(self, file: BinaryIO, start: int, end: int | None) -> None:
        self.file: BinaryIO | None = file
        self._file = file
        self._left = None if end is None else max(end - start, 0)
        if start:
            file.seek(start)

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""
        if self._left is None:
            return self._file.read(size)
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class DiskUpload:
    """A file that grows."""

    def __init__(self, disk: DiskStorage, path: Path) -> None:
        self._disk = disk
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.offset = os.fstat(self._fd).st_size

    def write(self, data: bytes, /) -> None:
        """Append."""
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self.offset += written
            view = view[written:]

    def read(self, start: int, size: int, /) -> bytes:
        """Return up to `size` bytes from `start`."""
        return os.pread(self._fd, size, start)

    def flush(self) -> None:
        """Nothing to do: the kernel has the bytes, and the digest is checked at the end."""

    def commit(self, key: str, beside: Mapping[str, bytes] = NOTHING) -> None:
        """Sync, and rename to the key."""
        target = self._disk.path(key)
        names: list[Rename] = []
        if not target.exists():
            os.fdatasync(self._fd)
            names.append((self._path, target))
        self._disk.install([*names, *self._disk.written(beside)], also=() if names else (target.parent,))
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DiskStorage:
    """A folder of the local disk, used by one process at a time (Conflict if another has it)."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(root))
        self.name = f"disk {self.root}"
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._known: set[Path] = {self.root}  # folders that exist, and durably
        self._folders = threading.RLock()  # the set, and the removal of folders
        self._removals = 0  # of folders, so far
        self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise Conflict(
                f"another registry uses {self.root}: stop it, or choose another folder with --root"
            ) from None
        self._temporary = self.root / "tmp"
        remove_tree(self._temporary)
        self._temporary.mkdir(mode=0o700)

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        return self.root / key

    def _rename(self, source: Path, target: Path) -> None:
        """Give a file its name, in a folder that may just be removed for being empty."""
        try:
            os.rename(source, target)
        except FileNotFoundError:
            with self._folders:  # nobody removes it now
                self._make(target.parent)
                os.rename(source, target)

    def _ensure(self, folder: Path, *, durable: bool) -> None:
        """Make a folder and its parents, also when one of them is just being removed for being empty."""

        def make() -> None:
            if durable:
                self._make(folder)
            else:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

        try:
            make()
        except (FileNotFoundError, FileExistsError):  # the latter: it was there, and is not any more
            with self._folders:  # nobody removes any now
                make()

    def _make(self, folder: Path) -> None:
        """Make a folder and its parents, durably."""
        if folder in self._known and folder.exists():
            return
        self._make(folder.parent)
        removals = self._removals
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        sync_directory(folder.parent)  # also when another thread has made it: its sync may not be over
        with self._folders:
            if self._removals == removals:
                self._known.add(folder)

    def written(self, objects: Mapping[str, bytes], *, durable: bool = True) -> list[Rename]:
        """Write small objects, without their names yet; return where they are and where they belong."""
        names: list[Rename] = []
        try:
            for key, data in objects.items():
                names.append((self._temporary / secrets.token_hex(8), self.path(key)))
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with owned_fd(os.open(names[-1][0], flags, 0o600)) as fd:
                    view = memoryview(data)
                    while view:
                        view = view[os.write(fd, view) :]
                    if durable and data:
                        os.fdatasync(fd)
        except BaseException:
            _forget(names)
            raise
        return names

    def install(self, names: Sequence[Rename], *, also: Iterable[Path] = (), durable: bool = True) -> None:
        """Give files their names, in this order, and sync the folders of them all (and `also` these)."""
        folders = dict.fromkeys([target.parent for _, target in names])
        try:
            for folder in folders:
                self._ensure(folder, durable=durable)
            for source, target in names:
                self._rename(source, target)
        except BaseException:
            _forget(one for one in names if one[0].parent == self._temporary)
            raise
        if durable:
            for folder in dict.fromkeys([*also, *folders]):
                with contextlib.suppress(FileNotFoundError):  # somebody has removed what we have just put there
                    sync_directory(folder)

    def get(self, key: str) -> bytes | None:
        """Return a small object."""
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, objects: Mapping[str, bytes], *, durable: bool = True) -> None:
        """Write or replace small objects."""
        self.install(self.written(objects, durable=durable), durable=durable)

    def stat(self, key: str) -> Stat | None:
        """Return size and time of an object."""
        try:
            status = os.stat(self.path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Stat(status.st_size, status.st_mtime)

    def open(self, key: str, start: int = 0, end: int | None = None) -> FileReader | None:
        """Open an object."""
        try:
            return FileReader(open(self.path(key), "rb", buffering=0), start, end)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield what lies directly below a folder."""
        try:
            with os.scandir(self.path(prefix)) as entries:
                found = [Entry(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return
        yield from found

    def delete(self, key: str) -> bool:
        """Remove an object, and its folder if that is now empty."""
        path = self.path(key)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        with contextlib.suppress(FileNotFoundError):  # it was empty, and is gone
            sync_directory(path.parent)
        self._prune(path.parent)
        return True

    def _prune(self, folder: Path) -> None:
        with self._folders:
            while folder != self.root:
                try:
                    os.rmdir(folder)
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                        return
                    raise
                self._known.discard(folder)
                self._removals += 1
                folder = folder.parent

    def delete_folder(self, prefix: str) -> None:
        """Remove a folder with all that is in it."""
        path = self.path(prefix)
        with self._folders:
            if path in self._known:
                self._known = {one for one in self._known if not one.is_relative_to(path)}
                self._removals += 1
            remove_tree(path)

    def upload(self, folder: str) -> DiskUpload:
        """Open or begin an upload."""
        path = self.path(folder)
        self._ensure(path, durable=False)
        return DiskUpload(self, path / "data")

    def redirect(self, key: str) -> str | None:
        """There is no other address."""
        return None

    def close(self) -> None:
        """Let another process use the root."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
