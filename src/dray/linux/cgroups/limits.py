"""OCI `linux.resources` values as kernel values: pure conversions shared by v1 and v2.

The v2 formulas are those of runc (github.com/opencontainers/cgroups), so that a container weighs the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dray.base.errors import InvalidParameter, Unsupported

Resources = Mapping[str, Any]


def section(resources: Resources, name: str) -> Resources:
    """Return a sub-object, empty where it is absent or null."""
    found = resources.get(name)
    return found if isinstance(found, Mapping) else {}


def number(values: Resources, name: str) -> int:
    """Return a number, 0 (leave alone) where it is absent or null."""
    value = values.get(name)
    if value is None:
        return 0
    if not isinstance(value, int):
        raise InvalidParameter(f"resources: {name} must be a number, not {value!r}")
    return int(value)


def missing(limit: str, controller: str) -> Unsupported:
    """Return the error for a limit that this machine cannot set."""
    return Unsupported(
        f"cannot set {limit}: the cgroup controller {controller!r} is not available on this machine"
    )


def weight_from_shares(shares: int) -> int:
    """Turn v1 cpu.shares (2…262144, default 1024) into v2 cpu.weight (1…10000, default 100); 0 stays 0.

    A quadratic in log2(shares) that meets minimum, default and maximum.
    """
    if shares == 0:
        return 0
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def io_weight_from_blkio(weight: int) -> int:
    """Turn v1 blkio.weight (10…1000) into v2 io.weight (1…10000), linearly; 0 stays 0."""
    return 0 if weight == 0 else 1 + (weight - 10) * 9999 // 990


def swap_max(limit: int, swap: int) -> int | None:
    """Return v2 memory.swap.max from OCI `limit` and `swap` (memory + swap); -1 no limit, None leave alone."""
    if limit == -1 and swap == 0:
        return -1
    if swap in (-1, 0):
        return swap or None
    if limit == 0:
        raise InvalidParameter("unable to set swap limit without memory limit")
    if limit < 0:
        raise InvalidParameter(f"invalid memory value: {limit}")
    if swap < limit:
        raise InvalidParameter("memory+swap limit should be >= memory limit")
    return swap - limit


def maximum(value: int) -> str:
    """Return a v2 limit's text: negative is `max`."""
    return "max" if value < 0 else str(value)


def cpu_max(quota: int, period: int, now: str = "") -> str | None:
    """Return v2 cpu.max, None where neither value is given; `now` is the file's content, for the other one."""
    if not quota and not period:
        return None
    old_quota, old_period = (now.split() + ["max", "100000"][len(now.split()) :])[:2]
    return f"{maximum(quota) if quota else old_quota} {period or old_period}"


def device_lines(entries: Sequence[Resources] | None, value: str) -> list[tuple[str, int]]:
    """Return [("major:minor", number)] of a list of block device limits."""
    return [(f"{entry['major']}:{entry['minor']}", number(entry, value)) for entry in entries or ()]


THROTTLES = {
    # OCI name: (v1 file, v2 io.max key)
    "throttleReadBpsDevice": ("blkio.throttle.read_bps_device", "rbps"),
    "throttleWriteBpsDevice": ("blkio.throttle.write_bps_device", "wbps"),
    "throttleReadIOPSDevice": ("blkio.throttle.read_iops_device", "riops"),
    "throttleWriteIOPSDevice": ("blkio.throttle.write_iops_device", "wiops"),
}


def rdma_lines(rdma: Mapping[str, Resources] | None) -> list[str]:
    """Return the lines of rdma.max."""
    lines = []
    for device, limits in (rdma or {}).items():
        words = [
            f"{key}={limits[name]}"
            for key, name in (("hca_handle", "hcaHandles"), ("hca_object", "hcaObjects"))
            if limits.get(name) is not None
        ]
        lines.append(" ".join([device, *words]))
    return lines
