"""The resolver's sockets inside a container's network namespace.

Port 53 stays the container's own (a program may want 0.0.0.0:53), so the sockets have any free ports of 127.0.0.11,
and packets to and from port 53 are rewritten on their way. It is done without connection tracking, which would cost
every packet of the container something, by two chains of one table in the namespace:

    table ip embedded-dns
      chain replies  { type filter hook output priority raw;       udp|tcp from 127.0.0.11:port → from :53 }
      chain queries  { type filter hook output priority srcnat;    udp|tcp to 127.0.0.11:53 → to :port }

Queries are rewritten after and replies before a connection tracking that the container may have for itself (at
-200), so that both are one connection for it. Without nf_tables the sockets take port 53 itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from dray.base.errors import Unsupported
from dray.linux import libc
from dray.linux import nftables_expressions as nft
from dray.linux.nftables import (
    HOOK_OUTPUT,
    NFPROTO_IPV4,
    PRIORITY_RAW,
    PRIORITY_SRCNAT,
    Batch,
    Hook,
    Nftables,
)
from dray.network.dns.model import ADDRESS, PORT

TABLE = "embedded-dns"
_BACKLOG = 64
_IP_FREEBIND = 15
# (protocol, offset of its checksum)
_UDP, _TCP = (socket.IPPROTO_UDP, 6), (socket.IPPROTO_TCP, 16)
_IP_SOURCE, _IP_DESTINATION = 12, 16
_PORT_SOURCE, _PORT_DESTINATION = 0, 2


class Home:
    """The process's own network namespace, and the way to another and back. For a process of one thread."""

    def __init__(self) -> None:
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def away(self, netns: int) -> Iterator[None]:
        """Be in another namespace: sockets made there belong to it for ever."""
        libc.setns(netns, libc.CLONE_NEWNET)
        try:
            yield
        finally:
            libc.setns(self._home, libc.CLONE_NEWNET)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._home)


def listen(home: Home, netns: int) -> tuple[socket.socket, socket.socket]:
    """Return the UDP and the TCP socket of a namespace, with port 53 leading to them. OSError if it cannot be."""
    with home.away(netns), contextlib.ExitStack() as undo:
        udp, tcp = (undo.enter_context(_socket(kind)) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM))
        try:
            udp.bind((ADDRESS, 0))
            tcp.bind((ADDRESS, 0))
            _redirect(udp.getsockname()[1], tcp.getsockname()[1])
        except Unsupported:
            udp, tcp = (undo.enter_context(_socket(kind)) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM))
            udp.bind((ADDRESS, PORT))
            tcp.bind((ADDRESS, PORT))
        tcp.listen(_BACKLOG)
        result = udp.dup(), tcp.dup()
    for one in result:
        one.setblocking(False)
    return result


def _socket(kind: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # also while the container has its loopback down
    if kind == socket.SOCK_STREAM:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _redirect(udp: int, tcp: int) -> None:
    """Make the table; one of a resolver that was killed is replaced in the same transaction."""
    nftables = Nftables.open()
    try:
        batch = Batch(NFPROTO_IPV4, TABLE)
        batch.add_table()
        if nftables.has_table(NFPROTO_IPV4, TABLE):  # not without need: the kernel takes 15 ms to free one
            batch.delete_table()
            batch.add_table()
        batch.add_chain("replies", Hook("filter", HOOK_OUTPUT, PRIORITY_RAW))
        batch.add_chain("queries", Hook("filter", HOOK_OUTPUT, PRIORITY_SRCNAT))
        for protocol, port in ((_UDP, udp), (_TCP, tcp)):
            batch.add_rule("replies", _rule(protocol, _IP_SOURCE, _PORT_SOURCE, port, PORT))
            batch.add_rule("queries", _rule(protocol, _IP_DESTINATION, _PORT_DESTINATION, PORT, port))
        nftables.commit(batch)
    finally:
        nftables.close()


def _rule(protocol: tuple[int, int], address: int, offset: int, old: int, new: int) -> list[bytes]:
    number, checksum = protocol
    return [
        nft.payload(nft.NETWORK, address, 4),
        nft.compare(socket.inet_aton(ADDRESS)),
        nft.meta(nft.META_L4PROTO),
        nft.compare(bytes((number,))),
        nft.payload(nft.TRANSPORT, offset, 2),
        nft.compare(old.to_bytes(2, "big")),
        nft.rewrite(nft.TRANSPORT, offset, new.to_bytes(2, "big"), checksum=checksum),
    ]
