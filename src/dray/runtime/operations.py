"""The operations that a root file system's plan is made of.

Each is data with two verbs: `describe()` prints it, `execute()` does it in the container's init. Targets are
resolved within the root by descriptor (see `linux.mounts`); nothing here follows a link out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Protocol

from dray.base.errors import StartError
from dray.linux import libc, mounts
from dray.runtime.model import Mount
from dray.runtime.served import DETACHED
from dray.runtime.stage import Stage

ROOT = -1  # key of the root's own tree among those that were made before (`Order.trees`)


class Operation(Protocol):
    """One step of the plan."""

    def describe(self) -> str:
        """Return the step as a line for people."""

    def execute(self, stage: Stage) -> None:
        """Do it; OSError with syscall and path."""


@dataclass(frozen=True, slots=True)
class Propagate:
    """Set the propagation of the whole inherited tree, so that mounts here do not show on the host."""

    flags: int

    def describe(self) -> str:
        """Return the step as a line for people."""
        return f"propagation of / {self.flags:#x}"

    def execute(self, stage: Stage) -> None:
        """Change it recursively."""
        libc.mount("", "/", "", self.flags)


@dataclass(frozen=True, slots=True)
class MountRoot:
    """Mount the root file system at the root's path; without mounts, make the directory a mount of its own.

    tree: its detached mount, when that was made before; it is attached over `/`, since a user namespace's root may
        not walk to `path`
    shared: the inherited tree is shared, which pivot_root(2) does not want of what holds the root
    """

    path: str
    layers: tuple[Mount, ...]
    tree: int = -1
    shared: bool = False

    def describe(self) -> str:
        """Return the step as a line for people."""
        return f"root {self.path} " + (", ".join(f"{m.type}:{m.source}" for m in self.layers) or "bind")

    def execute(self, stage: Stage) -> None:
        """Mount, and leave the root's descriptor in the stage."""
        if self.shared:
            _make_parent_private("/" if self.tree >= 0 else self.path)
        if self.tree >= 0:
            top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                mounts.attach(self.tree, top)
            finally:
                os.close(top)
            stage.root = self.tree
            return
        for entry in self.layers:
            target = self.path + ("/" + entry.target.strip("/") if entry.target.strip("/") else "")
            options = mounts.parse_options(entry.options)
            if entry.type == DETACHED:
                libc.move_mount(
                    int(entry.source), "", libc.AT_FDCWD, target, libc.MOVE_MOUNT_F_EMPTY_PATH
                )  # fmt: skip
            elif options.flags & libc.MS_BIND or entry.type == "bind":
                self._bind(entry.source, target, options)
            else:
                mounts.mount_filesystem(entry.type, entry.source, target, options)
                for propagation in options.propagation:
                    libc.mount("", target, "", propagation)
        if not self.layers:
            _make_parent_private(self.path)
            self._bind(self.path, self.path, mounts.Options(flags=libc.MS_REC))
        stage.open_root(self.path)

    @staticmethod
    def _bind(source: str, target: str, options: mounts.Options) -> None:
        tree = mounts.clone_tree(source, recursive=bool(options.flags & libc.MS_REC))
        try:
            mounts.set_tree(tree, options)
            libc.move_mount(tree, "", libc.AT_FDCWD, target, libc.MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)


def _make_parent_private(path: str) -> None:
    """Pivot_root(2) refuses a root whose parent mount is shared: make the mount that holds `path` private."""
    while True:
        try:
            libc.mount("", path, "", libc.MS_PRIVATE)
        except OSError as error:
            if error.errno != errno.EINVAL or path == "/":
                raise
            path = os.path.dirname(path)
        else:
            return


@dataclass(frozen=True, slots=True)
class MountFilesystem:
    """Mount a file system (proc, sysfs, tmpfs, mqueue, devpts, …) within the root."""

    type: str
    source: str
    target: str
    options: mounts.Options

    def describe(self) -> str:
        """Return the step as a line for people."""
        return f"mount {self.type} on {self.target} flags {self.options.flags:#x} {self.options.data}".rstrip()

    def execute(self, stage: Stage) -> None:
        """Mount; a tmpfs with `tmpcopyup` starts with what it hides."""
        if self.type in ("proc", "sysfs"):
            _refuse_link(stage, self.target)
        fd = mounts.make_in_root(stage.root, self.target)
        try:
            _refuse_in_proc(fd, self.target, procfs=self.type == "proc")
            content = stage.copy_out(fd) if self.options.copy_up else None
            try:
                self._mount(stage, fd)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.target) from error
            if self.options.propagation:
                self._propagate(stage)
            if content is not None:
                stage.copy_in(content, self.target)
        finally:
            os.close(fd)

    def _mount(self, stage: Stage, target: int) -> None:
        if self.type != "proc" or stage.pid_namespace < 0:
            mounts.mount_filesystem(self.type, self.source, mounts.fd_path(target), self.options)
            return
        from dray.linux import procfs  # only a container in another's pid namespace

        tree = procfs.mount_of(stage.pid_namespace, self.options)
        try:
            mounts.attach(tree, target)
        finally:
            os.close(tree)

    def _propagate(self, stage: Stage) -> None:
        mounted = mounts.open_in_root(stage.root, self.target)  # the older descriptor is what is hidden below
        try:
            mounts.set_propagation(mounted, self.options)
        finally:
            os.close(mounted)


