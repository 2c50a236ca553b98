"""`dray stats`: containers' resource usage, once or as a table that renews itself every second.

One thread reads each container's stream; the main thread prints. With no names, containers that start or stop
while it runs come and go in the table.
"""

from __future__ import annotations

import sys
import threading
import time

from dray.base.errors import DrayError
from dray.base.units import bytes_size, human_size
from dray.cli.command import MANY, Command, Failure
from dray.cli.flags import Flag
from dray.cli.output import Column, Listing, short_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values
    from dray.client.api import Client

    Sample = dict[str, Any]

_INTERVAL = 0.5


def cpu_percent(sample: Sample) -> float:
    """Return the CPU use between the two readings of a sample; 100 is one CPU."""
    now, before = sample.get("cpu_stats") or {}, sample.get("precpu_stats") or {}
    usage = (now.get("cpu_usage") or {}).get("total_usage", 0) - (before.get("cpu_usage") or {}).get(
        "total_usage", 0
    )
    system = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    cpus = now.get("online_cpus") or len((now.get("cpu_usage") or {}).get("percpu_usage") or ())
    return usage / system * cpus * 100 if usage > 0 and system > 0 else 0.0


def memory_used(memory: dict[str, Any]) -> int:
    """Return memory without the page cache that the kernel would give back at once."""
    usage, details = int(memory.get("usage", 0)), memory.get("stats") or {}
    for key in ("total_inactive_file", "inactive_file"):
        if key in details and details[key] < usage:
            return usage - int(details[key])
    return usage


def summarize(name: str, sample: Sample) -> dict[str, Any]:
    """Return the figures of one sample."""
    memory = sample.get("memory_stats") or {}
    used, limit = memory_used(memory), int(memory.get("limit", 0))
    networks = (sample.get("networks") or {}).values()
    blocks = (sample.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()

    def moved(letter: str) -> int:
        return sum(int(one.get("value", 0)) for one in blocks if one.get("op", "")[:1].lower() == letter)

    return {
        "container": name,
        "name": str(sample.get("name") or "").removeprefix("/"),
        "id": sample.get("id") or "",
        "cpu": cpu_percent(sample),
        "memory": used,
        "limit": limit,
        "percent": used / limit * 100 if limit else 0.0,
        "received": sum(one.get("rx_bytes", 0) for one in networks),
        "sent": sum(one.get("tx_bytes", 0) for one in networks),
        "read": moved("r"),
        "written": moved("w"),
        "pids": (sample.get("pids_stats") or {}).get("current", 0),
    }


def listing(*, full: bool) -> Listing:
    """Return the list of samples; a sample without figures shows dashes."""

    def known(text: Any, empty: str = "--") -> Any:
        return lambda one: empty if one.get("failed") else text(one)

    columns = {
        "Container": Column("CONTAINER", lambda one: one["container"]),
        "Name": Column("NAME", lambda one: one.get("name") or "--"),
        "ID": Column("CONTAINER ID", lambda one: one["id"] if full else one["id"][:12]),
        "CPUPerc": Column("CPU %", known(lambda one: f"{one['cpu']:.2f}%")),
        "MemUsage": Column(
            "MEM USAGE / LIMIT",
            known(lambda one: f"{bytes_size(one['memory'])} / {bytes_size(one['limit'])}", "-- / --"),
        ),
        "MemPerc": Column("MEM %", known(lambda one: f"{one['percent']:.2f}%")),
        "NetIO": Column(
            "NET I/O", known(lambda one: f"{human_size(one['received'])} / {human_size(one['sent'])}")
        ),
        "BlockIO": Column(
            "BLOCK I/O", known(lambda one: f"{human_size(one['read'])} / {human_size(one['written'])}")
        ),
        "PIDs": Column("PIDS", known(lambda one: str(one["pids"]))),
    }
    return Listing(
        "*formatter.statsContext",
        columns,
        ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"),
        raw=(("container", "Container"), ("name", "Name"), ("cpu", "CPUPerc"), ("mem_usage", "MemUsage")),
    )


class _Watch:
    """The newest sample of one container, read by a thread of its own."""

    def __init__(self, client: Client, name: str, *, stream: bool) -> None:
        self.name = name
        self.latest: dict[str, Any] | None = None
        self.error: DrayError | None = None
        self.gone = False
        self.ready = threading.Event()
        self._client = client.clone()
        self._stream = stream
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        response = None
        try:
            response = self._client.containers.stats(self.name, stream=self._stream)
            for sample in response.documents():
                self.latest = summarize(self.name, sample)
                self.ready.set()
        except (DrayError, OSError, ValueError) as error:
            self.error = error if isinstance(error, DrayError) else Failure(str(error))
        finally:
            if response is not None:
                response.close()
            self._client.close()
        self.gone = True
        self.ready.set()

    def row(self) -> dict[str, Any]:
        """Return the newest figures, or a row of dashes."""
        if self.latest is not None:
            return self.latest
        return {"container": self.name, "name": "", "id": self.name, "failed": True}


def run_stats(app: App, values: Values, arguments: list[str]) -> int:
    """Show resource usage."""
    client = app.client
    form = values["format"] or app.config.text("statsFormat")
    table = listing(full=values["no-trunc"])
    names = arguments or [
        short_id(one["Id"]) if not values["no-trunc"] else one["Id"]
        for one in client.containers.list(all=values["all"])
    ]
    watches = {name: _Watch(client, name, stream=not values["no-stream"]) for name in names}
    for watch in watches.values():
        watch.ready.wait(None if values["no-stream"] else 3)
    errors = [watch.error for watch in watches.values() if watch.error is not None and watch.latest is None]
    if arguments and errors:
        raise Failure("\n".join(map(str, errors)))
    if values["no-stream"]:
        app.out(table.render([watch.row() for watch in watches.values() if watch.error is None], form))
        return 0
    live = sys.stdout.isatty()
    try:
        while True:
            if not arguments:
                _refresh(client, watches, everything=values["all"], full=values["no-trunc"])
            text = table.render([watch.row() for watch in watches.values()], form)
            # Home, each line cleared behind its text, and whatever stood below: no flicker.
            app.out("\x1b[H" + text.replace("\n", "\x1b[K\n") + "\x1b[J" if live else text)
            sys.stdout.flush()
            if arguments and all(watch.gone for watch in watches.values()):
                return 0
            time.sleep(_INTERVAL)
    except KeyboardInterrupt:
        return 0


def _refresh(client: Client, watches: dict[str, _Watch], *, everything: bool, full: bool) -> None:
    running = [one["Id"] if full else short_id(one["Id"]) for one in client.containers.list(all=everything)]
    for name in set(watches) - set(running):
        del watches[name]
    for name in running:
        if name not in watches:
            watches[name] = _Watch(client, name, stream=True)


COMMANDS = {
    "container stats": Command(
        "[OPTIONS] [CONTAINER...]",
        run_stats,
        flags=(
            Flag("all", "bool", "Show stopped containers too", short="a"),
            Flag("format", "string", "Print with a template: 'table', 'table TEMPLATE', 'json', or a Go template"),
            Flag("no-stream", "bool", "Print once and end"),
            Flag("no-trunc", "bool", "Shorten nothing"),
        ),
        args=(0, MANY),
    ),
}
