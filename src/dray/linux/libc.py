"""The one door to ctypes: kernel calls that Python's `os` lacks, under the kernel's own names.

Invariants
- Every wrapper is a thin call of one syscall; it raises `OSError(errno, "<syscall>: <reason>", path)`.
- Prototypes are declared once, here, at import; nothing else in the project imports ctypes.
- Standard library only, nothing imported that is not needed: the client and the zygote pay for this module's
  start-up.
- Paths may be str, bytes or PathLike; flags are plain ints, with the kernel's names below.

`clone3` is a fork: it runs Python's fork hooks around the syscall and keeps the interpreter lock, so the child
is as sane as after `os.fork()`. It must only be called by a single-threaded process.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from dray.linux.abi import *  # noqa: F403 - the kernel's names are this module's vocabulary
from dray.linux.abi import (
    AT_FDCWD,
    CLONE_INTO_CGROUP,
    CLONE_PARENT,
    CLONE_PIDFD,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    KEYCTL_JOIN_SESSION_KEYRING,
    OPEN_TREE_CLOEXEC,
    PR_SET_NAME,
    SIGCHLD,
    number,
)

Path = str | bytes | os.PathLike[str]

_libc = ctypes.CDLL(None, use_errno=True)
_python = ctypes.PyDLL(None, use_errno=True)  # calls that must not give up the interpreter lock

_int, _uint, _long, _ulong = ctypes.c_int, ctypes.c_uint, ctypes.c_long, ctypes.c_ulong
_PAGE = os.sysconf("SC_PAGESIZE")
_str, _pointer = ctypes.c_char_p, ctypes.c_void_p


def _prototype(syscall: str, *argtypes: type, library: ctypes.CDLL = _libc) -> Callable[..., int]:
    """Declare syscall(2) for one number; the result takes the remaining arguments."""
    function = library["syscall"]  # indexing, unlike an attribute, makes a new function object each time
    function.argtypes = (_long, *argtypes)
    function.restype = _long
    return functools.partial(function, number(syscall))


_mount = _prototype("mount", _str, _str, _str, _ulong, _str)
_umount2 = _prototype("umount2", _str, _int)
_pivot_root = _prototype("pivot_root", _str, _str)
_unshare = _prototype("unshare", _ulong)
_setns = _prototype("setns", _int, _int)
_clone3 = _prototype("clone3", _pointer, _ulong, library=_python)
_prctl = _prototype("prctl", _int, _ulong, _ulong, _ulong, _ulong)
_rt_sigaction = _prototype("rt_sigaction", _int, _pointer, _pointer, _ulong)
_prctl_name = _prototype("prctl", _int, _str)
_capget = _prototype("capget", _pointer, _pointer)
_capset = _prototype("capset", _pointer, _pointer)
_keyctl_str = _prototype("keyctl", _int, _str)
_keyctl = _prototype("keyctl", _int, _long, _ulong, _ulong, _ulong)
_sethostname = _prototype("sethostname", _str, _ulong)
_setdomainname = _prototype("setdomainname", _str, _ulong)
_seccomp = _prototype("seccomp", _uint, _uint, _pointer)
_statfs = _prototype("statfs", _str, _pointer)
_fstatfs = _prototype("fstatfs", _int, _pointer)
_bpf = _prototype("bpf", _int, _pointer, _uint)
_execveat = _prototype("execveat", _int, _str, _pointer, _pointer, _int)
_personality = _prototype("personality", _ulong)
_ioprio_set = _prototype("ioprio_set", _int, _int, _int)
_sched_setattr = _prototype("sched_setattr", _int, _pointer, _uint)
_getdents64 = _prototype("getdents64", _int, _pointer, _uint)
_syncfs = _prototype("syncfs", _int)
_renameat2 = _prototype("renameat2", _int, _str, _int, _str, _uint)
_inotify_init1 = _prototype("inotify_init1", _int)
_inotify_add_watch = _prototype("inotify_add_watch", _int, _str, _uint)
_pidfd_open = _prototype("pidfd_open", _int, _uint)
_pidfd_send_signal = _prototype("pidfd_send_signal", _int, _int, _pointer, _uint)
_pidfd_getfd = _prototype("pidfd_getfd", _int, _int, _uint)
_open_tree = _prototype("open_tree", _int, _str, _uint)
_move_mount = _prototype("move_mount", _int, _str, _int, _str, _uint)
_fsopen = _prototype("fsopen", _str, _uint)
_fsconfig = _prototype("fsconfig", _int, _uint, _str, _str, _int)
_fsmount = _prototype("fsmount", _int, _uint, _uint)
_close_range = _prototype("close_range", _uint, _uint, _uint)
_openat2 = _prototype("openat2", _int, _str, _pointer, _ulong)
_mount_setattr = _prototype("mount_setattr", _int, _str, _uint, _pointer, _ulong)

_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _hook in (_before_fork, _after_fork_parent, _after_fork_child):
    _hook.argtypes, _hook.restype = (), None


def oserror(syscall: str, path: Path | None = None, code: int | None = None) -> OSError:
    """Return the OSError of the call that just failed, naming `syscall` and `path`."""
    code = ctypes.get_errno() if code is None else code
    reason = f"{syscall}: {os.strerror(code)}"
    return OSError(code, reason) if path is None else OSError(code, reason, os.fsdecode(path))


def _encode(path: Path) -> bytes:
    """os.fsencode, without its price where the path is text (the file system encoding of Linux is UTF-8)."""
    return path.encode("utf-8", "surrogateescape") if type(path) is str else os.fsencode(path)


def _checked(result: int, syscall: str, path: Path | None = None) -> int:
    if result < 0:
        raise oserror(syscall, path)
    return result


# --- mounts ---------------------------------------------------------------------------------------------------


def mount(source: Path, target: Path, fstype: str = "", flags: int = 0, data: str | bytes = b"") -> None:
    """mount(2). `data` is the file system's own options, at most a page less one byte."""
    text = _encode(data)
    if len(text) >= _PAGE:
        raise OSError(errno.E2BIG, "mount: options are longer than a page", os.fsdecode(target))
    result = _mount(
        _encode(source), _encode(target), _encode(fstype) or None, flags, text or None
    )  # fmt: skip
    _checked(result, "mount", target)


