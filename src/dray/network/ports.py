"""Host ports: which are taken, and the sockets that take them.

Every published host port is reserved by a bound socket that the container's shim keeps open, so that no other
program can take the port while the container lives, and a port in use is noticed when the container starts. The
socket never sees a packet: redirection happens before the kernel looks for sockets. A TCP socket stays bound
without listening.

Where NAT does not reach, the socket does serve, and the shim forwards in user space: host ports on IPv6 for a
container without IPv6, connections to ::1, and everything with firewall rules switched off.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from msgspec import Struct

from dray.base.errors import Internal, InvalidParameter
from dray.linux.nftables import NFPROTO_IPV4, NFPROTO_IPV6
from dray.network import sysctls
from dray.network.model import Endpoint, PortAsk, PortBinding
from dray.network.rules import PROTOCOLS, Published, parsed

_BACKLOG = 512
_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, 132),
}


class PortTaken(Exception):
    """A host port cannot be had; the message is Docker's, without the words about the endpoint."""


class Reservation(Struct, frozen=True):
    """A host port that is ours: its binding, its socket (None if the kernel lacks the protocol), the redirection
    (None if there is none), and the address that user space forwards to ("" for none)."""

    binding: PortBinding
    sock: socket.socket | None
    published: Published | None
    forward_to: str


class Reach(Struct, frozen=True):
    """How host ports can lead to a container: families with NAT rules, forwarding in user space, host's IPv6.

    routed: families whose container addresses are routed: no host port, the container's own is opened
    direct: published ports are opened at the container's own address as well
    """

    families: tuple[int, ...]
    userland: bool
    ipv6: bool
    routed: tuple[int, ...] = ()
    direct: bool = False


def in_order(asks: Iterable[PortAsk]) -> list[PortAsk]:
    """Return the order in which to reserve ports: fixed ones first, so that none is given away to who takes any."""
    return sorted(asks, key=lambda ask: (ask.first == 0, ask.last != ask.first))


class HostPorts:
    """The ports that our containers hold."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], dict[str, str]] = {}  # (protocol, port) → host address → container
        self._cursor: dict[str, int] = {}
        self._dynamic: tuple[int, int] | None = None  # the kernel's range, read once for the ports of one call

    def adopt(self, container_id: str, bindings: Iterable[PortBinding]) -> None:
        """Remember what a running container holds already."""
        for binding in bindings:
            if binding.host_port:
                self._hold(container_id, binding)

    def release(self, container_id: str, bindings: Iterable[PortBinding]) -> None:
        """Forget what a container held."""
        for binding in bindings:
            holders = self._held.get((binding.protocol, binding.host_port), {})
            if holders.get(binding.host_ip) == container_id:
                del holders[binding.host_ip]
                if not holders:
                    del self._held[binding.protocol, binding.host_port]

    def reserve(
        self, endpoint: Endpoint, asks: Sequence[PortAsk], default_ip: str, reach: Reach, undo: ExitStack
    ) -> list[Reservation]:
        """Reserve the asked ports (in the order of `in_order`); `undo` gives them back.

        Internal, in Docker's words, for a port that is taken; InvalidParameter for one that makes no sense.
        """
        found: list[Reservation] = []
        self._dynamic = None
        undo.callback(self._give_back, endpoint.container_id, found)
        for ask in asks:
            _check(ask)
            found += _opened(endpoint, ask, default_ip, reach)
            try:
                found += self._reserve(endpoint, ask, default_ip, reach)
            except PortTaken as error:
                raise Internal(
                    "driver failed programming external connectivity on endpoint "
                    f"{endpoint.container_name} ({endpoint.id}): {error}"
                ) from None
        return found

    def _give_back(self, container_id: str, reserved: Iterable[Reservation]) -> None:
        for one in reserved:
            self.release(container_id, [one.binding])
            if one.sock is not None:
                one.sock.close()

    def _reserve(self, endpoint: Endpoint, ask: PortAsk, default_ip: str, reach: Reach) -> list[Reservation]:
        addresses = _host_addresses(ask, default_ip, reach)
        left = [host for host in addresses if _family(host) not in reach.routed]
        if addresses and not left:
            return []
        wanted = [
            (host, forward, published)
            for host in left
            for forward, published in [_way(endpoint, ask, host, reach)]
            if forward or published
        ]
        if not wanted:
            raise InvalidParameter(
                f"cannot publish port {ask.container_port}/{ask.protocol} on {ask.host_ip or default_ip}: the "
                "container has no address of that family, and the userland proxy is off"
            )
        failure: PortTaken | None = None
        for port in self._candidates(ask):
            try:
                return self._reserve_at(port, endpoint, ask, wanted, reach.direct)
            except PortTaken as error:
                failure = error
        if failure is not None and ask.first and ask.first == ask.last:
            raise failure
        raise PortTaken(f"Bind for {_join(wanted[0][0], ask.first)} failed: all ports are allocated")

    def _reserve_at(
        self,
        port: int,
        endpoint: Endpoint,
        ask: PortAsk,
        wanted: list[tuple[str, str, bool]],
        direct: bool,
    ) -> list[Reservation]:
        """Take one host port on all the addresses, or none."""
        found: list[Reservation] = []
        try:
            for host, forward, published in wanted:
                if self._taken(ask.protocol, host, port):
                    raise PortTaken(f"Bind for {_join(host, port)} failed: port is already allocated")
                target = endpoint.ipv6 if ":" in host else endpoint.ipv4
                try:
                    sock = _bind(ask.protocol, host, port, listening=bool(forward))
                except OSError as error:
                    words = os.strerror(error.errno or 0).lower()
                    raise PortTaken(
                        f"failed to bind host port for {_join(host, port)}:{_join(target or forward, ask.container_port)}"
                        f"/{ask.protocol}: {words}"
                    ) from None
                binding = PortBinding(
                    protocol=ask.protocol, container_port=ask.container_port, host_ip=host, host_port=port
                )
                redirect = published_port(endpoint, binding, direct=direct) if published else None
                self._hold(endpoint.container_id, binding)
                found.append(Reservation(binding, sock, redirect, forward))
        except BaseException:
            self._give_back(endpoint.container_id, found)
            raise
        return found

    def _candidates(self, ask: PortAsk) -> Iterator[int]:
        if ask.first:
            yield from range(ask.first, (ask.last or ask.first) + 1)
            return
        if self._dynamic is None:
            self._dynamic = _dynamic_range()
        first, last = self._dynamic
        cursor = self._cursor.get(ask.protocol, first)
        for n in range(last - first + 1):
            port = first + (cursor - first + n) % (last - first + 1)
            self._cursor[ask.protocol] = port + 1
            yield port

    def _taken(self, protocol: str, host: str, port: int) -> bool:
        wanted = parsed(host)
        for other in self._held.get((protocol, port), ()):
            address = parsed(other)
            if address.version == wanted.version and (
                address.is_unspecified or other == host or wanted.is_unspecified
            ):
                return True
        return False

    def _hold(self, container_id: str, binding: PortBinding) -> None:
        self._held.setdefault((binding.protocol, binding.host_port), {})[binding.host_ip] = container_id


def published_port(endpoint: Endpoint, binding: PortBinding, *, direct: bool = False) -> Published | None:
    """Return the redirection of a binding, or None if the container has no address of its family.

    direct: the container's own port is opened as well (as it is for a binding without a host port)
    """
    address = endpoint.ipv6 if ":" in binding.host_ip else endpoint.ipv4
    if not address:
        return None
    return Published(
        protocol=binding.protocol,
        host_ip=binding.host_ip,
        host_port=binding.host_port,
        address=address,
        port=binding.container_port,
        direct=direct or not binding.host_port,
        comment=endpoint.container_id[:12],
    )


def _opened(endpoint: Endpoint, ask: PortAsk, default_ip: str, reach: Reach) -> list[Reservation]:
    """Return what a port is on routed networks: open at the container's own address, on none of the host."""
    found: list[Reservation] = []
    for host in _host_addresses(ask, default_ip, reach):
        if _family(host) in reach.routed:
            binding = PortBinding(
                protocol=ask.protocol, container_port=ask.container_port, host_ip=host, host_port=0
            )
            found.append(Reservation(binding, None, published_port(endpoint, binding), ""))
    return found


