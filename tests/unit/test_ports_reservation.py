from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from dray.base.errors import DrayError, Internal, InvalidParameter
from dray.linux.nftables import NFPROTO_IPV4, NFPROTO_IPV6
from dray.network.model import Endpoint, PortAsk, PortBinding
from dray.network.ports import HostPorts, Reach, Reservation

BOTH = (NFPROTO_IPV4, NFPROTO_IPV6)


def endpoint(container: str = "a", *, ipv4: str = "172.17.0.2", ipv6: str = "") -> Endpoint:
    return Endpoint(
        id="e" * 64,
        network_id="n",
        network_name="bridge",
        driver="bridge",
        container_id=container * 64,
        container_name="web",
        ipv4=ipv4,
        ipv6=ipv6,
    )


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def reserve(ports: HostPorts, undo: ExitStack, ask: PortAsk, at: Endpoint, **reach: object) -> list[Reservation]:
    how: dict[str, object] = {"families": BOTH, "userland": True, "ipv6": False} | reach
    return ports.reserve(at, [ask], "127.0.0.1", Reach(**how), undo)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host_ip", "at", "reach", "redirected", "forwarded"),
    [
        ("127.0.0.1", endpoint(), {}, True, ""),
        ("127.0.0.1", endpoint(), {"families": ()}, False, "172.17.0.2"),
        ("127.0.0.1", endpoint(ipv4="", ipv6="fd00::2"), {}, False, "fd00::2"),
        ("::1", endpoint(), {}, False, "172.17.0.2"),
        ("::1", endpoint(ipv6="fd00::2"), {}, False, "fd00::2"),
        ("::", endpoint(ipv6="fd00::2"), {}, True, "fd00::2"),
        ("::", endpoint(ipv6="fd00::2"), {"userland": False}, True, ""),
    ],
)
def test_ways_to_a_container(
    undo: ExitStack, host_ip: str, at: Endpoint, reach: dict[str, object], redirected: bool, forwarded: str
) -> None:
    number = free_port()
    ask = PortAsk(protocol="tcp", container_port=80, host_ip=host_ip, first=number, last=number)
    (one,) = reserve(HostPorts(), undo, ask, at, **reach)
    assert one.binding == PortBinding(protocol="tcp", container_port=80, host_ip=host_ip, host_port=number)
    assert (one.published is not None, one.forward_to) == (redirected, forwarded)
    assert one.sock is not None
    assert one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == bool(forwarded)
    if one.published is not None:
        assert one.published.address == (at.ipv6 if ":" in host_ip else at.ipv4)


def test_no_way_is_an_error(undo: ExitStack) -> None:
    ask = PortAsk(protocol="tcp", container_port=80, host_ip="::1", first=free_port())
    with pytest.raises(InvalidParameter, match="userland proxy is off"):
        reserve(HostPorts(), undo, ask, endpoint(), userland=False)


@pytest.mark.parametrize(
    "ask",
    [
        PortAsk(protocol="icmp", container_port=80),
        PortAsk(protocol="tcp", container_port=0),
        PortAsk(protocol="tcp", container_port=80, first=9, last=8),
        PortAsk(protocol="tcp", container_port=80, first=1, last=65536),
        PortAsk(protocol="tcp", container_port=80, host_ip="localhost"),
    ],
)
def test_ports_that_make_no_sense(undo: ExitStack, ask: PortAsk) -> None:
    with pytest.raises(InvalidParameter, match="invalid"):
        reserve(HostPorts(), undo, ask, endpoint())


def test_a_port_is_free_again_after_release_and_after_undo() -> None:
    ports, number = HostPorts(), free_port()
    ask = PortAsk(protocol="udp", container_port=53, host_ip="127.0.0.1", first=number, last=number)
    with ExitStack() as undo:
        reserve(ports, undo, ask, endpoint())
        with pytest.raises(Internal, match=f"Bind for 127.0.0.1:{number} failed: port is already allocated"):
            reserve(ports, undo, ask, endpoint("b"))
    with ExitStack() as undo:
        (one,) = reserve(ports, undo, ask, endpoint("b"))
        kept = undo.pop_all()
    ports.release("b" * 64, [one.binding])
    assert one.sock is not None
    one.sock.close()
    with ExitStack() as undo:
        reserve(ports, undo, ask, endpoint("c"))
    assert kept is not None


@pytest.mark.parametrize(
    ("held", "asked", "taken"),
    [
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("::", "127.0.0.1", False),
    ],
)
def test_addresses_that_collide(undo: ExitStack, held: str, asked: str, taken: bool) -> None:
    ports, number = HostPorts(), free_port()
    binding = PortBinding(protocol="tcp", container_port=80, host_ip=held, host_port=number)
    ports.adopt("b" * 64, [binding])
    ask = PortAsk(protocol="tcp", container_port=80, host_ip=asked, first=number, last=number)
    with pytest.raises(DrayError) if taken else contextlib.nullcontext():
        reserve(ports, undo, ask, endpoint())


def test_a_port_with_lingering_connections_can_be_had(undo: ExitStack) -> None:
    number = free_port()
    server = socket.create_server(("127.0.0.1", number))
    client = socket.create_connection(("127.0.0.1", number))
    served, _ = server.accept()
    served.close()  # this end closes first: it lingers in TIME_WAIT
    client.close()
    server.close()
    ask = PortAsk(protocol="tcp", container_port=80, host_ip="127.0.0.1", first=number, last=number)
    (one,) = reserve(HostPorts(), undo, ask, endpoint())
    assert one.sock is not None
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            thief.bind(("127.0.0.1", number))
