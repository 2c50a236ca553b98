"""Wear drayd out: thousands of containers from several clients while daemon and shims are killed.

    python -m soak [--containers 2000] [--clients 8] [--seed N] [--kills SECONDS] [--calm SHARE] [--output FILE]

Each client makes containers in turns, by one recipe after the other (plain, published port, volume, user-defined
network, exec, removed by itself, killed while it runs), all over the API. A chaos thread kills the daemon (and
starts it again at once) or the shim of a container at random. Every answer goes into a ledger: what was acknowledged
must be there, with its exit status and its output; what was said to be removed must be gone. A connection that broke
tells nothing, so the client looks and asks again.

The last share of the containers is made in calm, for the growth of the daemon's descriptors and memory. At the end
the world is compared with the one before: processes, mounts, links, nftables, cgroups, network namespaces, names
in the resolver, folders and room on disk. Two witnesses run throughout: a container whose log must count without a
gap, and one that must be found by its name.

The exit status is 1 when anything leaked or was lost; the report says what.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import House
from images import cache
from support.engines import Engine, until
from support.leaks import descriptors, state
from support.world import World

NETWORK = "soak-net"
WITNESS, NAMED = "soak-witness", "soak-named"
COUNTS = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done"
BROKEN = (OSError, http.client.HTTPException)
PATIENCE = 120.0


@dataclass
class Ledger:
    """What the engine has acknowledged. Guarded by its own lock; `problems` is what the soak is about."""

    kept: dict[str, int | None] = field(default_factory=dict)  # id → exit status, None when it was never started
    gone: set[str] = field(default_factory=set)
    shot: set[str] = field(default_factory=set)  # containers whose shim was killed: any end is a right one
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def problem(self, what: str) -> None:
        with self.lock:
            self.problems.append(what)
        print(f"PROBLEM {what}", flush=True)


class Client:
    """One client: every verb is repeated until the daemon has given an answer."""

    def __init__(self, engine: Engine, ledger: Ledger) -> None:
        self._engine = engine
        self.ledger = ledger

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body of the first answer; asked again while the connection breaks."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                status, _, answer = self._engine.api(method, path, body, timeout=60)
            except BROKEN as error:
                self.ledger.count("broken connections")
                if time.monotonic() > deadline:
                    raise AssertionError(f"{method} {path}: no answer in {PATIENCE:.0f} s: {error!r}") from error
                time.sleep(0.05)
            else:
                return status, answer

    def create(self, name: str, body: dict[str, Any]) -> str:
        """Create, or find what a broken create has made; the id."""
        status, answer = self.ask("POST", f"/containers/create?name={name}", body)
        if status == 409:  # the answer of the first try was lost
            status, answer = self.ask("GET", f"/containers/{name}/json")
            return str(json.loads(answer)["Id"])
        if status != 201:
            raise AssertionError(f"create {name}: {status} {answer[:300]!r}")
        return str(json.loads(answer)["Id"])

    def start(self, one: str) -> bool:
        """Whether it was started: a container whose shim was killed on the way may fail to."""
        status, answer = self.ask("POST", f"/containers/{one}/start")
        if status in (204, 304):
            return True
        if one in self.ledger.shot:
            return False
        raise AssertionError(f"start {one[:12]}: {status} {answer[:300]!r}")

    def wait(self, one: str) -> int:
        """The exit status."""
        status, answer = self.ask("POST", f"/containers/{one}/wait")
        if status != 200:
            raise AssertionError(f"wait {one[:12]}: {status} {answer[:300]!r}")
        return int(json.loads(answer)["StatusCode"])

    def remove(self, one: str, *, force: bool = False) -> None:
        """Remove, and see that it is gone."""
        deadline = time.monotonic() + PATIENCE
        while True:
            status, answer = self.ask("DELETE", f"/containers/{one}?v=1" + ("&force=1" if force else ""))
            if status in (204, 404):
                break
            if status != 409 or b"already in progress" not in answer or time.monotonic() > deadline:
                raise AssertionError(f"remove {one[:12]}: {status} {answer[:300]!r}")
            time.sleep(0.05)
        with self.ledger.lock:
            self.ledger.gone.add(one)
        status, _ = self.ask("GET", f"/containers/{one}/json")
        if status != 404:
            self.ledger.problem(f"{one[:12]} answers {status} after its removal")

    def output(self, one: str) -> bytes:
        """The log without frames' headers (lines of this soak are shorter than one frame)."""
        status, answer = self.ask("GET", f"/containers/{one}/logs?stdout=1&stderr=1")
        if status != 200:
            raise AssertionError(f"logs {one[:12]}: {status} {answer[:300]!r}")
        return answer


