"""A program to run in a container: what the OCI `process` object asks, and the way from a forked Python to it.

    program_of(process, seccomp) → Program     pure: names resolved to numbers, checked
    prepare(program, …) → argv0                in the child: stdio, directory, user, capabilities, path search
    execute(program, …)                        in the child: seccomp, last capability, execve

Between prepare and execute the child waits for its start. With a seccomp filter and without no_new_privs the
filter needs CAP_SYS_ADMIN, which is kept permitted until then: after the filter only capset and execve are called,
so that a profile need allow no more than these.
Sources: runtime-spec config.md "process"; error texts as runc's (Go's exec.LookPath), which clients know.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from dray.base.errors import InvalidParameter, StartError
from dray.linux import libc, mounts, privileges, processes, seccomp
from dray.linux.privileges import Capabilities, Identity
from dray.runtime import document, lookup, scheduling
from dray.runtime.document import Document
from dray.runtime.scheduling import Scheduling

_SECCOMP_NEW_LISTENER = 1 << 3


@dataclass(frozen=True, slots=True)
class Rlimit:
    """`name` is RLIMIT_*."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What is set from outside, by the parent; `oom_score_adj` None: inherited."""

    rlimits: tuple[Rlimit, ...]
    oom_score_adj: int | None


@dataclass(frozen=True, slots=True)
class Listener:
    """Who decides about calls that the filter notifies of: the socket that gets the descriptor, words for it."""

    path: str
    metadata: str


@dataclass(frozen=True, slots=True)
class Program:
    """Everything about a process that its spec decides."""

    args: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    identity: Identity
    umask: int
    capabilities: Capabilities
    no_new_privileges: bool
    terminal: bool
    console_size: tuple[int, int] | None
    apparmor: str
    selinux: str
    limits: Limits
    filter: bytes | None
    filter_flags: int
    listener: Listener | None
    scheduling: Scheduling


def program_of(
    process: dict[str, Any],
    profile: Document | None,
    console_size: tuple[int, int] | None = None,
    memory_policy: dict[str, Any] | None = None,
) -> Program:
    """Read an OCI process object; InvalidParameter names what is wrong with it."""
    args = process.get("args") or []
    if not args:
        raise InvalidParameter("process.args must not be empty")
    cwd = process.get("cwd") or ""
    if not cwd.startswith("/"):
        raise InvalidParameter(f"process.cwd must be an absolute path, not {cwd!r}")
    user = process.get("user") or {}
    size = process.get("consoleSize") or {}
    if console_size is None and size.get("height") and size.get("width"):
        console_size = (int(size["height"]), int(size["width"]))
    umask = user.get("umask")
    code, flags = _filter(profile) if profile else (None, 0)
    listener = None
    if profile and flags & _SECCOMP_NEW_LISTENER:
        listener = _listener(document.parsed(profile))
    return Program(
        args=tuple(args),
        env=_environment(process.get("env") or []),
        cwd=cwd,
        identity=_identity(user),
        umask=0o022 if umask is None else int(umask),
        capabilities=_capabilities(process.get("capabilities")),
        no_new_privileges=bool(process.get("noNewPrivileges")),
        terminal=bool(process.get("terminal")),
        console_size=console_size,
        apparmor=process.get("apparmorProfile") or "",
        selinux=process.get("selinuxLabel") or "",
        limits=limits_of(process),
        filter=code,
        filter_flags=flags,
        listener=listener,
        scheduling=scheduling.scheduling_of(process, memory_policy),
    )


def _filter(profile: Document) -> tuple[bytes, int]:
    if isinstance(profile, bytes):
        return seccomp.of_text(profile)
    return seccomp.program(profile), seccomp.filter_flags(profile)


def _listener(profile: dict[str, Any]) -> Listener:
    path = profile.get("listenerPath") or ""
    if not path.startswith("/"):
        raise InvalidParameter(
            "linux.seccomp: SCMP_ACT_NOTIFY needs listenerPath, an agent's absolute socket path"
        )
    return Listener(path, profile.get("listenerMetadata") or "")


def _environment(entries: list[str]) -> dict[str, str]:
    env: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name or not equals or "\0" in entry:
            raise InvalidParameter(f"process.env: invalid environment variable {entry!r}")
        env[name] = value
    return env


def _identity(user: dict[str, Any]) -> Identity:
    groups = tuple(int(group) for group in user.get("additionalGids") or ())
    identity = Identity(int(user.get("uid") or 0), int(user.get("gid") or 0), groups)
    for number in (identity.uid, identity.gid, *groups):
        if not 0 <= number < 2**32 - 1:
            raise InvalidParameter(f"process.user: id {number} is out of range")
    return identity


def _capabilities(sets: dict[str, Any] | None) -> Capabilities:
    sets = sets or {}
    try:
        return Capabilities(
            *(
                privileges.mask(sets.get(kind) or [])
                for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")
            )
        )
    except KeyError as error:
        raise InvalidParameter(f"process.capabilities: unknown capability {error.args[0]!r}") from None


def limits_of(process: dict[str, Any]) -> Limits:
    """Read the limits of an OCI process object."""
    entries = process.get("rlimits") or ()
    limits = tuple(Rlimit(entry["type"], int(entry["soft"]), int(entry["hard"])) for entry in entries)
    if len({limit.name for limit in limits}) != len(limits):
        raise InvalidParameter("process.rlimits: a limit is given twice")
    return Limits(limits, process.get("oomScoreAdj"))