def _refuse_link(stage: Stage, target: str) -> None:
    """Refuse /proc and /sys that the image made links of: they would appear elsewhere, unmasked (CVE-2019-19921)."""
    try:
        fd = mounts.open_in_root(stage.root, target, os.O_PATH | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            kind = "link" if stat.S_ISLNK(os.fstat(fd).st_mode) else "file"
            raise OSError(
                errno.ENOTDIR,
                f"{target} of the image is a {kind}: it must be mounted on an ordinary directory, so that it can be "
                "masked; use an image without it",
            )
    finally:
        os.close(fd)


# What may be mounted in /proc (lxcfs does); anything else could hide or replace what the kernel guards there. As runc.
_IN_PROC = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev",
        "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
    )
)  # fmt: skip
_PROC_SUPER_MAGIC = 0x9FA0


def _refuse_in_proc(place: int, target: str, *, procfs: bool) -> None:
    """Refuse to mount over a part of /proc, however the image's links lead there, and anything but procfs as /proc;
    `procfs`: what is mounted is one."""
    if target == "/proc":
        if procfs:
            return
    elif target in _IN_PROC or libc.statfs(place).type != _PROC_SUPER_MAGIC:
        return
    raise OSError(errno.EPERM, "cannot be mounted because it is inside /proc", target)


@dataclass(frozen=True, slots=True)
class BindMount:
    """Show a file or directory of the host within the root; `tree` is its clone when that was made before (`idmaps`)."""

    source: str
    target: str
    options: mounts.Options
    recursive: bool
    tree: int = -1

    def describe(self) -> str:
        """Return the step as a line for people."""
        mapped = " with mapped ids" if self.tree >= 0 else ""
        return f"{'rbind' if self.recursive else 'bind'} {self.source} on {self.target}{mapped}"

    def execute(self, stage: Stage) -> None:
        """Clone the source, set the clone's attributes while it is detached, attach it."""
        try:
            self._attach(stage)
        except OSError as error:
            reason = f"error mounting {self.source!r} to rootfs at {self.target!r}: {error.strerror}"
            raise OSError(error.errno, reason, error.filename) from error

    def _attach(self, stage: Stage) -> None:
        tree = self.tree if self.tree >= 0 else mounts.clone_tree(self.source, recursive=self.recursive)
        try:
            mounts.set_tree(tree, self.options)
            directory = stat.S_ISDIR(os.fstat(tree).st_mode)
            target = mounts.make_in_root(stage.root, self.target, directory=directory)
            try:
                if stat.S_ISDIR(os.fstat(target).st_mode) != directory:
                    raise self._mismatch(directory=directory)
                _refuse_in_proc(target, self.target, procfs=libc.statfs(tree).type == _PROC_SUPER_MAGIC)
                mounts.attach(tree, target)
            finally:
                os.close(target)
        finally:
            os.close(tree)

    def _mismatch(self, *, directory: bool) -> StartError:
        here, there = ("a directory", "a file") if directory else ("a file", "a directory")
        return StartError(
            f'error mounting "{self.source}" to rootfs at "{self.target}": {here} cannot be mounted on {there}: not a '
            "directory: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host "
            "path exists and is the expected type",
            127,
        )