def umount2(target: Path, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(_umount2(_encode(target), flags), "umount2", target)


def pivot_root(new_root: Path, put_old: Path) -> None:
    """pivot_root(2)."""
    _checked(_pivot_root(_encode(new_root), _encode(put_old)), "pivot_root", new_root)


def open_tree(dirfd: int, path: Path, flags: int) -> int:
    """open_tree(2): a descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy of it."""
    return _checked(_open_tree(dirfd, _encode(path), flags | OPEN_TREE_CLOEXEC), "open_tree", path)


def move_mount(from_fd: int, from_path: Path, to_fd: int, to_path: Path, flags: int) -> None:
    """move_mount(2): attach a detached mount, or move an attached one."""
    result = _move_mount(from_fd, _encode(from_path), to_fd, _encode(to_path), flags)
    _checked(result, "move_mount", to_path)


def fsopen(fstype: str) -> int:
    """fsopen(2): a file system context."""
    return _checked(_fsopen(fstype.encode(), FSOPEN_CLOEXEC), "fsopen", fstype)


def fsconfig(fd: int, command: int, key: str | None = None, value: Path | None = None, aux: int = 0) -> None:
    """fsconfig(2). The kernel's own explanation, read from the context, ends the message of the error."""
    encoded = None if value is None else _encode(value)
    if _fsconfig(fd, command, None if key is None else key.encode(), encoded, aux) < 0:
        error = oserror("fsconfig" if key is None else f"fsconfig {key}", value)
        try:
            said = os.read(fd, 4096).decode(errors="replace").partition(" ")[2].strip()
        except OSError:
            said = ""
        raise OSError(error.errno, f"{error.strerror} ({said})" if said else error.strerror, error.filename)


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2): a detached mount of a created context."""
    return _checked(_fsmount(fd, FSMOUNT_CLOEXEC, attributes), "fsmount")


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
    result = _mount_setattr(dirfd, _encode(path), flags, attributes, len(attributes))
    _checked(result, "mount_setattr", path)


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
        _checked(_fstatfs(path, buffer), "fstatfs")
    else:
        _checked(_statfs(_encode(path), buffer), "statfs", path)
    fields = struct.unpack_from("=qqQQQQQ8xqqq", buffer)
    return StatFs(*fields)


# --- files ----------------------------------------------------------------------------------------------------


def openat2(dirfd: int, path: Path, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2), close-on-exec. Retries when the kernel saw a rename during a scoped resolution (EAGAIN)."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    encoded = _encode(path)
    for _ in range(128):
        fd = _openat2(dirfd, encoded, how, len(how))
        if fd >= 0 or ctypes.get_errno() not in (errno.EINTR, errno.EAGAIN):
            break
    return _checked(fd, "openat2", path)


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2)."""
    _checked(_close_range(first, last, flags), "close_range")


def malloc_trim() -> None:
    """malloc_trim(3): give memory that was freed back to the kernel; nothing where the C library lacks it."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def getdents64(fd: int, size: int = 4096) -> bytes:
    """getdents64(2): the next entries of a directory as they are (struct linux_dirent64)."""
    buffer = ctypes.create_string_buffer(size)
    length = _checked(_getdents64(fd, buffer, size), "getdents64")
    return buffer.raw[:length]


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    _checked(_syncfs(fd), "syncfs")


def renameat2(
    source: Path, target: Path, flags: int, *, source_fd: int = AT_FDCWD, target_fd: int = AT_FDCWD
) -> None:
    """renameat2(2); flags 1 no replace, 2 exchange."""
    result = _renameat2(source_fd, _encode(source), target_fd, _encode(target), flags)
    _checked(result, "renameat2", target)


def inotify_init1(flags: int) -> int:
    """inotify_init1(2); flags are those of open(2), O_CLOEXEC and O_NONBLOCK."""
    return _checked(_inotify_init1(flags), "inotify_init1")


def inotify_add_watch(fd: int, path: Path, mask: int) -> int:
    """inotify_add_watch(2)."""
    return _checked(_inotify_add_watch(fd, _encode(path), mask), "inotify_add_watch", path)


# --- namespaces and processes ---------------------------------------------------------------------------------


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_unshare(flags), "unshare")


def setns(fd: int, nstype: int = 0) -> None:
    """setns(2) with a namespace's descriptor, or with a pidfd and a mask of CLONE_NEW*."""
    _checked(_setns(fd, nstype), "setns")


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
    return _checked(_pidfd_open(pid, flags), "pidfd_open")


