"""The limits of a HostConfig against each other and against what this machine can enforce."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dray.api.models import HostConfig
from dray.base.errors import InvalidParameter

if TYPE_CHECKING:
    from dray.linux.cgroups.facilities import Capabilities

_MINIMUM_MEMORY = 6 << 20
_NOT_MOUNTED = "or the cgroup is not mounted."


def validate_resources(
    host: HostConfig, capabilities: Capabilities, *, cpus: int, update: bool = False
) -> list[str]:
    """Check the limits, for a new container or an `update`; discard, with a warning, what cannot be enforced."""
    warnings: list[str] = []
    _memory(host, capabilities, warnings, update=update)
    _oom_and_pids(host, capabilities, warnings)
    _cpu(host, capabilities, warnings, cpus)
    _cpuset(host, capabilities, warnings)
    _block_io(host, capabilities, warnings)
    return warnings


def _memory(host: HostConfig, have: Capabilities, warnings: list[str], *, update: bool) -> None:
    if host.memory_swappiness == -1:
        host.memory_swappiness = None
    if host.memory != 0 and host.memory < _MINIMUM_MEMORY:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if host.memory > 0 and not have.memory_limit:
        warnings.append(
            f"Your kernel does not support memory limit capabilities {_NOT_MOUNTED} Limitation discarded."
        )
        host.memory, host.memory_swap = 0, -1
    if host.memory > 0 and host.memory_swap != -1 and not have.swap_limit:
        warnings.append(
            f"Your kernel does not support swap limit capabilities {_NOT_MOUNTED} Memory limited without swap."
        )
        host.memory_swap = -1
    if host.memory > 0 and 0 < host.memory_swap < host.memory:
        raise InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if host.memory == 0 and host.memory_swap > 0 and not update:
        raise InvalidParameter("You should always set the Memory limit when using Memoryswap limit, see usage")
    if host.memory_swap < -1:
        raise InvalidParameter(f"invalid memory swap limit {host.memory_swap}: use -1 for unlimited swap")
    if host.memory_swappiness is not None and not have.memory_swappiness:
        warnings.append(
            f"Your kernel does not support memory swappiness capabilities {_NOT_MOUNTED} Memory swappiness discarded."
        )
        host.memory_swappiness = None
    if host.memory_swappiness is not None and not 0 <= host.memory_swappiness <= 100:
        raise InvalidParameter(f"Invalid value: {host.memory_swappiness}, valid memory swappiness range is 0-100")
    if host.memory_reservation > 0 and not have.memory_reservation:
        warnings.append(
            f"Your kernel does not support memory soft limit capabilities {_NOT_MOUNTED} Limitation discarded."
        )
        host.memory_reservation = 0
    if host.memory_reservation < 0 or 0 < host.memory_reservation < _MINIMUM_MEMORY:
        raise InvalidParameter("Minimum memory reservation allowed is 6MB")
    if 0 < host.memory < host.memory_reservation:
        raise InvalidParameter("Minimum memory limit can not be less than memory reservation limit, see usage")
    if host.kernel_memory > 0:
        warnings.append(
            f"Your kernel does not support kernel memory limit capabilities {_NOT_MOUNTED} Limitation discarded."
        )
        host.kernel_memory = 0
    if host.kernel_memory_tcp > 0 and not have.kernel_memory_tcp:
        warnings.append(
            f"Your kernel does not support kernel memory TCP limit capabilities {_NOT_MOUNTED} Limitation discarded."
        )
        host.kernel_memory_tcp = 0


def _oom_and_pids(host: HostConfig, have: Capabilities, warnings: list[str]) -> None:
    if host.oom_kill_disable is not None and not have.oom_kill_disable:
        if host.oom_kill_disable:
            warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        host.oom_kill_disable = None
    if host.oom_kill_disable and host.memory == 0:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system "
            "running out of resources."
        )
    if host.pids_limit is not None and not have.pids_limit:
        if host.pids_limit > 0:
            warnings.append(
                f"Your kernel does not support PIDs limit capabilities {_NOT_MOUNTED} PIDs limit discarded."
            )
        host.pids_limit = None


def _cpu(host: HostConfig, have: Capabilities, warnings: list[str], cpus: int) -> None:
    scheduler = have.cpu_cfs_period and have.cpu_cfs_quota
    if host.nano_cpus > 0:
        for name, value in (("CPU Period", host.cpu_period), ("CPU Quota", host.cpu_quota)):
            if value > 0:
                raise InvalidParameter(f"Conflicting options: Nano CPUs and {name} cannot both be set")
        if not scheduler:
            raise InvalidParameter(
                "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted"
            )
    if host.nano_cpus < 0 or host.nano_cpus > cpus * 1_000_000_000:
        raise InvalidParameter(f"Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available")
    if host.cpu_shares < 0:
        raise InvalidParameter(f"invalid CPU shares ({host.cpu_shares}): value must be a positive integer")
    if host.cpu_shares > 0 and not have.cpu_shares:
        warnings.append(f"Your kernel does not support CPU shares {_NOT_MOUNTED} Shares discarded.")
        host.cpu_shares = 0
    if (host.cpu_period or host.cpu_quota) and not scheduler:
        warnings.append("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.")
        host.cpu_period = host.cpu_quota = 0
    if host.cpu_period and not 1000 <= host.cpu_period <= 1_000_000:
        raise InvalidParameter(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < host.cpu_quota < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    if host.cpu_realtime_period or host.cpu_realtime_runtime:
        if not have.cpu_realtime:
            raise InvalidParameter("kernel does not support CPU real-time scheduler")
        if 0 < host.cpu_realtime_period < host.cpu_realtime_runtime:
            raise InvalidParameter("cpu real-time runtime cannot be higher than cpu real-time period")
    for name, value in (("percent. Percent", host.cpu_percent), ("count. Count", host.cpu_count)):
        if value > 0:
            warnings.append(f"linux does not support CPU {name} discarded.")
    host.cpu_percent = host.cpu_count = 0


def parse_list(text: str) -> set[int]:
    """Read a list of CPUs or memory nodes such as `0-2,5` (cpuset(7), "List format"); ValueError says why not."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
            raise ValueError(f"invalid format: {text}")
        low, high = int(first), int(last if dash else first)
        if high < low or high > 8191:
            raise ValueError(f"invalid format: {text}")
        found.update(range(low, high + 1))
    return found


