"""`docker update`: resources and restart policy of an existing container (moby `container.UpdateContainer`).

A zero value leaves a field as it is (but the limit of processes, where it means none); the same rules of validity hold as at creation. Fields that cannot change in
a container that exists are refused by name.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dray.api import models as api
from dray.base.errors import Conflict, InvalidParameter
from dray.engine.spec import machine, resources

UPDATABLE = (
    "cpu_shares", "memory", "blkio_weight", "blkio_weight_device", "blkio_device_read_bps", "blkio_device_write_bps",
    "blkio_device_read_iops", "blkio_device_write_iops", "cpu_period", "cpu_quota", "cpu_realtime_period",
    "cpu_realtime_runtime", "cpuset_cpus", "cpuset_mems", "memory_reservation", "memory_swap", "memory_swappiness",
    "nano_cpus", "oom_kill_disable", "pids_limit",
)  # fmt: skip
FIXED = (
    "cgroup_parent", "devices", "device_cgroup_rules", "device_requests", "init", "ulimits", "cpu_count",
    "cpu_percent", "io_maximum_iops", "io_maximum_bandwidth", "kernel_memory", "kernel_memory_tcp",
)  # fmt: skip


def apply(host: api.HostConfig, request: api.ContainerUpdateRequest) -> api.HostConfig:
    """Return the host configuration with the request's changes; the argument stays as it is."""
    for name in FIXED:
        if getattr(request, name):
            raise InvalidParameter(f"{name} cannot be updated: remove the container and create it anew")
    changed = msgspec.structs.replace(host)
    if request.nano_cpus and (host.cpu_period or host.cpu_quota):
        which = "CPU Period" if host.cpu_period else "CPU Quota"
        raise Conflict(f"Conflicting options: Nano CPUs cannot be updated as {which} has already been set")
    for name, shown in (("cpu_period", "CPU Period"), ("cpu_quota", "CPU Quota")):
        if getattr(request, name) and host.nano_cpus:
            raise Conflict(f"Conflicting options: {shown} cannot be updated as NanoCPUs has already been set")
    if request.memory and not request.memory_swap and 0 < host.memory_swap < request.memory:
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    for name in UPDATABLE:
        if _says(request, name):
            setattr(changed, name, getattr(request, name))
    if request.restart_policy.name:
        if host.auto_remove and request.restart_policy.name != "no":
            raise Conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
        changed.restart_policy = request.restart_policy
    return changed


def _says(request: api.ContainerUpdateRequest, name: str) -> bool:
    """Tell whether a request names a field: by a value that is not zero, but 0 processes mean "no limit"."""
    value = getattr(request, name)
    return value is not None if name == "pids_limit" else value not in (None, 0, "", [])


def changed_resources(request: api.ContainerUpdateRequest, changed: api.HostConfig) -> dict[str, Any]:
    """Return the OCI resources to apply to a running container: those the request names, with the values that the
    updated configuration gives to them."""
    partial = api.HostConfig()
    for name in UPDATABLE:
        if _says(request, name):
            setattr(partial, name, getattr(changed, name))
    if partial.memory or partial.memory_swap:
        partial.memory, partial.memory_swap = changed.memory, changed.memory_swap
    return resources.update(partial, block_devices=machine.block_devices(resources.block_device_paths(partial)))
