"""The resolver of user-defined networks, with real containers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from support.dnslab import Upstream, address, closing
from support.engines import Engine, until
from support.leaks import command_line
from support.world import HOST_ADDRESS


@pytest.fixture
def network(engine: Engine) -> Iterator[str]:
    engine.ok("network", "create", "app")
    yield "app"
    engine.remove_everything()
    engine.docker("network", "rm", "app")


@pytest.fixture(autouse=True)
def upstream(engine: Engine) -> Iterator[Upstream]:
    """A name server on the host's own address, in the world of the engine: it knows all names that have a dot."""
    known = address("192.0.2.1")

    def answer(query: dns.message.Message) -> list[bytes]:
        if len(query.question[0].name) > 2:
            return known(query)
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.NXDOMAIN)
        return [response.to_wire()]

    server = Upstream(HOST_ADDRESS, answer)
    with closing(server):
        yield server


def run(engine: Engine, name: str, network: str, *flags: str) -> str:
    return engine.ok(
        "run", "-d", "--name", name, "--network", network, "--dns", HOST_ADDRESS, *flags, "busybox", "sleep", "600"
    )  # fmt: skip


def lookup(engine: Engine, box: str, name: str, kind: str = "a") -> list[str]:
    """The addresses (or the name) that nslookup in a container finds."""
    done = engine.docker("exec", box, "nslookup", f"-type={kind}", name)
    answers = done.stdout.partition("\n\n")[2]
    words = ("Address: ", f"{name}\tname = ") if kind != "ptr" else ("name = ",)
    return sorted(line.partition(word)[2] for line in answers.splitlines() for word in words if word in line)


