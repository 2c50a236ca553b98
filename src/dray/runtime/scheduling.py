"""How the kernel is to run a process: scheduler, I/O priority, processors, memory policy (config.md "process").

`scheduling_of` is pure; `apply` works on the calling process, while it has its rights still, and what it sets goes
through execve. Processors are for execs alone: `initial` before the process enters the container's cgroup, `final`
inside it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dray.base.errors import InvalidParameter, StartError
from dray.linux import libc

_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_CLASS_SHIFT = 13
_POLICIES = {
    f"SCHED_{name}": number
    for name, number in (
        ("OTHER", 0),
        ("FIFO", 1),
        ("RR", 2),
        ("BATCH", 3),
        ("ISO", 4),
        ("IDLE", 5),
        ("DEADLINE", 6),
    )
}
_SCHEDULER_FLAGS = {
    f"SCHED_FLAG_{name}": 1 << bit
    for bit, name in enumerate(
        (
            "RESET_ON_FORK",
            "RECLAIM",
            "DL_OVERRUN",
            "KEEP_POLICY",
            "KEEP_PARAMS",
            "UTIL_CLAMP_MIN",
            "UTIL_CLAMP_MAX",
        )
    )
}
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period
MEMORY_MODES = {
    f"MPOL_{name}": number
    for number, name in enumerate(
        ("DEFAULT", "PREFERRED", "BIND", "INTERLEAVE", "LOCAL", "PREFERRED_MANY", "WEIGHTED_INTERLEAVE")
    )
}
MEMORY_FLAGS = {
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
}
_MOST_NODES = 1024


@dataclass(frozen=True, slots=True)
class Scheduling:
    """What is set; None is left as it is inherited.

    io_priority: the value of ioprio_set(2)
    scheduler: a packed struct sched_attr (sched_setattr(2))
    memory: (mode with flags, nodes) of set_mempolicy(2)
    initial, final: processors
    """

    io_priority: int | None = None
    scheduler: bytes | None = None
    memory: tuple[int, frozenset[int]] | None = None
    initial: frozenset[int] = frozenset()
    final: frozenset[int] = frozenset()


_NOTHING = Scheduling()


def scheduling_of(process: Mapping[str, Any], memory_policy: Mapping[str, Any] | None = None) -> Scheduling:
    """Read `process.scheduler`, `ioPriority`, `execCPUAffinity` and `linux.memoryPolicy`; InvalidParameter names
    what is wrong with them."""
    scheduler, priority = process.get("scheduler"), process.get("ioPriority")
    affinity = process.get("execCPUAffinity")
    if not (scheduler or priority or affinity or memory_policy):
        return _NOTHING
    affinity = affinity or {}
    return Scheduling(
        io_priority=_io_priority(priority) if priority else None,
        scheduler=_scheduler(scheduler) if scheduler else None,
        memory=_memory_policy(memory_policy) if memory_policy else None,
        initial=number_set(affinity.get("initial") or "", "process.execCPUAffinity.initial"),
        final=number_set(affinity.get("final") or "", "process.execCPUAffinity.final"),
    )


def _io_priority(wanted: Mapping[str, Any]) -> int:
    kind, level = _CLASSES.get(wanted.get("class") or ""), int(wanted.get("priority") or 0)
    if kind is None:
        raise InvalidParameter(f"process.ioPriority: class must be one of {', '.join(_CLASSES)}")
    if not 0 <= level <= 7:
        raise InvalidParameter(f"process.ioPriority: priority {level} is not between 0 and 7")
    return kind << _CLASS_SHIFT | level


def _scheduler(wanted: Mapping[str, Any]) -> bytes:
    policy = _POLICIES.get(wanted.get("policy") or "")
    if policy is None:
        raise InvalidParameter(f"process.scheduler: policy must be one of {', '.join(_POLICIES)}")
    nice, priority = int(wanted.get("nice") or 0), int(wanted.get("priority") or 0)
    times = [int(wanted.get(name) or 0) for name in ("runtime", "deadline", "period")]
    if nice and policy not in (0, 3):
        raise InvalidParameter("process.scheduler: nice is for SCHED_OTHER and SCHED_BATCH")
    if priority and policy not in (1, 2):
        raise InvalidParameter("process.scheduler: priority is for SCHED_FIFO and SCHED_RR")
    if any(times) and policy != 6:
        raise InvalidParameter("process.scheduler: runtime, deadline and period are for SCHED_DEADLINE")
    flags = 0
    for name in wanted.get("flags") or ():
        if name not in _SCHEDULER_FLAGS:
            raise InvalidParameter(f"process.scheduler: unknown flag {name!r}")
        flags |= _SCHEDULER_FLAGS[name]
    return _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, flags, nice, priority, *times)


def _memory_policy(wanted: Mapping[str, Any]) -> tuple[int, frozenset[int]]:
    mode = MEMORY_MODES.get(wanted.get("mode") or "")
    if mode is None:
        raise InvalidParameter(f"linux.memoryPolicy: mode must be one of {', '.join(MEMORY_MODES)}")
    for name in wanted.get("flags") or ():
        if name not in MEMORY_FLAGS:
            raise InvalidParameter(f"linux.memoryPolicy: unknown flag {name!r}")
        mode |= MEMORY_FLAGS[name]
    return mode, number_set(wanted.get("nodes") or "", "linux.memoryPolicy.nodes")


def number_set(text: str, field: str) -> frozenset[int]:
    """Read a list such as `0-3,7` (cpuset(7), "List format")."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not part:
            continue
        if not first.isdigit() or (dash and not last.isdigit()) or int(last or first) >= _MOST_NODES * 8:
            raise InvalidParameter(f"{field}: {text!r} is not a list such as 0-3,7")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def apply(scheduling: Scheduling) -> None:
    """Set what is asked for of the calling process, but its processors; StartError names what cannot be."""
    if scheduling is _NOTHING:
        return
    attributes, io_priority = scheduling.scheduler, scheduling.io_priority
    if attributes is not None:
        _try("process.scheduler", lambda: libc.sched_setattr(0, attributes))
    if io_priority is not None:
        _try("process.ioPriority", lambda: libc.ioprio_set(libc.IOPRIO_WHO_PROCESS, 0, io_priority))
    if scheduling.memory is not None:
        mode, nodes = scheduling.memory
        _try("linux.memoryPolicy", lambda: libc.set_mempolicy(mode, nodes, _MOST_NODES))


def run_on(processors: frozenset[int], field: str) -> None:
    """Keep the calling process to some processors, to all of its cpuset when none is named."""
    if processors:
        _try(f"process.execCPUAffinity.{field}", lambda: os.sched_setaffinity(0, processors))


def _try(field: str, call: Callable[[], None]) -> None:
    try:
        call()
    except OSError as error:
        raise StartError(f"{field} cannot be applied: {error.strerror}") from error
