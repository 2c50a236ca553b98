from __future__ import annotations

from contextlib import ExitStack

import msgspec
import pytest

from dray.base.errors import Conflict, DrayError, InvalidParameter, NotFound
from dray.network import endpoints
from dray.network.bridge import endpoint_mac
from dray.network.ipam import Ipam
from dray.network.model import Endpoint, EndpointAsk, Network, Pool, SandboxAsk

POOL = Pool(subnet="10.1.0.0/24", gateway="10.1.0.1", configured=True)
NETWORKS = [
    Network(id="1", name="bridge", driver="bridge", interface="dray0", pools=[Pool(subnet="172.17.0.0/16")]),
    Network(id="2", name="host", driver="host"),
    Network(id="3", name="none", driver="null"),
    Network(id="4", name="one", driver="bridge", interface="br-one", pools=[POOL]),
    Network(id="5", name="loose", driver="bridge", interface="br-two", pools=[Pool(subnet="10.2.0.0/24")]),
    Network(
        id="6", name="inner", driver="bridge", interface="br-in", internal=True, pools=[Pool(subnet="10.3.0.0/24")]
    ),
    Network(id="7", name="settings", driver="null", config_only=True),
]


def resolve(name: str) -> Network:
    for network in NETWORKS:
        if name in (network.name, network.id):
            return network
    raise NotFound(f"network {name} not found")


@pytest.mark.parametrize(
    ("mode", "joined", "expected"),
    [
        ("", [], ["bridge"]),
        ("default", ["default"], ["bridge"]),
        ("none", ["none"], ["none"]),
        ("host", [], ["host"]),
        ("one", ["loose", "one"], ["one", "loose"]),
        ("4", ["one", "inner"], ["one", "inner"]),
    ],
)
def test_the_modes_network_comes_first(mode: str, joined: list[str], expected: list[str]) -> None:
    ask = SandboxAsk(mode=mode, endpoints=[EndpointAsk(network=name) for name in joined])
    assert [network.name for network, _ in endpoints.plan(ask, resolve)] == expected


@pytest.mark.parametrize(
    ("mode", "ask", "kind", "words"),
    [
        ("host", EndpointAsk(network="one"), InvalidParameter, "conflicting options"),
        ("one", EndpointAsk(network="host"), InvalidParameter, "cannot join network host"),
        (
            "bridge",
            EndpointAsk(network="bridge", ipv4="172.17.0.9"),
            InvalidParameter,
            "user defined networks only",
        ),
        ("bridge", EndpointAsk(network="bridge", aliases=["x"]), InvalidParameter, "network-scoped alias"),
        ("loose", EndpointAsk(network="loose", ipv4="10.2.0.9"), InvalidParameter, "user configured subnets"),
        ("one", EndpointAsk(network="one", ipv4="nonsense"), InvalidParameter, "nonsense is not an IP address"),
        ("one", EndpointAsk(network="one", ipv6="10.1.0.9"), InvalidParameter, "invalid IPv6 address"),
        ("one", EndpointAsk(network="one", mac="02:42"), InvalidParameter, "invalid MAC address: 02:42"),
        ("one", EndpointAsk(network="one", link_local=["10.1.0.7"]), InvalidParameter, "link-local IP"),
        ("one", EndpointAsk(network="one", driver_opts={"a.b": "c"}), InvalidParameter, "a\\.b"),
        ("settings", EndpointAsk(network="settings"), InvalidParameter, "configuration-only"),
        ("nosuch", EndpointAsk(network="one"), NotFound, "network nosuch not found"),
    ],
)
def test_asks_that_make_no_sense(mode: str, ask: EndpointAsk, kind: type[DrayError], words: str) -> None:
    with pytest.raises(kind, match=words):
        endpoints.plan(SandboxAsk(mode=mode, endpoints=[ask]), resolve)


