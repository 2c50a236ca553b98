"""`HostConfig`'s limits as OCI `linux.resources` (moby `daemon/daemon_unix.go`, `daemon/update_linux.go`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dray.api.models import HostConfig
from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern
from dray.engine.security import defaults
from dray.engine.spec.facts import Device

BlockDevices = Mapping[str, tuple[int, int]]
_CGROUP_RULE = pattern(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})", re.ASCII)
_CFS_PERIOD = 100_000  # microseconds


def resources(
    host: HostConfig, *, devices: Sequence[Device] = (), block_devices: BlockDevices | None = None
) -> dict[str, Any]:
    """Return a new container's limits and device rules."""
    found = update(host, block_devices=block_devices)
    found["memory"].setdefault("disableOOMKiller", bool(host.oom_kill_disable))
    found["devices"] = _device_rules(host, devices)
    return found


def update(host: HostConfig, *, block_devices: BlockDevices | None = None) -> dict[str, Any]:
    """Return the limits that `host` names, for a running container too: what is not named stays as it is."""
    found: dict[str, Any] = {
        "memory": _memory(host),
        "cpu": _cpu(host),
        "blockIO": _block_io(host, block_devices or {}),
    }
    if host.pids_limit is not None:
        found["pids"] = {"limit": host.pids_limit if host.pids_limit > 0 else -1}
    return found


def _memory(host: HostConfig) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    if host.memory > 0:
        memory["limit"] = host.memory
    if host.memory_reservation > 0:
        memory["reservation"] = host.memory_reservation
    if host.memory_swap > 0 or (host.memory_swap == -1 and host.memory > 0):
        memory["swap"] = host.memory_swap
    if host.memory_swappiness is not None and host.memory_swappiness >= 0:
        memory["swappiness"] = host.memory_swappiness
    if host.kernel_memory_tcp:
        memory["kernelTCP"] = host.kernel_memory_tcp
    if host.oom_kill_disable is not None:
        memory["disableOOMKiller"] = host.oom_kill_disable
    return memory


def _cpu(host: HostConfig) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if host.cpu_shares < 0:
        raise InvalidParameter(f"shares: invalid argument: {host.cpu_shares}")
    if host.cpu_shares:
        cpu["shares"] = host.cpu_shares
    if host.cpuset_cpus:
        cpu["cpus"] = host.cpuset_cpus
    if host.cpuset_mems:
        cpu["mems"] = host.cpuset_mems
    if host.nano_cpus > 0:
        cpu["period"] = _CFS_PERIOD
        cpu["quota"] = host.nano_cpus * _CFS_PERIOD // 1_000_000_000
    if host.cpu_period:
        cpu["period"] = host.cpu_period
    if host.cpu_quota:
        cpu["quota"] = host.cpu_quota
    if host.cpu_realtime_period:
        cpu["realtimePeriod"] = host.cpu_realtime_period
    if host.cpu_realtime_runtime:
        cpu["realtimeRuntime"] = host.cpu_realtime_runtime
    return cpu


def _block_io(host: HostConfig, devices: BlockDevices) -> dict[str, Any]:
    def limits(entries: Iterable[Any] | None, value: str) -> list[dict[str, int]]:
        found = []
        for entry in entries or ():
            if entry.path not in devices:
                raise InvalidParameter(f"{entry.path} is not a block device")
            major, minor = devices[entry.path]
            found.append({"major": major, "minor": minor, value: getattr(entry, value)})
        return found

    block: dict[str, Any] = {}
    if host.blkio_weight:
        block["weight"] = host.blkio_weight
    for name, entries, value in (
        ("weightDevice", host.blkio_weight_device, "weight"),
        ("throttleReadBpsDevice", host.blkio_device_read_bps, "rate"),
        ("throttleWriteBpsDevice", host.blkio_device_write_bps, "rate"),
        ("throttleReadIOPSDevice", host.blkio_device_read_iops, "rate"),
        ("throttleWriteIOPSDevice", host.blkio_device_write_iops, "rate"),
    ):
        if entries:
            block[name] = limits(entries, value)
    return block


def block_device_paths(host: HostConfig) -> set[str]:
    """Return the paths of the block devices that limits name, to be looked up for `Facts.block_devices`."""
    return {
        entry.path
        for entries in (
            host.blkio_weight_device,
            host.blkio_device_read_bps,
            host.blkio_device_write_bps,
            host.blkio_device_read_iops,
            host.blkio_device_write_iops,
        )
        for entry in entries or ()
    }


def _device_rules(host: HostConfig, devices: Sequence[Device]) -> list[dict[str, Any]]:
    if host.privileged:
        return [{"allow": True, "access": "rwm"}]
    rules = [dict(rule) for rule in defaults()["device_cgroup_rules"]]
    for device in devices:
        if device.type != "p":
            numbers = {"major": device.major, "minor": device.minor}
            rules.append({"allow": True, "type": device.type, **numbers, "access": device.access})
    rules += [cgroup_rule(text) for text in host.device_cgroup_rules or ()]
    return rules


def cgroup_rule(text: str) -> dict[str, Any]:
    """Read a `--device-cgroup-rule` such as `c 42:* rmw`; a star is absent from the result."""
    match = _CGROUP_RULE.fullmatch(text)
    if match is None:
        raise InvalidParameter(f'invalid device cgroup rule format: "{text}"')
    kind, major, minor, access = match.groups()
    rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
    if major != "*":
        rule["major"] = int(major)
    if minor != "*":
        rule["minor"] = int(minor)
    return rule
