"""The root file system as a plan: a list of operations, computed from the spec alone, printable, then executed.

`plan()` is a pure function of the OCI spec; `dray-runtime create --debug-plan` style tools and the tests print it
with `describe()`. `execute()` runs in the container's init, which holds a `Stage`: the root's descriptor and what
earlier operations left for later ones.

    prepare   before pivot_root: propagation, the root, every mount, devices, links, the working directory
    finish    after pivot_root: console, read-only and masked paths, the root made read-only

Targets are resolved within the root by descriptor (see `linux.mounts`); nothing here follows a link out of it.
Sources: runtime-spec config.md "Mounts", config-linux.md; behaviours beyond them are runc's.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dray.base.errors import InvalidParameter
from dray.linux import libc, mounts
from dray.runtime.devices import BindDevice, MakeDevices, devices_of
from dray.runtime.model import Mount
from dray.runtime.stage import Stage


class Operation(Protocol):
    """One step of the plan."""

    def describe(self) -> str:
        """Return the step as a line for people."""

    def execute(self, stage: Stage) -> None:
        """Do it; OSError with syscall and path."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Operations before and after pivot_root."""

    prepare: tuple[Operation, ...]
    finish: tuple[Operation, ...]

    def describe(self) -> str:
        """Return the plan, one operation a line."""
        lines = [operation.describe() for operation in self.prepare]
        lines += ["pivot_root"]
        lines += [operation.describe() for operation in self.finish]
        return "\n".join(lines)


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
    """Mount the root file system at the root's path; without mounts, make the directory a mount of its own."""

    path: str
    layers: tuple[Mount, ...]

    def describe(self) -> str:
        """Return the step as a line for people."""
        return f"root {self.path} " + (", ".join(f"{m.type}:{m.source}" for m in self.layers) or "bind")

    def execute(self, stage: Stage) -> None:
        """Mount, and leave the root's descriptor in the stage."""
        for entry in self.layers:
            target = self.path + ("/" + entry.target.strip("/") if entry.target.strip("/") else "")
            options = mounts.parse_options(entry.options)
            if options.flags & libc.MS_BIND or entry.type == "bind":
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
            content = stage.copy_out(fd) if self.options.copy_up else None
            try:
                mounts.mount_filesystem(self.type, self.source, mounts.fd_path(fd), self.options)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.target) from error
            if self.options.propagation:
                self._propagate(stage)
            if content is not None:
                stage.copy_in(content, self.target)
        finally:
            os.close(fd)

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
            raise OSError(errno.ENOTDIR, "mount: must be mounted on an ordinary directory", target)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class BindMount:
    """Show a file or directory of the host within the root."""

    source: str
    target: str
    options: mounts.Options
    recursive: bool

    def describe(self) -> str:
        """Return the step as a line for people."""
        return f"{'rbind' if self.recursive else 'bind'} {self.source} on {self.target}"

    def execute(self, stage: Stage) -> None:
        """Clone the source, set the clone's attributes while it is detached, attach it."""
        try:
            self._attach(stage)
        except OSError as error:
            reason = f"error mounting {self.source!r} to rootfs at {self.target!r}: {error.strerror}"
            raise OSError(error.errno, reason, error.filename) from error

    def _attach(self, stage: Stage) -> None:
        tree = mounts.clone_tree(self.source, recursive=self.recursive)
        try:
            mounts.set_tree(tree, self.options)
            directory = stat.S_ISDIR(os.fstat(tree).st_mode)
            target = mounts.make_in_root(stage.root, self.target, directory=directory)
            try:
                mounts.attach(tree, target)
            finally:
                os.close(target)
        finally:
            os.close(tree)


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


@dataclass(slots=True)
class _Lists:
    prepare: list[Operation] = field(default_factory=list)
    late: list[Operation] = field(default_factory=list)  # end of prepare: what must not hinder later mounts


