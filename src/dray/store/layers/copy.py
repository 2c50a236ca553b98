"""Copying a whole tree inside the engine: owners, modes, times, xattrs, links, devices, holes.

Both sides are walked by directory descriptors that follow nothing, so neither a link in the source nor one in the
target leads anywhere else.
"""

from __future__ import annotations

import os
import stat

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
            _copy(old, new, {}, new, b"")
        finally:
            os.close(new)
    finally:
        os.close(old)


def _copy(old: int, new: int, inodes: dict[tuple[int, int], bytes], root: int, path: bytes) -> None:
    with os.scandir(old) as entries:
        names = [os.fsencode(entry.name) for entry in entries]
    for name in names:
        status = os.lstat(name, dir_fd=old)
        child = path + b"/" + name if path else name
        if stat.S_ISDIR(status.st_mode):
            _copy_directory(old, new, name, inodes, root, child)
            continue
        if status.st_nlink > 1:
            first = inodes.setdefault((status.st_dev, status.st_ino), child)
            if first is not child:
                os.link(first, name, src_dir_fd=root, dst_dir_fd=new, follow_symlinks=False)
                continue
        copy_file(old, name, new, name)
    status = os.fstat(old)
    os.fchown(new, status.st_uid, status.st_gid)
    os.fchmod(new, stat.S_IMODE(status.st_mode))
    copy_xattrs(old, new)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_directory(
    old: int, new: int, name: bytes, inodes: dict[tuple[int, int], bytes], root: int, child: bytes
) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=new)
    except FileExistsError:
        pass
    below_old = os.open(name, _DIRECTORY, dir_fd=old)
    try:
        below_new = os.open(name, _DIRECTORY, dir_fd=new)
        try:
            _copy(below_old, below_new, inodes, root, child)
        finally:
            os.close(below_new)
    finally:
        os.close(below_old)
