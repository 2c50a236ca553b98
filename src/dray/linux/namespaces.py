"""Namespaces: their names, their flags, how to join one and come back.

The names are those of the OCI runtime-spec (config-linux.md, "Namespaces"); the files below /proc/<pid>/ns bear
the kernel's shorter ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dray.linux import libc

FLAGS: dict[str, int] = {
    "user": libc.CLONE_NEWUSER,
    "cgroup": libc.CLONE_NEWCGROUP,
    "ipc": libc.CLONE_NEWIPC,
    "uts": libc.CLONE_NEWUTS,
    "network": libc.CLONE_NEWNET,
    "time": libc.CLONE_NEWTIME,
    "pid": libc.CLONE_NEWPID,
    "mount": libc.CLONE_NEWNS,
}
_FILES: dict[str, str] = {
    "network": "net",
    "mount": "mnt",
    "pid": "pid_for_children",
    "time": "time_for_children",
}


def file(name: str, pid: int | str = "self") -> str:
    """Return the path of a process's namespace; of `pid` and `time`, the one that its children are born in."""
    return f"/proc/{pid}/ns/{_FILES.get(name, name)}"


def supported(name: str) -> bool:
    """Tell whether this kernel has that kind of namespace."""
    return name in FLAGS and os.path.exists(file(name))


def open_path(path: str) -> int:
    """Open a namespace's file; OSError(EINVAL) if the path is no namespace."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if libc.statfs(fd).type != libc.NSFS_MAGIC:
        os.close(fd)
        raise OSError(22, "not a namespace", path)
    return fd


@contextmanager
def joined(fds: dict[str, int]) -> Iterator[None]:
    """Be in other namespaces for the length of a block: what is cloned there is born in them.

    Not for `user` and `mount`, which a process cannot come back from unharmed. Single-threaded callers only.
    """
    back: list[tuple[int, int]] = []
    try:
        for name, fd in fds.items():
            home = os.open(file(name), os.O_RDONLY | os.O_CLOEXEC)
            back.append((home, FLAGS[name]))
            libc.setns(fd, FLAGS[name])
        yield
    finally:
        for home, flag in reversed(back):
            libc.setns(home, flag)
            os.close(home)


def map_ids(pid: int, uid_map: str, gid_map: str) -> None:
    """Write the id maps of a process in a new user namespace (user_namespaces(7)); one line a range."""
    for name, content in (("uid_map", uid_map), ("gid_map", gid_map)):
        path = f"/proc/{pid}/{name}"
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, content.encode())
        except OSError as error:
            raise OSError(error.errno, f"write: {error.strerror}", path) from error
        finally:
            os.close(fd)
