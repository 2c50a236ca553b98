"""`docker stats`: samples of a container's cgroup, block and network counters (moby `daemon/stats`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from dray.api import models as api
from dray.engine import clock
from dray.engine.model import Container
from dray.engine.registry import Registry
from dray.linux import cgroups

_TICK = 10**9 // os.sysconf("SC_CLK_TCK")


async def samples(
    registry: Registry, container: Container, *, stream: bool, one_shot: bool
) -> AsyncIterator[api.ContainerStatsResponse]:
    """Yield one sample a second; without `stream` one, taken a second apart from another unless `one_shot`."""
    before: api.ContainerStatsResponse | None = None
    while registry.get(container.id) is container:
        if container.state.status in ("running", "paused"):
            sample = await asyncio.to_thread(_sample, container)
        else:
            sample = api.ContainerStatsResponse(id=container.id, name=f"/{container.name}", os_type="linux")
        if before is not None:
            sample.preread, sample.precpu_stats = before.read, before.cpu_stats
        if stream or one_shot or before is not None or not container.state.running:
            yield sample
            if not stream:
                return
        before = sample
        await asyncio.sleep(1)


def _sample(container: Container) -> api.ContainerStatsResponse:
    numbers: dict[str, Any] = cgroups.load(cgroups_path(container), container.id).stats()
    numbers["cpu_stats"] |= {"system_cpu_usage": _host_cpu(), "online_cpus": len(os.sched_getaffinity(0))}
    sample = msgspec.convert(numbers, api.ContainerStatsResponse)
    sample.id, sample.name, sample.os_type = container.id, f"/{container.name}", "linux"
    sample.read = clock.rfc3339(clock.now())
    sample.networks = _interfaces(container.state.pid)
    return sample


def cgroups_path(container: Container) -> str:
    """Return the OCI cgroupsPath of a container."""
    parent = container.record.host_config.cgroup_parent or "/dray"
    return f"{parent}/{container.id}"


def _host_cpu() -> int:
    """Return the nanoseconds all CPUs spent so far (user to softirq and steal, as dockerd adds them)."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, fields)) * _TICK


def _interfaces(pid: int) -> dict[str, Any]:
    found = {}
    try:
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    except OSError:
        return {}
    names = ("bytes", "packets", "errors", "dropped")
    for line in lines:
        name, _, rest = line.partition(":")
        numbers = [int(field) for field in rest.split()]
        if name.strip() == "lo":
            continue
        counters = {f"rx_{key}": numbers[index] for index, key in enumerate(names)}
        counters |= {f"tx_{key}": numbers[8 + index] for index, key in enumerate(names)}
        found[name.strip()] = counters
    return found