Recipe = Callable[[Client, str, int], None]


def body(*command: str, host: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"Image": "busybox", "Cmd": list(command), "HostConfig": host or {}, **fields}


def _finish(client: Client, one: str, token: str, code: int, *, keep: bool) -> None:
    """Wait for the end, compare status and output with what the program did, remove or keep."""
    ended = client.wait(one)
    if one not in client.ledger.shot:
        if ended != code:
            client.ledger.problem(f"{one[:12]} ended with {ended} instead of {code}")
        told = client.output(one)
        if token.encode() not in told:
            known = json.loads(client.ask("GET", f"/containers/{one}/json")[1])
            kept = Path(known["LogPath"]).read_bytes()
            client.ledger.problem(
                f"{known['Name']} {one[:12]} has lost its output: told {told!r}, log {kept!r}, state {known['State']}, "
                f"told later {client.output(one)!r}"
            )
    if keep:
        with client.ledger.lock:
            client.ledger.kept[one] = ended
    else:
        client.remove(one)


def plain(client: Client, name: str, turn: int) -> None:
    code = turn % 100
    one = client.create(name, body("sh", "-c", f"echo {name}; exit {code}"))
    if client.start(one):
        _finish(client, one, name, code, keep=turn % 20 == 0)
    else:
        client.remove(one, force=True)


def never_started(client: Client, name: str, turn: int) -> None:
    one = client.create(name, body("true", Volumes={"/anonymous": {}}))
    if turn % 10 == 0:
        with client.ledger.lock:
            client.ledger.kept[one] = None
    else:
        client.remove(one)


def published(client: Client, name: str, turn: int) -> None:
    host = {"PortBindings": {"80/tcp": [{"HostPort": ""}]}, "Memory": 64 << 20}
    one = client.create(name, body("sleep", "600", host=host, ExposedPorts={"80/tcp": {}}))
    if client.start(one):
        known = json.loads(client.ask("GET", f"/containers/{one}/json")[1])
        if one not in client.ledger.shot and not known["State"]["Running"]:
            client.ledger.problem(f"{name} was started and does not run: {known['State']}")
    client.remove(one, force=True)


def volume(client: Client, name: str, turn: int) -> None:
    status, answer = client.ask("POST", "/volumes/create", {"Name": name})
    if status != 201:
        raise AssertionError(f"volume create: {status} {answer!r}")
    written = True  # unless the one that should have was shot
    for text in ("written", "again"):
        script = f"echo {text} >> /v/file; cat /v/file"
        one = client.create(f"{name}-{text}", body("sh", "-c", script, host={"Binds": [f"{name}:/v"]}))
        if client.start(one):
            _finish(client, one, "written" if written else text, 0, keep=False)
        else:
            client.remove(one, force=True)
        written = one not in client.ledger.shot
    status, answer = client.ask("DELETE", f"/volumes/{name}")
    if status not in (204, 404):
        client.ledger.problem(f"volume rm {name}: {status} {answer!r}")