@dataclass(frozen=True, slots=True)
class Remount:
    """Change the flags of what is mounted at a target: `remount`, or a tmpfs made read-only once it is filled."""

    target: str
    attr_set: int
    attr_clear: int = 0

    def describe(self) -> str:
        """Return the step as a line for people."""
        return f"remount {self.target} set {self.attr_set:#x} clear {self.attr_clear:#x}"

    def execute(self, stage: Stage) -> None:
        """Change them on that mount alone."""
        fd = mounts.open_in_root(stage.root, self.target)
        try:
            libc.mount_setattr(
                fd, "", libc.AT_EMPTY_PATH, attr_set=self.attr_set, attr_clear=self.attr_clear
            )  # fmt: skip
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class MountCgroup:
    """Show the container its cgroup: cgroup2, or on v1 a tmpfs with one directory a hierarchy."""

    target: str
    options: mounts.Options
    namespace: bool

    def describe(self) -> str:
        """Return the step as a line for people."""
        return f"mount cgroup on {self.target}" + (" (own namespace)" if self.namespace else "")

    def execute(self, stage: Stage) -> None:
        """Mount; the container must be in its cgroup (and cgroup namespace) already."""
        if "" in stage.cgroup_paths:
            self._mount_unified(stage, stage.cgroup_paths[""])
            return
        tmpfs = mounts.Options(flags=self.options.flags & ~libc.MS_RDONLY, data="mode=755")
        MountFilesystem("tmpfs", "tmpfs", self.target, tmpfs).execute(stage)
        fd = mounts.open_in_root(stage.root, self.target)
        try:
            # The tmpfs is new and nobody else can reach it yet: names below it need no scoped resolution.
            for name, path in stage.cgroup_paths.items():
                os.mkdir(name, 0o755, dir_fd=fd)
                self._attach_hierarchy(name, path, fd)
        finally:
            os.close(fd)
        if self.options.flags & libc.MS_RDONLY:
            Remount(self.target, libc.MOUNT_ATTR_RDONLY).execute(stage)

    def _attach_hierarchy(self, name: str, path: str, directory: int) -> None:
        if self.namespace:
            controllers = f"none,name={name}" if name == "systemd" else name
            libc.mount("cgroup", f"{mounts.fd_path(directory)}/{name}", "cgroup", self.options.flags, controllers)
            return
        tree = mounts.clone_tree(path)
        try:
            mounts.set_tree(tree, self.options)
            libc.move_mount(tree, "", directory, name, libc.MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)

    def _mount_unified(self, stage: Stage, path: str) -> None:
        if not self.namespace:
            BindMount(path, self.target, self.options, recursive=False).execute(stage)
        else:
            MountFilesystem("cgroup2", "cgroup", self.target, self.options).execute(stage)


@dataclass(frozen=True, slots=True)
class JoinCgroup:
    """Enter the container's cgroup, and its own cgroup namespace when it has one."""

    namespace: bool

    def describe(self) -> str:
        """Return the step as a line for people."""
        return "enter cgroup" + (", new cgroup namespace" if self.namespace else "")

    def execute(self, stage: Stage) -> None:
        """Enter: done before anything that shows the cgroup."""
        stage.enter_cgroup()
        if self.namespace:
            libc.unshare(libc.CLONE_NEWCGROUP)


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Make the working directory when the image lacks it."""

    path: str

    def describe(self) -> str:
        """Return the step as a line for people."""
        return f"directory {self.path}"

    def execute(self, stage: Stage) -> None:
        """Create what is missing. What cannot be a directory is found out by chdir, which has the words for it."""
        try:
            os.close(mounts.make_in_root(stage.root, self.path))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EXDEV, errno.ELOOP, errno.EROFS):
                raise


@dataclass(frozen=True, slots=True)
class ReadonlyPath:
    """Make a path read-only by a bind mount of itself."""

    path: str

    def describe(self) -> str:
        """Return the step as a line for people."""
        return f"readonly {self.path}"

    def execute(self, stage: Stage) -> None:
        """Clone, set, attach; a path that does not exist is no error."""
        try:
            target = mounts.open_in_root(stage.root, self.path)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            tree = mounts.clone_tree(target, recursive=True)
            try:
                libc.mount_setattr(
                    tree, "", libc.AT_EMPTY_PATH | libc.AT_RECURSIVE, attr_set=libc.MOUNT_ATTR_RDONLY
                )  # fmt: skip
                mounts.attach(tree, target)
            finally:
                os.close(tree)
        finally:
            os.close(target)


@dataclass(frozen=True, slots=True)
class MaskPath:
    """Hide a file behind the container's /dev/null, a directory behind an empty read-only tmpfs."""

    path: str

    def describe(self) -> str:
        """Return the step as a line for people."""
        return f"mask {self.path}"

    def execute(self, stage: Stage) -> None:
        """Attach; a path that does not exist is no error."""
        try:
            target = mounts.open_in_root(stage.root, self.path)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            mask = stage.empty_directory() if stat.S_ISDIR(os.fstat(target).st_mode) else stage.null_device()
            try:
                mounts.attach(mask, target)
            finally:
                os.close(mask)
        finally:
            os.close(target)


@dataclass(frozen=True, slots=True)
class RootAttributes:
    """Make the root read-only, or give it the propagation that the spec asks for."""

    readonly: bool
    propagation: int

    def describe(self) -> str:
        """Return the step as a line for people."""
        return "root" + (" readonly" if self.readonly else "") + f" propagation {self.propagation:#x}"

    def execute(self, stage: Stage) -> None:
        """Change the mount at /."""
        if self.propagation:
            libc.mount("", "/", "", self.propagation)
        if self.readonly:
            libc.mount_setattr(stage.root, "", libc.AT_EMPTY_PATH, attr_set=libc.MOUNT_ATTR_RDONLY)
