"""Copying a whole tree inside the engine: owners, modes, times, xattrs, links, devices, holes.

Both sides are walked by directory descriptors that follow nothing, so neither a link in the source nor one in the
target leads anywhere else.
"""

from __future__ import annotations

import contextlib
import os
import stat

from dray.base.files import owned_fd
from dray.store.layers.lower import copy_file, copy_xattrs

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_tree(source: str | os.PathLike[str] | int, target: str | os.PathLike[str] | int) -> None:
    """Copy everything in the directory `source`, its own attributes included, into the directory `target`.

    Either may be a descriptor (which stays the caller's). Names that `target` has already are an OSError (EEXIST),
    except directories, which are merged. Hard links among what is copied stay hard links.
    """
    old = os.dup(source) if isinstance(source, int) else os.open(source, _DIRECTORY)
    try:
        new = os.dup(target) if isinstance(target, int) else os.open(target, _DIRECTORY)
        try:
            _Copy(new).directory(old, new, b"")
        finally:
            os.close(new)
    finally:
        os.close(old)


class _Copy:
    """One copy: the target's root and, for hard links, where each inode was first put."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._inodes: dict[tuple[int, int], bytes] = {}

    def directory(self, old: int, new: int, path: bytes) -> None:
        with os.scandir(old) as entries:
            names = [os.fsencode(entry.name) for entry in entries]
        for name in names:
            self._entry(old, new, name, path + b"/" + name if path else name)
        status = os.fstat(old)
        os.fchown(new, status.st_uid, status.st_gid)
        os.fchmod(new, stat.S_IMODE(status.st_mode))
        copy_xattrs(old, new)
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _entry(self, old: int, new: int, name: bytes, path: bytes) -> None:
        status = os.lstat(name, dir_fd=old)
        if stat.S_ISDIR(status.st_mode):
            self._below(old, new, name, path)
            return
        if status.st_nlink > 1:
            first = self._inodes.setdefault((status.st_dev, status.st_ino), path)
            if first is not path:
                os.link(first, name, src_dir_fd=self._root, dst_dir_fd=new, follow_symlinks=False)
                return
        copy_file(old, name, new, name)

    def _below(self, old: int, new: int, name: bytes, path: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=new)
        with owned_fd(os.open(name, _DIRECTORY, dir_fd=old)) as source:
            with owned_fd(os.open(name, _DIRECTORY, dir_fd=new)) as target:
                self.directory(source, target, path)