def _cpuset(host: HostConfig, have: Capabilities, warnings: list[str]) -> None:
    if (host.cpuset_cpus or host.cpuset_mems) and not have.cpuset:
        warnings.append(f"Your kernel does not support cpuset {_NOT_MOUNTED} Cpuset discarded.")
        host.cpuset_cpus = host.cpuset_mems = ""
    for short, long, asked, available in (
        ("cpus", "CPUs", host.cpuset_cpus, have.cpuset_cpus),
        ("mems", "memory nodes", host.cpuset_mems, have.cpuset_mems),
    ):
        try:
            wanted = parse_list(asked)
        except ValueError as error:
            raise InvalidParameter(f"Invalid value {asked} for cpuset {short}: {error}") from None
        if not wanted <= parse_list(available):
            raise InvalidParameter(
                f"Requested {long} are not available - requested {asked}, available: {available}"
            )


def _block_io(host: HostConfig, have: Capabilities, warnings: list[str]) -> None:
    if host.blkio_weight > 0 and not have.blkio_weight:
        warnings.append(f"Your kernel does not support Block I/O weight {_NOT_MOUNTED} Weight discarded.")
        host.blkio_weight = 0
    if host.blkio_weight and not 10 <= host.blkio_weight <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    for value, word in ((host.io_maximum_bandwidth, "bandwidth"), (host.io_maximum_iops, "IOPs")):
        if value:
            raise InvalidParameter(f"Invalid QoS settings: linux does not support configuration of maximum {word}")
    if host.blkio_weight_device and not have.blkio_weight_device:
        warnings.append(
            f"Your kernel does not support Block I/O weight_device {_NOT_MOUNTED} Weight-device discarded."
        )
        host.blkio_weight_device = []
    for weight in host.blkio_weight_device or ():
        if not 10 <= weight.weight <= 1000 and weight.weight != 0:
            raise InvalidParameter(f"Range of blkio weight is from 10 to 1000: {weight.path}:{weight.weight}")
    for field, possible, what, discarded in (
        ("blkio_device_read_bps", have.blkio_read_bps_device, "BPS Block I/O read", "BPS read"),
        ("blkio_device_write_bps", have.blkio_write_bps_device, "BPS Block I/O write", "BPS write"),
        ("blkio_device_read_iops", have.blkio_read_iops_device, "IOPS Block read", "IOPS read"),
        ("blkio_device_write_iops", have.blkio_write_iops_device, "IOPS Block write", "IOPS write"),
    ):
        if getattr(host, field) and not possible:
            warnings.append(
                f"Your kernel does not support {what} limit {_NOT_MOUNTED} Block I/O {discarded} limit discarded."
            )
            setattr(host, field, [])
