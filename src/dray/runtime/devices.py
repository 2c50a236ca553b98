"""Device nodes and the usual links of /dev (runtime-spec config-linux.md, "Default Devices")."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Any

from dray.base.errors import InvalidParameter
from dray.linux import mounts
from dray.runtime.stage import Stage

_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
)


@dataclass(frozen=True, slots=True)
class Device:
    """A node to make; `mode` has the type's bits in it."""

    path: str
    mode: int
    major: int
    minor: int
    uid: int = 0
    gid: int = 0


_DEFAULTS = tuple(
    Device(f"/dev/{name}", stat.S_IFCHR | 0o666, major, minor)
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)


def devices_of(linux: dict[str, Any]) -> list[Device]:
    """Return the default devices and those of `linux.devices`, which win; InvalidParameter for an unknown type."""
    devices = {device.path: device for device in _DEFAULTS}
    for entry in linux.get("devices") or ():
        path = os.path.normpath("/" + str(entry.get("path") or "").lstrip("/"))
        kind = _TYPES.get(entry.get("type") or "")
        if path == "/" or kind is None:
            raise InvalidParameter(f"linux.devices: {path} has type {entry.get('type')!r}; use c, u, b or p")
        mode = entry.get("fileMode")
        devices[path] = Device(
            path,
            kind | (0o666 if mode is None else mode & 0o7777),
            int(entry.get("major") or 0),
            int(entry.get("minor") or 0),
            int(entry.get("uid") or 0),
            int(entry.get("gid") or 0),
        )
    return list(devices.values())


@dataclass(frozen=True, slots=True)
class MakeDevices:
    """Make device nodes, then the links that every /dev has."""

    devices: tuple[Device, ...]

    def describe(self) -> str:
        """Return the step as a line for people."""
        return "devices " + " ".join(device.path for device in self.devices) + " and links"

    def execute(self, stage: Stage) -> None:
        """Make them; an entry of the image that is something else is replaced."""
        parents: dict[str, int] = {}

        def parent_of(path: str) -> tuple[int, str]:
            directory, name = os.path.split(path)
            if directory not in parents:
                parents[directory] = mounts.make_in_root(stage.root, directory)
            return parents[directory], name

        before = os.umask(0)
        try:
            for device in self.devices:
                _make_node(device, *parent_of(device.path))
            for target, path in _LINKS:
                _make_link(target, *parent_of(path))
            if os.path.exists("/proc/kcore"):
                _make_link("/proc/kcore", *parent_of("/dev/core"))
        finally:
            os.umask(before)
            for fd in parents.values():
                os.close(fd)


def _make_node(device: Device, parent: int, name: str) -> None:
    try:
        os.mknod(name, device.mode, os.makedev(device.major, device.minor), dir_fd=parent)
    except FileExistsError:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        same = stat.S_IFMT(status.st_mode) == stat.S_IFMT(device.mode)
        if same and (stat.S_ISFIFO(device.mode) or status.st_rdev == os.makedev(device.major, device.minor)):
            return
        os.unlink(name, dir_fd=parent)
        os.mknod(name, device.mode, os.makedev(device.major, device.minor), dir_fd=parent)
    except OSError as error:
        raise OSError(error.errno, f"mknod: {error.strerror}", device.path) from error
    if device.uid or device.gid:
        os.chown(name, device.uid, device.gid, dir_fd=parent, follow_symlinks=False)


def _make_link(target: str, parent: int, name: str) -> None:
    try:
        os.symlink(target, name, dir_fd=parent)
    except FileExistsError:
        try:
            if os.readlink(name, dir_fd=parent) == target:
                return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                return  # an image's own directory stays: nothing can be asked of it, and removing it is not ours
        os.unlink(name, dir_fd=parent)
        os.symlink(target, name, dir_fd=parent)


@dataclass(frozen=True, slots=True)
class BindDevice:
    """Show the host's node of a device (in a user namespace, where mknod is not allowed)."""

    device: Device

    def describe(self) -> str:
        """Return the step as a line for people."""
        return f"bind device {self.device.path}"

    def execute(self, stage: Stage) -> None:
        """Attach a clone of the host's node, verified to be the device."""
        device = self.device
        source = os.open(device.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(source).st_rdev != os.makedev(device.major, device.minor):
                raise OSError(errno.ENODEV, "the host's node is another device", device.path)
            tree = mounts.clone_tree(source)
        finally:
            os.close(source)
        try:
            target = mounts.make_in_root(stage.root, device.path, directory=False, mode=0o644)
            try:
                mounts.attach(tree, target)
            finally:
                os.close(target)
        finally:
            os.close(tree)
