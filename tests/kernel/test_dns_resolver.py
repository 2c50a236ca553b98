"""The resolver's process inside containers' network namespaces: answers, forwarding, limits, deaths."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest
from netlab import output, private_host

from dray.network.dns.model import Member, Server
from support.dnslab import MEMBERS, RESOLVER, Container, Lab, Upstream, address, alive, closing, sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

INSIDE, INSIDE2, HOST = "127.0.0.53", "127.0.0.54", "127.0.0.55"


@pytest.fixture
def host() -> Iterator[None]:
    with private_host():
        yield


@pytest.fixture
async def lab(host: None, tmp_path: Path) -> AsyncIterator[Lab]:
    made = Lab(tmp_path)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def container(host: None) -> Iterator[Container]:
    made = Container()
    with closing(made):
        yield made


async def on_thread(function, *arguments, **options):  # type: ignore[no-untyped-def]
    """Ask without holding up the loop, which may have to bring the process back."""
    return await asyncio.to_thread(function, *arguments, **options)


async def test_names_by_udp_and_tcp(lab: Lab, container: Container) -> None:
    await lab.open(container, sandbox())
    for tcp in (False, True):
        assert container.addresses("web", tcp=tcp) == ["172.18.0.2"]
        assert container.addresses("DATA.app", tcp=tcp) == ["172.18.0.3"]
    assert str(container.ask("3.0.18.172.in-addr.arpa", "PTR").answer[0][0]) == "db.app."
    lab.service.rename([Member("e1", "n1", ["other"], "172.18.0.2")])
    await lab.quiet()
    assert container.addresses("other") == ["172.18.0.2"]
    assert container.addresses("web") == []


async def test_port_53_stays_the_containers(lab: Lab, container: Container) -> None:
    await lab.open(container, sandbox())
    with container.socket() as udp, container.socket(socket.SOCK_STREAM) as tcp:
        udp.bind(("0.0.0.0", 53))
        tcp.bind(("0.0.0.0", 53))
        tcp.listen()
        assert container.addresses("web") == ["172.18.0.2"]
        assert container.addresses("web", tcp=True) == ["172.18.0.2"]
        with container.socket() as client:  # and its own server is reached by its own address
            client.sendto(b"hi", ("127.0.0.1", 53))
            assert udp.recv(10) == b"hi"


async def test_with_connection_tracking_of_the_containers_own(lab: Lab, container: Container) -> None:
    await lab.open(container, sandbox())
    rules = (
        "add table ip own; add chain ip own o { type filter hook output priority 0; };"
        "add rule ip own o ct state invalid drop;"
        "add chain ip own i { type filter hook input priority 0; policy drop; };"
        "add rule ip own i ct state established accept; add rule ip own i ct state new udp dport != 53 accept;"
        "add rule ip own i ct state new tcp dport != 53 accept"
    )
    assert output(container.netns, "nft", rules) == ""
    for tcp in (False, True):
        assert container.addresses("web", tcp=tcp) == ["172.18.0.2"]


async def test_others_are_asked_from_the_containers_namespace(lab: Lab, container: Container) -> None:
    inside = Upstream(INSIDE, address("192.0.2.1"), container.netns)
    outside = Upstream(INSIDE, address("192.0.2.66"))
    with closing(inside, outside):
        await lab.open(container, sandbox(servers=[Server(INSIDE)]))
        for number in range(8):
            assert container.addresses(f"{number}.example") == ["192.0.2.1"]
        assert container.addresses("tcp.example", tcp=True) == ["192.0.2.1"]
        assert outside.names == []
        assert len(inside.ports) > 4  # each question from a port of its own


async def test_the_hosts_loopback_is_asked_from_the_host(lab: Lab, container: Container) -> None:
    inside = Upstream(HOST, address("192.0.2.66"), container.netns)
    outside = Upstream(HOST, address("192.0.2.1"))
    with closing(inside, outside):
        await lab.open(container, sandbox(servers=[Server(HOST, host=True)]))
        assert container.addresses("a.example") == ["192.0.2.1"]
        assert inside.names == []


async def test_internal_networks_forward_nothing(lab: Lab, container: Container) -> None:
    inside = Upstream(INSIDE, address("192.0.2.1"), container.netns)
    outside = Upstream(HOST, address("192.0.2.1"))
    with closing(inside, outside):
        servers = [Server(INSIDE), Server(HOST, host=True)]
        await lab.open(container, sandbox(servers=servers, forward=False))
        for tcp in (False, True):
            for kind in ("A", "TXT", "PTR", "ANY"):
                answer = container.ask("secret.example.com", kind, tcp=tcp)
                assert answer.rcode() == dns.rcode.SERVFAIL
        assert container.addresses("web") == ["172.18.0.2"]
        lab.service.update(sandbox(servers=servers))
        await lab.quiet()
        assert container.addresses("public.example.com") == ["192.0.2.1"]
        assert (inside.names, outside.names) == (["public.example.com"], [])


async def test_the_next_server_stands_in(lab: Lab, container: Container) -> None:
    def failing(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.SERVFAIL if "fail" in str(query.question[0].name) else dns.rcode.REFUSED)
        return [response.to_wire()]

    broken = Upstream(INSIDE, failing, container.netns)
    good = Upstream(INSIDE2, address("192.0.2.2"), container.netns)
    nobody, unreachable = Server("127.0.0.99"), Server("192.0.2.99")
    with closing(broken, good):
        for first in (Server(INSIDE), nobody, unreachable):
            await lab.open(container, sandbox(servers=[first, Server(INSIDE2)]))
            for tcp in (False, True):
                assert container.addresses("fail.example", tcp=tcp) == ["192.0.2.2"]
                assert container.addresses("refused.example", tcp=tcp) == ["192.0.2.2"]
        await lab.open(container, sandbox(servers=[Server(INSIDE), nobody, unreachable]))
        assert container.ask("fail.example").rcode() == dns.rcode.SERVFAIL


async def test_a_silent_server_is_not_waited_for(lab: Lab, container: Container) -> None:
    silent = Upstream(INSIDE, lambda query: [], container.netns)
    good = Upstream(INSIDE2, address("192.0.2.2"), container.netns)
    with closing(silent, good):
        await lab.open(container, sandbox(servers=[Server(INSIDE), Server(INSIDE2)]))
        assert container.addresses("a.example") == ["192.0.2.2"]
        assert silent.names == ["a.example"]


async def test_forged_answers_are_passed_over(lab: Lab, container: Container) -> None:
    def forging(query: dns.message.Message) -> list[bytes]:
        [good] = address("192.0.2.1")(query)
        [forged] = address("192.0.2.66")(query)
        other = dns.message.make_query("other.example", "A", id=query.id)
        return [
            bytes((forged[0] ^ 1,)) + forged[1:],
            address("192.0.2.66")(other)[0],
            forged[:2] + b"\1" + forged[3:],  # no answer at all, by its flags
            b"",
            forged[:7],
            good,
        ]

    upstream = Upstream(INSIDE, forging, container.netns)
    with closing(upstream):
        await lab.open(container, sandbox(servers=[Server(INSIDE)]))
        assert container.addresses("a.example") == ["192.0.2.1"]


async def test_what_does_not_fit_comes_by_tcp(lab: Lab, container: Container) -> None:
    def long(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        name = query.question[0].name
        addresses = [f"192.0.2.{number}" for number in range(200)]
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", *addresses))
        return [response.to_wire()]

    upstream = Upstream(INSIDE, long, container.netns)
    with closing(upstream):
        await lab.open(container, sandbox(servers=[Server(INSIDE)]))
        short = container.ask("many.example")
        assert short.flags & dns.flags.TC
        assert len(container.addresses("many.example", tcp=True)) == 200


async def test_questions_under_way_have_a_limit(lab: Lab, container: Container) -> None:
    silent = Upstream(INSIDE, lambda query: [], container.netns)
    with closing(silent):
        await lab.open(container, sandbox(servers=[Server(INSIDE)]))
        refused = 0
        with container.socket() as client:
            client.connect(RESOLVER)
            for number in range(1100):
                client.send(dns.message.make_query(f"{number}.example", "A").to_wire())
                if number % 50 == 49:
                    await asyncio.sleep(0.01)  # the sockets' buffers hold only so many
            client.settimeout(2)
            with contextlib.suppress(TimeoutError):
                while dns.message.from_wire(client.recv(512)).rcode() == dns.rcode.REFUSED:
                    refused += 1
        assert refused == 1100 - 1024
        assert container.addresses("web") == ["172.18.0.2"]


async def test_noise_and_crowds_do_no_harm(lab: Lab, container: Container) -> None:
    await lab.open(container, sandbox())
    noise = random.Random(1)
    good = dns.message.make_query("web", "A").to_wire()
    before = Path(f"/proc/{lab.pid}/fd")
    open_before = len(list(before.iterdir()))
    with container.socket() as client:
        client.connect(RESOLVER)
        for _ in range(500):
            damaged = bytearray(good)
            damaged[noise.randrange(len(damaged))] = noise.randrange(256)
            client.send(noise.choice([bytes(damaged), noise.randbytes(noise.randrange(64)), good[:20], b""]))
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(container.socket(socket.SOCK_STREAM))
            with contextlib.suppress(OSError):
                client.connect(RESOLVER)
                client.send(noise.choice([b"", b"\0", b"\0\0", b"\xff\xffx", b"\0\x0c" + bytes(12)]))
        assert container.addresses("web", tcp=True) == ["172.18.0.2"]
        assert len(list(before.iterdir())) <= open_before + 70
    assert container.addresses("web") == ["172.18.0.2"]


async def test_it_answers_on_while_the_daemon_is_gone_and_is_found_again(lab: Lab, container: Container) -> None:
    await lab.open(container, sandbox())
    await lab.quiet()
    pid = lab.pid
    lab.crash()
    assert container.addresses("web") == ["172.18.0.2"]
    come = [*MEMBERS, Member("e3", "n1", ["new"], "172.18.0.4")]
    await lab.service.adopt({"box": (sandbox(), container.process.pid)}, come)
    assert lab.pid == pid
    assert container.addresses("new") == ["172.18.0.4"]


async def test_both_may_die(lab: Lab, container: Container) -> None:
    await lab.open(container, sandbox())
    await lab.quiet()
    pid = lab.pid
    lab.crash()
    os.kill(pid, signal.SIGKILL)
    await lab.service.adopt({"box": (sandbox(), container.process.pid)}, MEMBERS)
    assert lab.pid != pid
    assert container.addresses("web") == ["172.18.0.2"]


async def test_what_ended_meanwhile_is_given_up(lab: Lab, container: Container) -> None:
    await lab.open(container, sandbox())
    await lab.quiet()
    pid = lab.pid
    open_before = len(os.listdir(f"/proc/{pid}/fd"))
    lab.crash()
    await lab.service.adopt({}, [])
    assert lab.pid == pid
    assert len(os.listdir(f"/proc/{pid}/fd")) <= open_before - 3  # both sockets and the namespace


async def test_without_daemon_and_containers_it_ends(lab: Lab, container: Container) -> None:
    await lab.open(container, sandbox())
    await lab.quiet()
    pid = lab.pid
    lab.crash()
    assert alive(pid)
    container.end()
    for _ in range(200):
        if not alive(pid):
            break
        await asyncio.sleep(0.02)
    assert not alive(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_process_that_died_or_hangs_is_replaced(
    lab: Lab, container: Container, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("dray.network.dns.service._PATIENCE", 1.0)
    await lab.open(container, sandbox())
    await lab.quiet()
    pid = lab.pid
    os.kill(pid, number)
    if number == signal.SIGSTOP:  # noticed as soon as it is told something
        lab.service.rename([Member("e1", "n1", ["web", "www"], "172.18.0.2")])
    for _ in range(400):
        if lab.pid != pid and not lab.service._tasks:
            break
        await asyncio.sleep(0.02)
    assert lab.pid != pid
    assert not alive(pid)
    assert await on_thread(container.addresses, "web") == ["172.18.0.2"]
    assert await on_thread(container.addresses, "db", tcp=True) == ["172.18.0.3"]


async def test_a_process_that_does_not_know_the_protocol_is_replaced(
    lab: Lab, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.open(container, sandbox())
    await lab.quiet()
    pid = lab.pid
    lab.crash()
    monkeypatch.setattr("dray.network.dns.service.VERSION", 2)
    with pytest.raises(Exception, match="could not be started"):
        await lab.service._ensure()
    monkeypatch.undo()
    assert not alive(pid)
    await lab.service.adopt({"box": (sandbox(), container.process.pid)}, MEMBERS)
    assert container.addresses("web") == ["172.18.0.2"]


async def test_stop_leaves_no_process(lab: Lab, container: Container) -> None:
    await lab.open(container, sandbox())
    await lab.quiet()
    lab.service.close("box", ["e1", "e2"])
    await lab.quiet()
    pid = lab.pid
    await lab.service.stop(end=True)
    assert not alive(pid)
    assert not (lab.directory / "dns.sock").exists()
