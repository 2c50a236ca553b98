"""Subvolumes of btrfs by ioctl(2) (include/uapi/linux/btrfs.h): create, snapshot, delete, find what is nested.

A subvolume is removed by its id, with all that are nested in it, found in the tree of roots: no path inside it, which
a container may have made as deep and as odd as it likes, is ever walked. Needs Linux 5.7 and CAP_SYS_ADMIN.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from dray.linux import libc

MAGIC = 0x9123683E  # statfs(2) f_type
_ROOT_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID: the inode number of a subvolume's root
_EMPTY_INODE = 2  # BTRFS_EMPTY_SUBVOL_DIR_OBJECTID: what a snapshot shows where a nested subvolume was
_ROOT_TREE = 1
_ROOT_REF_KEY = 156
_SPEC_BY_ID = 1 << 4
_MAX = (1 << 64) - 1


def _ioctl_number(direction: int, number: int, size: int = 4096) -> int:
    return direction << 30 | size << 16 | 0x94 << 8 | number


_TREE_SEARCH = _ioctl_number(3, 17)
_INO_LOOKUP = _ioctl_number(3, 18)
_SNAP_CREATE_V2 = _ioctl_number(1, 23)
_SUBVOL_CREATE_V2 = _ioctl_number(1, 24)
_SNAP_DESTROY_V2 = _ioctl_number(1, 63)
_VOLUME = struct.Struct("=qQQ32x")  # btrfs_ioctl_vol_args_v2: fd, transid, flags, unused; then name or subvolid
_SEARCH = struct.Struct("=7Q4I32x")  # btrfs_ioctl_search_key
_FOUND = struct.Struct("=3Q2I")  # btrfs_ioctl_search_header
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _ioctl(fd: int, request: int, buffer: bytearray, name: str, path: str = "") -> None:
    try:
        fcntl.ioctl(fd, request, buffer, True)
    except OSError as error:
        raise OSError(error.errno, f"{name}: {os.strerror(error.errno or 0)}", path or None) from error


def _volume(name: bytes = b"", *, fd: int = 0, flags: int = 0) -> bytearray:
    if len(name) > 4039 or b"/" in name:
        raise OSError(errno.EINVAL, "btrfs: invalid name of a subvolume", os.fsdecode(name))
    return bytearray((_VOLUME.pack(fd, 0, flags) + name).ljust(4096, b"\0"))


def is_btrfs(path: str | os.PathLike[str]) -> bool:
    """Tell whether `path` lies on btrfs."""
    return libc.statfs(path).type == MAGIC


def is_subvolume(status: os.stat_result) -> bool:
    """Tell whether a directory on btrfs is the root of a subvolume, or what a snapshot has in place of one."""
    return status.st_ino in (_ROOT_INODE, _EMPTY_INODE)


def create(path: str | os.PathLike[str]) -> None:
    """Make an empty subvolume."""
    above, name = os.path.split(os.fsencode(path))
    parent = os.open(above, _DIRECTORY)
    try:
        _ioctl(parent, _SUBVOL_CREATE_V2, _volume(name), "BTRFS_IOC_SUBVOL_CREATE_V2", os.fsdecode(path))
    finally:
        os.close(parent)


def snapshot(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Make a writable snapshot of the subvolume `source`; subvolumes nested in it are empty directories there."""
    above, name = os.path.split(os.fsencode(path))
    old = os.open(source, _DIRECTORY)
    try:
        parent = os.open(above, _DIRECTORY)
        try:
            order = _volume(name, fd=old)
            _ioctl(parent, _SNAP_CREATE_V2, order, "BTRFS_IOC_SNAP_CREATE_V2", os.fsdecode(path))
        finally:
            os.close(parent)
    finally:
        os.close(old)


def subvolume_id(fd: int) -> int:
    """Return the id of the subvolume that an open file or directory lies in."""
    buffer = bytearray(struct.pack("=QQ", 0, _ROOT_INODE).ljust(4096, b"\0"))
    _ioctl(fd, _INO_LOOKUP, buffer, "BTRFS_IOC_INO_LOOKUP")
    return int(struct.unpack_from("=Q", buffer)[0])


def children(fd: int, subvolume: int) -> Iterator[int]:
    """Yield the ids of the subvolumes that lie directly in one; `fd` is anything open on the file system."""
    offset = 0
    while True:
        key = _SEARCH.pack(
            _ROOT_TREE, subvolume, subvolume, offset, _MAX, 0, _MAX, _ROOT_REF_KEY, _ROOT_REF_KEY, 64, 0
        )  # fmt: skip
        buffer = bytearray(key.ljust(4096, b"\0"))
        _ioctl(fd, _TREE_SEARCH, buffer, "BTRFS_IOC_TREE_SEARCH")
        count = _SEARCH.unpack_from(buffer)[9]
        if not count:
            return
        at = _SEARCH.size
        for _ in range(count):
            _, _, child, _, length = _FOUND.unpack_from(buffer, at)
            at += _FOUND.size + length
            yield child
            offset = child + 1


def nested(fd: int, subvolume: int) -> list[int]:
    """Return the ids of all subvolumes within one, at whatever depth, each after the one that it lies in."""
    found = list(children(fd, subvolume))
    for one in found:  # grows while it is walked
        found.extend(children(fd, one))
    return found


def destroy(directory: int, name: bytes) -> bool:
    """Remove the subvolume `name` of an open directory with all that are nested in it; False if it is none."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        if os.fstat(fd).st_ino != _ROOT_INODE or libc.statfs(fd).type != MAGIC:
            return False
        own = subvolume_id(fd)
        doomed = [own, *nested(fd, own)]
    finally:
        os.close(fd)
    for one in reversed(doomed):
        order = bytearray((_VOLUME.pack(0, 0, _SPEC_BY_ID) + struct.pack("=Q", one)).ljust(4096, b"\0"))
        _ioctl(directory, _SNAP_DESTROY_V2, order, "BTRFS_IOC_SNAP_DESTROY_V2", os.fsdecode(name))
    return True
