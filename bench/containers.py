"""The container tables: looking inside, moving files, health checks, density.

Processor time is that of the engine's processes (daemon, containerd, shims, and what they start on the containers'
behalf until it is in the container), without the client's and the containers' own.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accounting import Account
from daemons import close, revive
from rows import Command, Row, clock, family, memory
from tables import Table

from images import cache
from support.engines import ENGINES, Engine
from support.leaks import state
from support.world import World

FEW = {"repeats": 3, "quick": 1}
IDLE = ("busybox", "sleep", "6000")


def idle(engine: Engine, count: int, *flags: str) -> None:
    """Start `count` idle containers, idle0 and so on."""
    for number in range(count):
        engine.ok("run", "-d", "--name", f"idle{number}", *flags, *IDLE)


@dataclass
class Counted(Row):
    """A row with the engine's processor time."""

    accounts: dict[str, Account] = field(default_factory=dict)
    warm: bool = False

    def metrics(self) -> list[tuple[str, str, str]]:
        return [(self.name, "s", self.target), ("  processor of the engine", "s", "")]

    def cost(self, engine: Engine, *words: str) -> list[float]:
        """Time of the client, and processor seconds of the engine."""
        account = self.accounts[engine.name]
        begin = account.processor()
        taken = clock(lambda: engine.ok(*words, timeout=300))
        return [taken, account.processor() - begin]


@dataclass
class Stats(Command):
    """One look at twenty containers."""

    count: int = 20

    def prepare(self, engine: Engine) -> None:
        idle(engine, self.count)


@dataclass
class OneShot(Stats):
    """One answer of the API about one container, without waiting for a second sample."""

    count: int = 1

    def measure(self, engine: Engine) -> float:
        path = "/v1.41/containers/idle0/stats?stream=0&one-shot=1"
        return 1000 * clock(lambda: engine.get(path))


@dataclass
class PerMinute(Row):
    """Processor seconds of the engine in a minute, while `count` containers are looked after for `span` seconds."""

    unit: str = "s/min"
    accounts: dict[str, Account] = field(default_factory=dict)
    warm: bool = False
    count: int = 20
    span: float = 10.0
    flags: tuple[str, ...] = ()
    watching: tuple[str, ...] = ()  # a client's words that go on meanwhile

    def measure(self, engine: Engine) -> float:
        idle(engine, self.count, *self.flags)
        with contextlib.ExitStack() as stack:
            if self.watching:
                stack.enter_context(
                    engine.spawn(*self.watching, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                )
            time.sleep(2)
            account = self.accounts[engine.name]
            begin, start = account.processor(), time.monotonic()
            time.sleep(self.span)
            used = (account.processor() - begin) * 60 / (time.monotonic() - start)
        engine.remove_everything()
        return used


@dataclass
class CopyOut(Counted):
    """/usr of the 1 GB image to the host."""

    def prepare(self, engine: Engine) -> None:
        engine.load(cache.stack_layout())
        engine.ok("create", "--name", "box", "stack", "true")

    def figures(self, engine: Engine) -> list[float]:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            return self.cost(engine, "cp", "box:/usr", folder)


@dataclass
class CopyIn(CopyOut):
    """The same tree back into a new container."""

    tree: Path = Path()

    def prepare(self, engine: Engine) -> None:
        if not (self.tree / "usr").exists():
            engine.load(cache.stack_layout())
            engine.ok("create", "--name", "box", "stack", "true")
            engine.ok("cp", "box:/usr", str(self.tree), timeout=300)

    def figures(self, engine: Engine) -> list[float]:
        engine.ok("create", "--name", "into", "busybox", "true")
        found = self.cost(engine, "cp", str(self.tree / "usr"), "into:/copied")
        engine.ok("rm", "-f", "into", timeout=120)
        return found

    def clean(self, engine: Engine) -> None:
        super().clean(engine)
        shutil.rmtree(self.tree / "usr", ignore_errors=True)


CHANGE = "mkdir -p /many; i=0; while [ $i -lt 10000 ]; do echo $i > /many/$i; i=$((i+1)); done"


@dataclass
class Changed(Counted):
    """A verb on a container that has made 10,000 files."""

    words: tuple[str, ...] = ()

    def prepare(self, engine: Engine) -> None:
        engine.ok("run", "--name", "box", "busybox", "sh", "-c", CHANGE, timeout=120)

    def figures(self, engine: Engine) -> list[float]:
        found = self.cost(engine, *self.words)
        engine.docker("rmi", "committed")
        return found


@dataclass
class Density(Row):
    """Memory of the engine and all its shims per idle container, shared pages counted once (Pss)."""

    world: World | None = None
    warm: bool = False
    count: int = 50

    def metrics(self) -> list[tuple[str, str, str]]:
        return [
            (self.name, "MB", self.target),
            ("  of it private and written", "MB", "≤ 0.50"),
            ("  engine and shims, all", "MB", ""),
        ]

    def figures(self, engine: Engine) -> list[float]:
        assert self.world is not None
        before = self.world.processes()
        idle(engine, self.count)
        time.sleep(1)
        programs = {engine.state(f"idle{number}")["Pid"] for number in range(self.count)}
        came = {pid for pid in self.world.processes() - before - programs if state(pid) not in ("", "Z")}
        everything = came | family(engine.pid)
        whole = sum(memory(pid, "Pss") for pid in everything - programs) / 1e6
        private = sum(memory(pid, "Private_Dirty") for pid in came) / 1e6
        shims = sum(memory(pid, "Pss") for pid in came) / 1e6
        engine.remove_everything()
        return [shims / self.count, private / self.count, whole]


def container_rows(accounts: dict[str, Account], world: World, tree: Path) -> list[Row]:
    """The table, in its order."""
    counted: dict[str, Any] = {"accounts": accounts, **FEW}
    check = ("--health-cmd", "true", "--health-interval", "1s")
    return [
        OneShot("stats of one container, one shot", "ms", repeats=10),
        Stats("stats --no-stream, 20 containers", "ms", repeats=3, quick=1, words=("stats", "--no-stream")),
        PerMinute("stats stream, 20 containers", watching=("stats",), **counted),
        PerMinute("50 idle containers", count=50, **counted),
        PerMinute("50 health checks a second", count=50, flags=check, **counted),
        Density("density: shim per idle container", world=world, repeats=2, quick=1),
        Changed("diff, 10,000 files", words=("diff", "box"), **counted),
        Changed("commit, 10,000 files", words=("commit", "box", "committed"), **counted),
        CopyOut("cp of a 1 GB tree out", **counted),
        CopyIn("cp of a 1 GB tree in", tree=tree, **counted),
    ]


def tables(stack: contextlib.ExitStack, world: World, names: list[str]) -> Iterator[Table]:
    """The one table; everything is taken down when `stack` ends."""
    busybox = cache.busybox_archive()
    cache.stack_layout()  # made now: in the world there is no way out
    tree = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
    world.enter()
    running: list[Engine] = []
    accounts: dict[str, Account] = {}
    stack.callback(close, running, world)
    for name in names:
        engine, accounts[name] = ENGINES[name](), Account(name)
        running.append(engine)
        with accounts[name].inside():
            engine.start()
        engine.load(busybox)
    yield Table("Containers", running, container_rows(accounts, world, tree), lambda: revive(running))
