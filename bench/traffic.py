"""The network tables: joining and starting, streams, requests, the price of many published ports, names.

Streams are iperf3's, requests wrk's (Debian packages), run in the containers' network namespaces or on the host, so
that no client of the engine and no program of an image is in the way. Paths:

    direct      container → container, by its address
    published   host → container, by a port published on the host's address
    loopback    the same by 127.0.0.1
    hairpin     container → container, by the host's address and a published port
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import names
from daemons import close, revive
from podman import PodmanService
from rows import Row, clock, memory
from tables import Table

from images import cache
from support.engines import ENGINES, Engine, until
from support.world import HOST_ADDRESS, World

NETWORK = "bench-traffic"
SECONDS = 1
FIRST_PORT = {"drayd": 20000, "dockerd": 30000, "podman": 26000}
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")

ACCEPT = """
import socket, sys
listener = socket.create_server(("", int(sys.argv[1])), backlog=1024)
while True:
    listener.accept()[0].close()
"""


def inside(engine: Engine, box: str, *command: str) -> subprocess.Popen[str]:
    """Start a program of the host in a container's network."""
    words = ["nsenter", "-t", str(engine.state(box)["Pid"]), "-n", *command]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def sleeper(engine: Engine, name: str, *flags: str) -> None:
    engine.ok("run", "-d", "--name", name, "--network", NETWORK, *flags, "busybox", "sleep", "9999")


@dataclass
class InNetwork(Row):
    """A row with a user-defined network."""

    def prepare(self, engine: Engine) -> None:
        engine.ok("network", "create", NETWORK)

    def clean(self, engine: Engine) -> None:
        engine.remove_everything()
        engine.docker("network", "rm", NETWORK)


@dataclass
class Connect(InNetwork):
    """`docker network connect` of a running container."""

    def prepare(self, engine: Engine) -> None:
        super().prepare(engine)
        engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "9999")

    def measure(self, engine: Engine) -> float:
        taken = 1000 * clock(lambda: engine.ok("network", "connect", NETWORK, "box"))
        engine.ok("network", "disconnect", NETWORK, "box")
        return taken


@dataclass
class Start(InNetwork):
    """`docker start` of a container with a published port."""

    def measure(self, engine: Engine) -> float:
        ports = ("-p", f"{HOST_ADDRESS}::80")
        engine.ok("create", "--name", "box", "--network", NETWORK, *ports, "busybox", "sleep", "9999")
        taken = 1000 * clock(lambda: engine.ok("start", "box"))
        engine.ok("rm", "-f", "box")
        return taken


@dataclass
class Between(InNetwork):
    """A server's container and a client's one, and the way from one to the other."""

    path: str = "direct"
    port: int = 5201

    def prepare(self, engine: Engine) -> None:
        super().prepare(engine)
        published = "127.0.0.1" if self.path == "loopback" else HOST_ADDRESS
        sleeper(engine, "server", "-p", f"{published}::{self.port}")
        sleeper(engine, "client")

    def target_of(self, engine: Engine) -> tuple[str, str]:
        """Where the client finds the server: (address, port)."""
        if self.path == "direct":
            settings = engine.inspect("server")["NetworkSettings"]["Networks"][NETWORK]
            return settings["IPAddress"], str(self.port)
        bound = engine.ports("server")[f"{self.port}/tcp"][0]["HostPort"]
        return "127.0.0.1" if self.path == "loopback" else HOST_ADDRESS, bound

    def ask(self, engine: Engine, *command: str) -> str:
        """Run the client's program where the path begins; its output."""
        if self.path in ("published", "loopback"):
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        with inside(engine, "client", *command) as client:
            return client.communicate(timeout=60)[0]


@dataclass
class Stream(Between):
    """One TCP connection at full speed; Gbit/s."""

    def measure(self, engine: Engine) -> float:
        address, port = self.target_of(engine)
        with inside(engine, "server", "iperf3", "-s", "-1", "-p", str(self.port), "--forceflush") as server:
            assert server.stdout is not None
            while "listening" not in (line := server.stdout.readline()):
                assert line, "iperf3 did not start"
            told = json.loads(self.ask(engine, "iperf3", "-c", address, "-p", port, "-t", str(SECONDS), "-J"))
            server.wait(30)
        assert "error" not in told, told["error"]
        return float(told["end"]["sum_received"]["bits_per_second"]) / 1e9


