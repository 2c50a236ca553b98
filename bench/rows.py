"""What is measured: one class a row, each with what it prepares, one measurement, and what it cleans up.

A measurement is a whole program's wall time as the user sees it (the official client's included), or a rate or a
size read from the kernel. `Row.measure` is called in turn for one engine and the other.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from images import cache
from support.engines import Engine, until
from support.leaks import state
from support.world import HOST_ADDRESS, World

OBEYS = "trap 'exit 0' TERM; while :; do sleep 0.05; done"


def clock(act: Callable[[], object]) -> float:
    """Seconds that `act` takes."""
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


@dataclass
class Row:
    """One line of the table. `target` is dray ÷ dockerd; rates are better when more, all else when less."""

    name: str = ""
    unit: str = "ms"
    target: str = ""
    repeats: int = 10
    quick: int = 3
    more_is_better: bool = False
    warm: bool = True  # a first measurement that is not counted
    patience: float = math.inf  # seconds of one row after which no further round begins
    only: tuple[str, ...] = ()  # names of the subjects it can be measured on; empty: all

    def metrics(self) -> list[tuple[str, str, str]]:
        """(name, unit, target) of what one measurement gives: each is a line of the table."""
        return [(self.name, self.unit, self.target)]

    def figures(self, engine: Engine) -> list[float]:
        """One measurement: a figure for each metric."""
        return [self.measure(engine)]

    def prepare(self, engine: Engine) -> None:
        """Done once, before the first measurement."""

    def measure(self, engine: Engine) -> float:
        """The figure of a row that has one; a row with several has `figures` instead."""
        raise TypeError(f"{type(self).__name__} says neither `measure` nor `figures`")

    def clean(self, engine: Engine) -> None:
        engine.remove_everything()


@dataclass
class Command(Row):
    """The client's wall time for one command."""

    words: tuple[str, ...] = ()

    def measure(self, engine: Engine) -> float:
        return 1000 * clock(lambda: engine.ok(*self.words))


@dataclass
class InContainer(Command):
    """A command on a container that runs."""

    def prepare(self, engine: Engine) -> None:
        engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "6000")


@dataclass
class EndOfContainer(Row):
    """stop or rm -f of a program that obeys SIGTERM."""

    words: tuple[str, ...] = ()

    def measure(self, engine: Engine) -> float:
        engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", OBEYS)
        time.sleep(0.15)  # until the shell has set its trap
        taken = 1000 * clock(lambda: engine.ok(*self.words, "box"))
        engine.docker("rm", "-f", "box")
        return taken


