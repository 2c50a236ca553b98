"""Control groups: one protocol over v1 and v2.

    cgroup = create(spec_cgroups_path, id, spec_resources)      mkdir, limits
    cgroup.add(pid)
    …
    cgroup.kill(); cgroup.delete()

A cgroup is addressed by its path and needs no state: `load` gives the same object in any later process. Only the
controllers that are mounted are used; a limit that needs another one raises Unsupported and names it. Values are
those of OCI `linux.resources`; absent, null and (as in runc) 0 mean "leave alone", -1 "no limit".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from dray.linux.cgroups import layout
from dray.linux.cgroups.layout import Layout

if TYPE_CHECKING:
    from dray.linux.cgroups.facilities import Capabilities

__all__ = ["Cgroup", "Layout", "OomWatch", "capabilities", "create", "load", "preload", "prune"]


class OomWatch(Protocol):
    """A descriptor that wakes an epoll loop when the container ran out of memory.

    fd: register it with `events` (the two versions differ); owned by the watch
    events: the epoll mask
    """

    fd: int
    events: int

    def drain(self) -> None:
        """Take the event, so that the descriptor sleeps again. Then ask `Cgroup.oom_kills`."""

    def close(self) -> None:
        """Close the descriptor."""


class Cgroup(Protocol):
    """A container's cgroup (in v1: one directory in each hierarchy)."""

    @property
    def paths(self) -> Mapping[str, str]:
        """Controller → directory; in v2 the one key is ""."""

    def add(self, pid: int) -> None:
        """Move a process in. 0 is the calling process, which must have a single thread; that is cheaper (v1)."""

    def clone_fd(self) -> int | None:
        """Return a new O_PATH descriptor for CLONE_INTO_CGROUP, to be closed by the caller; None with v1."""

    def apply(self, resources: Mapping[str, Any]) -> None:
        """Set the limits that an OCI `linux.resources` object names; others stay."""

    def pids(self) -> list[int]:
        """Return the processes in it and in cgroups below it."""

    def freeze(self) -> None:
        """Stop every process; returns when all stand still."""

    def thaw(self) -> None:
        """Undo `freeze`."""

    def kill(self) -> None:
        """Send SIGKILL to every process, also to those forked meanwhile; a frozen cgroup is thawed."""

    def oom_kills(self) -> int:
        """Return how many processes the OOM killer took here and below; 0 without a memory controller."""

    def watch_oom(self) -> OomWatch | None:
        """Return a watch, None without a memory controller."""

    def stats(self) -> dict[str, Any]:
        """Return the Engine API's `cpu_stats`, `memory_stats`, `blkio_stats`, `pids_stats` (nanoseconds, bytes).

        `system_cpu_usage` and `online_cpus` are the host's and not part of it.
        """

    def delete(self) -> None:
        """Remove the directories, also those that the container made below; a missing one is no error.

        Raises OSError(EBUSY) when processes are left after a second.
        """


def _instance(place: Layout, cgroups_path: str, container_id: str) -> Cgroup:
    directories = place.directories(cgroups_path, container_id)
    if place.version == 1:
        from dray.linux.cgroups.v1 import CgroupV1

        return CgroupV1(place, directories)
    from dray.linux.cgroups.v2 import CgroupV2

    return CgroupV2(place, directories[""])


def create(cgroups_path: str, container_id: str, resources: Mapping[str, Any] | None) -> Cgroup:
    """Make a container's cgroup with its limits.

    Raises Conflict when a cgroup of that path holds processes, Unsupported for a limit whose controller is
    missing, InvalidParameter for a value that makes no sense; on any failure nothing is left behind.
    """
    place = layout.current()
    cgroup = _instance(place, cgroups_path, container_id)
    cgroup.make()  # type: ignore[attr-defined]
    try:
        cgroup.apply({**(resources or {}), "devices": (resources or {}).get("devices") or []})
    except BaseException:
        cgroup.delete()
        raise
    return cgroup


def load(cgroups_path: str, container_id: str) -> Cgroup:
    """Return the cgroup that `create` made with the same arguments; touches nothing."""
    return _instance(layout.current(), cgroups_path, container_id)


def capabilities() -> Capabilities:
    """Return what this machine's cgroups can limit; looked up anew on each call, so keep it."""
    from dray.linux.cgroups.facilities import read

    return read(layout.current())


def preload() -> None:
    """Read the machine's layout and import what `create` needs (for a zygote, before it forks)."""
    if layout.current().version == 1:
        import dray.linux.cgroups.v1
    else:
        import dray.linux.cgroups.v2  # noqa: F401


def prune(cgroups_path: str) -> None:
    """Remove a parent such as /dray, in every hierarchy, where nothing is in it; silent where something is."""
    import os

    for directory in set(layout.current().directories(cgroups_path, "").values()):
        try:
            os.rmdir(directory)
        except OSError:
            continue
