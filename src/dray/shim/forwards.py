"""Published ports that the kernel's packet filter cannot serve: forwarded in user space, inside the shim's loop.

This is only for a host address of one family and a container of the other (an IPv6 host address, a container with
IPv4 alone). TCP: a connection for a connection, each direction with a bounded buffer, half-close passed on.
UDP: one socket to the container for each peer, forgotten after IDLE seconds without a datagram.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable

from dray.shim.loop import HANGUP, IN, OUT, Loop

READ_SIZE = 64 << 10
BUFFER_LIMIT = 256 << 10
IDLE = 90.0  # seconds, docker-proxy's UDPConnTrackTimeout
PEER_LIMIT = 4096  # UDP peers of one port; the one that was silent longest makes room

_BACK_OFF = 0.1
_ACCEPTS = 64  # connections taken in one go, so that nobody else starves


class Pump:
    """One direction of a TCP connection: what `source` says, `sink` hears."""

    __slots__ = ("buffer", "ended", "passed_on")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.ended = False  # the source has ended
        self.passed_on = False  # and the sink knows


class Connection:
    """A client's connection and the one to the container; owns both sockets."""

    def __init__(
        self, loop: Loop, client: socket.socket, address: tuple[str, int], closed: Callable[[Connection], None]
    ) -> None:
        self._loop = loop
        self._closed = closed
        self._client = client
        self._server = socket.socket(_family(address[0]), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._up, self._down = Pump(), Pump()
        self._connected = False
        self._done = False
        client.setblocking(False)
        for end in (client, self._server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._server.connect_ex(address) not in (0, errno.EINPROGRESS):
            self.close()
            return
        self._loop.watch(self._server.fileno(), OUT, self._server_ready)

    def _server_ready(self, events: int) -> None:
        if not self._connected:
            if self._server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.close()
                return
            self._connected = True
        self._move(events, self._server, self._down, self._up)

    def _client_ready(self, events: int) -> None:
        self._move(events, self._client, self._up, self._down)

    def _move(self, events: int, end: socket.socket, incoming: Pump, outgoing: Pump) -> None:
        """`end` is ready: read `incoming` from it, write `outgoing` to it."""
        try:
            if events & (IN | HANGUP) and not incoming.ended and len(incoming.buffer) < BUFFER_LIMIT:
                with contextlib.suppress(BlockingIOError):
                    data = end.recv(READ_SIZE)
                    incoming.buffer += data
                    incoming.ended = not data
            other = self._server if end is self._client else self._client
            self._write(end, outgoing)
            self._write(other, incoming)
        except OSError:
            self.close()
            return
        if self._up.passed_on and self._down.passed_on:
            self.close()
        else:
            self._update()

    def _write(self, end: socket.socket, pump: Pump) -> None:
        if end is self._server and not self._connected:
            return
        with contextlib.suppress(BlockingIOError):
            while pump.buffer:
                del pump.buffer[: end.send(pump.buffer)]
        if pump.ended and not pump.buffer and not pump.passed_on:
            pump.passed_on = True
            end.shutdown(socket.SHUT_WR)

    def _update(self) -> None:
        for end, incoming, outgoing, ready in (
            (self._client, self._up, self._down, self._client_ready),
            (self._server, self._down, self._up, self._server_ready),
        ):
            events = 0
            if not incoming.ended and len(incoming.buffer) < BUFFER_LIMIT:
                events |= IN
            if outgoing.buffer:
                events |= OUT
            if events:
                self._loop.watch(end.fileno(), events, ready)
            else:
                self._loop.forget(end.fileno())  # a hang-up would be reported again and again

    def close(self) -> None:
        """Close both sockets."""
        if self._done:
            return
        self._done = True
        for end in (self._client, self._server):
            self._loop.forget(end.fileno())
            end.close()
        self._closed(self)


class TcpForward:
    """A listening socket whose connections go to the container; owns them, and the socket."""

    def __init__(self, loop: Loop, listener: socket.socket, address: tuple[str, int]) -> None:
        self._loop = loop
        self._listener = listener
        self._address = address
        self._connections: set[Connection] = set()
        listener.setblocking(False)
        listener.listen(socket.SOMAXCONN)
        self._listen()

    def _listen(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.watch(self._listener.fileno(), IN, self._accept)

    def _accept(self, _events: int) -> None:
        for _ in range(_ACCEPTS):
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._loop.forget(self._listener.fileno())
                    self._loop.call_later(_BACK_OFF, self._listen)
                return
            with contextlib.suppress(OSError):
                connection = Connection(self._loop, client, self._address, self._connections.discard)
                self._connections.add(connection)

    def close(self) -> None:
        """Close the listening socket and every connection."""
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        for connection in tuple(self._connections):
            connection.close()


class UdpForward:
    """A bound UDP socket whose datagrams go to the container, and the answers back; owns all sockets."""

    def __init__(self, loop: Loop, bound: socket.socket, address: tuple[str, int]) -> None:
        self._loop = loop
        self._bound = bound
        self._address = address
        self._peers: dict[tuple[str, int], tuple[socket.socket, float]] = {}  # in the order of their last datagram
        bound.setblocking(False)
        loop.watch(bound.fileno(), IN, self._from_client)
        self._timer = loop.call_later(IDLE, self._expire)

    def _from_client(self, _events: int) -> None:
        for _ in range(_ACCEPTS):
            try:
                data, client = self._bound.recvfrom(1 << 16)
            except OSError:
                return
            with contextlib.suppress(OSError):
                self._peer(client).send(data)

    def _peer(self, client: tuple[str, int]) -> socket.socket:
        known = self._peers.pop(client, None)
        if known is None:
            if len(self._peers) >= PEER_LIMIT:
                self._drop(next(iter(self._peers)))
            server = socket.socket(_family(self._address[0]), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            server.connect(self._address)
            self._loop.watch(server.fileno(), IN, lambda _events: self._from_server(server, client))
        else:
            server = known[0]
        self._peers[client] = server, time.monotonic()
        return server

    def _from_server(self, server: socket.socket, client: tuple[str, int]) -> None:
        try:
            data = server.recv(1 << 16)
        except OSError:
            return  # refused: the container does not listen (yet)
        self._peers.pop(client, None)
        self._peers[client] = server, time.monotonic()
        with contextlib.suppress(OSError):
            self._bound.sendto(data, client)

    def _expire(self) -> None:
        limit = time.monotonic() - IDLE
        for client in [client for client, (_, last) in self._peers.items() if last < limit]:
            self._drop(client)
        self._timer = self._loop.call_later(IDLE, self._expire)

    def _drop(self, client: tuple[str, int]) -> None:
        server, _ = self._peers.pop(client)
        self._loop.forget(server.fileno())
        server.close()

    def close(self) -> None:
        """Close every socket."""
        self._timer.cancel()
        self._loop.forget(self._bound.fileno())
        self._bound.close()
        for client in tuple(self._peers):
            self._drop(client)


Forward = TcpForward | UdpForward


def forward(loop: Loop, protocol: str, fd: int, address: str, port: int) -> Forward:
    """Forward what reaches the bound socket `fd` (which stays the caller's) to the container's address."""
    bound = socket.socket(fileno=os.dup(fd))
    try:
        if protocol == "tcp":
            return TcpForward(loop, bound, (address, port))
        if protocol == "udp":
            return UdpForward(loop, bound, (address, port))
        raise ValueError(f"cannot forward {protocol}: only tcp and udp are forwarded")
    except BaseException:
        bound.close()
        raise


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
