"""Many containers started at once on one network: an address each, and every name known to every other.

DRAY_TEST_CONTAINERS says how many; the default is what a test may take. 200 are run by `make names`.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import dns.message
import dns.rdatatype
import pytest

from support.engines import Engine
from support.netstate import agree
from support.world import inside

COUNT = int(os.environ.get("DRAY_TEST_CONTAINERS", "30"))
NETWORK = "crowd"
RESOLVER = ("127.0.0.11", 53)
WINDOW = 32


@pytest.fixture
def crowd(engine: Engine) -> Iterator[dict[str, str]]:
    """The containers' addresses by name. All are started in the same moment."""
    engine.ok("network", "create", NETWORK)
    gate = threading.Barrier(COUNT)
    settings = {"Image": "busybox", "Cmd": ["sleep", "6000"], "HostConfig": {"NetworkMode": NETWORK}}

    def launch(name: str) -> int:
        assert engine.api("POST", f"/containers/create?name={name}", settings, timeout=300)[0] == 201
        gate.wait()
        return engine.api("POST", f"/containers/{name}/start", timeout=300)[0]

    with ThreadPoolExecutor(COUNT) as threads:
        assert set(threads.map(launch, [f"box{n}" for n in range(COUNT)])) == {204}
    members = engine.inspect(NETWORK, kind="network")["Containers"].values()
    yield {one["Name"]: one["IPv4Address"].partition("/")[0] for one in members}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: engine.api("DELETE", f"/containers/box{n}?force=1", timeout=300), range(COUNT)))
    engine.ok("network", "rm", NETWORK)


def asked_inside(pid: int, names: list[str]) -> dict[str, str]:
    """What the resolver answers in a container's network, `WINDOW` questions at a time: the one address, or what is
    wrong with the answer."""
    queries = [struct.pack("!H", number) + question(name) for number, name in enumerate(names)]

    def ask() -> dict[str, str]:
        found = {}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(5)
            asking.connect(RESOLVER)
            for first in range(0, len(queries), WINDOW):
                some = queries[first : first + WINDOW]
                for query in some:
                    asking.send(query)
                for _ in some:
                    answer = asking.recv(512)
                    number, flags, _, answers, others, more = struct.unpack_from("!6H", answer)
                    right = (flags & 0xF, answers, others, more) == (0, 1, 0, 0)
                    found[names[number]] = socket.inet_ntoa(answer[-4:]) if right else answer.hex()
        return found

    return inside(pid, ask)


@cache
def question(name: str) -> bytes:
    """A query for the address of a name, without its number."""
    return dns.message.make_query(name, dns.rdatatype.A).to_wire()[2:]


@pytest.mark.timeout(120 + 4 * COUNT)
@pytest.mark.drayd_only("dockerd takes minutes for that many, and its resolver is another test's")
def test_every_name_from_every_other(engine: Engine, crowd: dict[str, str]) -> None:
    assert len(crowd) == COUNT
    assert len(set(crowd.values())) == COUNT, "an address was given twice"
    pids = {name: int(engine.get(f"/containers/{name}/json")["State"]["Pid"]) for name in crowd}
    names = list(crowd)

    def all_from_all(when: str) -> None:
        for name, pid in pids.items():
            assert asked_inside(pid, names) == crowd, f"{when}, asked by {name}"

    all_from_all("at once")
    agree(engine, after=f"{COUNT} at once")
    engine.kill()
    all_from_all("without a daemon")
    engine.start()
    agree(engine, after="a restart among them")
    all_from_all("after the daemon's return")