def set_limits(pid: int, limits: Limits) -> None:
    """Set what is set from outside, once the child is ready: resource limits and the OOM score."""
    for limit in limits.rlimits:
        try:
            privileges.set_rlimit(pid, limit.name, limit.soft, limit.hard)
        except OSError as error:
            raise StartError(f"error setting rlimit: {error}") from error
    if limits.oom_score_adj is not None and limits.oom_score_adj != _inherited_oom_score_adj():
        try:
            privileges.write_proc(f"/proc/{pid}/oom_score_adj", str(limits.oom_score_adj))
        except PermissionError as error:
            raise StartError(
                f"cannot lower oom_score_adj to {limits.oom_score_adj}: CAP_SYS_RESOURCE is missing ({error})"
            ) from error


def _inherited_oom_score_adj() -> int:
    fd = os.open("/proc/self/oom_score_adj", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 16))
    finally:
        os.close(fd)


def label(program: Program) -> None:
    """Ask the security modules for the program's label at the next execve; before pivot_root, on the host's /proc."""
    if program.selinux:
        _write_label("attr/exec", program.selinux, "selinuxLabel")
    if program.apparmor:
        _write_label("attr/apparmor/exec", f"exec {program.apparmor}", "apparmorProfile")


def _write_label(file: str, value: str, option: str) -> None:
    try:
        privileges.write_proc(f"/proc/self/{file}", value)
    except FileNotFoundError as error:
        if option != "apparmorProfile":
            raise StartError(f"process.{option}: {value!r} cannot be applied on this kernel: {error}") from error
        name = value.removeprefix("exec ")
        raise StartError(
            f"apparmor profile {name!r} is not loaded: load it with apparmor_parser, or choose another with "
            "--security-opt apparmor=NAME"
        ) from error
    except OSError as error:
        raise StartError(f"process.{option}: {value!r} cannot be applied on this kernel: {error}") from error


def set_stdio(fds: tuple[int, int, int], program: Program) -> None:
    """Make `fds` 0, 1 and 2 (-1: the container's /dev/null) and give pipes to the program's user, as runc does."""
    null = -1
    sources = []
    for fd in fds:
        if fd < 0 or mounts.is_device(fd, 1, 3):
            null = null if null >= 0 else _open_null()
            sources.append(null)
        else:
            sources.append(os.dup(fd) if fd < 3 else fd)  # its number may be about to go to one of the others
    for number, fd in enumerate(sources):
        os.dup2(fd, number, inheritable=True)
    for number in range(3):
        status = os.fstat(number)
        if sources[number] == null or status.st_uid == program.identity.uid:
            continue
        try:
            os.fchown(number, program.identity.uid, -1)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
                raise


def _open_null() -> int:
    try:
        fd = os.open("/dev/null", os.O_RDWR | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"open: {error.strerror}", "/dev/null") from error
    if not mounts.is_device(fd, 1, 3):
        os.close(fd)
        raise OSError(errno.ENODEV, "is not the null device (char 1:3)", "/dev/null")
    return fd if fd > 2 else os.dup(fd)


def prepare(program: Program, *, die_with_parent: bool) -> str:
    """Become the program's user, with its capabilities, in its directory; return the program's path.

    Raises StartError with runc's words for a program or directory that is not there.
    """
    lacking = privileges.missing(program.capabilities.permitted)
    if lacking:
        raise StartError(f"cannot grant {', '.join(lacking)}: the runtime itself lacks it")
    if program.no_new_privileges:
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    scheduling.apply(program.scheduling)
    entered = _enter(program.cwd)
    keep_admin = program.filter is not None and not program.no_new_privileges
    privileges.drop(program.capabilities, program.identity, keep_admin=keep_admin)
    # A change of credentials resets both.
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    if die_with_parent:
        libc.prctl(libc.PR_SET_PDEATHSIG, 9)
    if entered is not None:
        entered = _enter(program.cwd)
        if entered is not None:
            raise StartError(f'chdir to cwd ("{program.cwd}") set in config.json failed: {entered.strerror}', 126)
    _verify_directory()
    if not program.env.get("HOME"):
        program.env["HOME"] = lookup.home_of(program.identity.uid)
    return lookup.find(program.args[0], program.env.get("PATH", ""))


def _enter(path: str) -> OSError | None:
    try:
        os.chdir(path)
    except PermissionError as error:
        return error
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise StartError(
            f'chdir to cwd ("{path}") set in config.json failed: {reason}',
            127 if error.errno == errno.ENOENT else 126,
        ) from error
    return None


def _verify_directory() -> None:
    """Refuse a working directory outside the root, reached through a leaked descriptor (CVE-2024-21626)."""
    try:
        inside = os.getcwd().startswith("/")
    except FileNotFoundError:
        inside = False
    if not inside:
        raise StartError("current working directory is outside of container mount namespace root", 126)


def execute(
    program: Program, path: str, *, preserve_fds: int = 0, listening: Callable[[int], None] | None = None
) -> NoReturn:
    """Install the filter, give up what is left, execve; StartError when that fails.

    listening: told the descriptor of a filter's listener; it may only read and write what is open
    """
    argv, env = list(program.args), dict(program.env)
    os.umask(program.umask)
    processes.reset_signals()
    processes.close_on_exec(3 + preserve_fds)
    for limit in program.limits.rlimits:
        privileges.lower_rlimit(limit.name, limit.soft, limit.hard)
    if program.filter is not None:
        if not program.no_new_privileges:
            privileges.regain_admin(program.capabilities)
        listener = seccomp.install(program.filter, flags=program.filter_flags)
        if listener >= 0 and listening is not None:
            listening(listener)
        if not program.no_new_privileges:
            privileges.seal(program.capabilities)
    try:
        os.execve(path, argv, env)  # noqa: S606 - what a runtime is for
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        missing = error.errno == errno.ENOENT
        raise StartError(f'exec: "{program.args[0]}": {reason}', 127 if missing else 126) from error