def in_network(client: Client, name: str, turn: int) -> None:
    """The named witness is found by its name, also while the daemon is away."""
    script = f"nslookup {NAMED} >/dev/null && echo {name} && exit 7; exit 8"
    endpoint = {"EndpointsConfig": {NETWORK: {"Aliases": [f"alias-{name}"]}}}
    one = client.create(name, body("sh", "-c", script, host={"NetworkMode": NETWORK}, NetworkingConfig=endpoint))
    if client.start(one):
        _finish(client, one, name, 7, keep=False)
    else:
        client.remove(one, force=True)


def executed(client: Client, name: str, turn: int) -> None:
    one = client.create(name, body("sleep", "600", host={"NetworkMode": "none"}))
    if client.start(one):
        status, answer = client.ask("POST", f"/containers/{one}/exec", {"Cmd": ["true"]})
        if status == 201:
            made = json.loads(answer)["Id"]
            client.ask("POST", f"/exec/{made}/start", {"Detach": True})
            client.ask("POST", f"/exec/{made}/resize?h=10&w=10")
        elif one not in client.ledger.shot:
            client.ledger.problem(f"exec create: {status} {answer!r}")
        client.ask("POST", f"/containers/{one}/stop?t=0")
    client.remove(one, force=True)


def removes_itself(client: Client, name: str, turn: int) -> None:
    one = client.create(name, body("true", host={"AutoRemove": True}))
    client.ask("POST", f"/containers/{one}/start")  # over before a second try: 404 is right as well
    deadline = time.monotonic() + 30
    while client.ask("GET", f"/containers/{one}/json")[0] != 404:
        if time.monotonic() > deadline:
            known = client.ask("GET", f"/containers/{one}/json")[1]
            # Killed between create and start, or with its shim: it was never started, or waits for its removal.
            client.ledger.problem(f"{name} did not remove itself: {known[:600]!r}")
            break
        time.sleep(0.02)
    client.remove(one, force=True)


def killed(client: Client, name: str, turn: int) -> None:
    one = client.create(name, body("sleep", "600", host={"PidsLimit": 50}))
    if client.start(one):
        client.ask("POST", f"/containers/{one}/kill")
        code = client.wait(one)
        if code != 137 and one not in client.ledger.shot:
            client.ledger.problem(f"{name} was killed and ended with {code}")
    client.remove(one, force=True)


RECIPES: list[Recipe] = [
    plain, plain, published, volume, in_network, executed, removes_itself, killed, never_started,
]  # fmt: skip


class Chaos(threading.Thread):
    """Kills, until told to stop: a daemon every now and then, shims in between."""

    def __init__(self, engine: Engine, ledger: Ledger, pace: float, seed: int, spared: set[str]) -> None:
        super().__init__(name="chaos")
        self._engine, self._ledger, self._pace, self._spared = engine, ledger, pace, spared
        self._random = random.Random(seed)
        self.done = threading.Event()
        self.restarts: list[float] = []

    def run(self) -> None:
        while not self.done.wait(self._random.uniform(0.3, 1.7) * self._pace):
            if self._random.random() < 0.3:
                self._daemon()
            else:
                self._shim()

    def _daemon(self) -> None:
        self._engine.kill()
        begin = time.monotonic()
        try:
            self._engine.start(timeout=60)
        except Exception as error:
            self._ledger.problem(f"the daemon did not come back: {error}")
            self.done.set()
            return
        self.restarts.append(time.monotonic() - begin)
        self._ledger.count("kills of the daemon")

    def _shim(self) -> None:
        tasks = self._engine.exec_root / "tasks"
        names = [one for one in os.listdir(tasks) if one not in self._spared]
        if not names:
            return
        one = self._random.choice(names)
        with self._ledger.lock:
            self._ledger.shot.add(one)
        try:
            pid = int((tasks / one / "shim.pid").read_text())
            os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):
            return
        self._ledger.count("kills of shims")


