from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from netlab import LocalNamespaces, MemoryRecords, Server, entered, output, private_host, say

from dray.base.errors import Conflict, Forbidden, InvalidParameter, NotFound
from dray.network.asks import NetworkAsk
from dray.network.controller import Controller
from dray.network.model import EndpointAsk, Network, NetworkConfig, Pool, PortAsk, SandboxAsk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

A, B, C = "a" * 64, "b" * 64, "c" * 64
OPTION = "com.docker.network.bridge."


@pytest.fixture(autouse=True)
def host() -> Iterator[int]:
    with private_host() as netns:
        yield netns


async def controller(records: MemoryRecords | None = None, **settings: object) -> Controller:
    made = Controller(records or MemoryRecords(), NetworkConfig(**settings), LocalNamespaces())  # type: ignore[arg-type]
    await made.start({})
    return made


class Process:
    """Something that runs in a sandbox and keeps it alive."""

    def __init__(self, netns: int | None) -> None:
        assert netns is not None
        with entered(netns):
            self._process = subprocess.Popen(
                [sys.executable, "-ISc", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
            )
        self.pid = self._process.pid

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


async def test_networks_are_stored_and_come_back() -> None:
    records = MemoryRecords()
    first = await controller(records)
    made = await first.create(
        NetworkAsk(
            name="back",
            pools=[Pool(subnet="10.7.0.0/24")],
            options={OPTION + "name": "br-back"},
            labels={"a": "b"},
        )
    )
    assert (made.pools[0].gateway, made.interface) == ("10.7.0.1", "br-back")
    default = first.resolve("bridge")
    await first.close()
    output(None, "ip", "link", "del", "br-back")
    second = await controller(records)
    assert second.resolve("back") == made
    assert second.resolve(made.id[:8]) == made
    assert second.resolve("bridge") == default
    assert "10.7.0.1/24" in output(None, "ip", "address", "show", "br-back")
    await second.remove("back")
    assert "br-back" not in output(None, "ip", "link")
    assert [network.name for network in second.networks()] == ["bridge", "host", "none"]
    await second.close()


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (NetworkAsk(name="bridge"), Forbidden, "operation is not permitted on predefined bridge network"),
        (NetworkAsk(name="one"), Conflict, "network with name one already exists"),
        (NetworkAsk(name="x", pools=[Pool(subnet="10.1.0.0/16")]), Forbidden, "Pool overlaps with other one"),
        (NetworkAsk(name="x", pools=[Pool(subnet="10.2.0.5/16")]), InvalidParameter, "it should be 10.2.0.0/16"),
        (NetworkAsk(name="x", driver="weave"), NotFound, 'network driver "weave" not found'),
        (NetworkAsk(name="x", driver="host"), Forbidden, 'only one instance of "host" network is allowed'),
        (NetworkAsk(name="x", scope="swarm"), Forbidden, "swarm scoped network when swarm is not active"),
        (NetworkAsk(name="x", ingress=True), Forbidden, "Ingress network can only be global scope network"),
        (NetworkAsk(name="x", ipam_driver="dhcp"), NotFound, "dhcp"),
        (NetworkAsk(name="x", options={"com.example.what": "1"}), InvalidParameter, "com.example.what"),
        (NetworkAsk(name="x", options={OPTION + "enable_icc": "maybe"}), InvalidParameter, "enable_icc"),
        (
            NetworkAsk(name="x", options={OPTION + "gateway_mode_ipv4": "open"}),
            InvalidParameter,
            "gateway_mode_ipv4",
        ),
        (NetworkAsk(name="x", options={OPTION + "gateway_mode_ipv4": "isolated"}), InvalidParameter, "internal"),
        (
            NetworkAsk(name="x", options={OPTION + "trusted_host_interfaces": "x" * 16}),
            InvalidParameter,
            "trusted",
        ),
        (
            NetworkAsk(name="x", ipam_driver="null", pools=[Pool(subnet="10.9.0.0/24")]),
            InvalidParameter,
            "null ipam",
        ),
        (
            NetworkAsk(name="x", pools=[Pool(subnet="10.9.0.0/24", gateway="10.8.0.1")]),
            InvalidParameter,
            "not in subnet",
        ),
        (
            NetworkAsk(name="x", pools=[Pool(subnet="10.9.0.0/24", auxiliary={"a": "10.8.0.1"})]),
            InvalidParameter,
            "auxiliary address a",
        ),
        (
            NetworkAsk(name="x", pools=[Pool(subnet="10.9.0.0/24", ip_range="10.9.0.0/23")]),
            InvalidParameter,
            "ip-range",
        ),
        (
            NetworkAsk(name="x", pools=[Pool(subnet="10.9.0.0/24"), Pool(subnet="10.9.0.128/25")]),
            Forbidden,
            "overlaps",
        ),
        (NetworkAsk(name="x", pools=[Pool(gateway="10.9.0.1")]), InvalidParameter, "a subnet is needed"),
        (
            NetworkAsk(name="x", options={OPTION + "name": "much-too-long-a-name"}),
            InvalidParameter,
            "interface name",
        ),
        (NetworkAsk(name="x", options={OPTION + "name": "dray0"}), Forbidden, "networks have same bridge name"),
        (NetworkAsk(name="x", pools=[Pool(subnet="fd00::/64")]), InvalidParameter, "IPv6 is not enabled"),
        (NetworkAsk(name="x/y"), InvalidParameter, "invalid network name"),
        (NetworkAsk(name="x", ipv4=False), InvalidParameter, "must be enabled"),
        (NetworkAsk(name="x", config_from="one"), Forbidden, "not a configuration-only network"),
    ],
)
async def test_networks_that_cannot_be(ask: NetworkAsk, error: type[Exception], words: str) -> None:
    network = await controller()
    await network.create(NetworkAsk(name="one", pools=[Pool(subnet="10.1.2.0/24")]))
    before = network.networks()
    with pytest.raises(error, match=words):
        await network.create(ask)
    assert network.networks() == before
    await network.close()


