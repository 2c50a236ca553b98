"""Measure dray beside dockerd: the same client, the same machine, one run, in turns.

    python -m side_by_side [--group NAME] [--quick] [--only TEXT] [--engines drayd,dockerd] [--output FILE]

Five groups of tables: `engines` (what a user waits for all day), `containers` (looking inside, density, health
checks), `net` (networks), `images` (pulls and pushes), `registry` (ours beside Debian's). All subjects run throughout, in a private network, mount and cgroup world; each
measurement is taken from one and then from the other, so that whatever else the machine does meets both. Medians are
printed as a table with the target of each row, and everything measured is written to a JSON file with a description
of the machine. Nothing is asserted about time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import containers
import daemons
import traffic
import transfers
from names import rows as names_rows
from rows import rows
from tables import Table

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


def engines(stack: contextlib.ExitStack, world: World, names: list[str]) -> Iterator[Table]:
    """What a user waits for all day."""
    archives = [cache.busybox_archive(), cache.nginx_archive(), cache.bulk_archive()]
    world.enter()
    running: list[Engine] = []
    stack.callback(daemons.close, running, world)
    for name in names:
        engine = ENGINES[name]()
        running.append(engine)
        engine.start()
        engine.load(archives[0])
    yield Table("Engines", running, [*rows(world), *names_rows()], lambda: daemons.revive(running))


Group = Callable[[contextlib.ExitStack, World, list[str]], Iterator[Table]]
GROUPS: dict[str, tuple[Group, str]] = {
    "engines": (engines, "drayd,dockerd"),
    "containers": (containers.tables, "drayd,dockerd"),
    "net": (traffic.tables, "drayd,dockerd,podman"),
    "images": (transfers.tables, "drayd,dockerd,podman,limit"),
    "registry": (transfers.registry_tables, "drayd,docker-registry"),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="side_by_side", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--group", choices=list(GROUPS), default="engines", help="which tables; default engines")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name contains TEXT")
    parser.add_argument(
        "--engines", metavar="NAMES", help="which engines, separated by commas; default all of the group"
    )
    parser.add_argument("--output", type=Path, help="the JSON file; default bench/results/GROUP-TIME.json")
    options = parser.parse_args(argv)

    # Ended from outside, it still takes its engines down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    described = machine()
    group, subjects = GROUPS[options.group]
    results: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        print(
            f"{described['cpu']}, {described['cores']} cores, kernel {described['kernel']}, {described['client']}"
        )
        for table in group(stack, World(), (options.engines or subjects).split(",")):
            results += table.run(only=options.only, quick=options.quick)
    default = Path(__file__).parent / "results" / f"{options.group}-{time.strftime('%Y%m%dT%H%M%S')}.json"
    path = options.output or default
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": described, "quick": options.quick, "rows": results}, indent=1))
    print(f"\nwritten to {os.path.relpath(path)}")
    return 0 if all("failed" not in one for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
