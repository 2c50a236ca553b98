from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Coroutine

import pytest
from netlab import (
    LocalNamespaces,
    MemoryRecords,
    Server,
    entered,
    output,
    private_host,
    private_neighbour,
    say,
    wait_for,
)

from dray.base.errors import Internal
from dray.linux.nftables import NFPROTO_IPV4, Nftables
from dray.network.controller import Controller
from dray.network.model import Attachment, NetworkConfig, PortAsk, SandboxAsk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

A, B, C = "a" * 64, "b" * 64, "c" * 64


class Lab:
    """A private host 192.0.2.1 with a neighbour 192.0.2.9 on its wire, and dray on it."""

    def __init__(self, host: int, outside: int) -> None:
        self.host = host
        self.outside = outside
        self.records = MemoryRecords()
        self.open: list[Attachment | Server | Controller] = []

    async def controller(self, running: dict[str, list[object]] | None = None, **settings: object) -> Controller:
        made = Controller(self.records, NetworkConfig(**settings), LocalNamespaces())  # type: ignore[arg-type]
        await made.start(running or {})  # type: ignore[arg-type]
        self.open.append(made)
        return made

    async def run(self, network: Controller, container: str, **ask: object) -> Attachment:
        made = await network.attach(container, SandboxAsk(name=f"c{container[0]}", **ask))  # type: ignore[arg-type]
        self.open.append(made)
        return made

    def serve(self, at: Attachment, port: int, **how: object) -> Server:
        made = Server(at.netns, port, **how)  # type: ignore[arg-type]
        self.open.append(made)
        return made

    async def close(self) -> None:
        for each in reversed(self.open):
            closed = each.close()
            if closed is not None:
                with contextlib.suppress(OSError):
                    await closed


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with private_host() as host, private_neighbour(host) as outside:
        made = Lab(host, outside)
        yield made
        await made.close()


