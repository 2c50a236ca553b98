"""What the operations of a root file system plan share while init executes them.

The stage owns its descriptors: `close` ends them (execve would as well, they are close-on-exec).
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping

from dray.linux import libc, mounts


class Stage:
    """The root under construction.

    root: O_PATH descriptor of the root directory
    cgroup_paths: host directory of the container's cgroup by hierarchy's name (v1) or under "" (v2)
    enter_cgroup: moves the calling process into the container's cgroup
    pid_namespace: the one whose processes a procfs is to show, -1 for the calling process's own
    """

    __slots__ = ("_empty", "_null", "cgroup_paths", "enter_cgroup", "pid_namespace", "root")

    def __init__(
        self, *, cgroup_paths: Mapping[str, str], enter_cgroup: Callable[[], None], pid_namespace: int = -1
    ) -> None:
        self.root = -1
        self.cgroup_paths = cgroup_paths
        self.enter_cgroup = enter_cgroup
        self.pid_namespace = pid_namespace
        self._null = -1
        self._empty = -1

    def open_root(self, path: str) -> None:
        """Take the directory mounted at a path of the host as the root."""
        self.root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def null_device(self) -> int:
        """Return a detached clone of the container's /dev/null, verified to be one (CVE-2025-31133).

        Not the host's: the container's root could change its mode.
        """
        if self._null < 0:
            fd = libc.openat2(
                self.root, "dev/null", os.O_PATH | os.O_NOFOLLOW, resolve=libc.RESOLVE_IN_ROOT
            )  # fmt: skip
            if not mounts.is_device(fd, 1, 3):
                os.close(fd)
                raise OSError(22, "is not the null device (char 1:3); cannot mask paths with it", "/dev/null")
            self._null = fd
        return mounts.clone_tree(self._null)

    def empty_directory(self) -> int:
        """Return an empty, read-only tmpfs to be attached at once: the first time itself, later a clone of it.

        Before Linux 6.15 a mount can be cloned only once it is attached.
        """
        if self._empty < 0:
            context = libc.fsopen("tmpfs")
            try:
                libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "source", "tmpfs")
                libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "size", "0k")
                libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "nr_blocks", "1")
                libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE)
                attributes = libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NOSUID
                self._empty = libc.fsmount(context, attributes | libc.MOUNT_ATTR_NODEV | libc.MOUNT_ATTR_NOEXEC)
            finally:
                os.close(context)
            return os.dup(self._empty)
        return mounts.clone_tree(self._empty)

    def copy_out(self, directory: int) -> int:
        """Return a readable descriptor of a directory that is about to be hidden."""
        return os.open(mounts.fd_path(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def copy_in(self, source: int, target: str) -> None:
        """Copy what `source` holds into the file system now mounted at `target`; close `source`."""
        fd = mounts.open_in_root(self.root, target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            status = os.fstat(source)
            os.fchown(fd, status.st_uid, status.st_gid)
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
            _copy_directory(source, fd)
        finally:
            os.close(fd)
            os.close(source)


def _copy_directory(source: int, target: int) -> None:
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, mode, dir_fd=target)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below, beside = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target)
            try:
                _copy_directory(below, beside)
            finally:
                os.close(below)
                os.close(beside)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif stat.S_ISREG(status.st_mode):
            _copy_file(source, target, name)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, mode, dir_fd=target)  # after chown, which clears set-id bits


def _copy_file(source: int, target: int, name: str) -> None:
    def opener_in(directory: int) -> Callable[[str, int], int]:
        return lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o600, dir_fd=directory)

    with (
        open(name, "rb", opener=opener_in(source)) as reader,
        open(name, "xb", opener=opener_in(target)) as writer,
    ):
        shutil.copyfileobj(reader, writer, 1 << 20)
