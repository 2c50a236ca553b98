"""Networks and addresses of plugins: a small plugin that makes real interfaces, in a namespace that stands for a host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from netlab import LocalNamespaces, MemoryRecords, Server, output, private_host, say
from test_network_live import A, B, Process

from dray.base.errors import Forbidden, Internal, NotFound
from dray.network import plugged
from dray.network.asks import NetworkAsk
from dray.network.controller import Controller
from dray.network.model import EndpointAsk, Network, NetworkConfig, Pool, PortAsk, SandboxAsk
from dray.plugins.discovery import Folders
from dray.plugins.registry import Limits, PluginFailed, Plugins
from support.plugin import FakePlugin, Wires, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
LIMITS = Limits(long=0.3, short=0.3, glance=0.3, patience=0.2)


@dataclass
class House:
    """A daemon's networking, with a plugin beside it."""

    folder: Path
    plugin: FakePlugin
    wires: Wires
    records: MemoryRecords
    daemon: Controller

    async def start(self, *attached: object) -> None:
        plugins = Plugins(Folders(sockets=[str(self.folder)], specs=[]), LIMITS)
        config = NetworkConfig(bridge="b0")
        self.daemon = Controller(self.records, config, LocalNamespaces(), plugins)
        held = {one.endpoints[0].container_id: one.endpoints for one in attached}  # type: ignore[attr-defined]
        await self.daemon.start(held)

    async def settle(self) -> None:
        """Wait until nothing is being given back."""
        await asyncio.gather(*self.daemon._plugged._leaving.values())

    def rows(self) -> list[str]:
        return [key for key, _ in self.records.scan("plugin-endpoint")]


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(plugged, "PATIENCE", 0.2)
    with private_host() as host:
        wires = Wires(host)
        folder = tmp_path / "plugins"
        kinds = ["NetworkDriver", "IpamDriver"]
        with running(folder / "wires.sock", kinds, wires.handlers()) as plugin:
            made = House(folder, plugin, wires, MemoryRecords(), None)  # type: ignore[arg-type]
            await made.start()
            yield made
            plugin.released.set()
            await made.daemon.close(wipe=True)


def ask(**changes: object) -> NetworkAsk:
    given = {"pools": [Pool(subnet="10.5.0.0/24", configured=True)], "options": {"colour": "red"}}
    return NetworkAsk(name="shop", driver="wires", **given | changes)  # type: ignore[arg-type]


async def test_life_of_a_network(house: House) -> None:
    house.wires.gateway = "10.5.0.1"
    house.wires.answers = {"StaticRoutes": [{"Destination": "10.77.0.0/16", "RouteType": 0, "NextHop": "10.5.0.9"},
                                            {"Destination": "10.78.0.0/16", "RouteType": 1}]}  # fmt: skip
    made = await house.daemon.create(ask(internal=False))
    (asked,) = house.plugin.asked("NetworkDriver.CreateNetwork")
    assert asked["NetworkID"] == made.id
    assert asked["Options"]["com.docker.network.generic"] == {"colour": "red"}
    assert asked["Options"]["com.docker.network.enable_ipv6"] is False
    assert asked["IPv4Data"] == [{"AddressSpace": "LocalDefault", "Pool": "10.5.0.0/24", "Gateway": "10.5.0.1/24"}]
    port = PortAsk(protocol="tcp", container_port=80, first=8080, last=8080)
    end = await house.daemon.attach(A, SandboxAsk(mode="shop", name="web", ports=[port]))
    (endpoint,) = end.endpoints
    (asked,) = house.plugin.asked("NetworkDriver.CreateEndpoint")
    assert asked["Interface"] == {"Address": "10.5.0.2/24", "AddressIPv6": "", "MacAddress": ""}
    (joined,) = house.plugin.asked("NetworkDriver.Join")
    assert joined["SandboxKey"].startswith(f"/proc/{os.getpid()}/fd/")
    assert joined["Options"]["com.docker.network.portmap"] == [
        {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}
    ]
    assert house.plugin.asked("NetworkDriver.ProgramExternalConnectivity")
    assert (endpoint.interface, endpoint.ipv4, endpoint.default4) == ("wire0", "10.5.0.2", True)
    assert f"link/ether {endpoint.mac}" in output(end.netns, "ip", "link", "show", "wire0")
    routes = output(end.netns, "ip", "route")
    assert "default via 10.5.0.1 dev wire0" in routes
    assert "10.77.0.0/16 via 10.5.0.9" in routes
    assert "10.78.0.0/16 dev wire0" in routes
    server = Server(end.netns, 80)
    assert say(None, "10.5.0.2", 80) == "10.5.0.1 hi"
    server.close()
    with pytest.raises(Forbidden, match="active endpoints"):
        await house.daemon.remove("shop")
    await house.daemon.detach(A, end.endpoints)
    end.close()
    assert [name for name, _ in house.plugin.calls if name.startswith("NetworkDriver.")][-3:] == [
        "NetworkDriver.RevokeExternalConnectivity",
        "NetworkDriver.Leave",
        "NetworkDriver.DeleteEndpoint",
    ]
    assert house.rows() == []
    await house.daemon.remove("shop")
    assert house.wires.networks == {}