def plan(spec: dict[str, Any], root: str, root_mounts: Sequence[Mount] = ()) -> Plan:
    """Return the plan of a spec.

    root: absolute path where the root file system is, or is to be mounted by `root_mounts`
    Raises InvalidParameter for a mount without destination or an unknown propagation.
    """
    linux = spec.get("linux") or {}
    own = {entry["type"] for entry in linux.get("namespaces") or ()}
    lists = _Lists()
    word = linux.get("rootfsPropagation") or ""
    propagation = mounts.parse_options([word]).propagation if word else ()
    if word and (not propagation or "unbindable" in word):
        raise InvalidParameter(f"linux.rootfsPropagation: {word!r} is none of private, slave, shared (or r…)")
    # A shared root is asked for by its parent: mounts propagate as soon as they are made below it.
    inherited = propagation[0] | libc.MS_REC if propagation else libc.MS_SLAVE | libc.MS_REC
    lists.prepare.append(Propagate(inherited))
    lists.prepare.append(MountRoot(root, tuple(root_mounts)))
    lists.prepare.append(JoinCgroup("cgroup" in own and not _joined(linux, "cgroup")))
    entries = spec.get("mounts") or []
    for entry in entries:
        _plan_mount(entry, lists, cgroup_namespace="cgroup" in own)
    if not any(_destination(entry) == "/dev" and _is_bind(entry) for entry in entries):
        lists.prepare.extend(_plan_devices(spec, linux, user_namespace="user" in own))
    cwd = (spec.get("process") or {}).get("cwd") or "/"
    lists.prepare.append(MakeDirectory(_clean(cwd)))
    finish: list[Operation] = [ReadonlyPath(path) for path in linux.get("readonlyPaths") or ()]
    finish += [MaskPath(path) for path in linux.get("maskedPaths") or ()]
    readonly = bool((spec.get("root") or {}).get("readonly"))
    finish.append(RootAttributes(readonly, propagation[0] if propagation else 0))
    return Plan((*lists.prepare, *lists.late), tuple(finish))


def _joined(linux: dict[str, Any], kind: str) -> bool:
    return any(entry["type"] == kind and entry.get("path") for entry in linux.get("namespaces") or ())


def _destination(entry: dict[str, Any]) -> str:
    destination = entry.get("destination")
    if not destination:
        raise InvalidParameter("mounts: an entry has no destination")
    return _clean(str(destination))


def _clean(path: str) -> str:
    """Return an absolute path without `..` (normpath keeps two leading slashes)."""
    return os.path.normpath("/" + path.lstrip("/"))


def _is_bind(entry: dict[str, Any]) -> bool:
    words = entry.get("options") or ()
    return entry.get("type") == "bind" or "bind" in words or "rbind" in words


def _plan_mount(entry: dict[str, Any], lists: _Lists, *, cgroup_namespace: bool) -> None:
    target = _destination(entry)
    if target == "/":
        raise InvalidParameter("mounts: destination / would hide the root file system")
    if entry.get("uidMappings") or entry.get("gidMappings"):
        raise InvalidParameter(
            f"mounts: {target}: uidMappings and gidMappings (id-mapped mounts) are not supported"
        )
    options = mounts.parse_options(entry.get("options") or ())
    if options.idmap:
        raise InvalidParameter(f"mounts: {target}: option {options.idmap} is not supported")
    kind = entry.get("type") or ""
    if _is_bind(entry):
        if options.data:
            raise InvalidParameter(f"mounts: {target}: a bind mount cannot have option {options.data!r}")
        recursive = "bind" not in (entry.get("options") or ()) or "rbind" in (entry.get("options") or ())
        lists.prepare.append(BindMount(str(entry.get("source") or ""), target, options, recursive))
    elif options.flags & libc.MS_REMOUNT:
        lists.prepare.append(Remount(target, options.attr_set, options.attr_clear))
    elif kind in {"cgroup", "cgroup2"}:
        lists.prepare.append(MountCgroup(target, options, cgroup_namespace))
    elif not kind:
        raise InvalidParameter(f"mounts: {target}: no type, and no option bind or rbind")
    else:
        source = str(entry.get("source") or kind)
        if kind == "tmpfs" and options.flags & libc.MS_RDONLY:
            writable = mounts.Options(
                options.flags & ~libc.MS_RDONLY,
                propagation=options.propagation,
                data=options.data,
                copy_up=options.copy_up,
            )
            lists.prepare.append(MountFilesystem(kind, source, target, writable))
            lists.late.append(Remount(target, libc.MOUNT_ATTR_RDONLY))
        else:
            lists.prepare.append(MountFilesystem(kind, source, target, options))


def _plan_devices(spec: dict[str, Any], linux: dict[str, Any], *, user_namespace: bool) -> list[Operation]:
    devices = devices_of(linux)
    if user_namespace:  # mknod needs the initial user namespace: show the host's nodes instead
        return [BindDevice(device) for device in devices] + [MakeDevices(())]
    return [MakeDevices(tuple(devices))]
