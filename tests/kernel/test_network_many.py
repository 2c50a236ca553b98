"""More endpoints than a bridge has ports."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from netlab import LocalNamespaces, MemoryRecords, Server, output, private_host, say

from dray.network import extensions
from dray.network.controller import Controller
from dray.network.model import Attachment, NetworkConfig, SandboxAsk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A private host where a bridge takes two endpoints."""
    monkeypatch.setattr(extensions, "PORTS", 2)
    with private_host() as netns:
        yield netns


async def controller(records: MemoryRecords, running: dict[str, list[object]], **settings: object) -> Controller:
    made = Controller(records, NetworkConfig(**settings), LocalNamespaces())  # type: ignore[arg-type]
    await made.start(running)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("icc", [True, False])
async def test_a_full_bridge_gets_another_beneath_it(icc: bool) -> None:
    records = MemoryRecords()
    network = await controller(records, {}, icc=icc)
    made: list[Attachment] = []
    for number in range(5):
        made.append(await network.attach(f"{number}" * 64, SandboxAsk(name=f"c{number}")))
    first, last, other = made[1], made[4], made[3]
    server, host_server = Server(first.netns, 80), Server(None, 99)
    addresses = [one.endpoints[0].ipv4 for one in made]
    try:
        assert output(None, "ip", "link").count(": drayx") == 2
        reached = say(last.netns, addresses[1], 80, timeout=2.0 if icc else 0.3)  # from below to above
        assert (reached == f"{addresses[4]} hi") is icc
        assert say(last.netns, "172.17.0.1", 99, timeout=2) == f"{addresses[4]} hi"
        assert say(made[0].netns, "172.17.0.1", 99, timeout=2) == f"{addresses[0]} hi"  # above
        below = Server(last.netns, 81)
        answer = say(other.netns, addresses[4], 81, timeout=2.0 if icc else 0.3)
        assert (answer == f"{addresses[3]} hi") is icc
        below.close()
        await network.close()
        running: dict[str, list[object]] = {f"{n}" * 64: list(one.endpoints) for n, one in enumerate(made)}
        network = await controller(records, running, icc=icc)
        assert say(last.netns, "172.17.0.1", 99, timeout=2) == f"{addresses[4]} hi"  # a restart keeps it
        for number, one in enumerate(made):
            await network.detach(f"{number}" * 64, one.endpoints)
    finally:
        server.close()
        host_server.close()
        for one in made:
            one.close()
        await network.close(wipe=True)
    left = output(None, "ip", "link")
    assert "drayx" not in left
    assert "drayu" not in left
