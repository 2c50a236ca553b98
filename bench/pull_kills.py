"""Pulls of a large layer that are broken ten times each, from both registries: `make pull-kills`.

Needs root: it makes a private world (namespaces, cgroups) with a daemon, a registry, and a line between them that can
be cut. What breaks a pull is told in `tests/support/brokenpulls.py`; what was sent is read from an access log in front
of the registry. Exit status 1 if more than was allowed came twice; the seed is printed for the next attempt.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from support.brokenpulls import ALLOWED, KINDS, BrokenPull
from support.engines import Drayd
from support.line import FAR, Line
from support.registries import PROGRAM, DebianRegistry, DrayRegistry
from support.world import World


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="pull_kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--breaks", type=int, default=10, help="how often each pull is broken")
    parser.add_argument("--size", type=int, default=256, help="MiB of the layer")
    parser.add_argument("--rate", type=float, default=40, help="MB a second of the line")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    parser.add_argument("--registry", choices=["dray", "debian"], help="only this one")
    asked = parser.parse_args()
    kinds: dict[str, type[DebianRegistry]] = {"dray": DrayRegistry}
    if PROGRAM is not None:
        kinds["debian"] = DebianRegistry
    if asked.registry == "debian" and PROGRAM is None:
        parser.error("docker-registry is not installed")
    base = Path(tempfile.mkdtemp(prefix="pull-kills-", dir="/var/tmp"))
    world = World(name=f"pull-kills-{base.name}")
    world.enter()
    held = True
    try:
        for name in [asked.registry] if asked.registry else kinds:
            held &= _broken(name, kinds[name], base / name, asked)
    finally:
        world.leave()
        shutil.rmtree(base, ignore_errors=True)
    return 0 if held else 1


def _broken(name: str, kind: type[DebianRegistry], base: Path, asked: argparse.Namespace) -> bool:
    """Break one pull; tell whether hardly a byte came twice."""
    rng = random.Random(asked.seed)
    breaks = [KINDS[n % len(KINDS)] for n in range(asked.breaks)]
    rng.shuffle(breaks)
    print(f"\n{name} registry, seed {asked.seed}", flush=True)
    with Line() as line, kind(base / "registry") as registry:
        engine = Drayd(base / "engine", flags=["--insecure-registry", f"{FAR}/32"])
        engine.start()
        try:
            pull = BrokenPull(
                engine, registry, line, size=asked.size << 20, rate=asked.rate * 1e6, seed=asked.seed
            )
            told = pull.run(pull.fill(), breaks)
        finally:
            if engine.daemon is not None:
                engine.stop()
    held = told.worst <= ALLOWED and told.sent >= told.size
    print(f"{told}\n{'held' if held else 'NOT HELD'}", flush=True)
    return held


if __name__ == "__main__":
    sys.exit(main())
