"""`dray update`."""

from __future__ import annotations

from dray.base.errors import DrayError
from dray.cli.ask.limits import parse_restart
from dray.cli.command import MANY, Command, Failure
from dray.cli.flags import Flag
from dray.client.errors import ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

_FIELDS = (
    ("CpuShares", "cpu-shares"),
    ("Memory", "memory"),
    ("NanoCpus", "cpus"),
    ("BlkioWeight", "blkio-weight"),
    ("CpuPeriod", "cpu-period"),
    ("CpuQuota", "cpu-quota"),
    ("CpuRealtimePeriod", "cpu-rt-period"),
    ("CpuRealtimeRuntime", "cpu-rt-runtime"),
    ("CpusetCpus", "cpuset-cpus"),
    ("CpusetMems", "cpuset-mems"),
    ("KernelMemory", "kernel-memory"),
    ("MemoryReservation", "memory-reservation"),
    ("MemorySwap", "memory-swap"),
    ("PidsLimit", "pids-limit"),
)


def run_update(app: App, values: Values, arguments: list[str]) -> int:
    """Change limits; what is not given stays."""
    if not values.changed:
        raise Failure("you must provide one or more flags when using this command")
    body: dict[str, Any] = {field: values[flag] for field, flag in _FIELDS if flag in values.changed}
    if "restart" in values.changed:
        body["RestartPolicy"] = parse_restart(values["restart"])
    errors: list[str] = []
    warnings: list[str] = []
    for name in arguments:
        try:
            answer = app.client.containers.update(name, body)
        except ConnectError:
            raise
        except DrayError as error:
            errors.append(str(error))
            continue
        app.line(name)
        warnings += (answer or {}).get("Warnings") or []
    if warnings:
        app.line("\n".join(warnings))
    if errors:
        raise Failure("\n".join(errors))
    return 0


COMMANDS = {
    "container update": Command(
        "[OPTIONS] CONTAINER [CONTAINER...]",
        run_update,
        flags=(
            Flag("blkio-weight", "uint16", "Share of block I/O, from 10 to 1000; 0 turns it off"),
            Flag("cpu-period", "int", "Period of the CFS quota, in microseconds"),
            Flag("cpu-quota", "int", "CPU time in each CFS period, in microseconds"),
            Flag("cpu-rt-period", "int", "Period of the real-time quota, in microseconds"),
            Flag("cpu-rt-runtime", "int", "Real-time CPU time in each period, in microseconds"),
            Flag("cpu-shares", "int", "Relative share of CPU time", short="c"),
            Flag("cpus", "decimal", "Number of CPUs, such as 1.5"),
            Flag("cpuset-cpus", "string", "CPUs it may run on (0-3, 0,1)"),
            Flag("cpuset-mems", "string", "Memory nodes it may use (0-3, 0,1)"),
            Flag("kernel-memory", "bytes", "Limit of kernel memory", hidden=True),
            Flag("memory", "bytes", "Limit of memory", short="m"),
            Flag("memory-reservation", "bytes", "Soft limit of memory"),
            Flag("memory-swap", "swap", "Limit of memory and swap together; -1 for no limit"),
            Flag("pids-limit", "int", "Limit of processes; -1 for none"),
            Flag("restart", "string", "When to start it again: no, on-failure[:n], always, unless-stopped"),
        ),
        args=(1, MANY),
    ),
}