@dataclass
class AtOnce(Row):
    """Fifty `docker run -d` started together; containers per second."""

    count: int = 50

    def measure(self, engine: Engine) -> float:
        def run() -> None:
            clients = [
                subprocess.Popen(
                    engine.argv("run", "-d", "busybox", "sleep", "6000"),
                    env=engine.env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
                for _ in range(self.count)
            ]
            failed = [client.args for client in clients if client.wait(300) != 0]
            assert not failed, f"{len(failed)} of {self.count} failed"

        rate = self.count / clock(run)
        engine.remove_everything()
        return rate


def create(engine: Engine, count: int) -> None:
    """Make containers without starting them."""
    for number in range(count):
        body = {"Image": "busybox", "Cmd": ["true"], "Labels": {"n": str(number)}}
        assert engine.api("POST", f"/containers/create?name=made{number}", body)[0] == 201


@dataclass
class ManyListed(Command):
    """ps -a with many containers."""

    count: int = 500

    def prepare(self, engine: Engine) -> None:
        create(engine, self.count)


@dataclass
class Load(Row):
    """docker load of the bulk image, removed again after each."""

    def measure(self, engine: Engine) -> float:
        path = str(cache.bulk_archive())
        taken = clock(lambda: engine.ok("load", "-q", "-i", path, timeout=300))
        engine.ok("rmi", "bulk:latest", timeout=300)
        return taken


@dataclass
class LogRate(Row):
    """Five million lines through json-file, nobody attached; thousand lines per second."""

    lines: int = 5_000_000

    def measure(self, engine: Engine) -> float:
        def run() -> None:
            engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", f"yes | head -n {self.lines}")
            engine.ok("wait", "box", timeout=300)

        taken = clock(run)
        last = engine.ok("logs", "--tail", "1", "box")
        assert last == "y"
        engine.ok("rm", "-f", "box")
        return self.lines / taken / 1000


@dataclass
class AttachRate(Row):
    """1 GiB of zeros through `docker run` to the client; MB per second."""

    size: int = 1 << 30

    def measure(self, engine: Engine) -> float:
        blocks = self.size >> 20
        command = f"dd if=/dev/zero bs=1M count={blocks} 2>/dev/null"
        with engine.spawn(
            *("run", "--rm", "--log-driver", "none", "busybox", "sh", "-c", command), stdin=subprocess.DEVNULL
        ) as client:
            assert client.stdout is not None
            begin = time.perf_counter()
            got, buffer = 0, bytearray(1 << 20)
            while count := client.stdout.readinto(buffer):  # type: ignore[attr-defined]
                got += count
            taken = time.perf_counter() - begin
            assert (client.wait(), got) == (0, self.size)
        return self.size / taken / 1e6


@dataclass
class PortRate(Row):
    """A stream from a container through a published port, read at the host's address; MB per second."""

    size: int = 1 << 30

    def prepare(self, engine: Engine) -> None:
        engine.load(cache.nginx_archive())
        engine.ok(
            *("run", "-d", "--name", "box", "-p", f"{HOST_ADDRESS}::80", "nginx"),
            *("socat", "-u", "-b", "262144", "OPEN:/dev/zero", "TCP-LISTEN:80,fork,reuseaddr"),
        )

    def measure(self, engine: Engine) -> float:
        import socket

        port = int(engine.ports("box")["80/tcp"][0]["HostPort"])

        def connect() -> socket.socket | None:
            """A connection that gives data: a proxy accepts before the server listens."""
            try:
                link = socket.create_connection((HOST_ADDRESS, port), timeout=30)
            except OSError:
                return None
            if link.recv(1):
                return link
            link.close()
            return None

        with until(connect, what="the server") as link:
            got, buffer = 0, bytearray(1 << 20)
            begin = time.perf_counter()
            while got < self.size:
                count = link.recv_into(buffer)
                assert count, "the stream ended"
                got += count
            return got / (time.perf_counter() - begin) / 1e6


def memory(pid: int, kind: str) -> int:
    """Bytes of `kind` (a field of smaps_rollup, such as Pss or Private_Dirty) of a process."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == kind:
                return int(value.split()[0]) * 1024
    except OSError:
        pass
    return 0


@dataclass
class ContainerMemory(Row):
    """Private dirty memory of an engine's processes per idle container with one published port; MB.

    Counted are the processes that came with the containers, without the containers' own programs.
    """

    count: int = 10
    world: World | None = None

    def measure(self, engine: Engine) -> float:
        assert self.world is not None
        before = self.world.processes()
        for number in range(self.count):
            engine.ok(
                "run", "-d", "--name", f"idle{number}", "-p", f"{HOST_ADDRESS}::80", "busybox", "sleep", "6000"
            )
        time.sleep(3)  # idle is who has had nothing to do for a while
        programs = {engine.state(f"idle{number}")["Pid"] for number in range(self.count)}
        came = {pid for pid in self.world.processes() - before - programs if state(pid) not in ("", "Z")}
        total = sum(memory(pid, "Private_Dirty") for pid in came)
        engine.remove_everything()
        return total / self.count / 1e6


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    found, queue = set(), [pid]
    while queue:
        one = queue.pop()
        found.add(one)
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            queue += [int(child) for child in path.read_text().split()]
    return found


@dataclass
class EngineMemory(Row):
    """Resident memory of the idle engine, shared pages counted once (Pss); MB."""

    def measure(self, engine: Engine) -> float:
        engine.restart()
        time.sleep(1)
        return sum(memory(pid, "Pss") for pid in family(engine.pid)) / 1e6


@dataclass
class DaemonStart(Row):
    """From exec of the daemon to the first answer to _ping."""

    count: int = 0

    def prepare(self, engine: Engine) -> None:
        create(engine, self.count)

    def measure(self, engine: Engine) -> float:
        engine.stop(timeout=120)

        def start() -> None:
            engine.launch()
            while not engine.answers():
                assert engine.daemon is not None
                assert engine.daemon.poll() is None, "the daemon ended"
                time.sleep(0.001)

        taken = 1000 * clock(start)
        time.sleep(0.3)  # what a daemon does behind its first answer is not the next measurement's business
        return taken


@dataclass
class OwnClient(Row):
    """`dray ps` on drayd beside `docker ps` on dockerd, whole processes."""

    def measure(self, engine: Engine) -> float:
        dray = [sys.executable, "-m", "dray.cli.main"]
        installed = Path(sys.executable).with_name("dray")
        if installed.exists():
            dray = [str(installed)]
        command = [*dray, "ps"] if engine.name == "drayd" else ["docker", "ps"]
        env = {**engine.environment(), "DOCKER_HOST": engine.host}
        return 1000 * clock(lambda: subprocess.run(command, env=env, check=True, capture_output=True))


def rows(world: World) -> list[Row]:
    """The table, in its order."""
    rate = {"more_is_better": True}
    return [
        Command("run --rm busybox true, bridge", "ms", "≤ 0.20", words=("run", "--rm", "busybox", "true")),
        Command(
            "run --rm busybox true, --network none",
            "ms",
            "≤ 0.20",
            words=("run", "--rm", "--network", "none", "busybox", "true"),
        ),
        InContainer("exec box true", "ms", "≤ 0.40", words=("exec", "box", "true")),
        AtOnce("50 × run -d at once", "1/s", "≥ 5", quick=2, **rate),
        EndOfContainer("stop, program obeys SIGTERM", "ms", "≤ 0.30", words=("stop",)),
        EndOfContainer("rm -f, running", "ms", "≤ 0.30", words=("rm", "-f")),
        ManyListed("ps -a, 500 containers", "ms", "≤ 1.0", words=("ps", "-a")),
        Load("load, 21 layers, 520 MB", "s", "≤ 0.50", quick=2),
        LogRate("log, 5 million lines", "k lines/s", "≥ 1.0", quick=2, **rate),
        AttachRate("attach, 1 GiB", "MB/s", "≥ 1.0", quick=2, **rate),
        PortRate("published port, TCP", "MB/s", "≥ 1.0", quick=2, **rate),
        ContainerMemory("private memory per idle container", "MB", "≤ 0.50", quick=2, world=world),
        EngineMemory("resident memory, idle engine", "MB", "≤ 0.60", quick=2),
        DaemonStart("daemon start to first _ping, empty", "ms", "≤ 0.50"),
        DaemonStart("the same, 1,000 containers", "ms", "≤ 0.50", quick=2, count=1000),
        OwnClient("dray ps beside docker ps", "ms", "dray ≤ 60 ms"),
    ]
