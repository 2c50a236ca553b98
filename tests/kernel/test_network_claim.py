"""Two daemons on one host: each has a bridge of its own, or the second does not start."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from netlab import LocalNamespaces, MemoryRecords, private_host

from dray.base.errors import Conflict
from dray.network.controller import Controller
from dray.network.model import NetworkConfig, SandboxAsk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(autouse=True)
def host() -> Iterator[int]:
    with private_host() as netns:
        yield netns


def controller(**settings: str) -> Controller:
    return Controller(MemoryRecords(), NetworkConfig(**settings), LocalNamespaces())  # type: ignore[arg-type]


async def test_a_second_daemon_with_the_same_bridge_is_refused() -> None:
    first = controller()
    await first.start({})
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Conflict, match="another daemon keeps the bridge dray0 on this host: give"):
        controller()
    assert len(os.listdir("/proc/self/fd")) == before
    other = controller(bridge="other0")
    await other.start({})
    await other.close(wipe=True)
    await first.close()
    again = controller()
    await again.start({})
    await again.close()


async def test_a_bridge_with_the_containers_of_other_records_is_refused() -> None:
    first = controller()
    await first.start({})
    running = await first.attach("a" * 64, SandboxAsk(name="web"))
    await first.close()
    second = controller()
    with pytest.raises(Conflict, match="carries containers of a daemon with another --data-root"):
        await second.start({})
    await second.close()
    running.close()
