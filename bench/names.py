"""Names in user-defined networks: how fast the resolver answers, and what it adds to a start.

1,000 names are 100 aliases of each of 10 containers. They are asked by dnsperf (Debian package dnsperf) inside the
containers' network namespaces, a second or two at a time.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass

from rows import Command, Row

from support.engines import Engine

NETWORK = "bench-names"
CONTAINERS, ALIASES = 10, 100
_RATE = re.compile(r"Queries per second:\s+([\d.]+)")
_LATENCY = re.compile(r"Average Latency \(s\):\s+([\d.]+)")


@dataclass
class Names(Row):
    """Queries a second (`waiting` of them under way) or milliseconds a query, asked from `containers` at once."""

    containers: int = 1
    waiting: int = 1
    latency: bool = False

    def prepare(self, engine: Engine) -> None:
        engine.ok("network", "create", NETWORK)
        for box in range(CONTAINERS):
            aliases = [word for name in range(ALIASES) for word in ("--network-alias", f"n{box}-{name}")]
            engine.ok(
                "run", "-d", "--name", f"box{box}", "--network", NETWORK, *aliases, "busybox", "sleep", "9999"
            )

    def measure(self, engine: Engine) -> float:
        with tempfile.NamedTemporaryFile("w", suffix=".names") as file:
            for name in range(ALIASES):
                file.writelines(f"n{box}-{name} A\n" for box in range(CONTAINERS))
            file.flush()
            asking = [self._ask(engine, f"box{box}", file.name) for box in range(self.containers)]
            told = [one.communicate(timeout=60)[0] for one in asking]
        found = [float((_LATENCY if self.latency else _RATE).search(text).group(1)) for text in told]  # type: ignore[union-attr]
        return 1000 * sum(found) / len(found) if self.latency else sum(found) / 1000

    def _ask(self, engine: Engine, box: str, names: str) -> subprocess.Popen[str]:
        pid = engine.state(box)["Pid"]
        return subprocess.Popen(
            f"nsenter -t {pid} -n dnsperf -s 127.0.0.11 -d {names} -l 2 -q {self.waiting}".split(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def clean(self, engine: Engine) -> None:
        engine.remove_everything()
        engine.docker("network", "rm", NETWORK)


@dataclass
class InNetwork(Command):
    """A command of the client in a user-defined network."""

    def prepare(self, engine: Engine) -> None:
        engine.ok("network", "create", NETWORK)

    def clean(self, engine: Engine) -> None:
        engine.remove_everything()
        engine.docker("network", "rm", NETWORK)


def rows() -> list[Row]:
    """The table's part on names."""
    run = ("run", "--rm", "--network", NETWORK, "busybox", "true")
    quick = {"quick": 2, "repeats": 5}
    rate = {"more_is_better": True, **quick}
    return [
        InNetwork("names: run --rm busybox true, user-defined network", "ms", "≤ 0.20", words=run),
        Names("names: one query at a time, one container", "ms", "", latency=True, **quick),  # type: ignore[arg-type]
        Names("names: 1,000 names, one container", "k queries/s", "", waiting=50, **rate),  # type: ignore[arg-type]
        Names("names: 1,000 names, ten containers", "k queries/s", "", containers=10, waiting=10, **rate),  # type: ignore[arg-type]
    ]
