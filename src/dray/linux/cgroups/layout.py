"""Where this machine's cgroup hierarchies are mounted, and the words for their control files.

    v1 ("legacy", "hybrid"): one mount a controller (or a few together), each with its own tree
        /sys/fs/cgroup/memory/<path>/memory.limit_in_bytes
        /sys/fs/cgroup/systemd/<path>                        the named hierarchy, joined too, as runc does
    v2 ("unified"): one tree
        /sys/fs/cgroup/<path>/memory.max

The layout is read once a process from /proc/self/mountinfo and /proc/self/cgroup; a zygote reads it before it
forks, so that no container start pays for it.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping

from msgspec import Struct, field

from dray.base.errors import InvalidParameter, Unsupported

# Directories are always named by their absolute path below a mount point of the layout.


class Layout(Struct, frozen=True):
    """The hierarchies.

    version: 1 or 2
    mounts: v1: controller (or `name=…`) → mount point, several controllers may share one; v2: {"": mount point}
    own: the same keys → this process's cgroup, relative to the mount point, beginning with `/`
    """

    version: int
    mounts: Mapping[str, str]
    own: Mapping[str, str] = field(default_factory=dict)

    def directories(self, cgroups_path: str, container_id: str) -> dict[str, str]:
        """Return key → directory of a container's cgroup.

        `cgroups_path` is OCI `linux.cgroupsPath`: absolute, it counts from the mount point; relative, from this
        process's own cgroup; empty, it is /dray/<id>.
        """
        if re.fullmatch(r"[^/:]*:[^/:]*:[^/:]+", cgroups_path):
            raise Unsupported(
                f"cgroupsPath {cgroups_path!r} is a systemd unit: the cgroup driver here is cgroupfs, give a path"
            )
        wanted = cgroups_path or f"/dray/{container_id}"
        if "\0" in wanted or "\n" in wanted:
            raise InvalidParameter(f"invalid cgroupsPath {cgroups_path!r}")
        path = os.path.normpath("/" + wanted.lstrip("/"))
        if path == "/":
            raise InvalidParameter("cgroupsPath must not be the root of the hierarchy")
        if wanted.startswith("/"):
            return {key: mount + path for key, mount in self.mounts.items()}
        return {key: mount + self.own.get(key, "/").rstrip("/") + path for key, mount in self.mounts.items()}


def parse(mountinfo: str, own_cgroups: str) -> Layout:
    """Read a layout from the text of /proc/self/mountinfo and /proc/self/cgroup (proc(5), cgroups(7))."""
    v1: dict[str, str] = {}
    unified: str | None = None
    for line in mountinfo.splitlines():
        mount, _, rest = line.partition(" - ")
        fstype, _, options = rest.partition(" ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount.split(" ")[4])
        if fstype == "cgroup2":
            unified = unified or point
        elif fstype == "cgroup":
            for option in options.split(" ")[-1].split(","):
                if option.startswith("name=") or option in _CONTROLLERS:
                    v1.setdefault(option, point)
    own: dict[str, str] = {}
    for line in own_cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    if any(controller in _CONTROLLERS for controller in v1):
        return Layout(1, v1, own)
    if unified is not None:
        return Layout(2, {"": unified}, own)
    raise Unsupported("no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup")


_CONTROLLERS = frozenset(
    [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "net_cls",
        "net_prio",
        "perf_event",
        "hugetlb",
        "rdma",
        "misc",
    ]
)


@functools.cache
def current() -> Layout:
    """Return this machine's layout."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as own:
            return parse(mountinfo.read(), own.read())


def write(directory: str, name: str, value: str | int) -> None:
    """Write one value to a control file."""
    path = f"{directory}/{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def read(directory: str, name: str) -> str:
    """Return a control file's text."""
    path = f"{directory}/{name}"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)
    return b"".join(parts).decode()


def read_number(directory: str, name: str, default: int = 0) -> int:
    """Return a control file's number; `max` and a missing file are `default`."""
    try:
        text = read(directory, name).strip()
    except FileNotFoundError:
        return default
    return int(text) if text.lstrip("-").isdigit() else default


def read_table(directory: str, name: str) -> dict[str, int]:
    """Return a flat keyed file (`key value` lines) as a dict; a missing file is empty."""
    try:
        lines = read(directory, name).splitlines()
    except FileNotFoundError:
        return {}
    table = {}
    for line in lines:
        key, _, value = line.partition(" ")
        if value.isdigit():
            table[key] = int(value)
    return table


def tree(directory: str) -> list[str]:
    """Return a cgroup's directory and all below it, children first."""
    found: list[str] = []
    try:
        if os.stat(directory).st_nlink != 2:  # kernfs counts subdirectories; other file systems may say 1
            with os.scandir(directory) as entries:
                children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            for child in children:
                found += tree(child)
    except FileNotFoundError:
        return []
    return [*found, directory]


def pids(directory: str) -> list[int]:
    """Return the processes in a cgroup and all below it."""
    found: list[int] = []
    for place in tree(directory):
        try:
            found += [int(pid) for pid in read(place, "cgroup.procs").split()]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if error.errno != 19:  # ENODEV: the cgroup went away between open and read
                raise
    return found
