"""What every network driver keeps to: each verb may be repeated, and nothing stays behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "kernel"))
from netlab import LocalNamespaces, output, private_host

from dray.base.errors import DrayError
from dray.linux.links import Links
from dray.network.bridge import BridgeDriver
from dray.network.host import HostDriver
from dray.network.macvlan import IpvlanDriver, MacvlanDriver
from dray.network.model import Driver, Endpoint, Network, Pool
from dray.network.none import NoneDriver
from dray.network.plugin_driver import PluginDriver

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def host() -> Iterator[Links]:
    with private_host(), Links.open() as links:
        yield links


def lacks(kind: str) -> bool:
    """Whether this kernel has no interfaces of a kind. Asked in a namespace made for it."""
    with private_host():
        return "Unknown device type" in output(None, "ip", "link", "add", "try0", "link", "lo", "type", kind)


@pytest.fixture(params=["bridge", "host", "null", "macvlan", "ipvlan", "plugin"])
def driver(request: pytest.FixtureRequest, host: Links) -> Driver:
    if request.param == "ipvlan" and lacks("ipvlan"):
        pytest.skip("this kernel has no ipvlan")
    if request.param in ("macvlan", "ipvlan"):
        output(None, "ip", "link", "add", "wire", "type", "veth", "peer", "name", "far")
        output(None, "ip", "link", "set", "wire", "up")
    made: dict[str, Driver] = {
        "bridge": BridgeDriver(host, owner="test"),
        "host": HostDriver(),
        "null": NoneDriver(),
        "macvlan": MacvlanDriver(host, owner="test"),
        "ipvlan": IpvlanDriver(host, owner="test"),
        "plugin": PluginDriver("plugin", host),
    }
    return made[request.param]


@pytest.fixture
def network(driver: Driver) -> Network:
    names = {"host": "host", "null": "none"}
    interfaces = {"bridge": "br-test", "macvlan": "wire", "ipvlan": "wire"}
    plugged = driver.name in interfaces
    return Network(
        id="n" * 64,
        name=names.get(driver.name, "net"),
        driver=driver.name,
        interface=interfaces.get(driver.name, ""),
        pools=[Pool(subnet="10.5.0.0/24", gateway="10.5.0.1")] if plugged else [],
    )


def endpoint(network: Network, number: int) -> Endpoint:
    plugged, source = bool(network.interface), ""
    if network.driver == "plugin":  # it has made a pair, and says so when it is joined
        plugged, source = True, f"plug{number}"
        output(None, "ip", "link", "add", f"vethtest{number}", "type", "veth", "peer", "name", source)
        output(None, "ip", "link", "set", source, "up")
    return Endpoint(
        id=str(number) * 64,
        network_id=network.id,
        network_name=network.name,
        driver=network.driver,
        container_id=str(number) * 64,
        container_name=f"c{number}",
        interface="eth0" if plugged else "",
        source=source,
        veth=f"vethtest{number}" if plugged else "",
        mac=f"02:42:0a:05:00:0{number}",
        ipv4=f"10.5.0.{number}",
        prefix4=24,
    )


def names(links: Links) -> set[str]:
    return {link.name for link in links.links()}


async def test_life_of_a_network(driver: Driver, network: Network, host: Links) -> None:
    before = names(host)
    driver.validate(network)
    driver.up(network)
    driver.up(network)
    made = names(host)
    held = []
    for number in (2, 3):
        netns, sock = await LocalNamespaces().new_network_namespace()
        held.append(netns)
        one = endpoint(network, number)
        driver.plug(network, one, netns)
        with Links.adopt(sock) as inside:
            if one.interface:
                link = inside.find(one.interface)
                assert link is not None
                assert link.mac == one.mac or driver.name == "ipvlan"
            else:
                assert names(inside) == {"lo"}
        driver.ready(network, one)
        driver.unplug(network, one)
        driver.unplug(network, one)
    assert {link.name for link in host.links() if link.up} <= made
    driver.down(network)
    driver.down(network)
    assert {name for name in names(host) if not name.startswith("vethtest")} == before
    for netns in held:
        os.close(netns)


async def test_plugging_into_a_network_whose_interface_vanished(
    driver: Driver, network: Network, host: Links
) -> None:
    driver.up(network)
    driver.down(network)
    if driver.name in ("macvlan", "ipvlan"):
        output(None, "ip", "link", "del", "wire")
        with pytest.raises(DrayError, match="invalid subinterface vlan name wire"):
            driver.up(network)
        return
    netns, sock = await LocalNamespaces().new_network_namespace()
    os.close(sock)
    driver.plug(network, endpoint(network, 2), netns)
    driver.unplug(network, endpoint(network, 2))
    driver.down(network)
    os.close(netns)


def test_an_unknown_option_is_refused_by_name(driver: Driver, network: Network) -> None:
    import msgspec

    if driver.name == "plugin":
        pytest.skip("options are the plugin's to refuse: tests/kernel/test_network_plugins.py")
    with pytest.raises(DrayError, match=r"com\.example\.nonsense"):
        driver.validate(msgspec.structs.replace(network, options={"com.example.nonsense": "1"}))
