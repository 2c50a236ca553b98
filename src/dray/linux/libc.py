"""Kernel calls that Python's `os` lacks, under the kernel's own names.

Invariants
- Every wrapper is a thin call of one syscall; it raises `OSError(errno, "<syscall>: <reason>", path)`.
- Prototypes are declared once, at import; the calls of `rights` are here as well.
- Standard library only, nothing imported that is not needed: the client and the zygote pay for this module's
  start-up.
- Paths may be str, bytes or PathLike; flags are plain ints, with the kernel's names below.

`clone3` is a fork: it runs Python's fork hooks around the syscall and keeps the interpreter lock, so the child
is as sane as after `os.fork()`. It must only be called by a single-threaded process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from dray.linux.abi import *  # noqa: F403 - the kernel's names are this module's vocabulary
from dray.linux.abi import (
    AT_FDCWD,
    CLONE_INTO_CGROUP,
    CLONE_PARENT,
    CLONE_PIDFD,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    OPEN_TREE_CLOEXEC,
    PR_SET_NAME,
    SIGCHLD,
)
from dray.linux.rights import *  # noqa: F403 - callers need not know where a call is declared
from dray.linux.syscall import (
    INT,
    LIBC,
    POINTER,
    PYTHON,
    STR,
    UINT,
    ULONG,
    Path,
    checked,
    declare,
    encode,
    oserror,
)

_PAGE = os.sysconf("SC_PAGESIZE")

_mount = declare("mount", STR, STR, STR, ULONG, STR)
_umount2 = declare("umount2", STR, INT)
_pivot_root = declare("pivot_root", STR, STR)
_unshare = declare("unshare", ULONG)
_setns = declare("setns", INT, INT)
_clone3 = declare("clone3", POINTER, ULONG, library=PYTHON)
_prctl = declare("prctl", INT, ULONG, ULONG, ULONG, ULONG)
_rt_sigaction = declare("rt_sigaction", INT, POINTER, POINTER, ULONG)
_prctl_name = declare("prctl", INT, STR)
_sethostname = declare("sethostname", STR, ULONG)
_setdomainname = declare("setdomainname", STR, ULONG)
_statfs = declare("statfs", STR, POINTER)
_fstatfs = declare("fstatfs", INT, POINTER)
_execveat = declare("execveat", INT, STR, POINTER, POINTER, INT)
_getdents64 = declare("getdents64", INT, POINTER, UINT)
_syncfs = declare("syncfs", INT)
_renameat2 = declare("renameat2", INT, STR, INT, STR, UINT)
_inotify_init1 = declare("inotify_init1", INT)
_inotify_add_watch = declare("inotify_add_watch", INT, STR, UINT)
_pidfd_open = declare("pidfd_open", INT, UINT)
_pidfd_send_signal = declare("pidfd_send_signal", INT, INT, POINTER, UINT)
_pidfd_getfd = declare("pidfd_getfd", INT, INT, UINT)
_open_tree = declare("open_tree", INT, STR, UINT)
_move_mount = declare("move_mount", INT, STR, INT, STR, UINT)
_fsopen = declare("fsopen", STR, UINT)
_fsconfig = declare("fsconfig", INT, UINT, STR, STR, INT)
_fsmount = declare("fsmount", INT, UINT, UINT)
_close_range = declare("close_range", UINT, UINT, UINT)
_openat2 = declare("openat2", INT, STR, POINTER, ULONG)
_mount_setattr = declare("mount_setattr", INT, STR, UINT, POINTER, ULONG)

_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _hook in (_before_fork, _after_fork_parent, _after_fork_child):
    _hook.argtypes, _hook.restype = (), None


# --- mounts ---------------------------------------------------------------------------------------------------


def mount(source: Path, target: Path, fstype: str = "", flags: int = 0, data: str | bytes = b"") -> None:
    """mount(2). `data` is the file system's own options, at most a page less one byte."""
    text = encode(data)
    if len(text) >= _PAGE:
        raise OSError(errno.E2BIG, "mount: options are longer than a page", os.fsdecode(target))
    result = _mount(
        encode(source), encode(target), encode(fstype) or None, flags, text or None
    )  # fmt: skip
    checked(result, "mount", target)


