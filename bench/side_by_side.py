"""Measure dray beside dockerd: the same client, the same machine, one run, in turns.

    python -m side_by_side [--quick] [--only TEXT] [--engines drayd,dockerd] [--output FILE]

Both daemons run throughout, in a private network, mount and cgroup world; each measurement is taken from one and
then from the other, so that whatever else the machine does meets both. Medians are printed as a table with the
target of each row, and everything measured is written to a JSON file with a description of the machine. Nothing
is asserted about time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import names
from rows import Row, rows

from images import cache
from support.engines import ENGINES, Engine
from support.world import World


def machine() -> dict[str, Any]:
    """The machine, without its name."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "")
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))

    def version(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory": f"{int(total.split()[1]) // 1024} MB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "client": version("docker", "--version"),
        "dockerd": version("dockerd", "--version"),
        "cgroups": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
    }


def measure(row: Row, engines: list[Engine], repeats: int) -> dict[str, list[float]]:
    """All measurements of a row, by engine."""
    taken: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for engine in engines:
        row.prepare(engine)
    try:
        for engine in engines:  # the first of each is for the caches, and not counted
            row.measure(engine)
        for _ in range(repeats):
            for engine in engines:
                taken[engine.name].append(row.measure(engine))
    finally:
        for engine in engines:
            row.clean(engine)
    return taken


def figure(value: float | None) -> str:
    """Three digits or so."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def line(row: Row, taken: dict[str, list[float]]) -> tuple[str, dict[str, Any]]:
    """A row of the table, and the same for the JSON."""
    medians = {name: statistics.median(values) for name, values in taken.items() if values}
    dray, dockerd = medians.get("drayd"), medians.get("dockerd")
    ratio = dray / dockerd if dray is not None and dockerd else None
    cells = (
        f"| {row.name:<38} | {figure(dray):>8} | {figure(dockerd):>8} | {row.unit:<9} "
        f"| {figure(ratio):>6} | {row.target:<12} |"
    )
    record = {"name": row.name, "unit": row.unit, "target": row.target, "ratio": ratio, "medians": medians}
    return cells, {**record, "measurements": taken}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="side_by_side", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name contains TEXT")
    parser.add_argument("--engines", default="drayd,dockerd", help="which engines, separated by commas")
    parser.add_argument("--output", type=Path, help="the JSON file; default bench/results/TIME.json")
    options = parser.parse_args(argv)

    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ended from outside, it still takes its engines down
    archives = [cache.busybox_archive(), cache.nginx_archive(), cache.bulk_archive()]
    described = machine()
    world = World()
    world.enter()
    engines: list[Engine] = []
    results: list[dict[str, Any]] = []
    try:
        for name in options.engines.split(","):
            engine = ENGINES[name]()
            engines.append(engine)
            engine.start()
            engine.load(archives[0])
        print(
            f"{described['cpu']}, {described['cores']} cores, kernel {described['kernel']}, {described['client']}\n"
        )
        print(f"| {'what':<38} | {'dray':>8} | {'dockerd':>8} | {'unit':<9} | {'ratio':>6} | {'target':<12} |")
        print(f"|{'-' * 40}|{'-' * 9}:|{'-' * 9}:|{'-' * 11}|{'-' * 7}:|{'-' * 14}|")
        for row in [*rows(world), *names.rows()]:
            if options.only not in row.name:
                continue
            try:
                taken = measure(row, engines, row.quick if options.quick else row.repeats)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                print(f"| {row.name:<38} | failed: {' '.join(str(error).split())[:120]}", flush=True)
                results.append({"name": row.name, "failed": str(error)})
                _revive(engines)
                continue
            text, record = line(row, taken)
            print(text, flush=True)
            results.append(record)
    finally:
        _close(engines, world)
    path = options.output or Path(__file__).parent / "results" / time.strftime("%Y%m%dT%H%M%S.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": described, "quick": options.quick, "rows": results}, indent=1))
    print(f"\nwritten to {os.path.relpath(path)}")
    return 0 if all("failed" not in one for one in results) else 1


def _revive(engines: list[Engine]) -> None:
    """After a failed row: daemons running again, without containers."""
    for engine in engines:
        if engine.daemon is None or engine.daemon.poll() is not None:
            engine.daemon = None
            engine.start()
        engine.remove_everything()


def _close(engines: list[Engine], world: World) -> None:
    for engine in engines:
        try:
            if engine.daemon is not None:
                engine.remove_everything()
                engine.stop()
        except (OSError, AssertionError, subprocess.SubprocessError) as error:
            print(f"{engine.name} could not be stopped: {error}", file=sys.stderr)
    world.kill_all()
    for engine in engines:
        engine.daemon = None
        engine.destroy()
    world.leave()


if __name__ == "__main__":
    sys.exit(main())
