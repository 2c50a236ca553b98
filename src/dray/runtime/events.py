"""`dray-runtime events`: a container's numbers and its running out of memory, one JSON object a line, as runc has it.

{"type": "stats", "id": "…", "data": {"cpu": …, "memory": …, "pids": …, "blkio": …}}    nanoseconds, bytes
{"type": "oom", "id": "…"}
"""

from __future__ import annotations

import json
import select
import time
from collections.abc import Mapping
from typing import Any

from dray.runtime.state import Container

_BLKIO = {
    "ioServiceBytesRecursive": "io_service_bytes_recursive",
    "ioServicedRecursive": "io_serviced_recursive",
    "ioQueueRecursive": "io_queue_recursive",
    "ioServiceTimeRecursive": "io_service_time_recursive",
    "ioWaitTimeRecursive": "io_wait_time_recursive",
    "ioMergedRecursive": "io_merged_recursive",
    "ioTimeRecursive": "io_time_recursive",
    "sectorsRecursive": "sectors_recursive",
}


def stats_event(id: str, stats: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a cgroup's counters (`cgroups.Cgroup.stats`) into a stats event."""
    usage, throttling = stats["cpu_stats"]["cpu_usage"], stats["cpu_stats"]["throttling_data"]
    memory, blkio = stats["memory_stats"], stats["blkio_stats"]
    data = {
        "cpu": {
            "usage": {
                "total": usage["total_usage"],
                "percpu": usage.get("percpu_usage", []),
                "kernel": usage["usage_in_kernelmode"],
                "user": usage["usage_in_usermode"],
            },
            "throttling": {
                "periods": throttling["periods"],
                "throttledPeriods": throttling["throttled_periods"],
                "throttledTime": throttling["throttled_time"],
            },
        },
        "memory": {
            "usage": {
                "limit": memory.get("limit", 0),
                "usage": memory.get("usage", 0),
                "max": memory.get("max_usage", 0),
                "failcnt": memory.get("failcnt", 0),
            },
            "raw": memory.get("stats", {}),
        },
        "pids": stats["pids_stats"],
        "blkio": {name: blkio.get(key) or [] for name, key in _BLKIO.items()},
    }
    return {"type": "stats", "id": id, "data": data}


def watch(container: Container, interval: float) -> None:
    """Print an event each `interval` seconds, and one whenever memory ran out, until init has ended."""
    watch = container.cgroup.watch_oom()
    poll = select.poll()
    poll.register(container.pidfd, select.POLLIN)
    if watch is not None:
        poll.register(watch.fd, watch.events)
    try:
        kills, due = container.cgroup.oom_kills(), time.monotonic()
        while container.alive:
            if time.monotonic() >= due:
                show(container)
                due += interval
            woken = poll.poll(max(0.0, due - time.monotonic()) * 1000)
            if watch is not None and any(fd == watch.fd for fd, _ in woken):
                watch.drain()
                now = container.cgroup.oom_kills()
                if now > kills:
                    kills = now
                    print(json.dumps({"type": "oom", "id": container.saved.id}), flush=True)
    finally:
        if watch is not None:
            watch.close()


def show(container: Container) -> None:
    """Print the numbers once."""
    print(json.dumps(stats_event(container.saved.id, container.cgroup.stats())), flush=True)
