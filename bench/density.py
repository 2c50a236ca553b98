"""How many containers fit: idle ones with a health check every 30 seconds, on dray and beside it on dockerd.

    python -m density [--dray 500] [--dockerd 100] [--seconds 60] [--output FILE]

One engine after the other, in a private world. When all containers run and have been checked once, CPU time of
everything in the world (the cgroup's own account, so also of processes that came and went) and memory are taken over
`--seconds`. Memory is given twice: the proportional set size of the engine's processes (daemons and shims), and what
the machine has less than before (`MemAvailable`; kernel and container included). Figures for each container make the
two comparable.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from side_by_side import machine

from images import cache
from support.engines import ENGINES, Engine
from support.leaks import command_line
from support.world import World

INTERVAL = 30
CHECK = {"Test": ["CMD", "true"], "Interval": INTERVAL * 10**9, "Timeout": 20 * 10**9, "Retries": 3}


def available() -> int:
    """MemAvailable, KiB."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1])


def cpu() -> float:
    """Seconds of CPU that this world has used."""
    v1 = Path("/sys/fs/cgroup/cpuacct/cpuacct.usage")
    if v1.exists():
        return int(v1.read_text()) / 1e9
    usage = Path("/sys/fs/cgroup/cpu.stat").read_text().splitlines()[0]
    return int(usage.split()[1]) / 1e6


def share(pid: int) -> int:
    """Proportional set size of a process, KiB; 0 for one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def start(engine: Engine, number: int) -> None:
    body = {
        "Image": "busybox",
        "Cmd": ["sleep", "100000"],
        "Healthcheck": CHECK,
        "HostConfig": {"NetworkMode": "dense"},  # the default bridge of a bench has 253 addresses
    }
    status, _, answer = engine.api("POST", f"/containers/create?name=dense-{number}", body)
    assert status == 201, answer
    status, _, answer = engine.api("POST", f"/containers/dense-{number}/start")
    assert status == 204, answer


def measure(world: World, name: str, count: int, seconds: int) -> dict[str, Any]:
    engine = ENGINES[name]()
    try:
        engine.start()
        engine.load(cache.busybox_archive())
        engine.ok("run", "--rm", "busybox", "true")
        engine.ok("network", "create", "--subnet", "10.231.0.0/20", "dense")
        time.sleep(2)
        free, idle = available(), sum(share(pid) for pid in world.processes())
        begin = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: start(engine, number), range(count)))
        starting = time.monotonic() - begin
        time.sleep(INTERVAL + 5)
        healthy = sum("(healthy)" in one["Status"] for one in engine.get("/containers/json"))
        used, begin = cpu(), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - begin
        burnt = cpu() - used
        pids = {pid for pid in world.processes() if " sleep 100000" not in command_line(pid)}
        engines = sum(share(pid) for pid in pids) - idle
        less = free - available()
        return {
            "containers": count,
            "healthy": healthy,
            "seconds to start all": round(starting, 1),
            "processes of the engine": len(pids),
            "CPU, percent of one core": round(100 * burnt / took, 1),
            "CPU ms for each container and check": round(1000 * burnt / took * INTERVAL / count, 2),
            "engine KiB for each container (PSS)": round(engines / count),
            "machine KiB for each container (MemAvailable)": round(less / count),
            "idle engine KiB (PSS)": idle,
        }
    finally:
        if engine.daemon is not None:
            with ThreadPoolExecutor(8) as pool:
                ids = [one["Id"] for one in engine.get("/containers/json?all=1")]
                list(pool.map(lambda one: engine.api("DELETE", f"/containers/{one}?force=1"), ids))
            engine.stop()
        world.kill_all()
        engine.daemon = None
        engine.destroy()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="density", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dray", type=int, default=500, metavar="N", help="containers on dray")
    parser.add_argument(
        "--dockerd", type=int, default=100, metavar="N", help="containers on dockerd; 0 leaves it out"
    )
    parser.add_argument("--seconds", type=int, default=60, help="how long to measure")
    parser.add_argument("--output", type=Path, help="the figures as JSON; default: only printed")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cache.busybox_archive()
    world = World()
    world.enter()
    found: dict[str, Any] = {}
    try:
        for name, count in (("dockerd", options.dockerd), ("drayd", options.dray)):
            if count:
                found[name] = measure(world, name, count, options.seconds)
                print(name, json.dumps(found[name], indent=1), flush=True)
    finally:
        world.leave()
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
