"""The image store's garbage collection under random work, for as long as one likes: `make soak-gc MINUTES=30`.

Needs root: it makes a private world (namespaces, cgroups) and a daemon and a registry in it. What must hold is told
in `tests/support/soak.py`. Exit status 1 when something did not; the seed is printed for the next attempt.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from support.engines import Drayd
from support.registries import PROGRAM, DebianRegistry, DrayRegistry
from support.soak import Broken, Soak
from support.world import World


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--round", type=float, default=20, help="seconds of work between two checks")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    parser.add_argument("--registry", choices=["dray", "debian"], default="dray")
    parser.add_argument("--no-kills", action="store_true", help="never kill the daemon")
    parser.add_argument("--keep", action="store_true", help="leave the folder when something did not hold")
    asked = parser.parse_args()
    if asked.registry == "debian" and PROGRAM is None:
        parser.error("docker-registry is not installed")
    print(f"seed {asked.seed}", flush=True)
    base = Path(tempfile.mkdtemp(prefix="gc-soak-", dir="/var/tmp"))
    world = World(name=f"gc-soak-{base.name}")
    world.enter()
    engine = Drayd(base / "engine")
    kind = DrayRegistry if asked.registry == "dray" else DebianRegistry
    held = False
    try:
        with kind(base / "registry") as registry:
            soak = Soak(engine, registry, seed=asked.seed, kills=not asked.no_kills)
            began = time.monotonic()
            try:
                soak.prepare()
                soak.run(
                    asked.minutes * 60,
                    round_seconds=asked.round,
                    say=lambda line: print(f"{time.monotonic() - began:7.0f} s  {line}", flush=True),
                )
                held = True
            except Broken as error:
                print(f"NOT HELD after {time.monotonic() - began:.0f} s: {error}", file=sys.stderr)
            total = sum(soak.done.values())
            print(f"{soak.rounds} rounds, {total} operations: {dict(sorted(soak.done.items()))}")
    finally:
        if engine.daemon is not None and held:
            engine.stop()
        world.leave()
        if held or not asked.keep:
            shutil.rmtree(base, ignore_errors=True)
        else:
            print(f"kept: {base}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