async def test_predefined_and_used_networks_cannot_be_removed() -> None:
    network = await controller()
    made = await network.create(NetworkAsk(name="one"))
    attachment = await network.attach(A, SandboxAsk(mode="one", name="web"))
    with pytest.raises(Forbidden, match=f'network one has active endpoints \\(name:"web" id:"{A[:12]}"\\)'):
        await network.remove("one")
    with pytest.raises(Forbidden, match="host is a pre-defined network and cannot be removed"):
        await network.remove("host")
    with pytest.raises(NotFound, match="network two not found"):
        await network.remove("two")
    await network.detach(A, attachment.endpoints)
    attachment.close()
    assert await network.remove("one") == made
    await network.close()


async def test_several_networks_isolation_and_internal() -> None:
    network = await controller()
    await network.create(NetworkAsk(name="front", pools=[Pool(subnet="10.1.0.0/24")]))
    await network.create(NetworkAsk(name="inner", internal=True, pools=[Pool(subnet="10.2.0.0/24")]))
    both = await network.attach(
        A,
        SandboxAsk(
            mode="front",
            name="both",
            endpoints=[
                EndpointAsk(network="front", ipv4="10.1.0.77", mac="02:00:00:aa:bb:cc", aliases=["web"]),
                EndpointAsk(network="inner", driver_opts={"com.docker.network.endpoint.ifname": "lan0"}),
            ],
        ),
    )
    inner = await network.attach(B, SandboxAsk(mode="inner", name="inner"))
    other = await network.attach(C, SandboxAsk(name="other"))
    assert [(end.interface, end.ipv4, end.default4) for end in both.endpoints] == [
        ("eth0", "10.1.0.77", True),
        ("lan0", "10.2.0.2", False),
    ]
    assert both.endpoints[0].mac == "02:00:00:aa:bb:cc"
    assert both.endpoints[0].names == ["both", "web", A[:12]]
    server = Server(both.netns, 80)
    outside = Server(None, 99)
    try:
        assert say(inner.netns, "10.2.0.2", 80) == "10.2.0.3 hi"
        assert say(other.netns, "10.1.0.77", 80, timeout=0.3) == "TimeoutError"  # another bridge
        assert say(inner.netns, "10.1.0.77", 80, timeout=0.3) == "OSError 101"  # no route out
        output(inner.netns, "ip", "route", "add", "default", "via", "10.2.0.1")
        assert say(inner.netns, "10.1.0.77", 80, timeout=0.3) == "TimeoutError"  # nor if it makes one
    finally:
        server.close()
        outside.close()
        for attachment in (both, inner, other):
            attachment.close()
        await network.close()


