"""What a process may do: user, groups, capabilities, limits, keyring, labels (capabilities(7), credentials(7)).

The steps of giving up root are split so that a seccomp filter can come between: `drop` leaves CAP_SYS_ADMIN in
the permitted set when asked to; `seal` takes it away with a single capset(2).
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass

from dray.linux import libc, mounts

# In the order of their numbers (include/uapi/linux/capability.h).
_NAMES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
CAPABILITIES: tuple[str, ...] = tuple(f"CAP_{name}" for name in _NAMES.split())
_NUMBERS: dict[str, int] = {name: number for number, name in enumerate(CAPABILITIES)}
SYS_ADMIN = 1 << _NUMBERS["CAP_SYS_ADMIN"]


def mask(names: list[str]) -> int:
    """Return the bit mask of capability names; KeyError names one that does not exist."""
    bits = 0
    for name in names:
        bits |= 1 << _NUMBERS[name]
    return bits


def names(bits: int) -> list[str]:
    """Return the capability names of a bit mask."""
    return [name for number, name in enumerate(CAPABILITIES) if bits >> number & 1]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The five sets of a process, as bit masks."""

    bounding: int = 0
    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    ambient: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


def missing(wanted: int) -> list[str]:
    """Return the capabilities in `wanted` that this process cannot hand on."""
    return names(wanted & ~libc.capget()[1])


def drop(capabilities: Capabilities, identity: Identity, *, keep_admin: bool) -> None:
    """Become `identity` with `capabilities`; with `keep_admin`, CAP_SYS_ADMIN stays permitted until `seal`."""
    _drop_bounding(capabilities.bounding)
    libc.prctl(libc.PR_SET_KEEPCAPS, 1)
    try:
        if identity.groups or os.getgroups():
            os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        ids = f"user {identity.uid}, group {identity.gid}" + "".join(f", {group}" for group in identity.groups)
        reason = f"the user namespace of the container does not have all of its user and groups ({ids})"
        raise OSError(errno.EINVAL, reason) from error
    libc.prctl(libc.PR_SET_KEEPCAPS, 0)
    permitted = capabilities.permitted | (SYS_ADMIN if keep_admin else 0)
    libc.capset(capabilities.effective, permitted, capabilities.inheritable)
    libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(len(CAPABILITIES)):
        if capabilities.ambient >> number & 1:
            libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_RAISE, number)


def regain_admin(capabilities: Capabilities) -> None:
    """Make the kept CAP_SYS_ADMIN effective, to install a seccomp filter without no_new_privs."""
    libc.capset(
        capabilities.effective | SYS_ADMIN, capabilities.permitted | SYS_ADMIN, capabilities.inheritable
    )  # fmt: skip


def seal(capabilities: Capabilities) -> None:
    """Have exactly `capabilities` (one syscall)."""
    libc.capset(capabilities.effective, capabilities.permitted, capabilities.inheritable)


def _drop_bounding(keep: int) -> None:
    for number in range(64):
        if keep >> number & 1:
            continue
        try:
            libc.prctl(libc.PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:  # past the last capability of this kernel
                return
            raise


_LOCKS = 10  # RLIMIT_LOCKS of asm-generic/resource.h, which Python does not name; Linux keeps and ignores it


def _number(name: str) -> int:
    number = _LOCKS if name == "RLIMIT_LOCKS" else getattr(resource, name, None)
    if number is None:
        raise OSError(errno.EINVAL, "prlimit: no such limit", name)
    return int(number)


def set_rlimit(pid: int, name: str, soft: int, hard: int) -> None:
    """prlimit(2); `name` is RLIMIT_*, -1 is unlimited. OSError(EPERM) names the ulimit.

    Without CAP_SYS_RESOURCE nobody may set another user's limits: one that is merely lowered is left to
    `lower_rlimit`.
    """
    number = _number(name)
    try:
        resource.prlimit(pid, number, (_limit(soft), _limit(hard)))
    except PermissionError as error:
        have = resource.getrlimit(number)[1]  # inherited: of another user's process it could not be asked either
        unlimited = resource.RLIM_INFINITY
        if have == unlimited or (_limit(hard) != unlimited and _limit(hard) <= have):
            return
        ulimit = name.removeprefix("RLIMIT_").lower()
        raise OSError(
            errno.EPERM,
            f"prlimit: cannot raise ulimit {ulimit} above the hard limit {have}: CAP_SYS_RESOURCE is missing; "
            f"ask for less with --ulimit {ulimit}=",
            name,
        ) from error


def lower_rlimit(name: str, soft: int, hard: int) -> None:
    """Set a limit of the calling process, unless it is set already."""
    number, wanted = _number(name), (_limit(soft), _limit(hard))
    if resource.getrlimit(number) != wanted:
        resource.setrlimit(number, wanted)


def _limit(value: int) -> int:
    return resource.RLIM_INFINITY if value < 0 or value >= 2**63 else value


def write_proc(path: str, content: str) -> None:
    """Write a file that must be procfs's own: no links are followed and the file system's magic is checked."""
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mounts.require_magic(proc, libc.PROC_SUPER_MAGIC, "/proc")
        # Beneath one and the same mount: a bind over a part of /proc is refused (EXDEV); /proc/self is a link.
        resolve = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_XDEV | libc.RESOLVE_NO_MAGICLINKS
        fd = libc.openat2(proc, path.removeprefix("/proc/"), os.O_WRONLY, resolve=resolve)
    finally:
        os.close(proc)
    try:
        mounts.require_magic(fd, libc.PROC_SUPER_MAGIC, path)
        os.write(fd, content.encode())
    except OSError as error:
        raise OSError(error.errno, f"write: {error.strerror}", path) from error
    finally:
        os.close(fd)


def new_session_keyring(name: str) -> None:
    """Join a new session keyring that the container's user may search; kernels without keyrings are no error."""
    try:
        serial = libc.join_session_keyring(name)
        # possessor all, user: view, read, search; nothing for group and other (keyctl_setperm(3))
        libc.keyctl(libc.KEYCTL_SETPERM, serial, 0x3F0B0000)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EDQUOT):
            raise
