from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface

import pytest
from netlab import LocalNamespaces, output, private_host

from dray.linux import links, routes
from dray.linux.links import Links, Route

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def host() -> Iterator[Links]:
    with private_host(), Links.open() as made:
        yield made


async def test_a_veth_pair_is_born_in_its_namespace_and_on_its_bridge(host: Links) -> None:
    host.apply([links.bridge_request("br9", mac="02:42:00:00:00:01", mtu=1400)])
    bridge = host.find("br9")
    assert bridge is not None
    assert (bridge.kind, bridge.mac, bridge.mtu, bridge.up) == ("bridge", "02:42:00:00:00:01", 1400, False)
    netns, sock = await LocalNamespaces().new_network_namespace()
    host.apply(
        [
            links.up_request(bridge.index, alias="test/bridge"),
            links.veth_request(
                "veth9", "eth7", peer_netns=netns, master=bridge.index, mac="02:42:0a:00:00:02", mtu=1400
            ),
            links.port_request("veth9", hairpin=True, isolated=True, alias="test/port"),
        ]
    )
    port = host.find("veth9")
    assert port is not None
    assert (port.master, port.kind, port.up, port.alias) == (bridge.index, "veth", True, "test/port")
    shown = output(None, "ip", "-d", "link", "show", "veth9")
    assert "hairpin on" in shown
    assert "isolated on" in shown
    with Links.adopt(sock) as inside:
        peer = inside.find("eth7")
        assert peer is not None
        assert (peer.mac, peer.mtu) == ("02:42:0a:00:00:02", 1400)
        inside.apply(
            [
                links.up_request(1),
                links.up_request(peer.index),
                links.address_request(peer.index, ip_interface("10.0.0.2/24")),
                links.address_request(peer.index, ip_interface("fd00::2/64")),
                routes.default_route_request(peer.index, ip_address("10.0.0.1"), 4),
                routes.default_route_request(peer.index, ip_address("fd00::1"), 6),
                links.settle_request("eth7"),
            ]
        )
        found = {str(address) for _, address in inside.addresses(peer.index)}
        assert {"10.0.0.2/24", "fd00::2/64"} <= found
        assert Route("0.0.0.0/0", "10.0.0.1", peer.index) in inside.routes()
        assert Route("::/0", "fd00::1", peer.index) in inside.routes()
        inside.apply([routes.default_route_request(peer.index, ip_address("10.0.0.1"), 4, remove=True)])
        assert Route("0.0.0.0/0", "10.0.0.1", peer.index) not in inside.routes()
        inside.apply([links.address_request(peer.index, ip_interface("10.0.0.2/24"), remove=True)])
        assert "10.0.0.2/24" not in {str(address) for _, address in inside.addresses(peer.index)}
    host.apply([links.release_request("veth9")])
    port = host.find("veth9")
    assert port is not None
    assert (port.master, port.up) == (0, False)
    host.apply([links.delete_request("veth9")])
    assert host.find("veth9") is None
    os.close(netns)


def test_errors_name_the_operation_and_the_rest_of_the_batch_is_tried(host: Links) -> None:
    with pytest.raises(OSError, match="delete interface nosuch") as error:
        host.apply([links.delete_request("nosuch"), links.bridge_request("br8", mac="02:42:00:00:00:02")])
    assert error.value.errno == errno.ENODEV
    assert host.find("br8") is not None
    with pytest.raises(FileExistsError, match="create bridge br8"):
        host.apply([links.bridge_request("br8", mac="02:42:00:00:00:02")])


def test_many_interfaces_are_listed_whole(host: Links) -> None:
    host.apply([links.bridge_request(f"br{n}", mac="02:42:00:00:00:03") for n in range(100)])
    assert {link.name for link in host.links()} >= {f"br{n}" for n in range(100)}


def test_the_socket_stays_in_its_namespace(host: Links) -> None:
    host.apply([links.bridge_request("here", mac="02:42:00:00:00:04")])
    with private_host(), Links.open() as other:
        assert host.find("here") is not None
        assert other.find("here") is None
        assert socket.if_nameindex() == [(1, "lo")]