async def test_addresses_of_a_plugin_on_a_bridge(house: House) -> None:
    made = await house.daemon.create(
        NetworkAsk(name="shop", ipam_driver="wires", ipam_options={"k": "v"}, pools=[])
    )
    (asked,) = house.plugin.asked("IpamDriver.RequestPool")
    assert asked == {"AddressSpace": "here", "Pool": "", "SubPool": "", "Options": {"k": "v"}, "V6": False}
    assert [(pool.subnet, pool.gateway) for pool in made.pools] == [("10.9.0.0/24", "10.9.0.1")]
    assert house.plugin.asked("IpamDriver.RequestAddress")[0]["Options"] == {
        "RequestAddressType": "com.docker.network.gateway"
    }
    ends = [await house.daemon.attach(name, SandboxAsk(mode="shop", name=name[:1])) for name in (A, B)]
    assert [end.endpoints[0].ipv4 for end in ends] == ["10.9.0.2", "10.9.0.3"]
    assert house.plugin.asked("IpamDriver.RequestAddress")[-1]["Options"] == {
        "com.docker.network.endpoint.macaddress": ends[1].endpoints[0].mac
    }
    server = Server(ends[0].netns, 80)
    assert say(ends[1].netns, "10.9.0.2", 80) == "10.9.0.3 hi"
    server.close()
    for name, end in zip((A, B), ends, strict=True):
        await house.daemon.detach(name, end.endpoints)
        end.close()
    assert house.wires.addresses == {"10.9.0.1"}
    await house.daemon.remove("shop")
    assert (house.wires.addresses, house.wires.pools, house.rows()) == (set(), set(), [])


async def test_connect_and_disconnect_a_running_container(house: House) -> None:
    house.wires.gateway = "10.5.0.1"
    await house.daemon.create(ask())
    end = await house.daemon.attach(A, SandboxAsk(name="web"))
    process = Process(end.netns)
    try:
        after = await house.daemon.connect(
            A,
            SandboxAsk(name="web"),
            EndpointAsk(network="shop", ipv4="10.5.0.77", gw_priority=5),
            pid=process.pid,
        )
        assert [(one.interface, one.ipv4, one.default4) for one in after] == [
            ("eth0", "172.17.0.2", False),
            ("wire0", "10.5.0.77", True),
        ]
        assert "default via 10.5.0.1 dev wire0" in output(end.netns, "ip", "route")
        assert len(house.plugin.asked("NetworkDriver.ProgramExternalConnectivity")) == 1
        kept: list[str] = []
        house.plugin.handlers["NetworkDriver.Leave"] = lambda _: kept.append(house.wires.ip("-br", "link")) or {}
        left = await house.daemon.disconnect(A, after[1], pid=process.pid)
        assert after[1].source in kept[0], "the plugin has its interface back before it is told"
        assert "wire0" not in output(end.netns, "ip", "link")
        assert "default via 172.17.0.1 dev eth0" in output(end.netns, "ip", "route")
        assert [one.default4 for one in left] == [True]
        assert house.wires.endpoints == {}
    finally:
        process.end()
        end.close()


async def test_a_plugin_that_cannot_be_the_way_out(house: House) -> None:
    house.wires.gateway = "10.5.0.1"
    await house.daemon.create(ask())
    port = PortAsk(protocol="tcp", container_port=80, first=8080, last=8080)
    end = await house.daemon.attach(A, SandboxAsk(name="web", ports=[port]))
    process, server = Process(end.netns), Server(end.netns, 80)
    house.plugin.handlers["NetworkDriver.ProgramExternalConnectivity"] = lambda _: {"Err": "no way out"}
    try:
        with pytest.raises(Internal, match="ProgramExternalConnectivity: no way out"):
            await house.daemon.connect(
                A, SandboxAsk(name="web"), EndpointAsk(network="shop", gw_priority=5), pid=process.pid
            )
        assert "wire0" not in output(end.netns, "ip", "link")
        assert "default via 172.17.0.1 dev eth0" in output(end.netns, "ip", "route")
        assert say(None, "127.0.0.1", 8080).endswith(" hi"), "its port is published as before"
        assert (house.wires.endpoints, house.rows()) == ({}, [])
    finally:
        server.close()
        process.end()
        end.close()


