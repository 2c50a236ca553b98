"""Project quotas: a limit on what lies below a directory (quotactl(2), xfs_quota(8), ext4 feature `project`).

A directory is given a project id that everything made in it inherits; the limit is the project's. Quotas are
addressed by a descriptor (quotactl_fd(2), Linux 5.14), so no block device is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Collection

from dray.base.files import owned_fd

_FS_IOC_FSGETXATTR = 0x801C581F
_FS_IOC_FSSETXATTR = 0x401C5820
_FS_XFLAG_PROJINHERIT = 0x200
_FSXATTR = struct.Struct("=IIIII8s")  # linux/fs.h struct fsxattr: xflags, extsize, nextents, projid, cowextsize
_SYS_QUOTACTL_FD = 443  # the same on every architecture
_PRJQUOTA = 2
_Q_XSETQLIM, _Q_XGETQSTATV = 0x5804, 0x5808
_ENFORCED = 1 << 5  # linux/dqblk_xfs.h FS_QUOTA_PDQ_ENFD
_DISK_QUOTA = struct.Struct("=bbHIQQQQQQiiHHbbbbQQQiHh8s")  # linux/dqblk_xfs.h struct fs_disk_quota
_SOFT, _HARD = 1 << 2, 1 << 3
_FIRST = 1 << 30  # project ids from here on are ours; administrators number theirs from 1
_SPAN = 1 << 29
CONTAINERS = _FIRST + _SPAN  # the first of containers' own; those below are volumes'

_libc = ctypes.CDLL(None, use_errno=True)


def _quotactl_fd(fd: int, command: int, project: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    request = ctypes.c_uint(command << 8 | _PRJQUOTA)
    if _libc.syscall(ctypes.c_long(_SYS_QUOTACTL_FD), fd, request, ctypes.c_uint(project), buffer) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"quotactl_fd: {os.strerror(code)}")


def _open(path: str | os.PathLike[str]) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def is_enforced(path: str | os.PathLike[str]) -> bool:
    """Tell whether the file system of a directory keeps to project quotas."""
    buffer = ctypes.create_string_buffer(512)
    buffer[0] = b"\1"  # FS_QSTATV_VERSION1
    with owned_fd(_open(path)) as fd:
        try:
            _quotactl_fd(fd, _Q_XGETQSTATV, 0, buffer)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ESRCH, errno.ENODEV, errno.ENOTTY):
                return False
            raise
    return bool(struct.unpack_from("=bBH", buffer)[2] & _ENFORCED)


def project_of(path: str | os.PathLike[str]) -> int:
    """Return a directory's project id; 0 if it has none."""
    try:
        with owned_fd(_open(path)) as fd:
            return int(_FSXATTR.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))[3])
    except OSError:
        return 0  # a file system without projects, or something mounted there


def free_project(taken: Collection[int], *, first: int = _FIRST) -> int:
    """Return a project id that none of ours has. Who numbers apart from others on one file system has a `first`."""
    return max([first - 1, *(one for one in taken if first <= one < first + _SPAN)]) + 1


def limit(path: str | os.PathLike[str], project: int, size: int) -> None:
    """Make an empty directory the root of a project that holds `size` bytes."""
    with owned_fd(_open(path)) as fd:
        fields = list(_FSXATTR.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))))
        fields[0] |= _FS_XFLAG_PROJINHERIT
        fields[3] = project
        fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, _FSXATTR.pack(*fields))
        _set(fd, project, size)


def resize(path: str | os.PathLike[str], size: int) -> None:
    """Change the limit of a directory's project; 0 lifts it."""
    project = project_of(path)
    if project >= _FIRST:
        with owned_fd(_open(path)) as fd:
            _set(fd, project, size)


def unlimit_quietly(path: str | os.PathLike[str]) -> None:
    """The same where there may be no limit, no directory or no quota any more."""
    with contextlib.suppress(OSError):
        resize(path, 0)


def _set(fd: int, project: int, size: int) -> None:
    blocks = (size + 511) // 512
    quota = _DISK_QUOTA.pack(
        1,
        _PRJQUOTA,
        _SOFT | _HARD,
        project,
        blocks,
        blocks,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        b"",
    )
    _quotactl_fd(fd, _Q_XSETQLIM, project, ctypes.create_string_buffer(quota, len(quota)))
