"""Networks of every driver with the official client: creation, membership, removal, events, errors."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess

import pytest

from support.engines import Drayd, Engine, EngineFailed, until
from support.world import HOST_ADDRESS, HOST_ADDRESS_6

pytestmark = pytest.mark.drayd_only("newer drivers' options, and options of dray's own")

GATEWAY = "com.docker.network.bridge.gateway_mode_ipv4"


def create(engine: Engine, name: str, *flags: str) -> dict[str, object]:
    engine.ok("network", "create", *flags, name)
    found: dict[str, object] = engine.inspect(name, kind="network")
    return found


def test_every_field_is_kept_and_shown(engine: Engine) -> None:
    shown = create(
        engine,
        "whole",
        *("--subnet", "10.90.0.0/16", "--ip-range", "10.90.5.0/24", "--gateway", "10.90.0.254"),
        *("--aux-address", "router=10.90.5.1", "--ipv6", "--subnet", "fd00:90::/64"),
        *("--internal", "--attachable", "--label", "a=b", "-o", "com.docker.network.driver.mtu=1400"),
    )
    try:
        assert (shown["Internal"], shown["Attachable"], shown["EnableIPv6"]) == (True, True, True)
        assert shown["Labels"] == {"a": "b"}
        # The client keeps its subnets in a map: they come in any order.
        first, second = sorted(shown["IPAM"]["Config"], key=lambda pool: ":" in pool["Subnet"])  # type: ignore[index]
        assert first == {
            "Subnet": "10.90.0.0/16",
            "IPRange": "10.90.5.0/24",
            "Gateway": "10.90.0.254",
            "AuxiliaryAddresses": {"router": "10.90.5.1"},
        }
        assert second["Subnet"] == "fd00:90::/64"
        out = engine.ok("run", "--rm", "--network", "whole", "busybox", "ip", "-o", "addr", "show", "eth0")
        assert "10.90.5.0/16" in out
        assert "fd00:90::" in out
        assert "mtu 1400" in engine.ok("run", "--rm", "--network", "whole", "busybox", "ip", "link")
        for flag, count in (("label=a=b", 1), ("driver=bridge", 2), ("name=who", 1), ("dangling=true", 1)):
            assert len(engine.ok("network", "ls", "-q", "--filter", flag).split()) == count, flag
    finally:
        engine.ok("network", "rm", "whole")


def test_errors_are_dockers(engine: Engine) -> None:
    create(engine, "small", "--subnet", "10.91.0.0/30")
    try:
        assert "already exists" in engine.fails("network", "create", "small")
        assert "Pool overlaps" in engine.fails("network", "create", "--subnet", "10.91.0.0/24", "again")
        assert "predefined" in engine.fails("network", "create", "host")
        assert "pre-defined network" in engine.fails("network", "rm", "bridge")
        engine.ok("run", "-d", "--name", "box", "--network", "small", "busybox", "sleep", "600")
        words = engine.fails("run", "--rm", "--network", "small", "busybox", "true", status=125)
        assert "no available IPv4 addresses on this network's address pools: small" in words
        assert "has active endpoints" in engine.fails("network", "rm", "small")
    finally:
        engine.docker("rm", "-f", "box")
        engine.ok("network", "rm", "small")


def test_ipv6_that_is_off_is_off_on_every_driver(engine: Engine) -> None:
    """CVE-2024-32473: a container on a network without IPv6 has no IPv6 address, not even a link-local one."""
    create(engine, "lan", "-d", "macvlan", "--subnet", "10.92.0.0/24", "-o", "parent=host0")
    create(engine, "mine", "--subnet", "10.93.0.0/24")
    try:
        for network in ("lan", "mine", "bridge"):
            shown = engine.ok("run", "--rm", "--network", network, "busybox", "sh", "-c", "sleep 0.2; ip -o addr")
            assert "eth0" in shown
            assert [line for line in shown.splitlines() if "eth0" in line and "inet6" in line] == [], network
        bridge = engine.inspect("mine", kind="network")["Id"][:12]
        engine.ok("run", "-d", "--name", "box", "--network", "mine", "busybox", "sleep", "600")
        shown = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout
        assert [line.split()[2] for line in shown.splitlines() if bridge in line.split()[1]] == ["inet"]
        engine.ok("rm", "-f", "box")
    finally:
        engine.ok("network", "rm", "lan", "mine")


def test_macvlan_beside_a_bridge_live(engine: Engine) -> None:
    create(engine, "lan", "-d", "macvlan", "--subnet", "10.92.0.0/24", "-o", "parent=host0")
    try:
        engine.ok("run", "-d", "--name", "one", "busybox", "sleep", "600")
        engine.ok(
            "run", "-d", "--name", "two", "--network", "lan", "--ip", "10.92.0.77", "busybox", "sleep", "600"
        )
        engine.ok("network", "connect", "--gw-priority", "-1", "lan", "one")
        assert "10.92.0.2/24" in engine.ok("exec", "one", "ip", "-o", "addr", "show", "eth1")
        engine.ok("exec", "one", "ping", "-c1", "-W2", "10.92.0.77")
        assert f"via {engine.subnet}1 dev eth0" in engine.ok("exec", "one", "ip", "route")
        members = engine.inspect("lan", kind="network")["Containers"].values()
        assert sorted(one["Name"] for one in members) == ["one", "two"]
        engine.ok("network", "disconnect", "lan", "one")
        assert "eth1" not in engine.ok("exec", "one", "ip", "link")
    finally:
        engine.docker("rm", "-f", "one", "two")
        engine.ok("network", "rm", "lan")


def test_routed_ports_are_shown_without_a_host_port(engine: Engine) -> None:
    create(engine, "routed", "--subnet", "10.94.0.0/24", "-o", f"{GATEWAY}=routed")
    try:
        engine.ok("run", "-d", "--name", "web", "--network", "routed", "-p", "80", "variants:web")
        ports = engine.ports("web")["80/tcp"]
        assert {"HostIp": "0.0.0.0", "HostPort": ""} in ports
        assert (
            engine.ok(
                "run",
                "--rm",
                "busybox",
                "sh",
                "-c",
                "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 10.94.0.2 80 | tail -n 1",
            )
            == "busybox page"
        )
    finally:
        engine.docker("rm", "-f", "web")
        engine.ok("network", "rm", "routed")


def test_options_of_an_endpoint(engine: Engine) -> None:
    options = (
        "driver-opt=com.docker.network.endpoint.ifname=lan0",
        "driver-opt=com.dray.network.bandwidth.egress=10mbit",
        "driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1",
    )
    asked = ",".join(("name=bridge", *options))
    engine.ok("run", "-d", "--name", "box", "--network", asked, "busybox", "sleep", "600")
    assert engine.ok("exec", "box", "cat", "/proc/sys/net/ipv4/conf/lan0/log_martians") == "1"
    assert "tbf" in engine.ok("exec", "box", "ip", "link", "show", "lan0")
    wrong = "name=bridge,driver-opt=com.dray.network.bandwidth.egress=fast"
    assert "a rate such as 10mbit" in engine.fails(
        "run", "--rm", "--network", wrong, "busybox", "true", status=125
    )


def test_prune_and_events(engine: Engine) -> None:
    since = engine.ok("info", "--format", "{{.SystemTime}}")
    made = create(engine, "gone", "--label", "x=y")
    create(engine, "kept")
    assert "gone" in engine.ok("network", "prune", "-f", "--filter", "label=x=y")
    assert "Deleted" not in engine.ok("network", "prune", "-f", "--filter", "until=24h")
    engine.ok("network", "rm", "kept")
    until = engine.ok("info", "--format", "{{.SystemTime}}")
    lines = engine.ok(
        "events", "--since", since, "--until", until, "--filter", "type=network", "--format", "{{json .}}"
    )
    events = [json.loads(line) for line in lines.splitlines()]
    found = [(one["Action"], one["Actor"]["Attributes"]) for one in events if one["Actor"]["ID"] == made["Id"]]
    expected = {"name": "gone", "type": "bridge"}
    assert found == [("create", expected), ("destroy", expected)]


def test_several_networks_at_create_and_who_carries_the_default_route(engine: Engine) -> None:
    for number, name in enumerate(("aa", "bb", "cc")):
        create(engine, name, "--subnet", f"10.95.{number}.0/24")
    try:
        engine.ok(
            *("run", "-d", "--name", "box", "--network", "name=aa,ip=10.95.0.77,alias=first"),
            *("--network", "name=bb,gw-priority=1,mac-address=92:d0:c6:0a:29:33", "--network", "cc"),
            *("-p", "18080:80", "busybox", "sleep", "600"),
        )
        addresses = engine.ok("exec", "box", "ip", "-o", "-4", "addr")
        for shown in ("10.95.0.77/24", "10.95.1.2/24", "10.95.2.2/24"):
            assert shown in addresses
        assert "92:d0:c6:0a:29:33" in engine.ok("exec", "box", "ip", "link", "show", "eth1")
        assert "default via 10.95.1.1 dev eth1" in engine.ok("exec", "box", "ip", "route")
        shown = engine.inspect("box")["NetworkSettings"]["Networks"]
        assert [shown[name]["GwPriority"] for name in ("aa", "bb", "cc")] == [0, 1, 0]
        assert engine.ok("run", "--rm", "--network", "aa", "busybox", "nslookup", "-type=a", "first.").count(
            "10.95.0.77"
        )
        engine.ok("network", "disconnect", "bb", "box")
        assert "default via 10.95.0.1 dev eth0" in engine.ok("exec", "box", "ip", "route")
        engine.ok("network", "connect", "--gw-priority", "2", "--ip", "10.95.1.9", "bb", "box")
        assert "default via 10.95.1.1" in engine.ok("exec", "box", "ip", "route")
        told = json.loads(engine.ok("network", "inspect", "--verbose", "bb"))[0]
        assert [(one["Name"], one["IPv4Address"]) for one in told["Containers"].values()] == [
            ("box", "10.95.1.9/24")
        ]
    finally:
        engine.docker("rm", "-f", "box")
        engine.ok("network", "rm", "aa", "bb", "cc")


def test_pools_that_the_daemon_is_given(engine: Engine) -> None:
    engine.restart(extra=["--default-address-pool", "base=10.96.0.0/23,size=24"])
    try:
        found = [create(engine, name)["IPAM"]["Config"] for name in ("aa", "bb")]  # type: ignore[index]
        assert found == [
            [{"Subnet": "10.96.0.0/24", "Gateway": "10.96.0.1"}],
            [{"Subnet": "10.96.1.0/24", "Gateway": "10.96.1.1"}],
        ]
        assert "all predefined address pools have been fully subnetted" in engine.fails("network", "create", "cc")
    finally:
        engine.ok("network", "rm", "aa", "bb")
        engine.restart()


def test_sctp_and_ipv6_ports(engine: Engine) -> None:
    """No program speaks SCTP here: what is published is read from the kernel."""
    create(engine, "six", "--ipv6", "--subnet", "fd00:97::/64", "--subnet", "10.97.0.0/24")
    ports = ("-p", "10132:132/sctp", "-p", f"[{HOST_ADDRESS_6}]:10080:80", "-p", "127.0.0.1:10081:81")
    try:
        engine.ok("run", "-d", "--name", "box", "--network", "six", *ports, "variants:web")
        shown = engine.ok("port", "box").splitlines()
        assert sorted(shown) == [
            "132/sctp -> 0.0.0.0:10132",
            "132/sctp -> [::]:10132",
            f"80/tcp -> [{HOST_ADDRESS_6}]:10080",
            "81/tcp -> 127.0.0.1:10081",
        ]
        table = subprocess.run(["nft", "list", "table", "ip", "dray"], capture_output=True, text=True, check=True)
        assert re.search(r"sctp . 10132 comment \S+ : 10\.97\.0\.2 . 132", table.stdout)
        with until(lambda: _connected(HOST_ADDRESS_6, 10080), what="the server") as link:
            link.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert link.makefile("rb").read().endswith(b"busybox page\n")
    finally:
        engine.docker("rm", "-f", "box")
        engine.ok("network", "rm", "six")


def _connected(address: str, port: int) -> socket.socket | None:
    with contextlib.suppress(OSError):
        return socket.create_connection((address, port), timeout=5)
    return None


def test_a_second_daemon_on_the_same_bridge_does_not_start(engine: Engine) -> None:
    second = Drayd()
    try:
        with pytest.raises(EngineFailed, match="another daemon keeps the bridge dray0"):
            second.start()
    finally:
        second.destroy()


def test_published_through_the_hosts_firewall(engine: Engine) -> None:
    """With `respect-host-firewall` a port stays published, for the host itself as for containers."""
    from test_e2e_network import fetch, page

    engine.restart(extra=["--respect-host-firewall"])
    try:
        engine.ok("run", "-d", "--name", "web", "-p", "18080:80", "variants:web")
        assert page("127.0.0.1", 18080) == "busybox page\n"
        assert engine.ok("run", "--rm", "busybox", *fetch(HOST_ADDRESS, 18080)) == "busybox page"
        engine.ok("rm", "-f", "web")
    finally:
        engine.restart()