def built(network: str, **ask: object) -> Endpoint:
    pools = Ipam()
    pools.add(resolve(network).id, resolve(network).pools)
    return endpoints.build(
        resolve(network),
        EndpointAsk(network=network, **ask),  # type: ignore[arg-type]
        SandboxAsk(name="web", hostname="www"),
        "c" * 64,
        pools=pools,
        undo=ExitStack(),
    )


def test_an_endpoint_has_addresses_names_and_a_mac_of_its_address() -> None:
    made = built("one", aliases=["api", "web"])
    assert (made.ipv4, made.prefix4, made.gateway4, made.mac) == ("10.1.0.2", 24, "10.1.0.1", "02:42:0a:01:00:02")
    assert made.names == ["web", "api", "c" * 12, "www"]
    assert built("one", mac="02-00-00-AA-BB-CC").mac == "02:00:00:aa:bb:cc"
    assert built("inner").gateway4 == ""
    assert endpoint_mac("").startswith("02:42:")


def test_a_failed_ask_gives_its_address_back() -> None:
    pools = Ipam()
    pools.add("4", [POOL])
    with ExitStack() as undo:
        endpoints.build(resolve("one"), EndpointAsk(network="one"), SandboxAsk(), "c" * 64, pools=pools, undo=undo)
    assert str(pools.take("4", "one", 4)[0]) == "10.1.0.2"


def test_default_routes_go_to_the_highest_priority_then_the_first_name() -> None:
    def carriers(*held: tuple[str, int]) -> list[str]:
        made = [built(name, gw_priority=priority) for name, priority in held]
        made = [
            msgspec.structs.replace(end, gateway4=end.gateway4 or ("" if end.internal else "x")) for end in made
        ]
        return [end.network_name for end in endpoints.route(made) if end.default4]

    assert carriers(("one", 0), ("loose", 0)) == ["loose"]
    assert carriers(("one", 1), ("loose", 0)) == ["one"]
    assert carriers(("inner", 9), ("one", -1)) == ["one"]
    assert carriers(("inner", 0)) == []


def test_interface_names() -> None:
    option = endpoints.INTERFACE_NAME
    held = [built("one"), built("loose", driver_opts={option: "eth0"}), built("inner")]
    assert [end.interface for end in endpoints.name_interfaces(held, resolve)] == ["eth1", "eth0", "eth2"]
    assert endpoints.name_interfaces([built("one")], resolve, ["lo", "eth0"])[0].interface == "eth1"
    with pytest.raises(Conflict, match="used twice"):
        endpoints.name_interfaces([built("one", driver_opts={option: "a"})] * 2, resolve)
    with pytest.raises(InvalidParameter, match="invalid interface name"):
        endpoints.name_interfaces([built("one", driver_opts={option: "../x"})], resolve)


def test_ipv6_is_off_on_interfaces_without_it() -> None:
    (made,) = endpoints.name_interfaces([built("one")], resolve)
    assert endpoints.sysctls([made], ipv6=True) == {"net.ipv6.conf.eth0.disable_ipv6": "1"}
    assert endpoints.sysctls([made], ipv6=False) == {}
    six = msgspec.structs.replace(made, ipv6="fd00::2")
    assert endpoints.sysctls([six], ipv6=True) == {}
    option = {endpoints.SYSCTLS: "net.ipv4.conf.IFNAME.forwarding=1,net.ipv6.conf.IFNAME.accept_ra = 2"}
    assert endpoints.sysctls([msgspec.structs.replace(six, driver_opts=option)], ipv6=True) == {
        "net.ipv4.conf.eth0.forwarding": "1",
        "net.ipv6.conf.eth0.accept_ra": "2",
    }
    bad = {endpoints.SYSCTLS: "kernel.IFNAME=1"}
    with pytest.raises(InvalidParameter, match="invalid"):
        endpoints.sysctls([msgspec.structs.replace(six, driver_opts=bad)], ipv6=True)