def port(host_port: int, container_port: int = 80, host_ip: str = "", protocol: str = "tcp") -> PortAsk:
    return PortAsk(
        protocol=protocol, container_port=container_port, host_ip=host_ip, first=host_port, last=host_port
    )


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("br_netfilter", ["0", "1"])
async def test_published_port_from_everywhere(lab: Lab, udp: bool, br_netfilter: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        with open("/proc/sys/net/bridge/bridge-nf-call-iptables", "w", encoding="ascii") as file:
            file.write(br_netfilter)
    network = await lab.controller()
    web = await lab.run(network, A, ports=[port(8080, protocol="udp" if udp else "tcp")])
    other = await lab.run(network, B)
    lab.serve(web, 80, udp=udp)
    assert say(None, "127.0.0.1", 8080, udp=udp) == "172.17.0.1 hi"
    assert say(None, "192.0.2.1", 8080, udp=udp).endswith(" hi")
    assert say(None, "172.17.0.1", 8080, udp=udp).endswith(" hi")
    assert say(lab.outside, "192.0.2.1", 8080, udp=udp) == "192.0.2.9 hi"  # the client's own address
    assert say(other.netns, "192.0.2.1", 8080, udp=udp) == "172.17.0.1 hi"  # hairpin
    assert say(other.netns, "172.17.0.1", 8080, udp=udp) == "172.17.0.1 hi"
    assert say(web.netns, "192.0.2.1", 8080, udp=udp) == "172.17.0.1 hi"  # to itself
    assert say(other.netns, "172.17.0.2", 80, udp=udp) == "172.17.0.3 hi"


async def test_what_is_not_published_is_not_reachable_from_outside(lab: Lab) -> None:
    network = await lab.controller()
    web = await lab.run(network, A, ports=[port(8080)])
    lab.serve(web, 80)
    lab.serve(web, 81)
    assert say(lab.outside, "172.17.0.2", 81, timeout=0.3) == "TimeoutError"
    assert say(lab.outside, "172.17.0.2", 80, timeout=0.3) == "TimeoutError"
    assert say(None, "172.17.0.2", 81) == "172.17.0.1 hi"
    out = Server(lab.outside, 99)
    assert say(web.netns, "192.0.2.9", 99) == "192.0.2.1 hi"  # outbound, masqueraded
    out.close()


async def test_loopback_services_of_the_host_stay_private(lab: Lab) -> None:
    network = await lab.controller()
    web = await lab.run(network, A, ports=[port(8080, host_ip="127.0.0.1")])
    lab.serve(web, 80)
    assert say(None, "127.0.0.1", 8080) == "172.17.0.1 hi"
    assert say(lab.outside, "192.0.2.1", 8080) == "ConnectionRefusedError 111"
    secret = Server(None, 77, udp=True)
    # A container that sends to 127.0.0.1 over the wire, and one that pretends to come from there.
    output(web.netns, "ip", "address", "del", "127.0.0.1/8", "dev", "lo")
    with entered(web.netns):
        with open("/proc/sys/net/ipv4/conf/all/route_localnet", "w", encoding="ascii") as file:
            file.write("1")
    output(web.netns, "ip", "route", "del", "local", "127.0.0.1", "table", "local")
    output(web.netns, "ip", "route", "del", "local", "127.0.0.0/8", "table", "local")
    output(web.netns, "ip", "route", "add", "127.0.0.1", "via", "172.17.0.1", "src", "172.17.0.2")
    assert "via 172.17.0.1" in output(web.netns, "ip", "route", "get", "127.0.0.1")
    say(web.netns, "127.0.0.1", 77, udp=True, timeout=0.3)
    assert secret.received == []
    output(None, "nft", "flush", "chain", "ip", "dray", "raw")
    say(web.netns, "127.0.0.1", 77, udp=True, timeout=0.3)
    assert secret.received == [b"hi"]  # it was the rules that kept it out
    secret.close()


async def test_ipv6_host_port_of_a_container_without_ipv6_is_forwarded_in_user_space(lab: Lab) -> None:
    network = await lab.controller()
    web = await lab.run(network, A, ports=[port(8080)])
    assert [(b.host_ip, b.host_port) for b in web.endpoints[0].ports] == [("0.0.0.0", 8080), ("::", 8080)]
    ((protocol, index, address, to),) = web.forwards
    assert (protocol, address, to) == ("tcp", "172.17.0.2", 80)
    listener = socket.socket(fileno=os.dup(web.hold_fds[index]))
    assert listener.getsockname()[:2] == ("::", 8080)
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    listener.close()


async def test_ipv6_container(lab: Lab) -> None:
    network = await lab.controller(ipv6=True, fixed_cidr_v6="fd00:77::/64")
    web = await lab.run(network, A, ports=[port(8080)])
    other = await lab.run(network, B)
    lab.serve(web, 80, family=socket.AF_INET6)
    (endpoint,) = web.endpoints
    # The kernel joins an address's multicast groups a few milliseconds after it was added.
    assert wait_for(lambda: say(None, "fd00:77::2", 80, timeout=0.2).endswith(" hi"))
    assert wait_for(lambda: say(other.netns, "fd00:77::1", 1, timeout=0.2) == "ConnectionRefusedError 111")
    assert endpoint.ipv6 == "fd00:77::2"
    assert endpoint.gateway6 == "fd00:77::1"
    assert say(lab.outside, "2001:db8::1", 8080) == "2001:db8::9 hi"
    assert say(None, "2001:db8::1", 8080).endswith(" hi")
    assert say(other.netns, "2001:db8::1", 8080) == "fd00:77::1 hi"
    assert say(other.netns, "fd00:77::2", 80) == "fd00:77::3 hi"
    assert say(lab.outside, "fd00:77::2", 80, timeout=0.3) != "2001:db8::9 hi"
    out = Server(lab.outside, 99, family=socket.AF_INET6)
    assert say(web.netns, "2001:db8::9", 99) == "2001:db8::1 hi"
    out.close()
    assert web.forwards == [("tcp", 1, "fd00:77::2", 80)]  # ::1 is served by the listener


async def test_a_taken_port_is_dockers_error_and_leaves_nothing(lab: Lab) -> None:
    network = await lab.controller()
    await lab.run(network, A, ports=[port(8080)])
    with pytest.raises(Internal) as error:
        await network.attach(B, SandboxAsk(name="second", ports=[port(9000), port(8080)]))
    assert re.fullmatch(
        r"driver failed programming external connectivity on endpoint second \([0-9a-f]{64}\): "
        r"Bind for 0\.0\.0\.0:8080 failed: port is already allocated",
        str(error.value),
    )
    taken = socket.create_server(("0.0.0.0", 8081))
    with pytest.raises(
        Internal,
        match=r"\): failed to bind host port for 0\.0\.0\.0:8081:172\.17\.0\.3:80/tcp: address already in use$",
    ):
        await network.attach(B, SandboxAsk(name="second", ports=[port(9000), port(8081)]))
    taken.close()
    assert "9000" not in output(None, "nft", "list", "table", "ip", "dray")
    second = await lab.run(network, B, ports=[port(9000), port(8081)])
    assert second.endpoints[0].ipv4 == "172.17.0.3"


async def test_nobody_else_can_take_a_published_port_until_it_is_free(lab: Lab) -> None:
    network = await lab.controller()
    web = await lab.run(network, A, ports=[port(8080), port(8080, protocol="udp")])
    for reuse in (0, 1):
        thief = socket.socket()
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        with pytest.raises(OSError, match="in use"):
            thief.bind(("0.0.0.0", 8080))
        thief.close()
    await network.detach(A, web.endpoints)
    web.close()
    await lab.run(network, B, ports=[port(8080), port(8080, protocol="udp")])


async def test_random_ports_ranges_and_publish_all(lab: Lab) -> None:
    network = await lab.controller()
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        first, last = map(int, file.read().split())
    one = await lab.run(network, A, publish_all=True, exposed=[("tcp", 80), ("udp", 53)], ports=[port(0, 80)])
    found = {(b.protocol, b.container_port): b.host_port for b in one.endpoints[0].ports if b.host_ip == "0.0.0.0"}
    assert set(found) == {("tcp", 80), ("udp", 53)}
    assert all(first <= number <= last for number in found.values())
    ask = PortAsk(protocol="tcp", container_port=80, first=8000, last=8001)
    two = await lab.run(network, B, ports=[ask])
    three = await lab.run(network, C, ports=[ask])
    assert [two.endpoints[0].ports[0].host_port, three.endpoints[0].ports[0].host_port] == [8000, 8001]
    with pytest.raises(Internal, match="all ports are allocated"):
        await network.attach("d" * 64, SandboxAsk(name="d", ports=[ask]))


async def test_a_restarted_daemon_disturbs_nothing_and_clears_what_is_left(lab: Lab) -> None:
    first = await lab.controller()
    web = await lab.run(first, A, ports=[port(8080)])
    dead = await lab.run(first, B, ports=[port(8081)])
    lab.serve(web, 80)
    with entered(lab.outside):
        client = socket.create_connection(("192.0.2.1", 8080), timeout=2)
    client.sendall(b"one")
    assert client.recv(100) == b"192.0.2.9 one"
    dead.close()  # its shim is gone while the daemon is away
    output(None, "ip", "link", "add", "stray", "alias", "dray/leftover", "type", "veth", "peer", "name", "stray2")
    output(None, "ip", "link", "set", "stray", "alias", "dray/leftover")
    await first.close()
    second = await lab.controller({A: web.endpoints})
    client.sendall(b"two")
    assert client.recv(100) == b"192.0.2.9 two"
    client.close()
    rules = output(None, "nft", "list", "table", "ip", "dray")
    assert "tcp . 8080" in rules
    assert "8081" not in rules
    for _ in range(200):
        if "stray" not in output(None, "ip", "link"):
            break
        await asyncio.sleep(0.02)
    assert "stray" not in output(None, "ip", "link")
    assert say(lab.outside, "192.0.2.1", 8080) == "192.0.2.9 hi"
    with pytest.raises(Internal, match="port is already allocated"):
        await second.attach(B, SandboxAsk(name="second", ports=[port(8080)]))
    third = await lab.run(second, B, ports=[port(8081)])
    assert third.endpoints[0].ipv4 == "172.17.0.3"


async def test_udp_flows_follow_the_container(lab: Lab) -> None:
    network = await lab.controller()
    with entered(lab.outside):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(1)
    client.connect(("192.0.2.1", 5353))

    def ask() -> bytes:
        try:
            client.send(b"hi")
            return client.recv(100)
        except OSError as error:
            return type(error).__name__.encode()

    assert ask() == b"ConnectionRefusedError"  # nothing there yet, but the flow is tracked
    one = await lab.run(network, A, ports=[port(5353, 53, protocol="udp")])
    lab.serve(one, 53, udp=True)
    assert ask() == b"192.0.2.9 hi"
    held = await lab.run(network, B)  # takes .3, so that the next has another address
    await network.detach(A, one.endpoints)
    for fd in one.hold_fds:
        os.close(fd)
    one.hold_fds.clear()
    two = await lab.run(network, C, ports=[port(5353, 53, protocol="udp")])
    assert held.endpoints[0].ipv4 == "172.17.0.3"
    lab.serve(two, 53, udp=True)
    assert ask() == b"192.0.2.9 hi"
    client.close()


async def test_rules_survive_a_reload_of_the_hosts_firewall(lab: Lab) -> None:
    network = await lab.controller()
    web = await lab.run(network, A, ports=[port(8080)])
    lab.serve(web, 80)
    output(None, "nft", "flush", "ruleset")
    await lab.run(network, B, ports=[port(8081)])  # before the event loop has seen it
    assert say(lab.outside, "192.0.2.1", 8080) == "192.0.2.9 hi"
    output(None, "nft", "flush", "ruleset")
    await asyncio.sleep(0.05)
    assert say(lab.outside, "192.0.2.1", 8080) == "192.0.2.9 hi"
    assert "8081" in output(None, "nft", "list", "table", "ip", "dray")


async def test_a_forward_policy_of_drop_is_warned_of_and_local_access_goes_on(lab: Lab) -> None:
    network = await lab.controller()
    web = await lab.run(network, A, ports=[port(8080)])
    lab.serve(web, 80)
    assert network.warnings() == []
    output(None, "nft", "add table ip filter")
    output(None, "nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    (warning,) = network.warnings()
    assert "ip filter FORWARD" in warning
    assert say(None, "127.0.0.1", 8080) == "172.17.0.1 hi"
    assert say(None, "192.0.2.1", 8080).endswith(" hi")
    output(None, "nft", "add rule ip filter FORWARD oifname dray0 accept")
    output(None, "nft", "add rule ip filter FORWARD iifname dray0 accept")
    assert say(lab.outside, "192.0.2.1", 8080) == "192.0.2.9 hi"


async def test_a_bridge_that_firewalld_does_not_know_is_warned_of(lab: Lab) -> None:
    network = await lab.controller()
    output(None, "nft", "add table inet firewalld")
    output(None, "nft", "add chain inet firewalld filter_FORWARD_ZONES")
    (warning,) = network.warnings()
    assert "firewalld rejects what containers on dray0 send" in warning
    assert "--zone=trusted --add-interface=dray0" in warning
    output(None, "nft", 'add rule inet firewalld filter_FORWARD_ZONES iifname "dray0" accept')
    assert network.warnings() == []


async def test_without_iptables_everything_is_forwarded_in_user_space(lab: Lab) -> None:
    network = await lab.controller(iptables=False, ip6tables=False)
    web = await lab.run(network, A, ports=[port(8080)])
    assert [forward[2:] for forward in web.forwards] == [("172.17.0.2", 80)] * 2
    assert output(None, "nft", "list", "ruleset") == ""


async def test_forwarding_is_guarded_between_the_interfaces_that_were_there(lab: Lab) -> None:
    output(None, "sysctl", "-qw", "net.ipv4.ip_forward=0")
    network = await lab.controller()
    with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
        assert file.read().strip() == "1"
    assert '"wire"' in output(None, "nft", "list", "set", "ip", "dray", "guarded")
    await network.close()
    again = await lab.controller()
    assert '"wire"' in output(None, "nft", "list", "set", "ip", "dray", "guarded")
    await again.close(wipe=True)
    assert output(None, "nft", "list", "ruleset") == ""
    assert "dray0" not in output(None, "ip", "link")
    with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
        assert file.read().strip() == "0"
    assert network.networks()


async def test_others_are_served_while_many_ports_are_published(lab: Lab) -> None:
    network = await lab.controller(userland_proxy=False)
    many, more = (
        [port(number, number, "192.0.2.1") for number in range(first, first + count)]
        for first, count in ((20000, 700), (30000, 1000))
    )
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def turns_of(work: Coroutine[None, None, object]) -> int:
        before = turns
        await work
        return turns - before

    counting = asyncio.create_task(count())
    assert await turns_of(lab.run(network, A, ports=many)) > 8
    with pytest.raises(Internal, match=r"Bind for 192\.0\.2\.1:20000 failed: port is already allocated"):
        await network.attach(B, SandboxAsk(name="b", ports=[*more, many[0]]))
    web = await lab.run(network, B, ports=more)  # nothing was left
    lab.serve(web, 30999)
    assert say(lab.outside, "192.0.2.1", 30999) == "192.0.2.9 hi"
    assert await turns_of(network.detach(A, ())) > 8
    counting.cancel()
    assert output(None, "nft", "list", "map", "ip", "dray", "published").count("comment") == len(more)


async def test_a_flood_of_changes_hides_no_reload_and_is_none(lab: Lab) -> None:
    network = await lab.controller()
    web = await lab.run(network, A, ports=[port(8080)])
    lab.serve(web, 80)
    tables = Nftables.open()
    first = tables.table_handle(NFPROTO_IPV4, "dray")
    elements = ",".join(map(str, range(1, 6000)))
    flood = (
        f"add table ip other; add set ip other s {{ type inet_service; }}; add element ip other s {{ {elements} }}"
    )
    for end in ("", "; flush ruleset"):
        with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
            file.write((flood + end).replace("; a", "\na").replace("; f", "\nf"))
            file.flush()
            assert output(None, "nft", "-f", file.name) == ""
        await asyncio.sleep(0.05)
        assert (tables.table_handle(NFPROTO_IPV4, "dray") == first) == (not end)  # not made anew without need
    tables.close()
    assert say(lab.outside, "192.0.2.1", 8080) == "192.0.2.9 hi"
