"""Bandwidth limits of endpoints, in both directions, as the kernel keeps them and as traffic meets them."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import AsyncIterator

import pytest
from netlab import entered, output, private_host
from test_network_live import Process
from test_network_ports import A, B, Lab

from dray.base.errors import InvalidParameter, Unsupported
from dray.network.asks import NetworkAsk
from dray.network.bandwidth import EGRESS, INGRESS
from dray.network.model import EndpointAsk, Pool, SandboxAsk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with private_host() as host:
        made = Lab(host, host)
        yield made
        await made.close()


def limit(netns: int | None, interface: str) -> int:
    """The rate of an interface's token bucket in bytes per second, 0 for none: what tc reads back."""
    listed = json.loads(output(netns, "tc", "-json", "qdisc", "show", "dev", interface))
    return sum(one["options"]["rate"] for one in listed if one["kind"] == "tbf")


def delivered(sender: int | None, receiver: int | None, address: str, seconds: float) -> int:
    """Bytes that a sender brings to a receiver over TCP in a time."""
    with entered(receiver or -1):
        listener = socket.create_server((address, 7000))
    with entered(sender or -1):
        client = socket.create_connection((address, 7000), timeout=5)
    server, _ = listener.accept()
    with listener, client, server:
        server.settimeout(seconds)
        stop = threading.Event()

        def send() -> None:
            client.settimeout(0.2)
            while not stop.is_set():
                try:
                    client.send(bytes(65536))
                except OSError:
                    continue

        thread = threading.Thread(target=send)
        thread.start()
        total = 0
        timer = threading.Timer(seconds, stop.set)
        timer.start()
        try:
            while not stop.is_set():
                total += len(server.recv(1 << 20))
        except TimeoutError:
            pass
        stop.set()
        thread.join()
        timer.join()
    return total


async def test_options_of_network_and_endpoint(lab: Lab) -> None:
    network = await lab.controller()
    options = {INGRESS: "80mbit", EGRESS: "40mbit"}
    await network.create(NetworkAsk(name="slow", pools=[Pool(subnet="10.1.0.0/24")], options=options))
    plain = await lab.run(network, A, mode="slow")
    own = EndpointAsk(network="slow", driver_opts={EGRESS: "1mbps"})
    slower = await lab.run(network, B, mode="slow", endpoints=[own])
    (first,), (second,) = plain.endpoints, slower.endpoints
    assert (limit(None, first.veth), limit(plain.netns, "eth0")) == (10_000_000, 5_000_000)
    assert (limit(None, second.veth), limit(slower.netns, "eth0")) == (10_000_000, 1_000_000)


async def test_connected_while_running(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(NetworkAsk(name="two", pools=[Pool(subnet="10.1.0.0/24")]))
    made = await lab.run(network, A)
    process = Process(made.netns)
    try:
        ask = EndpointAsk(network="two", driver_opts={INGRESS: "8mbit", EGRESS: "16mbit"})
        after = await network.connect(A, SandboxAsk(name="c"), ask, pid=process.pid)
        assert (limit(None, after[1].veth), limit(made.netns, "eth1")) == (1_000_000, 2_000_000)
        assert limit(made.netns, "eth0") == 0
    finally:
        process.end()


async def test_traffic_meets_the_limit(lab: Lab) -> None:
    """Not a timing: what a limit lets through in a time is bounded from above whatever the machine does."""
    network = await lab.controller()
    fast = await lab.run(network, A)
    ask = EndpointAsk(network="bridge", driver_opts={INGRESS: "8mbit", EGRESS: "8mbit"})
    slow = await lab.run(network, B, endpoints=[ask])
    allowed = 1_000_000 * 0.6 + (128 << 10) + (4 << 20) * 0.25  # rate × time, burst, sockets' buffers
    there = delivered(slow.netns, fast.netns, fast.endpoints[0].ipv4, 0.5)
    back = delivered(fast.netns, slow.netns, slow.endpoints[0].ipv4, 0.5)
    assert 0 < there < allowed
    assert 0 < back < allowed


async def test_what_cannot_be_is_refused_by_name(lab: Lab) -> None:
    network = await lab.controller()
    with pytest.raises(
        InvalidParameter, match=r"invalid value 'fast' of option com\.dray\.network\.bandwidth\.egress"
    ):
        await network.create(NetworkAsk(name="x", options={EGRESS: "fast"}))
    ask = EndpointAsk(network="bridge", driver_opts={EGRESS: "1kbit"})
    with pytest.raises(InvalidParameter, match="at least 8kbit"):
        await network.attach(A, SandboxAsk(endpoints=[ask]))
    output(None, "ip", "link", "add", "wire", "type", "veth", "peer", "name", "far")
    await network.create(
        NetworkAsk(name="lan", driver="macvlan", pools=[Pool(subnet="10.1.0.0/24")], options={"parent": "wire"})
    )
    ask = EndpointAsk(network="lan", driver_opts={INGRESS: "1mbit"})
    with pytest.raises(Unsupported, match="ingress cannot be obeyed on a macvlan network"):
        await network.attach(A, SandboxAsk(mode="lan", endpoints=[ask]))
