"""What an engine has left in the world: taken before and after, and compared.

A `Snapshot` holds everything that a container's life may leave behind: processes, mounts, network links, nftables
tables and iptables rules, cgroups, bound network namespaces and, for a daemon, its open descriptors. All of it is
read from the kernel, never asked of the engine.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path

from support.world import World


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The world at one moment. Every field is a set of lines that a person can read."""

    processes: frozenset[str]
    mounts: frozenset[str]
    links: frozenset[str]
    rules: frozenset[str]
    cgroups: frozenset[str]

    def added(self, before: Snapshot) -> dict[str, list[str]]:
        """What is here and was not in `before`, by kind; empty when nothing is."""
        found = {}
        for field in fields(self):
            new = sorted(getattr(self, field.name) - getattr(before, field.name))
            if new:
                found[field.name] = new
        return found


def command_line(pid: int) -> str:
    """A process as a line: `pid name arguments`."""
    with contextlib.suppress(OSError):
        words = (
            Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        )
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        return f"{pid} {name} {words[:200]}"
    return ""


def state(pid: int) -> str:
    """The state letter of a process (proc(5)), or "" when there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    return ""


def _links() -> frozenset[str]:
    listed = subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True)
    return frozenset(f"{link['ifname']}" for link in json.loads(listed.stdout))


def _rules() -> frozenset[str]:
    listed = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, text=True, check=True)
    found = set()
    for item in json.loads(listed.stdout)["nftables"]:
        for kind, body in item.items():
            if kind == "metainfo":
                continue
            for entry in body.pop("elem", []):
                found.add(f"{body.get('table')} {body.get('name')} element {json.dumps(entry)}")
            body.pop("handle", None)
            if kind == "rule":
                body["expr"] = [e for e in body["expr"] if "counter" not in e]
            found.add(f"{kind} {json.dumps(body, sort_keys=True)}")
    return frozenset(found)


def _mounts() -> frozenset[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return frozenset(line.split(" ")[4] + " " + line.split(" - ", 1)[1] for line in lines)


def _cgroups() -> frozenset[str]:
    found = set()
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        # An engine's parent cgroup is made once in a hierarchy, and kept.
        found.update(os.path.join(folder, name) for name in names if name not in ("docker", "dray"))
    return frozenset(found)


def take(world: World, *, ignoring: Collection[int] = ()) -> Snapshot:
    """Take a snapshot. Processes in `ignoring` and the test's own plain children are left out."""
    mine = {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    pids = world.processes() - set(ignoring) - mine
    return Snapshot(
        processes=frozenset(line for pid in pids if state(pid) not in ("", "Z") and (line := command_line(pid))),
        mounts=_mounts(),
        links=_links(),
        rules=_rules(),
        cgroups=_cgroups(),
    )


def settled(take_one: Callable[[], Snapshot], before: Snapshot, *, timeout: float = 10) -> dict[str, list[str]]:
    """What stays added to `before`, giving the engine `timeout` seconds to finish its own cleaning."""
    deadline = time.monotonic() + timeout
    while True:
        added = take_one().added(before)
        if not added or time.monotonic() > deadline:
            return added
        time.sleep(0.05)


def descriptors(pid: int) -> dict[str, int]:
    """The open descriptors of a process, counted by kind: {"socket": 3, "pipe": 2, "/dev/null": 3, …}."""
    counts: dict[str, int] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            kind = os.readlink(f"/proc/{pid}/fd/{name}").split(":")[0]
            counts[kind] = counts.get(kind, 0) + 1
    return counts
