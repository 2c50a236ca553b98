"""cgroup v2: one directory in the one tree.

A controller works in a cgroup when every ancestor's cgroup.subtree_control names it; what is missing there is
switched on from the top down (cgroup-v2.rst, "Controlling Controllers").
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Iterable, Mapping
from typing import Any

from dray.base.errors import Conflict, InvalidParameter, Unsupported
from dray.linux.cgroups import devices, limits
from dray.linux.cgroups.layout import Layout, pids, read, read_table, tree, write
from dray.linux.cgroups.limits import Resources, number, section
from dray.linux.cgroups.oom import EventsFileWatch

_SIGKILL = 9  # the signal module would bring enum: milliseconds of start-up
_WANTED = ("cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma", "misc")


class CgroupV2:
    """A container's directory; see `cgroups.Cgroup`."""

    __slots__ = ("_mount", "directory", "paths")

    def __init__(self, layout: Layout, directory: str) -> None:
        self._mount = layout.mounts[""]
        self.directory = directory
        self.paths: Mapping[str, str] = {"": directory}

    # --- making and removing ----------------------------------------------------------------------------------

    def make(self) -> None:
        """Make the directory, and its parents with the controllers switched on."""
        try:
            os.mkdir(self.directory, 0o755)
        except FileNotFoundError:
            self._make_parents(os.path.dirname(self.directory))
            os.mkdir(self.directory, 0o755)
        except FileExistsError:
            try:
                for place in tree(self.directory):
                    os.rmdir(place)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise Conflict(f"container's cgroup is not empty: {self.directory} holds processes") from None
                raise
            os.mkdir(self.directory, 0o755)
        try:
            self._switch_on()
        except BaseException:
            os.rmdir(self.directory)
            raise

    def _make_parents(self, directory: str) -> None:
        if os.path.isdir(directory):
            return
        self._make_parents(os.path.dirname(directory))
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o755)

    def _switch_on(self) -> None:
        """Enable in the ancestors what the root offers and the new cgroup lacks."""
        offered = read(self._mount, "cgroup.controllers").split()
        have = read(self.directory, "cgroup.controllers").split()
        wanted = [name for name in _WANTED if name in offered and name not in have]
        if not wanted:
            return
        place = self._mount
        self._enable(place, wanted)
        for part in os.path.dirname(self.directory)[len(self._mount) :].strip("/").split("/"):
            if part:
                place = f"{place}/{part}"
                self._enable(place, wanted)

    def _enable(self, directory: str, controllers: Iterable[str]) -> None:
        have = read(directory, "cgroup.subtree_control").split()
        for controller in controllers:
            if controller in have:
                continue
            try:
                write(directory, "cgroup.subtree_control", f"+{controller}")
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise Unsupported(
                        f"cannot delegate cgroup controllers below {directory}: it holds processes itself; "
                        "move them to a cgroup of their own"
                    ) from None
                if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):  # threaded or taken by v1: not offered
                    raise

    def delete(self) -> None:
        """See `cgroups.Cgroup`."""
        deadline = time.monotonic() + 1
        pause = 0.001
        while True:
            try:
                for place in tree(self.directory):
                    with contextlib.suppress(FileNotFoundError):
                        os.rmdir(place)
                return
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    # --- processes --------------------------------------------------------------------------------------------

    def add(self, pid: int) -> None:
        """See `cgroups.Cgroup`."""
        write(self.directory, "cgroup.procs", pid)

    def clone_fd(self) -> int | None:
        """See `cgroups.Cgroup`."""
        return os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def pids(self) -> list[int]:
        """See `cgroups.Cgroup`."""
        return pids(self.directory)

    def freeze(self) -> None:
        """See `cgroups.Cgroup`: waits for `frozen 1` in cgroup.events, which is polled."""
        fd = os.open(f"{self.directory}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            write(self.directory, "cgroup.freeze", 1)
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            deadline = time.monotonic() + 10
            while b"frozen 1" not in os.pread(fd, 4096, 0):
                if time.monotonic() > deadline:
                    write(self.directory, "cgroup.freeze", 0)
                    raise OSError(errno.EBUSY, "the cgroup does not freeze: a process is stuck", self.directory)
                poll.poll(100)
        finally:
            os.close(fd)

    def thaw(self) -> None:
        """See `cgroups.Cgroup`."""
        write(self.directory, "cgroup.freeze", 0)

    def kill(self) -> None:
        """See `cgroups.Cgroup`: cgroup.kill (Linux 5.14), which also takes frozen processes; before, signals
        while frozen."""
        try:
            write(self.directory, "cgroup.kill", 1)
        except FileNotFoundError:
            if not os.path.isdir(self.directory):
                return
            with contextlib.suppress(OSError):
                self.freeze()
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, _SIGKILL)
        with contextlib.suppress(FileNotFoundError):
            self.thaw()

    # --- out of memory, numbers -------------------------------------------------------------------------------

    def oom_kills(self) -> int:
        """See `cgroups.Cgroup`."""
        return read_table(self.directory, "memory.events").get("oom_kill", 0)

    def watch_oom(self) -> EventsFileWatch | None:
        """See `cgroups.Cgroup`."""
        try:
            return EventsFileWatch(self.directory)
        except FileNotFoundError:
            return None

    def stats(self) -> dict[str, Any]:
        """See `cgroups.Cgroup`."""
        from dray.linux.cgroups.stats import v2

        return v2(self.directory)

    # --- limits -----------------------------------------------------------------------------------------------

    def apply(self, resources: Resources) -> None:
        """See `cgroups.Cgroup`."""
        if cpu := section(resources, "cpu"):
            self._cpu(cpu)
        if memory := section(resources, "memory"):
            self._memory(memory)
        if limit := number(section(resources, "pids"), "limit"):
            self._set("pids", "pids", "pids.max", limits.maximum(limit), optional=limit < 0)
        if blkio := section(resources, "blockIO"):
            self._io(blkio)
        for page in resources.get("hugepageLimits") or ():
            size, limit = page["pageSize"], number(page, "limit")
            self._set("hugepageLimits", "hugetlb", f"hugetlb.{size}.max", limit)
            with contextlib.suppress(Unsupported):
                self._set("hugepageLimits", "hugetlb", f"hugetlb.{size}.rsvd.max", limit)
        network = section(resources, "network")
        if number(network, "classID") or network.get("priorities"):
            raise Unsupported("network.classID and network.priorities need cgroup v1, this machine has v2")
        for line in limits.rdma_lines(resources.get("rdma")):
            self._set("rdma", "rdma", "rdma.max", line)
        if resources.get("devices") is not None:
            devices.attach(self.directory, devices.resolve([*resources["devices"], *devices.STANDARD]))
        for name, value in section(resources, "unified").items():
            if "/" in name or not name.partition(".")[2]:
                raise InvalidParameter(f"unified: {name!r} is not a file name of cgroup v2")
            for line in str(value).splitlines():
                self._set(f"unified {name}", name.partition(".")[0], name, line)

    def _set(self, limit: str, controller: str, name: str, value: str | int, *, optional: bool = False) -> None:
        try:
            write(self.directory, name, value)
        except FileNotFoundError:
            if optional:
                return
            if controller not in read(self.directory, "cgroup.controllers").split():
                raise limits.missing(limit, controller) from None
            raise Unsupported(f"cannot set {limit}: this kernel has no {name}") from None
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ERANGE):
                raise InvalidParameter(f"cannot set {limit}: the kernel refuses {value!r} for {name}") from None
            raise

    def _cpu(self, cpu: Resources) -> None:
        for name in ("realtimePeriod", "realtimeRuntime"):
            if number(cpu, name):
                raise Unsupported(f"cpu.{name} needs cgroup v1, this machine has v2")
        if weight := limits.weight_from_shares(number(cpu, "shares")):
            self._set("cpu.shares", "cpu", "cpu.weight", weight)
        if (idle := cpu.get("idle")) is not None:
            self._set("cpu.idle", "cpu", "cpu.idle", idle)
        burst, quota, period = (number(cpu, name) for name in ("burst", "quota", "period"))
        steps: list[tuple[str, str, str | int]] = [("cpu.burst", "cpu.max.burst", burst)] if burst else []
        if quota or period:
            try:
                now = read(self.directory, "cpu.max")
            except FileNotFoundError:
                raise limits.missing("cpu.quota", "cpu") from None
            if text := limits.cpu_max(quota, period, now):
                steps.append(("cpu.quota", "cpu.max", text))
        try:
            for limit, name, value in steps:
                self._set(limit, "cpu", name, value)
        except InvalidParameter:  # the burst may not exceed the quota: the other way round, then
            for limit, name, value in reversed(steps):
                self._set(limit, "cpu", name, value)
        for name in ("cpus", "mems"):
            if cpuset := cpu.get(name):
                self._set(f"cpu.{name}", "cpuset", f"cpuset.{name}", cpuset)

    def _memory(self, memory: Resources) -> None:
        for name in ("kernelTCP", "kernel"):
            if number(memory, name) > 0:
                raise Unsupported(f"memory.{name} needs cgroup v1, this machine has v2")
        if memory.get("swappiness") is not None:
            raise Unsupported("memory.swappiness needs cgroup v1, this machine has v2")
        if memory.get("disableOOMKiller"):
            raise Unsupported("memory.disableOOMKiller needs cgroup v1, this machine has v2")
        limit, reservation = number(memory, "limit"), number(memory, "reservation")
        swap = limits.swap_max(limit, number(memory, "swap"))
        if swap is not None:
            lifts = swap <= 0  # without swap accounting there is no file, and nothing to limit
            self._set("memory.swap", "memory", "memory.swap.max", limits.maximum(swap), optional=lifts)
        if limit:
            self._set("memory.limit", "memory", "memory.max", limits.maximum(limit), optional=limit < 0)
        if reservation:
            text = limits.maximum(reservation)
            self._set("memory.reservation", "memory", "memory.low", text, optional=reservation < 0)

    def _io(self, blkio: Resources) -> None:
        if number(blkio, "leafWeight"):
            raise Unsupported("blockIO.leafWeight needs cgroup v1, this machine has v2")
        bfq = os.path.exists(f"{self.directory}/io.bfq.weight")
        file = "io.bfq.weight" if bfq else "io.weight"
        if weight := number(blkio, "weight"):
            value = weight if bfq else limits.io_weight_from_blkio(weight)
            self._set("blockIO.weight", "io", file, f"default {value}")
        for place, weight in limits.device_lines(blkio.get("weightDevice"), "weight"):
            if weight:
                text = f"{place} {weight if bfq else limits.io_weight_from_blkio(weight)}"
                self._set("blockIO.weightDevice", "io", file, text)
        for name, (_, key) in limits.THROTTLES.items():
            for place, rate in limits.device_lines(blkio.get(name), "rate"):
                self._set(f"blockIO.{name}", "io", "io.max", f"{place} {key}={rate or 'max'}")
