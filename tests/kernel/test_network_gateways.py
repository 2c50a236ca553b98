"""How a bridge network meets the world: gateway modes, trusted interfaces, marks, and the host's own firewall."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest
from netlab import Server, entered, output, private_host, private_neighbour, say, wait_for
from test_network_ports import A, B, Lab, port

from dray.base.errors import Unsupported
from dray.network.asks import NetworkAsk
from dray.network.model import EndpointAsk, Pool, PortAsk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MODE = "com.docker.network.bridge.gateway_mode_ipv4"
MODE6 = "com.docker.network.bridge.gateway_mode_ipv6"
TRUSTED = "com.docker.network.bridge.trusted_host_interfaces"
POOLS = [Pool(subnet="172.20.0.0/24"), Pool(subnet="fd00:20::/64")]
WEB, WEB6 = "172.20.0.2", "fd00:20::2"


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with private_host() as host, private_neighbour(host) as outside:
        output(outside, "ip", "-6", "route", "add", "fd00:20::/64", "via", "2001:db8::1")
        made = Lab(host, outside)
        yield made
        await made.close()


def pings(netns: int, address: str) -> bool:
    with entered(netns):
        echo = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with echo:
        echo.settimeout(1)
        echo.sendto(bytes.fromhex("0800f7fe00000001"), (address, 0))  # type 8, checksum, sequence 1
        try:
            return echo.recv(100)[20] == 0
        except TimeoutError:
            return False


def closed(answer: str) -> bool:
    return not answer.endswith(" hi")


async def test_routed(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(NetworkAsk(name="r", ipv6=True, pools=POOLS, options={MODE: "routed", MODE6: "routed"}))
    web = await lab.run(network, A, mode="r", ports=[port(8080)])
    other = await lab.run(network, B)
    lab.serve(web, 80)
    lab.serve(web, 81)
    lab.serve(web, 82, family=socket.AF_INET6)
    assert [(one.host_ip, one.host_port) for one in web.endpoints[0].ports] == [("0.0.0.0", 0), ("::", 0)]
    assert say(lab.outside, WEB, 80) == "192.0.2.9 hi"
    assert closed(say(lab.outside, WEB, 81, timeout=0.3))
    assert closed(say(lab.outside, "192.0.2.1", 8080, timeout=0.3))  # no address of the host leads there
    assert closed(say(lab.outside, WEB6, 82, timeout=0.3))
    assert say(other.netns, WEB, 80) == "172.20.0.1 hi"  # another bridge: by the published port alone
    assert closed(say(other.netns, WEB, 81, timeout=0.3))
    assert pings(lab.outside, WEB)
    out = Server(lab.outside, 99)
    assert say(web.netns, "192.0.2.9", 99) == "172.20.0.2 hi"  # not masqueraded
    out.close()
    await network.detach(A, web.endpoints)
    assert "172.20.0.2" not in output(None, "nft", "list", "table", "ip", "dray")


async def test_one_family_routed_the_other_by_nat(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(NetworkAsk(name="r", ipv6=True, pools=POOLS, options={MODE6: "routed"}))
    web = await lab.run(network, A, mode="r", ports=[PortAsk(protocol="tcp", container_port=80)])
    lab.serve(web, 80)
    ports = {one.host_ip: one.host_port for one in web.endpoints[0].ports}
    assert ports["::"] == 0
    assert say(lab.outside, "192.0.2.1", ports["0.0.0.0"]) == "192.0.2.9 hi"
    assert closed(say(lab.outside, WEB, 80, timeout=0.3))


async def test_nat_unprotected_is_open(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(NetworkAsk(name="r", pools=POOLS[:1], options={MODE: "nat-unprotected"}))
    web = await lab.run(network, A, mode="r")
    lab.serve(web, 81)
    assert say(lab.outside, WEB, 81) == "192.0.2.9 hi"


async def test_isolated_has_no_host_address(lab: Lab) -> None:
    network = await lab.controller()
    made = await network.create(NetworkAsk(name="i", internal=True, pools=POOLS[:1], options={MODE: "isolated"}))
    web = await lab.run(network, A, mode="i")
    other = await lab.run(network, B, mode="i")
    lab.serve(web, 80)
    assert "inet " not in output(None, "ip", "address", "show", "dev", made.interface)
    assert say(other.netns, web.endpoints[0].ipv4, 80).endswith(" hi")


async def test_trusted_interfaces_and_direct_routing(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(NetworkAsk(name="r", pools=POOLS[:1], options={TRUSTED: "wire:other0"}))
    web = await lab.run(network, A, mode="r", ports=[port(8080), port(8081)])
    lab.serve(web, 80)
    lab.serve(web, 81)
    assert say(lab.outside, WEB, 80) == "192.0.2.9 hi"
    assert closed(say(lab.outside, WEB, 81, timeout=0.3))
    assert say(lab.outside, "192.0.2.1", 8081) == "192.0.2.9 hi"


async def test_allow_direct_routing(lab: Lab) -> None:
    network = await lab.controller(allow_direct_routing=True)
    web = await lab.run(network, A, ports=[port(8080)])
    lab.serve(web, 80)
    lab.serve(web, 81)
    assert say(lab.outside, "172.17.0.2", 80) == "192.0.2.9 hi"
    assert closed(say(lab.outside, "172.17.0.2", 81, timeout=0.3))


async def test_marked_packets_pass(lab: Lab) -> None:
    network = await lab.controller(accept_fwmark=(0x10, 0xF0))
    web = await lab.run(network, A)
    lab.serve(web, 81)
    assert closed(say(lab.outside, "172.17.0.2", 81, timeout=0.3))
    output(None, "nft", "add table ip marks; add chain ip marks p { type filter hook prerouting priority -150; }")
    output(None, "nft", "add", "rule", "ip", "marks", "p", "iifname", "wire", "meta", "mark", "set", "0x11")
    assert say(lab.outside, "172.17.0.2", 81) == "192.0.2.9 hi"


UFW = """
table inet host {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname "lo" accept
    ct state invalid drop
    meta l4proto { icmp, ipv6-icmp } accept
    %s
  }
}
"""


def firewall(rule: str) -> None:
    output(None, "nft", "delete", "table", "inet", "host")
    assert output(None, "nft", UFW % rule) == ""


@pytest.mark.parametrize("udp", [False, True])
async def test_the_hosts_input_rules_hold_for_published_ports(lab: Lab, udp: bool) -> None:
    """As ufw and firewalld write them: whatever INPUT drops is closed, what it accepts is open."""
    network = await lab.controller(respect_host_firewall=True)
    await network.create(NetworkAsk(name="six", ipv6=True, pools=POOLS))
    kind = "udp" if udp else "tcp"
    web = await lab.run(network, A, mode="six", ports=[port(8080, protocol=kind)])
    other = await lab.run(network, B)
    lab.serve(web, 80, udp=udp, family=socket.AF_INET6)  # dual-stack
    everywhere = (("192.0.2.1", "::ffff:192.0.2.9"), ("2001:db8::1", "2001:db8::9"))
    for address, seen in everywhere:  # no firewall: open, with the client's own address
        assert say(lab.outside, address, 8080, udp=udp) == f"{seen} hi", address
    assert say(other.netns, "192.0.2.1", 8080, udp=udp).endswith(" hi")
    assert say(web.netns, "192.0.2.1", 8080, udp=udp).endswith(" hi")
    firewall("")
    for address, _ in everywhere:
        assert closed(say(lab.outside, address, 8080, udp=udp, timeout=0.3)), address
    assert say(None, "127.0.0.1", 8080, udp=udp).endswith(" hi")  # the host itself
    firewall(f"ip saddr 192.0.2.0/24 {kind} dport 8080 accept")
    assert say(lab.outside, "192.0.2.1", 8080, udp=udp) == "::ffff:192.0.2.9 hi"
    assert closed(say(lab.outside, "2001:db8::1", 8080, udp=udp, timeout=0.3))
    firewall(f"{kind} dport 8080 accept")
    assert say(lab.outside, "2001:db8::1", 8080, udp=udp) == "2001:db8::9 hi"


async def test_without_the_setting_the_hosts_input_rules_do_not_hold(lab: Lab) -> None:
    """As with Docker: what makes the test above able to fail."""
    network = await lab.controller()
    web = await lab.run(network, A, ports=[port(8080)])
    lab.serve(web, 80)
    firewall("")
    assert say(lab.outside, "192.0.2.1", 8080) == "192.0.2.9 hi"


async def test_established_connections_outlive_a_flush_of_the_ruleset(lab: Lab) -> None:
    network = await lab.controller(respect_host_firewall=True)
    web = await lab.run(network, A, ports=[port(8080)])
    lab.serve(web, 80)
    firewall("tcp dport 8080 accept")
    with entered(lab.outside):
        client = socket.create_connection(("192.0.2.1", 8080), timeout=2)
    with client:
        client.sendall(b"one")
        assert client.recv(100) == b"192.0.2.9 one"
        output(None, "nft", "flush", "ruleset")
        await asyncio.sleep(0.05)
        assert wait_for(lambda: "published" in output(None, "nft", "list", "table", "ip", "dray"))
        client.sendall(b"two")
        assert client.recv(100) == b"192.0.2.9 two"
    assert say(lab.outside, "192.0.2.1", 8080) == "192.0.2.9 hi"
    await network.close(wipe=True)
    assert "dray-" not in output(None, "ip", "link")


async def test_a_strict_reverse_path_filter_is_refused(lab: Lab) -> None:
    with open("/proc/sys/net/ipv4/conf/all/rp_filter", "w", encoding="ascii") as file:
        file.write("1")
    with pytest.raises(Unsupported, match="rp_filter"):
        await lab.controller(respect_host_firewall=True)


async def test_a_network_without_addresses_and_one_of_ipv6_alone(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(NetworkAsk(name="bare", ipam_driver="null"))
    await network.create(NetworkAsk(name="six", ipv4=False, ipv6=True))
    bare = await lab.run(network, A, mode="bare", ports=[port(8080)])
    six = await lab.run(network, B, mode="six", ports=[port(8081)])
    assert (bare.endpoints[0].ipv4, bare.endpoints[0].ipv6, bare.endpoints[0].ports) == ("", "", [])
    assert "eth0" in output(bare.netns, "ip", "link", "show", "up")
    assert (six.endpoints[0].ipv4, bool(six.endpoints[0].ipv6)) == ("", True)
    lab.serve(six, 80, family=socket.AF_INET6)
    assert say(lab.outside, "2001:db8::1", 8081) == "2001:db8::9 hi"


async def test_link_local_addresses(lab: Lab) -> None:
    network = await lab.controller()
    await network.create(NetworkAsk(name="one", pools=POOLS[:1]))
    ask = EndpointAsk(network="one", link_local=["169.254.7.7"])
    made = await lab.run(network, A, mode="one", endpoints=[ask])
    assert "169.254.7.7/16" in output(made.netns, "ip", "address", "show", "eth0")
