"""Flags of inodes (ioctl_iflags(2)): what a file system is asked to do with one file or directory."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_TOPDIR_FL = 0x00020000

_LONG = struct.Struct("l")
_UNKNOWN = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ENOSYS)


def spread_directories(path: str | os.PathLike[str]) -> bool:
    """Ask that directories made in `path` be spread over the disk, as those of a disk's root are (chattr +T).

    ext2 to ext4 obey it; tell whether the file system has taken it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (flags,) = _LONG.unpack(fcntl.ioctl(fd, FS_IOC_GETFLAGS, _LONG.pack(0)))
        if not flags & FS_TOPDIR_FL:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, _LONG.pack(flags | FS_TOPDIR_FL))
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        return False
    finally:
        os.close(fd)
    return True