@dataclass
class Requests(Between):
    """HTTP requests to nginx on 16 connections, or on a new connection each; thousands per second."""

    port: int = 80
    fresh: bool = False

    def prepare(self, engine: Engine) -> None:
        engine.load(cache.nginx_archive())
        InNetwork.prepare(self, engine)
        published = "127.0.0.1" if self.path == "loopback" else HOST_ADDRESS
        engine.ok(
            "run", "-d", "--name", "server", "--network", NETWORK, "-p", f"{published}::{self.port}", "nginx"
        )
        sleeper(engine, "client")
        address = engine.inspect("server")["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
        until(lambda: _answers(address, self.port), what="nginx")

    def measure(self, engine: Engine) -> float:
        address, port = self.target_of(engine)
        closing = ("-H", "Connection: close") if self.fresh else ()
        told = self.ask(
            engine, "wrk", "-t1", "-c16", f"-d{SECONDS}s", *closing, f"http://{address}:{port}/index.html"
        )
        found = _RATE.search(told)
        assert found, told
        return float(found[1]) / 1000


def _answers(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


@dataclass
class ManyPorts(Row):
    """A connection to the last of many published ports, beside what publishing them cost: time, and the private
    memory of the processes that came with the container."""

    count: int = 10
    world: World | None = None

    def metrics(self) -> list[tuple[str, str, str]]:
        return [
            (self.name, "µs", self.target),
            ("  start of the container", "s", ""),
            ("  private memory", "MB", ""),
        ]

    def figures(self, engine: Engine) -> list[float]:
        first = FIRST_PORT[engine.name]
        last = first + self.count - 1
        ports = f"{HOST_ADDRESS}:{first}-{last}:{first}-{last}"
        assert self.world is not None
        before = self.world.processes()
        start = clock(
            lambda: engine.ok("run", "-d", "--name", "box", "-p", ports, "busybox", "sleep", "9999", timeout=580)
        )
        came = self.world.processes() - before - {engine.state("box")["Pid"]}
        grown = sum(memory(pid, "Private_Dirty") for pid in came)
        with inside(engine, "box", sys.executable, "-c", ACCEPT, str(last)) as listener:
            until(lambda: _answers(HOST_ADDRESS, last), what="the listener")
            taken = [clock(lambda: _answers(HOST_ADDRESS, last)) for _ in range(500)]
            listener.kill()
        engine.ok("rm", "-f", "box", timeout=580)
        return [1e6 * statistics.median(taken), start, grown / 1e6]


def rows(world: World) -> list[Row]:
    """The table, in its order."""
    quick = {"repeats": 5, "quick": 2}
    once = {"repeats": 1, "quick": 1, "warm": False}  # dockerd takes a minute
    rate = {"more_is_better": True, **quick}
    made: list[Row] = [
        Connect("network connect, running container", "ms", "≤ 0.40"),
        Start("start, own network, one port", "ms", "≤ 0.30"),
    ]
    for path in ("direct", "published", "loopback", "hairpin"):
        made.append(Stream(f"stream, {path}", "Gbit/s", "≥ 1.0", path=path, **rate))  # type: ignore[arg-type]
    for path in ("direct", "published", "hairpin"):
        made.append(Requests(f"requests, {path}", "k/s", "≥ 1.0", path=path, **rate))  # type: ignore[arg-type]
    made.append(
        Requests("a connection for each, published", "k/s", "≥ 1.0", path="published", fresh=True, **rate)  # type: ignore[arg-type]
    )
    both = ("drayd", "dockerd")
    few = {"repeats": 2, "quick": 1, "warm": False}
    made += [
        ManyPorts("connection, 10 ports published", "µs", "≤ 1.0", count=10, world=world, **few),  # type: ignore[arg-type]
        ManyPorts("connection, 1,000 ports", "µs", "", count=1000, world=world, only=both, **once),  # type: ignore[arg-type]
        ManyPorts("connection, 5,000 ports", "µs", "flat", count=5000, world=world, only=both[:1], **few),  # type: ignore[arg-type]
    ]
    for row in names.rows():
        row.only = both  # podman needs a plugin for names, which Debian's CNI plugins do not have
        made.append(row)
    return made


def tables(stack: contextlib.ExitStack, world: World, chosen: list[str]) -> Iterator[Table]:
    """The one table; everything is taken down when `stack` ends."""
    busybox = cache.busybox_archive()
    cache.nginx_archive()
    world.enter()
    running: list[Engine] = []
    stack.callback(close, running, world)
    for name in chosen:
        engine = PodmanService() if name == "podman" else ENGINES[name]()
        running.append(engine)
        engine.start()
        engine.load(busybox)
        time.sleep(0.1)

    def again() -> None:
        revive(running)
        for engine in running:
            for network in (NETWORK, names.NETWORK):
                engine.docker("network", "rm", network)

    yield Table("Networks", running, rows(world), again)
