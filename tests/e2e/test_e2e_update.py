"""`docker update`: every field that can change in a container that runs, and the words for the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dray.linux.cgroups import capabilities
from support.engines import Engine
from support.option_cases import V1

LIVE = {
    # flags: (controller, v1 file, its value, v2 file, its value)
    ("--cpu-shares", "512"): ("cpu", "cpu.shares", "512", "cpu.weight", None),
    ("--cpu-period", "50000", "--cpu-quota", "20000"): ("cpu", "cpu.cfs_quota_us", "20000", "cpu.max", "20000 50000"),
    ("--cpus", "0.5"): ("cpu", "cpu.cfs_quota_us", "50000", "cpu.max", "50000 100000"),
    ("--cpuset-cpus", "0"): ("cpuset", "cpuset.cpus", "0", "cpuset.cpus", "0"),
    ("--cpuset-mems", "0"): ("cpuset", "cpuset.mems", "0", "cpuset.mems", "0"),
    ("--memory", "64m"): ("memory", "memory.limit_in_bytes", str(64 << 20), "memory.max", str(64 << 20)),
    ("--memory", "200m", "--memory-swap", "300m"): (
        "memory", "memory.memsw.limit_in_bytes", str(300 << 20), "memory.swap.max", str(100 << 20)
    ),
    ("--memory-reservation", "32m"): (
        "memory", "memory.soft_limit_in_bytes", str(32 << 20), "memory.low", str(32 << 20)
    ),
    ("--pids-limit", "33"): ("pids", "pids.max", "33", "pids.max", "33"),
}  # fmt: skip


def book(engine: Engine, controller: str, file: str) -> str:
    pid = engine.state("box")["Pid"]
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") or (not V1 and controllers == ""):
            return Path(f"/sys/fs/cgroup/{controller if V1 else ''}{path}/{file}").read_text().strip()
    raise AssertionError(f"no cgroup of {controller}")


def test_each_limit_changes_while_it_runs(engine: Engine) -> None:
    for flags, (controller, first, on_first, second, on_second) in LIVE.items():
        engine.ok("run", "-d", "--name", "box", "-m", "128m", "--memory-swap", "256m", "busybox", "sleep", "600")
        engine.ok("update", *flags, "box")
        expected = on_first if V1 else on_second
        if expected is not None:
            assert book(engine, controller, first if V1 else second) == expected, flags
        engine.ok("rm", "-f", "box")


@pytest.mark.parametrize(
    ("version", "limit", "shown", "held"),
    [("v1.50", 0, 0, "max"), ("v1.50", -1, 0, "max"), ("v1.50", -2, 0, "max"), ("v1.39", 16, 33, "33")],
)
def test_the_limit_of_processes_can_be_taken_away(
    engine: Engine, version: str, limit: int, shown: int, held: str
) -> None:
    """Any number below one means none; clients of versions before 1.40 cannot change it (moby postContainerUpdate)."""
    engine.ok("run", "-d", "--name", "box", "--pids-limit", "33", "busybox", "sleep", "600")
    engine.ok("update", "--cpu-shares", "512", "box")
    assert book(engine, "pids", "pids.max") == "33"
    assert engine.api("POST", f"/{version}/containers/box/update", {"PidsLimit": limit})[0] == 200
    assert engine.inspect("box")["HostConfig"]["PidsLimit"] == shown
    assert book(engine, "pids", "pids.max") == held


@pytest.mark.skipif(not capabilities().blkio_weight, reason="this kernel has no I/O weights")
def test_io_weight(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    engine.ok("update", "--blkio-weight", "300", "box")
    text = book(engine, "blkio", "blkio.bfq.weight") if V1 else book(engine, "io", "io.bfq.weight")
    assert text.endswith("300")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-m", "1m"], "Minimum memory limit allowed is 6MB"),
        (["--cpus", "5000"], "Range of CPUs is from"),
        (["--cpuset-cpus", "4000"], "Requested CPUs are not available"),
        (["--cpu-quota", "5"], "CPU cfs quota can not be less than 1ms"),
        (["--blkio-weight", "5000"], "Range of blkio weight is from 10 to 1000"),
        (["--restart", "sometimes"], "unknown policy 'sometimes'"),
    ],
)
def test_an_update_is_checked_as_a_creation_is(engine: Engine, flags: list[str], words: str) -> None:
    engine.ok("create", "--name", "box", "busybox", "true")
    before = engine.inspect("box")["HostConfig"]
    assert words in engine.fails("update", *flags, "box")
    assert engine.inspect("box")["HostConfig"] == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("Devices", [{"PathOnHost": "/dev/null"}]),
        ("Ulimits", [{"Name": "nofile", "Soft": 1, "Hard": 1}]),
        ("Init", True),
    ],
)
def test_what_cannot_be_updated_is_refused_by_name(engine: Engine, field: str, value: object) -> None:
    engine.ok("create", "--name", "box", "busybox", "true")
    status, _, answer = engine.api("POST", "/v1.50/containers/box/update", {field: value})
    assert (status, "cannot be updated" in json.loads(answer)["message"]) == (400, True)


def test_restart_policy_changes_while_it_runs(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    engine.ok("update", "--restart", "on-failure:3", "box")
    assert engine.inspect("box")["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}


def test_many_are_stopped_and_restarted_beside_each_other(engine: Engine) -> None:
    names = [f"box{number}" for number in range(6)]
    for name in names:
        engine.ok("run", "-d", "--name", name, "busybox", "sh", "-c", "trap exit TERM; sleep 600 & wait")
    pids = {name: engine.state(name)["Pid"] for name in names}
    assert engine.ok("restart", *names).split() == names
    assert all(engine.state(name)["Running"] and engine.state(name)["Pid"] != pids[name] for name in names)
    assert engine.ok("stop", *names).split() == names
    assert not any(engine.state(name)["Running"] for name in names)


def test_prune_and_its_filters(engine: Engine) -> None:
    for name, label in (("one", "a=1"), ("two", "a=2"), ("three", "b=1")):
        engine.ok("run", "--name", name, "-l", label, "busybox", "sh", "-c", "head -c 100000 /dev/zero >/file")
    engine.ok("run", "-d", "--name", "runs", "-l", "a=1", "busybox", "sleep", "600")

    def left() -> set[str]:
        return set(engine.ok("ps", "-a", "--format", "{{.Names}}").split())

    status, _, _ = engine.api("POST", '/containers/prune?filters={"nonsense":["x"]}')
    assert (status, len(left())) == (400, 4)
    engine.ok("container", "prune", "-f", "--filter", "until=1h")
    assert len(left()) == 4
    shown = engine.ok("container", "prune", "-f", "--filter", "label=a=1")
    assert left() == {"two", "three", "runs"}
    assert "Total reclaimed space: 100kB" in shown
    engine.ok("container", "prune", "-f", "--filter", "label!=a")
    assert left() == {"two", "runs"}
    engine.ok("container", "prune", "-f")
    assert left() == {"runs"}


def test_disk_usage_of_containers(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "busybox", "sh", "-c", "head -c 100000 /dev/zero >/file")
    engine.ok("run", "-d", "--name", "runs", "busybox", "sh", "-c", "head -c 50000 /dev/zero >/file; sleep 600")
    engine.ok("exec", "runs", "sh", "-c", "while ! test -s /file; do sleep 0.05; done")
    lines = engine.ok(
        "system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}"
    )
    row = next(line for line in lines.splitlines() if line.startswith("Containers"))
    assert row == "Containers 2 1 150kB 100kB (66%)"
    verbose = engine.ok("system", "df", "-v")
    assert "100kB" in verbose
    assert "50kB" in verbose