def umount2(target: Path, flags: int = 0) -> None:
    """umount2(2)."""
    checked(_umount2(encode(target), flags), "umount2", target)


def pivot_root(new_root: Path, put_old: Path) -> None:
    """pivot_root(2)."""
    checked(_pivot_root(encode(new_root), encode(put_old)), "pivot_root", new_root)


def open_tree(dirfd: int, path: Path, flags: int) -> int:
    """open_tree(2): a descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy of it."""
    return checked(_open_tree(dirfd, encode(path), flags | OPEN_TREE_CLOEXEC), "open_tree", path)


def move_mount(from_fd: int, from_path: Path, to_fd: int, to_path: Path, flags: int) -> None:
    """move_mount(2): attach a detached mount, or move an attached one."""
    result = _move_mount(from_fd, encode(from_path), to_fd, encode(to_path), flags)
    checked(result, "move_mount", to_path)


def fsopen(fstype: str) -> int:
    """fsopen(2): a file system context."""
    return checked(_fsopen(fstype.encode(), FSOPEN_CLOEXEC), "fsopen", fstype)


def fsconfig(fd: int, command: int, key: str | None = None, value: Path | None = None, aux: int = 0) -> None:
    """fsconfig(2). The kernel's own explanation, read from the context, ends the message of the error."""
    encoded = None if value is None else encode(value)
    if _fsconfig(fd, command, None if key is None else key.encode(), encoded, aux) < 0:
        error = oserror("fsconfig" if key is None else f"fsconfig {key}", value)
        try:
            said = os.read(fd, 4096).decode(errors="replace").partition(" ")[2].strip()
        except OSError:
            said = ""
        raise OSError(error.errno, f"{error.strerror} ({said})" if said else error.strerror, error.filename)


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2): a detached mount of a created context."""
    return checked(_fsmount(fd, FSMOUNT_CLOEXEC, attributes), "fsmount")


def mount_setattr(
    dirfd: int,
    path: Path,
    flags: int,
    *,
    attr_set: int = 0,
    attr_clear: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """mount_setattr(2): change attributes of a mount (with AT_RECURSIVE: of the tree)."""
    attributes = struct.pack("=QQQQ", attr_set, attr_clear, propagation, userns_fd)
    result = _mount_setattr(dirfd, encode(path), flags, attributes, len(attributes))
    checked(result, "mount_setattr", path)


class StatFs(NamedTuple):
    """What statfs(2) tells (man page's names without `f_`)."""

    type: int
    bsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    namelen: int
    frsize: int
    flags: int


def statfs(path: Path | int) -> StatFs:
    """statfs(2) or, given a descriptor, fstatfs(2)."""
    buffer = ctypes.create_string_buffer(120)
    if isinstance(path, int):
        checked(_fstatfs(path, buffer), "fstatfs")
    else:
        checked(_statfs(encode(path), buffer), "statfs", path)
    fields = struct.unpack_from("=qqQQQQQ8xqqq", buffer)
    return StatFs(*fields)


# --- files ----------------------------------------------------------------------------------------------------


def openat2(dirfd: int, path: Path, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2), close-on-exec. Retries when the kernel saw a rename during a scoped resolution (EAGAIN)."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    encoded = encode(path)
    for _ in range(128):
        fd = _openat2(dirfd, encoded, how, len(how))
        if fd >= 0 or ctypes.get_errno() not in (errno.EINTR, errno.EAGAIN):
            break
    return checked(fd, "openat2", path)


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2)."""
    checked(_close_range(first, last, flags), "close_range")


def malloc_trim() -> None:
    """malloc_trim(3): give memory that was freed back to the kernel; nothing where the C library lacks it."""
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)


def getdents64(fd: int, size: int = 4096) -> bytes:
    """getdents64(2): the next entries of a directory as they are (struct linux_dirent64)."""
    buffer = ctypes.create_string_buffer(size)
    length = checked(_getdents64(fd, buffer, size), "getdents64")
    return buffer.raw[:length]


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    checked(_syncfs(fd), "syncfs")


def renameat2(
    source: Path, target: Path, flags: int, *, source_fd: int = AT_FDCWD, target_fd: int = AT_FDCWD
) -> None:
    """renameat2(2); flags 1 no replace, 2 exchange."""
    result = _renameat2(source_fd, encode(source), target_fd, encode(target), flags)
    checked(result, "renameat2", target)


def inotify_init1(flags: int) -> int:
    """inotify_init1(2); flags are those of open(2), O_CLOEXEC and O_NONBLOCK."""
    return checked(_inotify_init1(flags), "inotify_init1")


def inotify_add_watch(fd: int, path: Path, mask: int) -> int:
    """inotify_add_watch(2)."""
    return checked(_inotify_add_watch(fd, encode(path), mask), "inotify_add_watch", path)


# --- namespaces and processes ---------------------------------------------------------------------------------


def unshare(flags: int) -> None:
    """unshare(2)."""
    checked(_unshare(flags), "unshare")


def setns(fd: int, nstype: int = 0) -> None:
    """setns(2) with a namespace's descriptor, or with a pidfd and a mask of CLONE_NEW*."""
    checked(_setns(fd, nstype), "setns")


