"""Limits, measured inside the container and in the kernel's own books outside."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from support.engines import Engine, until

V1 = not Path("/sys/fs/cgroup/cgroup.controllers").exists()


def book(engine: Engine, name: str, controller: str, file: str) -> str:
    """A file of the container's cgroup, read from the host."""
    pid = engine.state(name)["Pid"]
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") or (not V1 and controllers == ""):
            root = Path("/sys/fs/cgroup") / (controller if V1 else "")
            return Path(f"{root}{path}/{file}").read_text().strip()
    raise AssertionError(f"no cgroup of {controller}")


def test_memory(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "-m", "100m", "--memory-reservation", "50m", "busybox", "sleep", "600")
    file = "memory.limit_in_bytes" if V1 else "memory.max"
    assert book(engine, "box", "memory", file) == str(100 << 20)
    assert book(engine, "box", "memory", "memory.soft_limit_in_bytes" if V1 else "memory.low") == str(50 << 20)
    if V1:
        assert engine.ok("exec", "box", "cat", f"/sys/fs/cgroup/memory/{file}") == str(100 << 20)
        # Without --memory-swap, memory and swap together are twice the memory.
        assert book(engine, "box", "memory", "memory.memsw.limit_in_bytes") == str(200 << 20)
    host = engine.inspect("box")["HostConfig"]
    assert (host["Memory"], host["MemoryReservation"], host["MemorySwap"]) == (100 << 20, 50 << 20, 200 << 20)


@pytest.mark.skipif(not V1, reason="cgroup v1's file")
def test_memory_swap(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "-m", "100m", "--memory-swap", "150m", "busybox", "sleep", "600")
    assert book(engine, "box", "memory", "memory.memsw.limit_in_bytes") == str(150 << 20)


def test_out_of_memory(engine: Engine) -> None:
    with engine.spawn(
        "events", "-f", "container=box", "-f", "event=oom", "-f", "event=die", "--format", "{{.Action}}"
    ) as events:
        time.sleep(0.3)
        done = engine.docker(
            "run", "--name", "box", "-m", "20m", "--memory-swap", "20m", "busybox", "tail", "/dev/zero"
        )
        assert done.returncode == 137
        assert events.stdout is not None
        assert {events.stdout.readline(), events.stdout.readline()} == {b"oom\n", b"die\n"}
    state = engine.state("box")
    assert (state["OOMKilled"], state["ExitCode"]) == (True, 137)


def test_out_of_memory_of_a_child(engine: Engine) -> None:
    script = "tail /dev/zero; echo $?; exit 3"
    done = engine.docker(
        "run", "--name", "box", "-m", "20m", "--memory-swap", "20m", "busybox", "sh", "-c", script
    )
    assert (done.returncode, done.stdout) == (3, "137\n")


def test_plain_kill_is_not_out_of_memory(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "-m", "100m", "busybox", "sleep", "600")
    engine.ok("kill", "box")
    assert engine.until_state("box", "exited")["OOMKilled"] is False


def test_cpus(engine: Engine) -> None:
    """Half a processor: in a second of two busy loops, half a second of processor time."""
    engine.ok(
        "run",
        "-d",
        "--name",
        "box",
        "--cpus",
        ".5",
        "busybox",
        "sh",
        "-c",
        "(while :; do :; done) & while :; do :; done",
    )
    if V1:
        quota, period = (int(book(engine, "box", "cpu", f"cpu.cfs_{one}_us")) for one in ("quota", "period"))
    else:
        quota, period = (int(word) for word in book(engine, "box", "cpu", "cpu.max").split())
    assert quota * 2 == period

    def used() -> float:
        if V1:
            return int(book(engine, "box", "cpuacct", "cpuacct.usage")) / 1e9
        return int(book(engine, "box", "cpu", "cpu.stat").split()[1]) / 1e6

    begin, started = used(), time.monotonic()
    time.sleep(1.5)
    share = (used() - begin) / (time.monotonic() - started)
    assert share < 0.75
    inside = engine.ok("exec", "box", "cat", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us") if V1 else ""
    assert inside in ("", str(quota))


def test_cpu_shares_and_set(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "--cpu-shares", "512", "--cpuset-cpus", "0", "busybox", "sleep", "600")
    if V1:
        assert book(engine, "box", "cpu", "cpu.shares") == "512"
    assert book(engine, "box", "cpuset", "cpuset.cpus") == "0"
    assert os.sched_getaffinity(engine.state("box")["Pid"]) == {0}
    assert engine.ok("exec", "box", "nproc") == "1"


def test_pids(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "--pids-limit", "10", "busybox", "sleep", "600")
    assert book(engine, "box", "pids", "pids.max") == "10"
    done = engine.docker("exec", "box", "sh", "-c", "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done")
    assert done.returncode != 0
    assert "fork" in done.stderr
    until(lambda: int(book(engine, "box", "pids", "pids.current")) <= 10, what="no more than ten")


def test_update(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "-m", "100m", "busybox", "sleep", "600")
    engine.ok("update", "-m", "64m", "--memory-swap", "128m", "--cpus", "1.5", "--pids-limit", "7", "box")
    assert book(engine, "box", "memory", "memory.limit_in_bytes" if V1 else "memory.max") == str(64 << 20)
    assert book(engine, "box", "pids", "pids.max") == "7"
    host = engine.inspect("box")["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 << 20, 1_500_000_000, 7)


def test_cgroup_is_the_containers_own(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    made = engine.inspect("box")["Id"]
    pid = engine.state("box")["Pid"]
    assert f"/{made}" in Path(f"/proc/{pid}/cgroup").read_text()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["-m", "1m"], "memory"),
        (["--cpus", "1000"], "cpus"),
        (["--cpuset-cpus", "4000"], "cpu"),
        (["--memory-swap", "10m", "-m", "20m"], "swap"),
    ],
)
def test_impossible_limits_are_refused(engine: Engine, flags: list[str], word: str) -> None:
    assert word in engine.fails("run", "--rm", *flags, "busybox", "true", status=125).lower()
