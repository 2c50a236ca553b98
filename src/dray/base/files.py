"""Files that are whole or absent: write beside, sync, rename.

Nothing in dray rewrites a state file in place; a crash at any point leaves the old content or the new.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator


def write_atomic(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace the file at `path` by `data` in one step.

    With `durable`, the data and the name are on disk when this returns (fsync of file and directory); without,
    the change survives a killed process but perhaps not a power loss.
    """
    path = os.fspath(path)
    beside = f"{path}.{secrets.token_hex(4)}.tmp"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fdatasync(fd)
        finally:
            os.close(fd)
        os.rename(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    if durable:
        sync_directory(os.path.dirname(path) or ".")


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Put a directory's entries on disk."""
    with owned_fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


def sync_file(path: str | os.PathLike[str]) -> None:
    """Put a file that somebody else wrote on disk."""
    with owned_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)) as fd:
        os.fdatasync(fd)


@contextlib.contextmanager
def owned_fd(fd: int) -> Iterator[int]:
    """Close `fd` when the block ends."""
    try:
        yield fd
    finally:
        os.close(fd)


def remove_tree(path: str | os.PathLike[str]) -> int:
    """Remove a tree without following links; return the bytes its regular files took on disk.

    A tree that is already gone is no error. What is mounted in it is never touched: the mount point is OSError(EBUSY),
    before anything beneath it is looked at.
    """
    root = os.fspath(path)
    try:
        os.rmdir(root)  # tells a mount point from a directory with something in it
    except FileNotFoundError:
        return 0
    except NotADirectoryError:
        os.unlink(root)
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    else:
        return 0
    freed = 0
    for entry in list(os.scandir(root)):
        if entry.is_dir(follow_symlinks=False):
            freed += remove_tree(entry.path)
        else:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if status.st_nlink == 1:
                    freed += status.st_blocks * 512
                os.unlink(entry.path)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(root)
    return freed