def clone3(flags: int = 0, *, cgroup: int = -1, exit_signal: int = SIGCHLD) -> tuple[int, int]:
    """Fork with clone3(2): (pid, pidfd) in the parent, (0, -1) in the child.

    `cgroup` is a descriptor of a cgroup v2 directory to be born in. With CLONE_PARENT the exit signal is that of
    the caller. The process must have one thread.
    """
    pidfd = ctypes.c_int(-1)
    if cgroup >= 0:
        flags |= CLONE_INTO_CGROUP
    if flags & CLONE_PARENT:
        exit_signal = 0
    arguments = struct.pack(
        "=11Q", flags | CLONE_PIDFD, ctypes.addressof(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, max(cgroup, 0)
    )
    _before_fork()
    pid = _clone3(arguments, len(arguments))
    code = ctypes.get_errno()
    if pid == 0:
        _after_fork_child()
        return 0, -1
    _after_fork_parent()
    if pid < 0:
        raise oserror("clone3", code=code)
    return pid, pidfd.value


def pidfd_open(pid: int, flags: int = 0) -> int:
    """pidfd_open(2)."""
    return checked(_pidfd_open(pid, flags), "pidfd_open")


def pidfd_send_signal(pidfd: int, signum: int) -> None:
    """pidfd_send_signal(2)."""
    checked(_pidfd_send_signal(pidfd, signum, None, 0), "pidfd_send_signal")


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): duplicate a descriptor of another process."""
    return checked(_pidfd_getfd(pidfd, fd, 0), "pidfd_getfd")


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) with integer arguments."""
    return checked(_prctl(option, arg2, arg3, arg4, arg5), "prctl")


def reset_signal(number: int) -> None:
    """Give a signal its default disposition by rt_sigaction(2) itself.

    For 32 and 33, which the C library keeps for its threads and its sigaction(3) refuses; its posix_spawn(3) leaves
    them ignored, and an ignored signal stays ignored across execve.
    """
    checked(_rt_sigaction(number, bytes(32), None, 8), "rt_sigaction")


def set_process_name(name: str) -> None:
    """prctl(PR_SET_NAME): the name in ps and /proc/<pid>/comm, at most 15 bytes of it."""
    checked(_prctl_name(PR_SET_NAME, name.encode()[:15]), "prctl")


def sethostname(name: str) -> None:
    """sethostname(2)."""
    data = name.encode()
    checked(_sethostname(data, len(data)), "sethostname", name)


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    data = name.encode()
    checked(_setdomainname(data, len(data)), "setdomainname", name)


def execveat(dirfd: int, path: Path, argv: list[bytes], envp: list[bytes], flags: int) -> None:
    """execveat(2); returns only by raising."""
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    environment = (ctypes.c_char_p * (len(envp) + 1))(*envp, None)
    checked(_execveat(dirfd, encode(path), arguments, environment, flags), "execveat", path)