def of(engine: Engine, name: str, network: str) -> str:
    return str(engine.inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"])


def test_names_addresses_aliases_and_links(engine: Engine, network: str) -> None:
    web = run(engine, "web", network, "--network-alias", "shared", "--hostname", "webhost")
    run(engine, "db", network, "--network-alias", "shared", "--link", "web:front")
    address = of(engine, "web", network)
    for name in ("web", "WEB", web[:12], "web.app", "webhost", "webhost.app"):
        assert lookup(engine, "db", name) == [address], name
    assert lookup(engine, "db", "front") == [address]
    assert lookup(engine, "web", "shared") == sorted([address, of(engine, "db", network)])
    assert lookup(engine, "db", "web", "aaaa") == []
    assert "name = web.app" in engine.ok("exec", "db", "nslookup", address)
    assert "bytes from" in engine.ok("exec", "db", "ping", "-c", "1", "front")


def test_files_are_dockers(engine: Engine, network: str) -> None:
    run(engine, "web", network, "--dns-search", "corp.example", "--dns-option", "timeout:3")
    lines = engine.ok("exec", "web", "cat", "/etc/resolv.conf").splitlines()
    assert sorted(line for line in lines if line and not line.startswith("#")) == [
        "nameserver 127.0.0.11",
        "options timeout:3 ndots:0",
        "search corp.example",
    ]
    hosts = engine.ok("exec", "web", "cat", "/etc/hosts")
    assert [line.split()[0] for line in hosts.splitlines()][-1] == of(engine, "web", network)
    assert "#" not in hosts
    run(engine, "plain", "bridge")
    assert "127.0.0.11" not in engine.ok("exec", "plain", "cat", "/etc/resolv.conf")


def test_changes_while_it_runs(engine: Engine, network: str) -> None:
    run(engine, "web", network)
    run(engine, "late", "bridge")
    run(engine, "other", "bridge")
    for box in ("late", "other"):
        engine.ok("network", "connect", "--alias", "found", network, box)
    assert len(lookup(engine, "web", "found")) == 2
    assert lookup(engine, "late", "web") == [
        of(engine, "web", network)
    ]  # its resolv.conf leads to the resolver now
    assert of(engine, "late", network) in engine.ok("exec", "late", "cat", "/etc/hosts")
    engine.ok("rename", "web", "front")
    assert lookup(engine, "late", "web") == []
    assert lookup(engine, "late", "front") == [of(engine, "front", network)]
    engine.ok("network", "disconnect", network, "late")
    assert len(lookup(engine, "front", "found")) == 1
    engine.ok("stop", "-t", "0", "other")
    until(lambda: lookup(engine, "front", "found") == [], what="the name of a stopped container to go")
    engine.ok("start", "other")
    assert len(lookup(engine, "front", "found")) == 1


@pytest.mark.drayd_only("dockerd before 26 writes over it when it is connected")
def test_an_edited_file_is_the_containers(engine: Engine, network: str) -> None:
    run(engine, "box", "bridge")
    engine.ok("exec", "box", "sh", "-c", "echo nameserver 192.0.2.9 > /etc/resolv.conf")
    engine.ok("network", "connect", network, "box")
    assert engine.ok("exec", "box", "cat", "/etc/resolv.conf") == "nameserver 192.0.2.9"


def test_networks_do_not_see_each_other(engine: Engine, network: str) -> None:
    engine.ok("network", "create", "other")
    try:
        run(engine, "web", network)
        run(engine, "stranger", "other")
        run(engine, "both", network)
        engine.ok("network", "connect", "other", "both")
        assert lookup(engine, "web", "stranger") == []
        assert lookup(engine, "stranger", "web") == []
        assert lookup(engine, "both", "web")
        assert lookup(engine, "both", "stranger")
    finally:
        engine.remove_everything()
        engine.ok("network", "rm", "other")


def test_other_names_are_forwarded(engine: Engine, network: str, upstream: Upstream) -> None:
    run(engine, "web", network)
    assert lookup(engine, "web", "www.example.com") == ["192.0.2.1"]
    assert upstream.names == ["www.example.com"]
    lookup(engine, "web", "web")
    assert upstream.names == ["www.example.com"]


@pytest.mark.drayd_only("dockerd before 26 does ask: it is this CVE")
def test_an_internal_network_asks_nobody(engine: Engine, network: str, tmp_path: Path) -> None:
    """CVE-2024-29018: what is asked in an internal network must not leave it through the host, whose own name server
    on its loopback is asked from its namespace."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.77\n")
    subprocess.run(["mount", "--bind", tmp_path / "resolv.conf", "/etc/resolv.conf"], check=True)
    try:
        local = Upstream("127.0.0.77", address("192.0.2.1"))
        with closing(local):
            engine.ok("network", "create", "--internal", "inside")
            for name, where in (("secret", "inside"), ("open", network)):
                engine.ok("run", "-d", "--name", name, "--network", where, "busybox", "sleep", "600")
            assert lookup(engine, "secret", "data.attacker.example") == []
            assert lookup(engine, "secret", "secret") == [of(engine, "secret", "inside")]
            assert local.names == []
            assert lookup(engine, "open", "www.example.com") == ["192.0.2.1"]
            assert local.names == ["www.example.com"]
    finally:
        subprocess.run(["umount", "/etc/resolv.conf"], check=True)
        engine.remove_everything()
        engine.ok("network", "rm", "inside")


def test_a_container_may_have_port_53(engine: Engine, network: str) -> None:
    run(engine, "web", network)
    server = engine.ok(
        "run", "-d", "--name", "ns", "--network", network, "--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE",
        "busybox", "nc", "-l", "-p", "53",
    )  # fmt: skip
    assert server
    assert lookup(engine, "ns", "web") == [of(engine, "web", network)]
    assert engine.state("ns")["Running"]


def resolver(world_pids: set[int]) -> int:
    return next((pid for pid in world_pids if " dray-dns " in command_line(pid)), 0)


@pytest.mark.drayd_only("dockerd is its own name server")
def test_names_survive_the_daemon_and_the_resolver(engine: Engine, network: str, house) -> None:  # type: ignore[no-untyped-def]
    run(engine, "web", network)
    run(engine, "db", network)
    loop = "while :; do nslookup -type=a web >/dev/null 2>&1 && echo y >> /tmp/ok || echo n >> /tmp/bad; sleep 0.05; done"
    engine.ok("exec", "-d", "db", "sh", "-c", loop)
    pid = resolver(house.world.processes())
    engine.kill()
    time.sleep(0.3)
    assert resolver(house.world.processes()) == pid
    engine.start()
    assert resolver(house.world.processes()) == pid
    assert lookup(engine, "db", "web") == [of(engine, "web", network)]
    assert engine.docker("exec", "db", "cat", "/tmp/bad").returncode == 1  # not one question went wrong
    os.kill(pid, signal.SIGKILL)
    until(lambda: resolver(house.world.processes()) not in (0, pid), what="the resolver to come back")
    until(lambda: lookup(engine, "db", "web") == [of(engine, "web", network)], what="its answers")
    run(engine, "new", network)
    assert lookup(engine, "db", "new") == [of(engine, "new", network)]


@pytest.mark.drayd_only("dockerd is its own name server")
def test_no_resolver_is_left_when_the_daemon_stops(engine: Engine, network: str, house) -> None:  # type: ignore[no-untyped-def]
    run(engine, "web", network)
    assert resolver(house.world.processes())
    engine.ok("rm", "-f", "web")
    engine.stop()
    assert not resolver(house.world.processes())
    assert not Path(engine.exec_root, "dns.sock").exists()
    engine.start()