def _family(host: str) -> int:
    return NFPROTO_IPV6 if ":" in host else NFPROTO_IPV4


def _check(ask: PortAsk) -> None:
    if ask.protocol not in PROTOCOLS:
        raise InvalidParameter(f"invalid proto: {ask.protocol}")
    last = ask.last or ask.first
    if not 0 < ask.container_port < 65536 or not 0 <= ask.first <= last < 65536:
        raise InvalidParameter(f"invalid port: {ask.first}-{last}:{ask.container_port}")
    if ask.host_ip:
        try:
            parsed(ask.host_ip)
        except ValueError:
            raise InvalidParameter(f"invalid hostIP: {ask.host_ip}") from None


def _host_addresses(ask: PortAsk, default_ip: str, reach: Reach) -> list[str]:
    if ask.host_ip:
        return [str(parsed(ask.host_ip))]
    if default_ip == "0.0.0.0" and reach.ipv6:
        return ["0.0.0.0", "::"]
    return [default_ip]


def _way(endpoint: Endpoint, ask: PortAsk, host: str, reach: Reach) -> tuple[str, bool]:
    """Return (address to forward to in user space or "", whether NAT redirects) for a host address."""
    family = _family(host)
    own, other = (endpoint.ipv4, endpoint.ipv6) if family == NFPROTO_IPV4 else (endpoint.ipv6, endpoint.ipv4)
    redirected = family in reach.families and bool(own) and host != "::1"
    served = not redirected or host == "::"  # ::1 is among the addresses of ::
    forward = (own or other) if served and reach.userland and ask.protocol in ("tcp", "udp") else ""
    return forward, redirected


def _bind(protocol: str, host: str, port: int, *, listening: bool) -> socket.socket | None:
    """Return a bound socket; None if the kernel does not have the protocol. OSError if the port is taken."""
    kind, number = _KINDS[protocol]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return _bound(family, kind, number, (host, port), listening=listening)
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None
        if error.errno != errno.EADDRINUSE or protocol != "tcp" or listening:
            raise
    # Perhaps only finished connections (TIME_WAIT) use the port: sharing it with those is fine, and listening
    # keeps everybody else out as surely as a bind without sharing does.
    return _bound(family, kind, number, (host, port), listening=True)


def _bound(family: int, kind: int, number: int, address: tuple[str, int], *, listening: bool) -> socket.socket:
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if listening and kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if listening and kind == socket.SOCK_STREAM:
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _dynamic_range() -> tuple[int, int]:
    text = sysctls.read("net.ipv4.ip_local_port_range")
    if text is None:
        return 49153, 65535
    first, last = text.split()
    return int(first), int(last)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
