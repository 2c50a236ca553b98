"""Where a program is: the path for execve, and the home directory of its user.

Everything read here is the image's: nothing is believed of it, and no magic link of procfs is followed, by which
the interpreter that we still are could be run (CVE-2019-5736). Error texts are runc's (Go's exec.LookPath), which
clients know.
"""

from __future__ import annotations

import errno
import os
import stat

from dray.base.errors import StartError
from dray.linux import libc, mounts

_PASSWD_LIMIT = 1 << 20  # bytes of an image's /etc/passwd that are looked at


def home_of(uid: int) -> str:
    """Return a user's home directory by the container's /etc/passwd, / when it has none.

    The file is the image's: only a regular file is read, only its beginning, and nothing is believed of it.
    """
    try:
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return "/"
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "/"
        text = os.read(fd, _PASSWD_LIMIT).decode(errors="surrogateescape")
    except OSError:
        return "/"
    finally:
        os.close(fd)
    for line in text.split("\n"):
        fields = line.split(":")
        if len(fields) > 5 and fields[2] == str(uid):
            return fields[5] or "/"
    return "/"


def find(name: str, path: str) -> str:
    """Return the path that execve gets for `name`, searched along `path`; StartError 127 or 126."""
    if "/" in name:
        reason = _why_not(name)
        if reason is None:
            return name
        exit_code = 127 if reason.endswith(os.strerror(errno.ENOENT).lower()) else 126
        raise StartError(f'exec: "{name}": {reason}', exit_code)
    for directory in path.split(":"):
        candidate = f"{directory or '.'}/{name}"
        if name and _why_not(candidate) is None:
            if not candidate.startswith("/"):
                raise StartError(
                    f'exec: "{name}": cannot run executable found relative to current directory', 126
                )  # fmt: skip
            return candidate
    raise StartError(f'exec: "{name}": executable file not found in $PATH', 127)


def _why_not(path: str) -> str | None:
    """Return why `path` cannot be executed, None if it can as far as can be seen."""
    try:
        fd = libc.openat2(libc.AT_FDCWD, path, os.O_PATH, resolve=libc.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        if error.errno == errno.ELOOP and os.path.exists(path):
            reason = "permission denied (a link of /proc leads out of the container)"
        return f"stat {path}: {reason}"
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            return "is a directory"
        if not mode & 0o111 or not os.access(path, os.X_OK, effective_ids=True):
            return "permission denied"
        return _why_not_interpreter(path, fd)
    finally:
        os.close(fd)


def _why_not_interpreter(path: str, fd: int) -> str | None:
    """Refuse a script whose interpreter is a magic link: /proc/self/exe is this very Python (CVE-2019-5736)."""
    try:
        script = os.open(mounts.fd_path(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None  # executable but not readable: the kernel itself refuses scripts that cannot be read
    try:
        head = os.read(script, 256)
    except OSError:
        return None
    finally:
        os.close(script)
    if not head.startswith(b"#!"):
        return None
    words = head[2:].split(b"\n")[0].split()
    if not words:
        return None
    try:
        os.close(libc.openat2(libc.AT_FDCWD, words[0], os.O_PATH, resolve=libc.RESOLVE_NO_MAGICLINKS))
    except OSError as error:
        if error.errno == errno.ELOOP:
            return f"permission denied (interpreter {os.fsdecode(words[0])} is a link of /proc)"
    return None