def work(
    client: Client, label: str, turns: collections.deque[int], pause: Callable[[], None] = lambda: None
) -> None:
    """One client's loop: the next turn until there is none."""
    while True:
        try:
            turn = turns.popleft()
        except IndexError:
            return
        recipe = RECIPES[turn % len(RECIPES)]
        try:
            recipe(client, f"{label}-{turn}", turn)
        except Exception as error:
            client.ledger.problem(f"{recipe.__name__} {turn}: {error!r}")
        client.ledger.count("turns")
        pause()


def run(engine: Engine, ledger: Ledger, count: int, clients: int, label: str) -> float:
    """`count` containers from `clients` threads; seconds taken."""
    turns = collections.deque(range(count))
    begin = time.monotonic()
    threads = [
        threading.Thread(target=work, args=(Client(engine, ledger), label, turns), daemon=True)
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begin


def memory(pid: int) -> int:
    """Private memory of a process, KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@dataclass(frozen=True)
class Disk:
    """What the engine holds on disk: entries of each folder, bytes in all."""

    entries: frozenset[str]
    used: int


def disk(engine: Engine) -> Disk:
    found = set()
    for root in (engine.data_root, engine.exec_root):
        for folder in root.iterdir():
            if folder.is_dir() and folder.name != "content":
                found.update(f"{folder.name}/{entry}" for entry in os.listdir(folder))
    listed = subprocess.run(
        ["du", "-sxB1", "--exclude=dray.db*", str(engine.data_root)],
        capture_output=True,
        text=True,
        check=False,
    )
    return Disk(frozenset(found), int(listed.stdout.split()[0]))


def namespaces(world: World) -> int:
    """Network namespaces that processes of this world are in or hold by a descriptor."""
    found = set()
    for pid in world.processes():
        for path in [f"/proc/{pid}/ns/net", *(f"/proc/{pid}/fd/{fd}" for fd in _fds(pid))]:
            try:
                target = os.readlink(path)
            except OSError:
                continue
            if target.startswith("net:"):
                found.add(target)
    return len(found)


def _fds(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []


def verify(engine: Engine, ledger: Ledger) -> None:
    """Everything acknowledged is there, everything removed is gone."""
    listed = {one["Id"] for one in engine.get("/containers/json?all=1")}
    for one in ledger.gone & listed:
        ledger.problem(f"{one[:12]} is back after its removal")
    for one, code in ledger.kept.items():
        if one not in listed:
            ledger.problem(f"{one[:12]} was acknowledged and is lost")
            continue
        known = engine.get(f"/containers/{one}/json")["State"]
        expected = ("created", 0) if code is None else ("exited", code)
        if (known["Status"], known["ExitCode"]) != expected:
            ledger.problem(f"{one[:12]} is {known} instead of {expected}")
    unknown = listed - set(ledger.kept)
    names = {one["Id"]: one["Names"] for one in engine.get("/containers/json?all=1") if one["Id"] in unknown}
    for one, name in names.items():
        if name not in ([f"/{WITNESS}"], [f"/{NAMED}"]):
            ledger.problem(f"{one[:12]} {name} is there and belongs to nobody")


def witness_is_well(engine: Engine, ledger: Ledger, pids: dict[str, int]) -> None:
    for name, pid in pids.items():
        if engine.state(name)["Pid"] != pid or state(pid) in ("", "Z"):
            ledger.problem(f"{name} was disturbed")
    numbers = [int(line) for line in engine.ok("logs", WITNESS).split()]
    if numbers != list(range(1, len(numbers) + 1)):
        ledger.problem("the log of the witness has a gap")
    ledger.counts["lines of the witness"] = len(numbers)


def soak(house: House, world: World, options: argparse.Namespace) -> dict[str, Any]:
    engine = house.up()
    engine.ok("volume", "create", "soak-warm")
    engine.ok("volume", "rm", "soak-warm")
    house.baseline = house.snapshot()
    disk_before, namespaces_before = disk(engine), namespaces(world)
    engine.ok("network", "create", NETWORK)
    ledger = Ledger()
    for name, script in ((WITNESS, COUNTS), (NAMED, "sleep 100000")):
        engine.ok("run", "-d", "--name", name, "--network", NETWORK, "busybox", "sh", "-c", script)
    pids = {name: engine.state(name)["Pid"] for name in (WITNESS, NAMED)}
    spared = {engine.inspect(name)["Id"] for name in (WITNESS, NAMED)}

    wild = int(options.containers * (1 - options.calm))
    chaos = Chaos(engine, ledger, options.kills, options.seed, spared)
    chaos.start()
    try:
        seconds = run(engine, ledger, wild, options.clients, "wild")
    finally:
        chaos.done.set()
        chaos.join()
    if engine.daemon is None or not engine.answers():
        raise SystemExit("the daemon is gone: " + "; ".join(ledger.problems))
    verify(engine, ledger)

    run(engine, ledger, 3 * options.clients, options.clients, "warm")
    engine.get("/containers/json")
    before = (sum(descriptors(engine.pid).values()), memory(engine.pid))
    calm = options.containers - wild
    calm_seconds = run(engine, ledger, calm, options.clients, "calm")
    time.sleep(3)
    after = (sum(descriptors(engine.pid).values()), memory(engine.pid))
    if after[0] > before[0] + 5:
        ledger.problem(f"descriptors of the daemon grew: {before[0]} to {after[0]}: {descriptors(engine.pid)}")
    verify(engine, ledger)
    witness_is_well(engine, ledger, pids)

    engine.remove_everything()
    engine.ok("network", "rm", NETWORK)
    for kind, lines in house.leaks().items():
        ledger.problem(f"left behind, {kind}: {lines[:10]} ({len(lines)} in all)")

    def grown() -> set[str]:
        """New entries; of layers' folders, whose names are never used again, as many as were there are right."""
        found = disk(engine).entries
        layers = sum(one.startswith("overlay2/") for one in found)
        before = sum(one.startswith("overlay2/") for one in disk_before.entries)
        return {one for one in found - disk_before.entries if not one.startswith("overlay2/") or layers > before}

    deadline = time.monotonic() + 30
    while grown() and time.monotonic() < deadline:
        time.sleep(0.5)
    if left := grown():
        ledger.problem(f"left on disk: {sorted(left)[:10]} ({len(left)} in all)")
    disk_after = disk(engine)
    if disk_after.used > disk_before.used + (1 << 20):
        ledger.problem(f"room on disk: {disk_before.used} before, {disk_after.used} after")
    until(lambda: namespaces(world) <= namespaces_before + 1, timeout=20, what="network namespaces")
    return {
        "containers": options.containers,
        "clients": options.clients,
        "seed": options.seed,
        "seconds with kills": round(seconds, 1),
        "calm containers": calm,
        "seconds in calm": round(calm_seconds, 1),
        "daemon restarts, seconds": [round(one, 2) for one in chaos.restarts],
        "descriptors of the daemon, before and after the calm": [before[0], after[0]],
        "private KiB of the daemon, before and after the calm": [before[1], after[1]],
        "bytes on disk, before and after": [disk_before.used, disk_after.used],
        "network namespaces, before and after": [namespaces_before, namespaces(world)],
        "kept and found again": len(ledger.kept),
        "counts": dict(ledger.counts),
        "problems": ledger.problems,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--containers", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=float, default=2.0, metavar="SECONDS", help="mean time between two kills")
    parser.add_argument("--calm", type=float, default=0.25, help="share of containers made without kills")
    parser.add_argument("--output", type=Path, help="the report as JSON; default: only printed")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cache.busybox_archive()
    cache.nginx_archive()
    world = World()
    world.enter()
    house = House(world, "drayd")
    try:
        report = soak(house, world, options)
    finally:
        if os.environ.get("SOAK_KEEP_LOG") and house.engine is not None:
            Path(os.environ["SOAK_KEEP_LOG"]).write_bytes(house.engine.log.read_bytes())
        house.down()
        world.leave()
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
