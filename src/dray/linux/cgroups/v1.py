"""cgroup v1: one directory in each mounted hierarchy.

Creation is one mkdir a hierarchy: the parents that dray makes have cgroup.clone_children set, so that a cpuset is
born with its parent's cpus and mems. Everything is plain syscalls on paths: this runs on every container start.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dray.base.errors import Conflict, InvalidParameter, Unsupported
from dray.linux.cgroups import devices, limits
from dray.linux.cgroups.layout import Layout, pids, read, read_number, read_table, tree, write
from dray.linux.cgroups.limits import Resources, number, section
from dray.linux.cgroups.oom import EventfdWatch

_SIGKILL = 9  # the signal module would bring enum: milliseconds of start-up
_ENOTSUPP = 524  # the kernel's internal code that memory.kmem.limit_in_bytes lets out


class CgroupV1:
    """A container's directories, by controller; see `cgroups.Cgroup`."""

    __slots__ = ("_layout", "directories", "paths")

    def __init__(self, layout: Layout, paths: Mapping[str, str]) -> None:
        self._layout = layout
        self.paths = paths
        self.directories = list(dict.fromkeys(paths.values()))  # co-mounted controllers share one

    # --- making and removing ----------------------------------------------------------------------------------

    def make(self) -> None:
        """Make the directories; what was made goes again when one cannot be."""
        made: list[str] = []
        cpuset = self.paths.get("cpuset")
        try:
            for directory in self.directories:
                try:
                    os.mkdir(directory, 0o755)
                except FileNotFoundError:
                    self._make_parents(directory, cpuset=directory == cpuset)
                    os.mkdir(directory, 0o755)
                except FileExistsError:
                    self._remake(directory)
                made.append(directory)
            if cpuset is not None and not read(cpuset, "cpuset.mems").strip():
                self._inherit_cpuset(cpuset)
        except BaseException:
            for directory in made:
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            raise

    def _remake(self, directory: str) -> None:
        """Replace a leftover by an empty cgroup with the kernel's default values."""
        try:
            for place in tree(directory):
                os.rmdir(place)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Conflict(f"container's cgroup is not empty: {directory} holds processes") from None
            raise
        os.mkdir(directory, 0o755)

    def _make_parents(self, directory: str, *, cpuset: bool) -> None:
        parent = os.path.dirname(directory)
        if os.path.isdir(parent):
            return
        self._make_parents(parent, cpuset=cpuset)
        with contextlib.suppress(FileExistsError):  # another container's start made it
            os.mkdir(parent, 0o755)
        if cpuset:
            self._inherit_cpuset(parent)
            write(parent, "cgroup.clone_children", 1)

    def _inherit_cpuset(self, directory: str) -> None:
        """Fill cpus and mems from the nearest ancestor that has some: a cpuset without takes no process."""
        for name in ("cpuset.cpus", "cpuset.mems"):
            if read(directory, name).strip():
                continue
            parent = os.path.dirname(directory)
            while not (value := read(parent, name).strip()):
                parent = os.path.dirname(parent)
            write(directory, name, value)

    def delete(self) -> None:
        """See `cgroups.Cgroup`."""
        deadline = 0.0
        for directory in self.directories:
            pause = 0.001
            while True:
                try:
                    os.rmdir(directory)
                    break
                except FileNotFoundError:
                    break
                except OSError as error:
                    # Busy: a process still exits, or a cgroup that the container made is below.
                    if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                        raise
                    now = time.monotonic()
                    deadline = deadline or now + 1
                    if now > deadline:
                        raise
                    for place in tree(directory)[:-1]:
                        with contextlib.suppress(OSError):
                            os.rmdir(place)
                    time.sleep(pause)
                    pause = min(pause * 2, 0.05)

    # --- processes --------------------------------------------------------------------------------------------

    def add(self, pid: int) -> None:
        """See `cgroups.Cgroup`. A thread that moves itself by `tasks` spares the kernel a global lock."""
        name, text = ("tasks", b"0") if pid == 0 else ("cgroup.procs", b"%d" % pid)
        for directory in self.directories:
            path = f"{directory}/{name}"
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text)
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None
            finally:
                os.close(fd)

    def clone_fd(self) -> int | None:
        """See `cgroups.Cgroup`: v1 has no clone into a cgroup."""
        return None

    def _main(self) -> str:
        """Return the directory whose tree is asked for processes."""
        for controller in ("freezer", "pids", "memory", "devices"):
            if controller in self.paths:
                return self.paths[controller]
        return self.directories[0]

    def pids(self) -> list[int]:
        """See `cgroups.Cgroup`."""
        return pids(self._main())

    def _freezer(self) -> str:
        if "freezer" not in self.paths:
            raise limits.missing("pause", "freezer")
        return self.paths["freezer"]

    def freeze(self) -> None:
        """See `cgroups.Cgroup`.

        A process that forks meanwhile can keep a cgroup FREEZING; thawing it for a moment lets it settle.
        """
        directory = self._freezer()
        for attempt in range(1, 1001):
            write(directory, "freezer.state", "FROZEN")
            if read(directory, "freezer.state").strip() == "FROZEN":
                return
            if attempt % 50 == 0:
                write(directory, "freezer.state", "THAWED")
            time.sleep(0.0001 if attempt < 20 else 0.001)
        write(directory, "freezer.state", "THAWED")
        raise OSError(errno.EBUSY, "the cgroup does not freeze: a process is stuck in the kernel", directory)

    def thaw(self) -> None:
        """See `cgroups.Cgroup`."""
        write(self._freezer(), "freezer.state", "THAWED")

    def kill(self) -> None:
        """See `cgroups.Cgroup`.

        While all stand still none can fork away from the signal. Without a freezer, or when one process does not
        freeze, signals go out until a round finds no process that has not had one.
        """
        frozen = False
        try:
            with contextlib.suppress(OSError, Unsupported):
                self.freeze()
                frozen = True
            signalled: set[int] = set()
            for _ in range(100):
                fresh = set(self.pids()) - signalled
                for pid in fresh:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, _SIGKILL)
                signalled |= fresh
                if frozen or not fresh:
                    return
        finally:
            if "freezer" in self.paths:
                with contextlib.suppress(FileNotFoundError):
                    self.thaw()

    # --- out of memory, numbers -------------------------------------------------------------------------------

    def oom_kills(self) -> int:
        """See `cgroups.Cgroup`: the sum over the tree, for v1 counts where the victim was."""
        directory = self.paths.get("memory")
        if directory is None:
            return 0
        return sum(read_table(place, "memory.oom_control").get("oom_kill", 0) for place in tree(directory))

    def watch_oom(self) -> EventfdWatch | None:
        """See `cgroups.Cgroup`."""
        directory = self.paths.get("memory")
        return None if directory is None else EventfdWatch(directory)

    def stats(self) -> dict[str, Any]:
        """See `cgroups.Cgroup`."""
        from dray.linux.cgroups.stats import v1

        return v1(self.paths)

    # --- limits -----------------------------------------------------------------------------------------------

    def apply(self, resources: Resources) -> None:
        """See `cgroups.Cgroup`."""
        if section(resources, "unified"):
            raise Unsupported("resources: `unified` needs cgroup v2, this machine has v1")
        if cpu := section(resources, "cpu"):
            self._cpu(cpu)
        if memory := section(resources, "memory"):
            self._memory(memory)
        if limit := number(section(resources, "pids"), "limit"):
            self._set("pids", "pids", "pids.max", limits.maximum(limit), optional=limit < 0)
        if blkio := section(resources, "blockIO"):
            self._blkio(blkio)
        for page in resources.get("hugepageLimits") or ():
            self._hugepages(page["pageSize"], number(page, "limit"))
        network = section(resources, "network")
        if classid := number(network, "classID"):
            self._set("network.classID", "net_cls", "net_cls.classid", classid)
        for priority in network.get("priorities") or ():
            value = f"{priority['name']} {priority['priority']}"
            self._set("network.priorities", "net_prio", "net_prio.ifpriomap", value)
        for line in limits.rdma_lines(resources.get("rdma")):
            self._set("rdma", "rdma", "rdma.max", line)
        if resources.get("devices") is not None:
            self._devices(resources["devices"])

    def _set(self, limit: str, controller: str, name: str, value: str | int, *, optional: bool = False) -> None:
        """Write one file; `optional`: lifting a limit that cannot exist is nothing to complain about."""
        directory = self.paths.get(controller)
        if directory is None:
            if optional:
                return
            raise limits.missing(limit, controller)
        try:
            write(directory, name, value)
        except FileNotFoundError:
            if not optional:
                raise Unsupported(f"cannot set {limit}: this kernel has no {name}") from None
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise InvalidParameter(f"cannot set {limit}: the kernel refuses {value!r} for {name}") from None
            if error.errno == errno.EOPNOTSUPP and "bfq.weight_device" in name:
                raise Unsupported(
                    f"cannot set {limit} of device {str(value).split()[0]}: its I/O scheduler is not bfq; choose that in "
                    "/sys/block/DEVICE/queue/scheduler"
                ) from None
            if error.errno in (errno.EOPNOTSUPP, _ENOTSUPP):
                raise Unsupported(f"cannot set {limit}: this kernel no longer supports {name}") from None
            raise

    def _cpu(self, cpu: Resources) -> None:
        if shares := number(cpu, "shares"):
            self._set("cpu.shares", "cpu", "cpu.shares", shares)
            given = read_number(self.paths["cpu"], "cpu.shares")
            if given != shares:  # the kernel clamps silently
                bound, word = ("minimum", "smaller") if given > shares else ("maximum", "larger")
                raise InvalidParameter(f"cpu.shares {shares} is {word} than the {bound} allowed, {given}")
        if (idle := cpu.get("idle")) is not None:
            self._set("cpu.idle", "cpu", "cpu.idle", idle)
        bandwidth = (("period", "cpu.cfs_period_us"), ("quota", "cpu.cfs_quota_us"), ("burst", "cpu.cfs_burst_us"))
        self._settle("cpu", [(name, file, number(cpu, name)) for name, file in bandwidth])
        realtime = (("realtimePeriod", "cpu.rt_period_us"), ("realtimeRuntime", "cpu.rt_runtime_us"))
        self._settle("cpu", [(name, file, number(cpu, name)) for name, file in realtime])
        for name in ("cpus", "mems"):
            if value := cpu.get(name):
                self._set(f"cpu.{name}", "cpuset", f"cpuset.{name}", value)

    def _settle(self, controller: str, values: Iterable[tuple[str, str, int]]) -> None:
        """Write values that bound one another: what is refused now may pass once another is written."""
        waiting = [(name, file, value) for name, file, value in values if value]
        while waiting:
            refused: list[tuple[str, str, int]] = []
            failure: InvalidParameter | None = None
            for name, file, value in waiting:
                try:
                    self._set(f"{controller}.{name}", controller, file, value)
                except InvalidParameter as error:
                    refused.append((name, file, value))
                    failure = failure or error
            if failure is not None and len(refused) == len(waiting):
                raise failure
            waiting = refused

    def _memory(self, memory: Resources) -> None:
        limit, swap = number(memory, "limit"), number(memory, "swap")
        if limit == -1 and swap == 0:
            swap = -1  # memory + swap stays above memory: lifting one lifts both
        self._memory_and_swap(limit, swap)
        if reservation := number(memory, "reservation"):
            name = "memory.soft_limit_in_bytes"
            self._set("memory.reservation", "memory", name, reservation, optional=reservation < 0)
        for key, file in (
            ("kernel", "memory.kmem.limit_in_bytes"),
            ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
        ):
            if value := number(memory, key):
                self._set(f"memory.{key}", "memory", file, value, optional=value < 0)
        if (swappiness := memory.get("swappiness")) is not None:
            if not 0 <= swappiness <= 100:
                raise InvalidParameter(f"memory.swappiness {swappiness} is not between 0 and 100")
            self._set("memory.swappiness", "memory", "memory.swappiness", swappiness)
        if memory.get("disableOOMKiller"):
            self._set("memory.disableOOMKiller", "memory", "memory.oom_control", 1)
        if memory.get("useHierarchy"):
            self._set("memory.useHierarchy", "memory", "memory.use_hierarchy", 1)

    def _memory_and_swap(self, limit: int, swap: int) -> None:
        """Write memory and memory + swap; the second must never be the lesser, so raising begins with it."""
        steps: list[Callable[[], None]] = []
        if limit:
            steps.append(lambda: self._memory_limit(limit))
        if swap:
            name = "memory.memsw.limit_in_bytes"
            steps.append(lambda: self._set("memory.swap", "memory", name, swap, optional=swap < 0))
        if len(steps) == 2 and "memory" in self.paths:
            now = read_number(self.paths["memory"], "memory.limit_in_bytes")
            if swap < 0 or now < swap:
                steps.reverse()
        for step in steps:
            step()

    def _memory_limit(self, limit: int) -> None:
        try:
            self._set("memory.limit", "memory", "memory.limit_in_bytes", limit, optional=limit < 0)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            used = read_number(self.paths["memory"], "memory.usage_in_bytes")
            raise Conflict(f"unable to set memory limit to {limit} (current usage: {used})") from None

    def _blkio(self, blkio: Resources) -> None:
        directory = self.paths.get("blkio", "")
        prefix = "blkio" if os.path.exists(f"{directory}/blkio.weight") else "blkio.bfq"
        if weight := number(blkio, "weight"):
            self._set("blockIO.weight", "blkio", f"{prefix}.weight", weight)
        if leaf := number(blkio, "leafWeight"):
            self._set("blockIO.leafWeight", "blkio", "blkio.leaf_weight", leaf)
        for place, weight in limits.device_lines(blkio.get("weightDevice"), "weight"):
            if weight:
                self._set("blockIO.weightDevice", "blkio", f"{prefix}.weight_device", f"{place} {weight}")
        for place, weight in limits.device_lines(blkio.get("weightDevice"), "leafWeight"):
            if weight:
                self._set("blockIO.weightDevice", "blkio", "blkio.leaf_weight_device", f"{place} {weight}")
        for name, (file, _) in limits.THROTTLES.items():
            for place, rate in limits.device_lines(blkio.get(name), "rate"):
                self._set(f"blockIO.{name}", "blkio", file, f"{place} {rate}")

    def _hugepages(self, size: str, limit: int) -> None:
        self._set("hugepageLimits", "hugetlb", f"hugetlb.{size}.limit_in_bytes", limit)
        with contextlib.suppress(Unsupported):  # reservations: Linux 5.7
            self._set("hugepageLimits", "hugetlb", f"hugetlb.{size}.rsvd.limit_in_bytes", limit)

    def _devices(self, rules: Iterable[Resources]) -> None:
        directory = self.paths.get("devices")
        if directory is None:
            raise limits.missing("devices", "devices")
        want = devices.resolve([*rules, *devices.STANDARD])
        fds: dict[str, int] = {}
        try:
            for name, line in devices.changes(devices.parse_list(read(directory, "devices.list")), want):
                if name not in fds:
                    fds[name] = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fds[name], line.encode())
                except OSError as error:
                    raise OSError(error.errno, f"{error.strerror} ({line})", f"{directory}/{name}") from None
        finally:
            for fd in fds.values():
                os.close(fd)
