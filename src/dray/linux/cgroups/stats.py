"""A cgroup's counters in the shapes of the Engine API (`ContainerStatsResponse`), times in nanoseconds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dray.linux.cgroups.layout import read, read_number, read_table

_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_UNLIMITED = 1 << 62  # above: a v1 limit of "none", a page-rounded maximum

_BLKIO_V1 = {
    "io_service_bytes_recursive": ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"),
    "io_serviced_recursive": ("blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"),
    "io_queue_recursive": ("blkio.io_queued_recursive", "blkio.bfq.io_queued_recursive"),
    "io_service_time_recursive": ("blkio.io_service_time_recursive", "blkio.bfq.io_service_time_recursive"),
    "io_wait_time_recursive": ("blkio.io_wait_time_recursive", "blkio.bfq.io_wait_time_recursive"),
    "io_merged_recursive": ("blkio.io_merged_recursive", "blkio.bfq.io_merged_recursive"),
    "io_time_recursive": ("blkio.time_recursive", "blkio.bfq.time_recursive"),
    "sectors_recursive": ("blkio.sectors_recursive", "blkio.bfq.sectors_recursive"),
}


def v1(paths: Mapping[str, str]) -> dict[str, Any]:
    """Read the counters of a v1 cgroup."""
    return {
        "cpu_stats": _cpu_v1(paths),
        "memory_stats": _memory_v1(paths["memory"]) if "memory" in paths else {},
        "blkio_stats": _blkio_v1(paths["blkio"]) if "blkio" in paths else dict.fromkeys(_BLKIO_V1),
        "pids_stats": _pids(paths["pids"]) if "pids" in paths else {},
    }


def _cpu_v1(paths: Mapping[str, str]) -> dict[str, Any]:
    usage: dict[str, Any] = {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}
    if directory := paths.get("cpuacct"):
        ticks = read_table(directory, "cpuacct.stat")
        usage = {
            "total_usage": read_number(directory, "cpuacct.usage"),
            "percpu_usage": [int(part) for part in read(directory, "cpuacct.usage_percpu").split()],
            "usage_in_kernelmode": ticks.get("system", 0) * _TICK,
            "usage_in_usermode": ticks.get("user", 0) * _TICK,
        }
    table = read_table(paths["cpu"], "cpu.stat") if "cpu" in paths else {}
    throttling = {
        "periods": table.get("nr_periods", 0),
        "throttled_periods": table.get("nr_throttled", 0),
        "throttled_time": table.get("throttled_time", 0),
    }
    return {"cpu_usage": usage, "throttling_data": throttling}


def _memory_v1(directory: str) -> dict[str, Any]:
    return {
        "usage": read_number(directory, "memory.usage_in_bytes"),
        "max_usage": read_number(directory, "memory.max_usage_in_bytes"),
        "stats": read_table(directory, "memory.stat"),
        "failcnt": read_number(directory, "memory.failcnt"),
        "limit": _limit(read_number(directory, "memory.limit_in_bytes", _UNLIMITED)),
    }


def _limit(value: int) -> int:
    """Return a limit, the machine's memory where there is none or a greater one."""
    return min(value, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE"))


def _blkio_v1(directory: str) -> dict[str, Any]:
    stats: dict[str, Any] = {}
    for key, files in _BLKIO_V1.items():
        stats[key] = []
        for file in files:
            try:
                stats[key] = parse_blkio(read(directory, file))
                break
            except OSError:  # only with the CFQ or BFQ scheduler
                continue
    return stats


def parse_blkio(text: str) -> list[dict[str, Any]]:
    """Read `8:0 Read 4096` lines; the closing `Total 4096`, of all devices, is no entry. v1 rates without an
    operation (`8:0 17`) have an empty one."""
    entries = []
    for line in text.splitlines():
        device, *words = line.split()
        major, colon, minor = device.partition(":")
        if not colon or not words:
            continue
        operation = words[0] if len(words) == 2 else ""
        entries.append({"major": int(major), "minor": int(minor), "op": operation, "value": int(words[-1])})
    return entries


def _pids(directory: str) -> dict[str, Any]:
    """Read pids.current and pids.max; no limit is the API's 2^64 - 1."""
    current = read_number(directory, "pids.current")
    return {"current": current, "limit": read_number(directory, "pids.max", (1 << 64) - 1)}


def v2(directory: str) -> dict[str, Any]:
    """Read the counters of a v2 cgroup."""
    cpu = read_table(directory, "cpu.stat")
    usage = {
        "total_usage": cpu.get("usage_usec", 0) * 1000,
        "usage_in_kernelmode": cpu.get("system_usec", 0) * 1000,
        "usage_in_usermode": cpu.get("user_usec", 0) * 1000,
    }
    throttling = {
        "periods": cpu.get("nr_periods", 0),
        "throttled_periods": cpu.get("nr_throttled", 0),
        "throttled_time": cpu.get("throttled_usec", 0) * 1000,
    }
    blkio: dict[str, Any] = dict.fromkeys(_BLKIO_V1)
    try:
        blkio["io_service_bytes_recursive"] = parse_io_stat(read(directory, "io.stat"))
    except FileNotFoundError:
        pass
    return {
        "cpu_stats": {"cpu_usage": usage, "throttling_data": throttling},
        "memory_stats": _memory_v2(directory),
        "blkio_stats": blkio,
        "pids_stats": _pids(directory) if os.path.exists(f"{directory}/pids.current") else {},
    }


def _memory_v2(directory: str) -> dict[str, Any]:
    table = read_table(directory, "memory.stat")
    if not table:
        return {}
    stats = {
        "usage": read_number(directory, "memory.current"),
        "stats": table,
        "failcnt": read_table(directory, "memory.events").get("oom", 0),
        "limit": _limit(read_number(directory, "memory.max", _UNLIMITED)),
    }
    if peak := read_number(directory, "memory.peak"):
        stats["max_usage"] = peak
    return stats


def parse_io_stat(text: str) -> list[dict[str, Any]]:
    """Read `8:0 rbytes=1 wbytes=2 rios=…` lines into the API's entries of bytes read and written."""
    entries = []
    for line in text.splitlines():
        device, *words = line.split()
        major, colon, minor = device.partition(":")
        values = dict(word.split("=", 1) for word in words if "=" in word)
        for operation, key in (("read", "rbytes"), ("write", "wbytes")):
            if colon and key in values:
                value = int(values[key])
                entries.append({"major": int(major), "minor": int(minor), "op": operation, "value": value})
    return entries
