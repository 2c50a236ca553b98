"""System call filters (seccomp(2)) from the OCI `linux.seccomp` object, without libseccomp.

    code = program(profile, cache_dir="/run/dray/seccomp")
    install(code, flags=filter_flags(profile))

`program` keeps its results by content, in the process and, given `cache_dir`, on disk:

    <cache_dir>/<sha-256 of profile, machine and table>.bpf    the array of struct sock_filter, nothing else

The folder must be writable by root alone: what lies in it is loaded into the kernel unseen. It is only a cache;
any file of it may be removed at any time. A file of impossible length is compiled anew.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from dray.base.errors import InvalidParameter, Unsupported
from dray.base.files import write_atomic
from dray.linux import libc

_SECCOMP_SET_MODE_FILTER = 1
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1 << 0,
    "SECCOMP_FILTER_FLAG_LOG": 1 << 1,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 1 << 2,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 1 << 5,
}
NEW_LISTENER = 1 << 3
_TSYNC_ESRCH = 1 << 4

_VERSION = b"3"  # raised when the compiler's output changes
_programs: dict[bytes, bytes] = {}
_texts: dict[bytes, tuple[bytes, int]] = {}  # profile as JSON text → (program, flags)


@functools.cache
def _salt() -> bytes:
    status = os.stat(os.path.join(os.path.dirname(__file__), "syscalls.tsv"))
    return b"%s %s %d %d\n" % (_VERSION, os.uname().machine.encode(), status.st_size, status.st_mtime_ns)


def program(profile: Mapping[str, Any], *, cache_dir: str | os.PathLike[str] | None = None) -> bytes:
    """Compile an OCI `linux.seccomp` object to a classic BPF program for this machine; see `seccomp.compile`."""
    content = msgspec.json.encode(profile)
    digest = hashlib.sha256(_salt() + content)
    code = _programs.get(digest.digest())
    if code is not None:
        return code
    path = None if cache_dir is None else os.path.join(os.fspath(cache_dir), digest.hexdigest() + ".bpf")
    if path is not None:
        code = _cached(path)
    if code is None:
        from dray.linux.seccomp.compile import compile_profile

        code = compile_profile(profile)
        if path is not None:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            write_atomic(path, code, durable=False)
    _programs[digest.digest()] = code
    return code


def of_text(profile: bytes) -> tuple[bytes, int]:
    """Return (program, flags) of a profile that is JSON text; parsed only when the same text was not seen before."""
    known = _texts.get(profile)
    if known is None:
        parsed = msgspec.json.decode(profile, type=dict[str, Any])
        known = _texts[profile] = program(parsed), filter_flags(parsed)
    return known


def preload() -> None:
    """Read the tables and the compiler (for a zygote, before it forks)."""
    from dray.linux.seccomp import compile as compiler  # noqa: F401
    from dray.linux.seccomp.numbers import native, table

    if native() is not None:
        table("x86_64")
    _salt()


def _cached(path: str) -> bytes | None:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        code = file.read(4096 * 8 + 1)
        if code and len(code) % 8 == 0 and len(code) <= 4096 * 8:
            return code
    return None


def filter_flags(profile: Mapping[str, Any]) -> int:
    """Return the flags that `install` needs for a profile.

    Those it lists; SPEC_ALLOW alone where it has no `flags` at all, as runc does; and a listener when one of its
    actions is SCMP_ACT_NOTIFY.
    """
    names = profile.get("flags")
    flags = 0
    for name in ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"] if names is None else names:
        if name not in FLAGS:
            raise InvalidParameter(f"seccomp: unknown flag {name!r}")
        flags |= FLAGS[name]
    if any(entry.get("action") == "SCMP_ACT_NOTIFY" for entry in profile.get("syscalls") or ()):
        flags |= NEW_LISTENER
        if flags & FLAGS["SECCOMP_FILTER_FLAG_TSYNC"]:
            flags |= _TSYNC_ESRCH  # else a positive result could be a thread's id or a descriptor
    elif flags & FLAGS["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]:
        raise InvalidParameter("seccomp: WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY")
    return flags


def install(code: bytes, *, flags: int = 0) -> int:
    """Put the filter on the calling thread, for good; children inherit it.

    The thread has no_new_privs set or CAP_SYS_ADMIN. Returns the listener's descriptor (close-on-exec) when the
    flags ask for one, else -1. Raises Unsupported where the kernel lacks seccomp or one of the flags, OSError for
    the rest (EACCES: neither no_new_privs nor the capability).
    """
    try:
        result = libc.seccomp(_SECCOMP_SET_MODE_FILTER, flags, code)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise Unsupported(
                "this kernel has no seccomp filters; use --security-opt seccomp=unconfined"
            ) from None
        if error.errno == errno.EINVAL and flags:
            raise Unsupported(
                f"seccomp: this kernel refuses the filter or one of its flags ({flags:#x})"
            ) from None
        raise
    return result if flags & NEW_LISTENER else -1
