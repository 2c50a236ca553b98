"""Kernel calls about what a process may do and how it is run, under the kernel's names; see `libc`, which has them."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Collection

from dray.linux.abi import KEYCTL_JOIN_SESSION_KEYRING
from dray.linux.syscall import INT, LONG, POINTER, STR, UINT, ULONG, Buffer, checked, declare

__all__ = [
    "Buffer",
    "bpf",
    "capget",
    "capset",
    "ioprio_set",
    "join_session_keyring",
    "keyctl",
    "personality",
    "sched_setattr",
    "seccomp",
    "set_mempolicy",
    "setfsgid",
    "setfsuid",
]

_capget = declare("capget", POINTER, POINTER)
_capset = declare("capset", POINTER, POINTER)
_keyctl_str = declare("keyctl", INT, STR)
_keyctl = declare("keyctl", INT, LONG, ULONG, ULONG, ULONG)
_seccomp = declare("seccomp", UINT, UINT, POINTER)
_bpf = declare("bpf", INT, POINTER, UINT)
_personality = declare("personality", ULONG)
_ioprio_set = declare("ioprio_set", INT, INT, INT)
_sched_setattr = declare("sched_setattr", INT, POINTER, UINT)
_set_mempolicy = declare("set_mempolicy", INT, POINTER, ULONG)

_setfsuid = declare("setfsuid", UINT)
_setfsgid = declare("setfsgid", UINT)

_CAPABILITY_VERSION_3 = 0x20080522


def capget(pid: int = 0) -> tuple[int, int, int]:
    """capget(2): the effective, permitted and inheritable sets as bit masks."""
    data = ctypes.create_string_buffer(24)
    checked(_capget(struct.pack("=Ii", _CAPABILITY_VERSION_3, pid), data), "capget")
    low = struct.unpack("=6I", data.raw)
    return low[0] | low[3] << 32, low[1] | low[4] << 32, low[2] | low[5] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for the calling thread."""
    sets = (effective, permitted, inheritable)
    data = struct.pack("=6I", *(mask & 0xFFFFFFFF for mask in sets), *(mask >> 32 for mask in sets))
    checked(_capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data), "capset")


def keyctl(operation: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """keyctl(2) with integer arguments (a buffer is passed as its address)."""
    return checked(_keyctl(operation, arg2, arg3, arg4, arg5), "keyctl")


def join_session_keyring(name: str | None) -> int:
    """keyctl(KEYCTL_JOIN_SESSION_KEYRING): a new (or, named, perhaps an existing) session keyring; its serial."""
    result = _keyctl_str(KEYCTL_JOIN_SESSION_KEYRING, None if name is None else name.encode())
    return checked(result, "keyctl", name)


def seccomp(operation: int, flags: int, program: bytes | None = None) -> int:
    """seccomp(2). For SECCOMP_SET_MODE_FILTER, `program` is an array of struct sock_filter (8 bytes each)."""
    if program is None:
        return checked(_seccomp(operation, flags, None), "seccomp")
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    return checked(_seccomp(operation, flags, fprog), "seccomp")


def bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """bpf(2); `attributes` is a packed union bpf_attr, see `Buffer` for the pointers in it."""
    return checked(_bpf(command, attributes, len(attributes)), "bpf")


def personality(persona: int) -> int:
    """personality(2)."""
    return checked(_personality(persona), "personality")


def ioprio_set(which: int, who: int, ioprio: int) -> None:
    """ioprio_set(2)."""
    checked(_ioprio_set(which, who, ioprio), "ioprio_set")


def sched_setattr(pid: int, attributes: bytes) -> None:
    """sched_setattr(2); `attributes` is a packed struct sched_attr."""
    checked(_sched_setattr(pid, attributes, 0), "sched_setattr")


def set_mempolicy(mode: int, nodes: Collection[int], most: int) -> None:
    """set_mempolicy(2); `most` is the size of the node mask in bits, a multiple of 64."""
    mask = sum(1 << node for node in nodes).to_bytes(most // 8, "little")
    checked(_set_mempolicy(mode, mask if nodes else None, most if nodes else 0), "set_mempolicy")


def setfsuid(uid: int) -> int:
    """setfsuid(2) for the calling thread: returns the id of before; PermissionError if it did not take."""
    return _set_fs_id(_setfsuid, uid, "setfsuid")


def setfsgid(gid: int) -> int:
    """setfsgid(2), see `setfsuid`."""
    return _set_fs_id(_setfsgid, gid, "setfsgid")


def _set_fs_id(call: Callable[[int], int], number: int, name: str) -> int:
    before = call(number)
    if call(number) != number:  # the call tells no error
        raise PermissionError(errno.EPERM, f"{name}: {os.strerror(errno.EPERM)}")
    return before
