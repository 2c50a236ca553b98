from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from netlab import LocalNamespaces, MemoryRecords, Server, output, private_host, say

from dray.base.errors import InvalidParameter, NotFound
from dray.linux.links import Links
from dray.network.controller import Controller
from dray.network.model import EndpointAsk, NetworkConfig, SandboxAsk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

A, B = "a" * 64, "b" * 64


@pytest.fixture(autouse=True)
def host() -> Iterator[int]:
    with private_host() as netns:
        yield netns


async def controller(**settings: object) -> Controller:
    made = Controller(MemoryRecords(), NetworkConfig(**settings), LocalNamespaces())  # type: ignore[arg-type]
    await made.start({})
    return made


async def test_two_containers_reach_each_other_and_the_host() -> None:
    network = await controller()
    first = await network.attach(A, SandboxAsk(name="first"))
    second = await network.attach(B, SandboxAsk(name="second"))
    server = Server(first.netns, 80)
    try:
        assert [end.ipv4 for end in first.endpoints + second.endpoints] == ["172.17.0.2", "172.17.0.3"]
        assert first.endpoints[0].mac == "02:42:ac:11:00:02"
        assert say(second.netns, "172.17.0.2", 80) == "172.17.0.3 hi"
        assert say(None, "172.17.0.2", 80) == "172.17.0.1 hi"
        assert "default via 172.17.0.1 dev eth0" in output(first.netns, "ip", "route")
        assert "LOOPBACK,UP" in output(first.netns, "ip", "link", "show", "lo")
    finally:
        server.close()
        first.close()
        second.close()
        await network.close()


async def test_detach_frees_the_address_once() -> None:
    network = await controller()
    first = await network.attach(A, SandboxAsk())
    await network.detach(A, first.endpoints)
    second = await network.attach(B, SandboxAsk())
    assert second.endpoints[0].ipv4 == first.endpoints[0].ipv4
    await network.detach(A, first.endpoints)  # again: the address is B's now
    third = await network.attach("c" * 64, SandboxAsk())
    assert third.endpoints[0].ipv4 == "172.17.0.3"
    for attachment in (first, second, third):
        attachment.close()
    await network.close()


async def test_none_has_only_loopback_and_host_has_no_namespace() -> None:
    network = await controller()
    none = await network.attach(A, SandboxAsk(mode="none"))
    with Links.adopt(_socket_in(none.netns)) as inside:
        assert [(link.name, link.up) for link in inside.links()] == [("lo", True)]
    host = await network.attach(B, SandboxAsk(mode="host"))
    assert host.netns is None
    assert [end.network_name for end in none.endpoints + host.endpoints] == ["none", "host"]
    none.close()
    await network.close()


def _socket_in(netns: int | None) -> int:
    import socket

    from netlab import entered

    assert netns is not None
    with entered(netns):
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).detach()


async def test_a_failed_attach_leaves_nothing() -> None:
    network = await controller()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(NotFound, match="network nosuch not found"):
        await network.attach(A, SandboxAsk(mode="bridge", endpoints=[EndpointAsk(network="nosuch")]))
    with pytest.raises(InvalidParameter, match="user defined networks only"):
        await network.attach(A, SandboxAsk(endpoints=[EndpointAsk(network="bridge", ipv4="172.17.0.9")]))
    with Links.open() as links:
        assert [link.name for link in links.links() if link.kind == "veth"] == []
    assert set(os.listdir("/proc/self/fd")) == before
    await network.close()


async def test_settings_of_the_default_bridge() -> None:
    network = await controller(
        bridge="drayx", bip="10.9.0.5/16", fixed_cidr="10.9.8.0/24", default_gateway="10.9.0.9", mtu=1400
    )
    attachment = await network.attach(A, SandboxAsk())
    (endpoint,) = attachment.endpoints
    assert (endpoint.ipv4, endpoint.prefix4, endpoint.gateway4) == ("10.9.8.0", 16, "10.9.0.9")
    assert "mtu 1400" in output(attachment.netns, "ip", "link", "show", "eth0")
    assert "10.9.0.5/16" in output(None, "ip", "address", "show", "drayx")
    attachment.close()
    await network.close()


async def test_routed_subnets_are_avoided() -> None:
    output(None, "ip", "link", "add", "d0", "type", "bridge")
    output(None, "ip", "address", "add", "172.17.3.1/24", "dev", "d0")
    output(None, "ip", "link", "set", "d0", "up")
    network = await controller()
    assert network.resolve("bridge").pools[0].subnet == "172.18.0.0/16"
    await network.close()
