"""Objects as files below a root.

    <root>/lock            held (flock) by the one process that uses the root
    <root>/<key>           an object, 0600; folders 0700
    <root>/<folder>/data   an upload, appended to until it is renamed to its key
    <root>/tmp/            small objects being written; emptied at the start

Bytes are synced before they get their name by rename(2). A folder's entry is synced when it is made. So a crash at any
moment leaves an object whole or absent.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from dray.base.errors import Conflict
from dray.base.files import owned_fd, remove_tree, sync_directory
from dray.registry.server.storage import Entry, Stat

_T = TypeVar("_T")


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

    def commit(self, key: str) -> None:
        """Sync, and rename to the key."""
        target = self._disk.path(key)
        if not target.exists():
            os.fdatasync(self._fd)
            self._disk.in_folder(target.parent, lambda: os.rename(self._path, target))
            sync_directory(target.parent)
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
        self._folders = threading.Lock()
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

    def in_folder(self, folder: Path, action: Callable[[], _T]) -> _T:
        """Make a folder and its parents durably, and do something in it; also when it is removed meanwhile."""
        with self._folders:
            self._make(folder)
        try:
            return action()
        except FileNotFoundError:  # it was just removed, being empty
            with self._folders:
                self._make(folder)
                return action()

    def _make(self, folder: Path) -> None:
        if folder in self._known and folder.exists():
            return
        self._make(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            sync_directory(folder.parent)
        self._known.add(folder)

    def get(self, key: str) -> bytes | None:
        """Return a small object."""
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, key: str, data: bytes) -> None:
        """Write or replace a small object."""
        path = self.path(key)
        beside = self._temporary / secrets.token_hex(8)
        with owned_fd(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)) as fd:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fdatasync(fd)
                self.in_folder(path.parent, lambda: os.rename(beside, path))
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
        sync_directory(path.parent)

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
                folder = folder.parent

    def delete_folder(self, prefix: str) -> None:
        """Remove a folder with all that is in it."""
        with self._folders:
            remove_tree(self.path(prefix))
            self._known = {self.root}

    def upload(self, folder: str) -> DiskUpload:
        """Open or begin an upload."""
        path = self.path(folder)
        return self.in_folder(path, lambda: DiskUpload(self, path / "data"))

    def redirect(self, key: str) -> str | None:
        """There is no other address."""
        return None

    def close(self) -> None:
        """Let another process use the root."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
