"""Macvlan and ipvlan networks: containers on the host's own wire, seen from another host on it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
from netlab import Server, output, private_host, private_neighbour, say
from test_network_live import Process
from test_network_ports import A, B, C, Lab, port

from dray.base.errors import Forbidden, InvalidParameter, Unsupported
from dray.network.asks import NetworkAsk
from dray.network.model import EndpointAsk, Pool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

POOL = Pool(subnet="192.0.2.0/24", ip_range="192.0.2.64/26", gateway="192.0.2.9")
EGRESS = "com.dray.network.bandwidth.egress"


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with private_host() as host, private_neighbour(host) as outside:
        made = Lab(host, outside)
        yield made
        await made.close()


def has(kind: str) -> bool:
    with private_host():
        output(None, "ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1")
        more = ("id", "7") if kind == "vlan" else ()
        under = () if kind == "dummy" else ("link", "p0")
        return output(None, "ip", "link", "add", "try0", *under, "type", kind, *more) == ""


def needs(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(os.geteuid() != 0 or not has(kind), reason=f"this kernel has no {kind} interfaces")


def macvlan(name: str = "lan", **options: str) -> NetworkAsk:
    return NetworkAsk(name=name, driver="macvlan", pools=[POOL], options={"parent": "wire"} | options)


@pytest.mark.parametrize(("mode", "together"), [("bridge", True), ("private", False), ("vepa", False)])
async def test_macvlan(lab: Lab, mode: str, together: bool) -> None:
    network = await lab.controller()
    await network.create(macvlan(macvlan_mode=mode))
    web = await lab.run(network, A, mode="lan", ports=[port(8080)])
    other = await lab.run(network, B, mode="lan")
    assert [end.ipv4 for end in web.endpoints + other.endpoints] == ["192.0.2.64", "192.0.2.65"]
    assert web.endpoints[0].ports == []
    lab.serve(web, 80)
    assert say(lab.outside, "192.0.2.64", 80) == "192.0.2.9 hi"  # another host on the wire
    beyond = Server(lab.outside, 99)
    assert say(web.netns, "192.0.2.9", 99) == "192.0.2.64 hi"
    beyond.close()
    answer = say(other.netns, "192.0.2.64", 80, timeout=1.0 if together else 0.3)
    assert (answer == "192.0.2.65 hi") is together
    assert "default via 192.0.2.9" in output(web.netns, "ip", "route")


async def test_passthru_serves_one_container(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(macvlan(macvlan_mode="passthru"))
    web = await lab.run(network, A, mode="lan")
    lab.serve(web, 80)
    assert say(lab.outside, "192.0.2.64", 80) == "192.0.2.9 hi"
    with pytest.raises(Forbidden, match="passes wire through to one container"):
        await network.attach(B, _ask("lan"))
    with pytest.raises(Forbidden, match="already using parent interface wire"):
        await network.create(
            NetworkAsk(
                name="two", driver="macvlan", pools=[Pool(subnet="10.4.0.0/24")], options={"parent": "wire"}
            )
        )


async def test_a_chosen_mac_address_can_be_used_again_at_once(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(macvlan())
    ask = _ask("lan", mac="02:00:00:00:77:01")
    for _ in range(5):
        made = await network.attach(A, ask)
        assert made.endpoints[0].mac == "02:00:00:00:77:01"
        await network.detach(A, made.endpoints)
        made.close()


async def test_connect_and_disconnect_while_running(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(macvlan())
    made = await lab.run(network, A)
    process = Process(made.netns)
    try:
        after = await network.connect(A, _ask("bridge"), EndpointAsk(network="lan"), pid=process.pid)
        assert [end.interface for end in after] == ["eth0", "eth1"]
        lab.serve(made, 80)
        assert say(lab.outside, "192.0.2.64", 80) == "192.0.2.9 hi"
        await network.disconnect(A, after[1], pid=process.pid)
        assert "eth1" not in output(made.netns, "ip", "link")
    finally:
        process.end()


def _ask(mode: str, **endpoint: str):  # type: ignore[no-untyped-def]
    from dray.network.model import SandboxAsk

    return SandboxAsk(mode=mode, name="c", endpoints=[EndpointAsk(network=mode, **endpoint)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("driver", "options", "kind", "words"),
    [
        ("macvlan", {"parent": "nosuch0"}, InvalidParameter, "invalid subinterface vlan name nosuch0"),
        ("macvlan", {"parent": "nosuch0.9999"}, InvalidParameter, "vlan id must be between 1-4094"),
        (
            "macvlan",
            {"parent": "nosuch0.10"},
            InvalidParameter,
            "parent interface nosuch0 of nosuch0.10 was not found",
        ),
        ("macvlan", {"parent": "lo"}, InvalidParameter, "loopback interface is not a valid macvlan parent link"),
        ("macvlan", {"macvlan_mode": "foo"}, InvalidParameter, "requested macvlan mode 'foo' is not valid"),
        ("macvlan", {"foo": "bar"}, InvalidParameter, "unknown option foo"),
        ("ipvlan", {"parent": "wire", "ipvlan_mode": "foo"}, InvalidParameter, "requested ipvlan mode 'foo'"),
        ("ipvlan", {"parent": "wire", "ipvlan_flag": "foo"}, InvalidParameter, "requested ipvlan flag 'foo'"),
        (
            "macvlan",
            {"parent": "wire", EGRESS: "fast"},
            InvalidParameter,
            "bandwidth.egress: a rate such as 10mbit",
        ),
    ],
)
async def test_networks_that_cannot_be(
    lab: Lab, driver: str, options: dict[str, str], kind: type[Exception], words: str
) -> None:
    network = await lab.controller()
    with pytest.raises(kind, match=words):
        await network.create(NetworkAsk(name="x", driver=driver, options=options))
    assert [one.name for one in network.networks()] == ["bridge", "host", "none"]


@pytest.mark.skipif(os.geteuid() != 0 or has("ipvlan"), reason="this kernel has ipvlan")
async def test_a_kernel_without_ipvlan_is_told_by_name(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(NetworkAsk(name="i", driver="ipvlan", pools=[POOL], options={"parent": "wire"}))
    with pytest.raises(Unsupported, match="modprobe ipvlan"):
        await network.attach(A, _ask("i"))


@needs("ipvlan")
@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
async def test_ipvlan(lab: Lab, mode: str) -> None:
    network = await lab.controller()
    pool = POOL if mode == "l2" else Pool(subnet="10.66.0.0/24")
    await network.create(
        NetworkAsk(name="i", driver="ipvlan", pools=[pool], options={"parent": "wire", "ipvlan_mode": mode})
    )
    web = await lab.run(network, A, mode="i")
    other = await lab.run(network, B, mode="i")
    lab.serve(web, 80)
    address = web.endpoints[0].ipv4
    if mode != "l2":
        output(lab.outside, "ip", "route", "add", "10.66.0.0/24", "dev", "eth0")
        assert "default dev eth0" in output(web.netns, "ip", "route")
    assert say(other.netns, address, 80) == f"{other.endpoints[0].ipv4} hi"
    assert say(lab.outside, address, 80) == "192.0.2.9 hi"


@needs("vlan")
async def test_a_vlans_interface_comes_and_goes_with_its_networks(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(macvlan("one", parent="wire.10"))
    second = NetworkAsk(
        name="two", driver="macvlan", pools=[Pool(subnet="10.4.0.0/24")], options={"parent": "wire.10"}
    )
    await network.create(second)
    output(lab.outside, "ip", "link", "add", "link", "eth0", "name", "v10", "type", "vlan", "id", "10")
    output(lab.outside, "ip", "link", "set", "v10", "up")
    output(lab.outside, "ip", "address", "add", "10.4.0.200/24", "dev", "v10")
    web = await lab.run(network, A, mode="two")
    lab.serve(web, 80)
    assert say(lab.outside, web.endpoints[0].ipv4, 80) == "10.4.0.200 hi"
    await network.detach(A, web.endpoints)
    await network.remove("one")
    assert "wire.10" in output(None, "ip", "link")
    await network.remove("two")
    assert "wire.10" not in output(None, "ip", "link")


@needs("dummy")
async def test_without_a_parent_it_is_internal(lab: Lab) -> None:
    network = await lab.controller()
    made = await network.create(NetworkAsk(name="alone", driver="macvlan", pools=[Pool(subnet="10.4.0.0/24")]))
    web = await lab.run(network, A, mode="alone")
    other = await lab.run(network, C, mode="alone")
    lab.serve(web, 80)
    assert say(other.netns, web.endpoints[0].ipv4, 80).endswith(" hi")
    for container, end in ((A, web), (C, other)):
        await network.detach(container, end.endpoints)
    await network.remove("alone")
    assert made.interface not in output(None, "ip", "link")