def pidfd_send_signal(pidfd: int, signum: int) -> None:
    """pidfd_send_signal(2)."""
    _checked(_pidfd_send_signal(pidfd, signum, None, 0), "pidfd_send_signal")


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): duplicate a descriptor of another process."""
    return _checked(_pidfd_getfd(pidfd, fd, 0), "pidfd_getfd")


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) with integer arguments."""
    return _checked(_prctl(option, arg2, arg3, arg4, arg5), "prctl")


def reset_signal(number: int) -> None:
    """Give a signal its default disposition by rt_sigaction(2) itself.

    For 32 and 33, which the C library keeps for its threads and its sigaction(3) refuses; its posix_spawn(3) leaves
    them ignored, and an ignored signal stays ignored across execve.
    """
    _checked(_rt_sigaction(number, bytes(32), None, 8), "rt_sigaction")


def set_process_name(name: str) -> None:
    """prctl(PR_SET_NAME): the name in ps and /proc/<pid>/comm, at most 15 bytes of it."""
    _checked(_prctl_name(PR_SET_NAME, name.encode()[:15]), "prctl")


def sethostname(name: str) -> None:
    """sethostname(2)."""
    data = name.encode()
    _checked(_sethostname(data, len(data)), "sethostname", name)


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    data = name.encode()
    _checked(_setdomainname(data, len(data)), "setdomainname", name)


def personality(persona: int) -> int:
    """personality(2)."""
    return _checked(_personality(persona), "personality")


def ioprio_set(which: int, who: int, ioprio: int) -> None:
    """ioprio_set(2)."""
    _checked(_ioprio_set(which, who, ioprio), "ioprio_set")


def sched_setattr(pid: int, attributes: bytes) -> None:
    """sched_setattr(2); `attributes` is a packed struct sched_attr."""
    _checked(_sched_setattr(pid, attributes, 0), "sched_setattr")


def execveat(dirfd: int, path: Path, argv: list[bytes], envp: list[bytes], flags: int) -> None:
    """execveat(2); returns only by raising."""
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    environment = (ctypes.c_char_p * (len(envp) + 1))(*envp, None)
    _checked(_execveat(dirfd, _encode(path), arguments, environment, flags), "execveat", path)


# --- privileges -----------------------------------------------------------------------------------------------

_CAPABILITY_VERSION_3 = 0x20080522


def capget(pid: int = 0) -> tuple[int, int, int]:
    """capget(2): the effective, permitted and inheritable sets as bit masks."""
    data = ctypes.create_string_buffer(24)
    _checked(_capget(struct.pack("=Ii", _CAPABILITY_VERSION_3, pid), data), "capget")
    low = struct.unpack("=6I", data.raw)
    return low[0] | low[3] << 32, low[1] | low[4] << 32, low[2] | low[5] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for the calling thread."""
    sets = (effective, permitted, inheritable)
    data = struct.pack("=6I", *(mask & 0xFFFFFFFF for mask in sets), *(mask >> 32 for mask in sets))
    _checked(_capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data), "capset")


def keyctl(operation: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """keyctl(2) with integer arguments (a buffer is passed as its address)."""
    return _checked(_keyctl(operation, arg2, arg3, arg4, arg5), "keyctl")


def join_session_keyring(name: str | None) -> int:
    """keyctl(KEYCTL_JOIN_SESSION_KEYRING): a new (or, named, perhaps an existing) session keyring; its serial."""
    result = _keyctl_str(KEYCTL_JOIN_SESSION_KEYRING, None if name is None else name.encode())
    return _checked(result, "keyctl", name)


def seccomp(operation: int, flags: int, program: bytes | None = None) -> int:
    """seccomp(2). For SECCOMP_SET_MODE_FILTER, `program` is an array of struct sock_filter (8 bytes each)."""
    if program is None:
        return _checked(_seccomp(operation, flags, None), "seccomp")
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    return _checked(_seccomp(operation, flags, fprog), "seccomp")


def bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """bpf(2); `attributes` is a packed union bpf_attr, see `Buffer` for the pointers in it."""
    return _checked(_bpf(command, attributes, len(attributes)), "bpf")


class Buffer:
    """Memory whose address may be put into a packed structure; it lives as long as this object."""

    __slots__ = ("_array", "address")

    def __init__(self, content: bytes | int) -> None:
        self._array = ctypes.create_string_buffer(content, content if isinstance(content, int) else len(content))
        self.address = ctypes.addressof(self._array)

    def __len__(self) -> int:
        return len(self._array)

    @property
    def raw(self) -> bytes:
        """The bytes as they are now."""
        return self._array.raw