async def test_containers_that_may_not_talk_to_each_other() -> None:
    network = await controller(icc=False)
    first = await network.attach(
        A, SandboxAsk(name="first", ports=[PortAsk(protocol="tcp", container_port=80, first=8080, last=8080)])
    )
    second = await network.attach(B, SandboxAsk(name="second"))
    servers = [Server(first.netns, 80), Server(first.netns, 81)]
    assert say(second.netns, "172.17.0.2", 81, timeout=0.3) != "172.17.0.3 hi"
    output(second.netns, "ip", "route", "add", "172.17.0.2", "via", "172.17.0.1")  # through the host instead
    assert say(second.netns, "172.17.0.2", 81, timeout=0.3) != "172.17.0.3 hi"
    assert say(None, "172.17.0.2", 81) == "172.17.0.1 hi"
    for each in (*servers, first, second):
        each.close()
    await network.close()


async def test_connect_and_disconnect_a_running_container() -> None:
    network = await controller()
    await network.create(
        NetworkAsk(name="aback", ipv6=True, pools=[Pool(subnet="10.1.0.0/24"), Pool(subnet="fd00:5::/64")])
    )
    ask = SandboxAsk(name="web", ports=[PortAsk(protocol="tcp", container_port=80, first=8080, last=8080)])
    made = await network.attach(A, ask)
    process = Process(made.netns)
    server = Server(made.netns, 80)
    try:
        after = await network.connect(A, ask, EndpointAsk(network="aback", aliases=["api"]), pid=process.pid)
        assert [(end.interface, end.ipv4, end.default4, len(end.ports)) for end in after] == [
            ("eth0", "172.17.0.2", False, 0),
            ("eth1", "10.1.0.2", True, 2),
        ]
        assert after[1].ipv6 == "fd00:5::2"
        assert "default via 10.1.0.1 dev eth1" in output(made.netns, "ip", "route")
        assert say(None, "10.1.0.2", 80) == "10.1.0.1 hi"
        assert say(None, "127.0.0.1", 8080) == "10.1.0.1 hi"
        with pytest.raises(Forbidden, match="already exists in network aback"):
            await network.connect(A, ask, EndpointAsk(network="aback"), pid=process.pid)
        left = await network.disconnect(A, after[1], pid=process.pid)
        assert [(end.interface, end.default4, len(end.ports)) for end in left] == [("eth0", True, 2)]
        assert "eth1" not in output(made.netns, "ip", "link")
        assert "default via 172.17.0.1 dev eth0" in output(made.netns, "ip", "route")
        assert say(None, "127.0.0.1", 8080) == "172.17.0.1 hi"
        none = await network.disconnect(A, left[0], pid=process.pid)
        assert none == []
        assert "8080" not in output(None, "nft", "list", "table", "ip", "dray")
        again = await network.connect(A, ask, EndpointAsk(network="bridge"), pid=process.pid)
        assert [(end.interface, end.ipv4) for end in again] == [("eth0", "172.17.0.2")]
        with (
            entered(made.netns or -1),
            open("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", encoding="ascii") as file,
        ):
            assert file.read().strip() == "1"  # IPv6 off means off
    finally:
        server.close()
        process.end()
        made.close()
        await network.close()


async def test_a_failed_connect_leaves_the_container_as_it_was() -> None:
    network = await controller()
    await network.create(NetworkAsk(name="two"))
    made = await network.attach(A, SandboxAsk(name="web"))
    process = Process(made.netns)
    before = output(made.netns, "ip", "address"), output(made.netns, "ip", "route")
    option = {"com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.no_such_setting=1"}
    with pytest.raises(OSError, match="no_such_setting"):
        await network.connect(A, SandboxAsk(), EndpointAsk(network="two", driver_opts=option), pid=process.pid)
    assert (output(made.netns, "ip", "address"), output(made.netns, "ip", "route")) == before
    assert network.members(network.resolve("two").id) == []
    process.end()
    made.close()
    await network.close()


async def test_configuration_networks() -> None:
    network = await controller()
    await network.create(NetworkAsk(name="settings", config_only=True, pools=[Pool(subnet="10.8.0.0/24")]))
    made: Network = await network.create(NetworkAsk(name="real", config_from="settings"))
    assert made.pools[0].subnet == "10.8.0.0/24"
    with pytest.raises(Forbidden, match='configuration network "settings" is in use by real'):
        await network.remove("settings")
    with pytest.raises(InvalidParameter, match="configuration-only"):
        await network.attach(A, SandboxAsk(mode="settings"))
    await network.remove("real")
    await network.remove("settings")
    await network.close()