@pytest.mark.parametrize("step", ["CreateEndpoint", "Join"])
@pytest.mark.parametrize("how", ["refuses", "hangs", "lies"])
async def test_an_endpoint_that_fails_is_rolled_back(house: House, step: str, how: str) -> None:
    await house.daemon.create(ask())
    before = output(None, "ip", "-br", "link")
    lies = {
        "CreateEndpoint": {"Interface": {"Address": "10.5.0.200/24"}},
        "Join": {"InterfaceName": {"SrcName": "nosuch0", "DstPrefix": "eth"}},
    }
    handler = house.plugin.handlers[f"NetworkDriver.{step}"]
    if how == "hangs":
        house.plugin.hang(f"NetworkDriver.{step}")
    else:
        answer = {"Err": "out of wire"} if how == "refuses" else lies[step]
        house.plugin.handlers[f"NetworkDriver.{step}"] = lambda asked: handler(asked) and answer
    attaching = asyncio.ensure_future(house.daemon.attach(A, SandboxAsk(mode="shop", name="web")))
    while not house.plugin.asked(f"NetworkDriver.{step}"):
        await asyncio.sleep(0.01)
    other = await house.daemon.attach(B, SandboxAsk(name="other"))  # others go on meanwhile
    assert attaching.done() is (how != "hangs") or how != "hangs"
    with pytest.raises(Internal, match=f'plugin "wires": NetworkDriver.{step}: '):
        await attaching
    await house.settle()
    assert house.plugin.asked("NetworkDriver.DeleteEndpoint")
    await house.daemon.detach(B, other.endpoints)
    other.close()
    house.plugin.handlers[f"NetworkDriver.{step}"] = handler
    assert house.rows() == []
    end = await house.daemon.attach(A, SandboxAsk(mode="shop", name="web"))
    assert end.endpoints[0].ipv4 == "10.5.0.2", "the address was given back"
    await house.daemon.detach(A, end.endpoints)
    end.close()
    assert {line.split()[0] for line in output(None, "ip", "-br", "link").splitlines() if line[0] != "v"} == {
        line.split()[0] for line in before.splitlines() if line[0] != "v"
    }


async def test_a_network_that_its_plugin_refuses_is_not_made(house: House) -> None:
    house.plugin.handlers["NetworkDriver.CreateNetwork"] = lambda _: {"Err": "colour red is not known"}
    with pytest.raises(Internal, match=r'plugin "wires": NetworkDriver.CreateNetwork: colour red is not known'):
        await house.daemon.create(ask(ipam_driver="wires", pools=[]))
    assert (house.wires.addresses, house.wires.pools) == (set(), set())
    with pytest.raises(NotFound):
        house.daemon.resolve("shop")
    with pytest.raises(NotFound, match=r'network driver "wire" not found: .* no plugin of that name'):
        await house.daemon.create(NetworkAsk(name="shop", driver="wire"))
    house.plugin.handlers["Plugin.Activate"] = lambda _: {"Implements": ["VolumeDriver"]}
    house.plugin.path.unlink()
    with pytest.raises(NotFound, match="IPAM driver"):
        await house.daemon.create(NetworkAsk(name="two", ipam_driver="wires"))


async def test_a_plugin_that_hangs_keeps_no_container_from_ending(house: House) -> None:
    await house.daemon.create(ask())
    end = await house.daemon.attach(A, SandboxAsk(mode="shop", name="web"))
    house.plugin.hang("NetworkDriver.Leave")
    await house.daemon.detach(A, end.endpoints)
    end.close()
    assert house.rows() == [end.endpoints[0].id], "not given back yet"
    await house.settle()
    house.plugin.hang("NetworkDriver.DeleteNetwork")
    with pytest.raises(PluginFailed, match=r'network shop cannot be removed without its plugin: plugin "wires"'):
        await house.daemon.remove("shop")
    assert house.daemon.resolve("shop").driver == "wires", "it is still there"
    house.plugin.released.set()


async def test_a_new_daemon_takes_over(house: House) -> None:
    made = await house.daemon.create(ask(ipam_driver="wires"))
    ends = [await house.daemon.attach(name, SandboxAsk(mode="shop", name=name[:1])) for name in (A, B)]
    await house.daemon.close()
    house.wires.addresses.clear()  # the plugin was started anew and remembers nothing
    house.plugin.calls.clear()
    await house.start(ends[0])  # the other has ended meanwhile, and nobody was there to say so
    await house.settle()
    assert house.rows() == [ends[0].endpoints[0].id]
    deleted = house.plugin.asked("NetworkDriver.DeleteEndpoint")
    assert deleted == [{"NetworkID": made.id, "EndpointID": ends[1].endpoints[0].id}]
    assert not house.plugin.asked("NetworkDriver.CreateNetwork")
    third = await house.daemon.attach("c" * 64, SandboxAsk(mode="shop", name="third"))
    assert third.endpoints[0].ipv4 == "10.5.0.3", "the addresses of the gateway and of the first were told again"
    assert isinstance(house.daemon.resolve("shop"), Network)
    for end in (*ends, third):
        end.close()
