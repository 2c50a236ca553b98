"""What this machine's cgroups can limit: the facts behind `docker info` and the checks of a HostConfig."""

from __future__ import annotations

import os

from msgspec import Struct

from dray.linux.cgroups import layout
from dray.linux.cgroups.layout import Layout


class Capabilities(Struct, frozen=True):
    """One flag a limit; `cpuset_cpus` and `cpuset_mems` are the machine's own, as lists such as `0-3`."""

    version: int
    driver: str = "cgroupfs"
    memory_limit: bool = False
    swap_limit: bool = False
    memory_reservation: bool = False
    memory_swappiness: bool = False
    kernel_memory_tcp: bool = False
    oom_kill_disable: bool = False
    cpu_shares: bool = False
    cpu_cfs_period: bool = False
    cpu_cfs_quota: bool = False
    cpu_realtime: bool = False
    cpuset: bool = False
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    blkio_weight: bool = False
    blkio_weight_device: bool = False
    blkio_read_bps_device: bool = False
    blkio_write_bps_device: bool = False
    blkio_read_iops_device: bool = False
    blkio_write_iops_device: bool = False
    pids_limit: bool = False
    devices: bool = False
    freezer: bool = False

    def system_info(self) -> dict[str, str | bool]:
        """Return the fields of the Engine API's SystemInfo that depend on cgroups."""
        return {
            "MemoryLimit": self.memory_limit,
            "SwapLimit": self.swap_limit,
            "KernelMemoryTCP": self.kernel_memory_tcp,
            "CpuCfsPeriod": self.cpu_cfs_period,
            "CpuCfsQuota": self.cpu_cfs_quota,
            "CPUShares": self.cpu_shares,
            "CPUSet": self.cpuset,
            "PidsLimit": self.pids_limit,
            "OomKillDisable": self.oom_kill_disable,
            "CgroupDriver": self.driver,
            "CgroupVersion": str(self.version),
        }


def read(place: Layout) -> Capabilities:
    """Look at the mounted controllers; v1 makes (and removes) one empty block-I/O cgroup, whose files tell."""
    return _v1(place) if place.version == 1 else _v2(place)


def _v1(place: Layout) -> Capabilities:
    def has(controller: str, file: str) -> bool:
        return controller in place.mounts and os.path.exists(f"{place.mounts[controller]}/{file}")

    weights = _probe(place.mounts.get("blkio"), ("blkio.weight", "blkio.bfq.weight"))
    weight_devices = _probe(place.mounts.get("blkio"), ("blkio.weight_device", "blkio.bfq.weight_device"))
    memory, cpuset = "memory" in place.mounts, "cpuset" in place.mounts
    return Capabilities(
        version=1,
        memory_limit=memory,
        swap_limit=has("memory", "memory.memsw.limit_in_bytes"),
        memory_reservation=has("memory", "memory.soft_limit_in_bytes"),
        memory_swappiness=has("memory", "memory.swappiness"),
        kernel_memory_tcp=has("memory", "memory.kmem.tcp.limit_in_bytes"),
        oom_kill_disable=has("memory", "memory.oom_control"),
        cpu_shares=has("cpu", "cpu.shares"),
        cpu_cfs_period=has("cpu", "cpu.cfs_period_us"),
        cpu_cfs_quota=has("cpu", "cpu.cfs_quota_us"),
        cpu_realtime=has("cpu", "cpu.rt_period_us"),
        cpuset=cpuset,
        cpuset_cpus=_text(place.mounts["cpuset"], "cpuset.cpus") if cpuset else "",
        cpuset_mems=_text(place.mounts["cpuset"], "cpuset.mems") if cpuset else "",
        blkio_weight=weights,
        blkio_weight_device=weight_devices,
        blkio_read_bps_device=has("blkio", "blkio.throttle.read_bps_device"),
        blkio_write_bps_device=has("blkio", "blkio.throttle.write_bps_device"),
        blkio_read_iops_device=has("blkio", "blkio.throttle.read_iops_device"),
        blkio_write_iops_device=has("blkio", "blkio.throttle.write_iops_device"),
        pids_limit="pids" in place.mounts,
        devices="devices" in place.mounts,
        freezer="freezer" in place.mounts,
    )


def _probe(directory: str | None, files: tuple[str, ...]) -> bool:
    """Tell whether a cgroup below `directory` has one of the files; the root has not all of them."""
    if directory is None:
        return False
    probe = f"{directory}/dray-probe-{os.getpid()}"
    try:
        os.mkdir(probe)
    except OSError:
        return False
    try:
        return any(os.path.exists(f"{probe}/{file}") for file in files)
    finally:
        os.rmdir(probe)


def _text(directory: str, name: str) -> str:
    try:
        return layout.read(directory, name).strip()
    except FileNotFoundError:
        return ""


def _v2(place: Layout) -> Capabilities:
    mount = place.mounts[""]
    have = layout.read(mount, "cgroup.controllers").split()
    cpu, memory, io, cpuset = (name in have for name in ("cpu", "memory", "io", "cpuset"))
    return Capabilities(
        version=2,
        memory_limit=memory,
        swap_limit=memory and _swap_accounting(place),
        memory_reservation=memory,
        cpu_shares=cpu,
        cpu_cfs_period=cpu,
        cpu_cfs_quota=cpu,
        cpuset=cpuset,
        cpuset_cpus=_text(mount, "cpuset.cpus.effective") if cpuset else "",
        cpuset_mems=_text(mount, "cpuset.mems.effective") if cpuset else "",
        blkio_weight=io,
        blkio_weight_device=io,
        blkio_read_bps_device=io,
        blkio_write_bps_device=io,
        blkio_read_iops_device=io,
        blkio_write_iops_device=io,
        pids_limit="pids" in have,
        devices=True,
        freezer=True,
    )


def _swap_accounting(place: Layout) -> bool:
    """Tell whether memory.swap.max exists: not in the root, so ask this process's own cgroup, then the kernel's
    command line."""
    own = place.mounts[""] + place.own.get("", "/").rstrip("/")
    if own != place.mounts[""]:
        return os.path.exists(f"{own}/memory.swap.max")
    with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
        return "swapaccount=0" not in file.read().split()
