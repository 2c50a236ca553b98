"""The resolver of one sandbox: its two sockets, the connections of its TCP clients, its questions to others.

Answers that are the same for everybody until a name changes are kept as bytes, by the bytes of their query: most
queries cost one look into a dictionary. Everything that a container can make us keep has a limit.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from functools import partial

from dray.network.dns import answers, message, namespace
from dray.network.dns.forward import Budget, Forwarder
from dray.network.dns.model import Sandbox
from dray.network.dns.namespace import Home
from dray.network.dns.zone import Zone
from dray.shim.loop import HANGUP, IN, OUT, Loop, Timer

KEPT = 4096  # answers, of all sandboxes together: about a megabyte
_KEPT_LENGTH = 128  # bytes of a query whose answer is kept
CLIENTS = 64  # TCP connections of one sandbox; the one that was silent longest makes room
_IDLE = 10.0  # seconds after which a silent TCP client is left
_AT_ONCE = 64  # datagrams that are answered before another sandbox has its turn
_QUERY_LIMIT = 4096  # a longer datagram is no query
_UNREAD = 1 << 18  # bytes of answers that a TCP client has not read
_UNANSWERED = 64  # queries of a TCP client that are with other servers


class Kept:
    """Answers that are the same until a name changes, by the bytes of their query. Sandboxes in the same networks,
    with the same links, share them."""

    def __init__(self, zone: Zone, limit: int = KEPT) -> None:
        self._zone = zone
        self._limit = limit
        self._version = -1
        self._count = 0
        self._views: dict[tuple[object, ...], dict[bytes, bytes]] = {}

    def of(self, sandbox: Sandbox) -> dict[bytes, bytes]:
        """Return a sandbox's answers; ask again when the zone's version has changed."""
        if self._version != self._zone.version:
            self._version = self._zone.version
            self._views.clear()
            self._count = 0
        view = tuple((one.network, one.name, tuple(one.links.items())) for one in sandbox.networks)
        return self._views.setdefault(view, {})

    def keep(self, answers_of: dict[bytes, bytes], query: bytes, answer: bytes) -> None:
        """Keep one more; when there are too many, begin anew."""
        if self._count >= self._limit:
            for view in self._views.values():
                view.clear()
            self._count = 0
        answers_of[query] = answer
        self._count += 1


class Resolver:
    """Owns the namespace's descriptor and every socket inside it."""

    def __init__(
        self, loop: Loop, home: Home, zone: Zone, kept: Kept, budget: Budget, sandbox: Sandbox, netns: int
    ) -> None:
        """Make the sockets; `netns` is ours from here on, also if that fails (OSError)."""
        self.sandbox = sandbox
        self._loop = loop
        self._zone = zone
        self._netns = netns
        self._all_kept = kept
        self._kept: dict[bytes, bytes] = {}
        self._kept_of = -1  # the zone's version
        self._clients: dict[_Client, None] = {}  # in the order of their last query
        self._pidfd = -1
        try:
            self._udp, self._tcp = namespace.listen(home, netns)
        except BaseException:
            os.close(netns)
            raise
        self._forwarder = Forwarder(loop, home, netns, budget)
        loop.watch(self._udp.fileno(), IN, self._datagrams)
        loop.watch(self._tcp.fileno(), IN, self._accept)

    def update(self, sandbox: Sandbox) -> None:
        """The sandbox is in other networks now."""
        self.sandbox = sandbox
        self._kept_of = -1

    def end_with(self, pid: int, ended: Callable[[], None]) -> None:
        """Call `ended` when this process, the sandbox's first, is gone."""
        self._forget_process()
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:  # gone already, and the daemon will hear of it
            return

        def over(_events: int) -> None:
            self._forget_process()
            ended()

        self._loop.watch(self._pidfd, IN, over)

    @property
    def inhabited(self) -> bool:
        """Whether a first process is known, and lives."""
        return self._pidfd >= 0

    def _forget_process(self) -> None:
        if self._pidfd >= 0:
            self._loop.forget(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def close(self) -> None:
        """Close everything; the namespace ends unless somebody else holds it."""
        self._forget_process()
        self._forwarder.close()
        for client in list(self._clients):
            client.close()
        for one in (self._udp, self._tcp):
            self._loop.forget(one.fileno())
            one.close()
        os.close(self._netns)

    # -- UDP

    def _datagrams(self, _events: int) -> None:
        if self._kept_of != self._zone.version:
            self._kept = self._all_kept.of(self.sandbox)
            self._kept_of = self._zone.version
        kept, receive, send = self._kept, self._udp.recvfrom, self._udp.sendto
        for _ in range(_AT_ONCE):
            try:
                data, client = receive(_QUERY_LIMIT)
            except OSError:  # nothing more to read
                return
            known = kept.get(data[2:])
            if known is not None:
                try:
                    send(data[:2] + known, client)
                except OSError:  # its socket is full or closed: UDP
                    continue
            elif message.is_query(data):
                self._resolve(data, partial(self._send, client))

    def _send(self, client: tuple[str, int], response: bytes) -> None:
        with contextlib.suppress(OSError):
            self._udp.sendto(response, client)

    def _resolve(self, data: bytes, reply: Callable[[bytes], None]) -> None:
        try:
            query = message.parse_query(data)
        except message.Malformed:
            reply(message.refusal(data, message.FORMERR))
            return
        response, lasting = answers.local(query, self.sandbox, self._zone, query.udp_limit)
        if response is None:
            self._forward(query, data, partial(_fitting, query, reply), tcp=False)
            return
        reply(response)
        if lasting and len(data) <= _KEPT_LENGTH:
            self._all_kept.keep(self._kept, data[2:], response[2:])

    def _forward(self, query: message.Query, data: bytes, reply: Callable[[bytes], None], *, tcp: bool) -> None:
        if not self._forwarder.ask(self.sandbox.servers, query, data, reply, tcp=tcp):
            reply(message.answer(query, rcode=message.REFUSED))

    # -- TCP

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._tcp.accept()
        except OSError:
            return
        if len(self._clients) >= CLIENTS:
            next(iter(self._clients)).close()
        connection.setblocking(False)
        self._clients[_Client(self._loop, connection, self)] = None

    def active(self, client: _Client) -> None:
        """A TCP client has asked something."""
        if client in self._clients:
            del self._clients[client]
            self._clients[client] = None

    def left(self, client: _Client) -> None:
        """A TCP client is gone."""
        self._clients.pop(client, None)

    def resolve_stream(self, data: bytes, reply: Callable[[bytes], None]) -> None:
        """Answer a query that came by TCP."""
        try:
            query = message.parse_query(data)
        except message.Malformed:
            reply(message.refusal(data, message.FORMERR))
            return
        response, _ = answers.local(query, self.sandbox, self._zone, message.TCP_LIMIT)
        if response is None:
            self._forward(query, data, reply, tcp=True)
        else:
            reply(response)


def _fitting(query: message.Query, reply: Callable[[bytes], None], response: bytes) -> None:
    """Pass a server's answer on, cut to what the client said it takes."""
    reply(response if len(response) <= query.udp_limit else message.truncated(response, query.question))


class _Client:
    """A TCP connection of a container: queries and answers, each after its length (16 bits). Owns its socket."""

    def __init__(self, loop: Loop, connection: socket.socket, owner: Resolver) -> None:
        self._loop = loop
        self._socket = connection
        self._owner = owner
        self._in = b""
        self._out = b""
        self._waiting = 0
        self._timer: Timer = loop.call_later(_IDLE, self.close)
        self._watch()

    def _watch(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.watch(self._socket.fileno(), (OUT if self._out else 0) | self._reading(), self._ready)

    def _reading(self) -> int:
        """Whether more queries are taken: not while it does not read its answers, or waits for many."""
        return IN if len(self._out) < _UNREAD and self._waiting < _UNANSWERED else 0

    def _ready(self, events: int) -> None:
        try:
            if events & OUT and self._out:
                self._out = self._out[self._socket.send(self._out) :]
            if events & IN:
                self._read()
            elif events & HANGUP:
                self.close()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        self._watch()

    def _read(self) -> None:
        data = self._socket.recv(message.TCP_LIMIT)
        if not data:
            self.close()
            return
        self._in += data
        self._timer.cancel()
        self._timer = self._loop.call_later(_IDLE, self.close)
        self._owner.active(self)
        while len(self._in) >= 2 and self._socket.fileno() >= 0:
            length = int.from_bytes(self._in[:2], "big")
            if len(self._in) < 2 + length:
                return
            query, self._in = self._in[2 : 2 + length], self._in[2 + length :]
            if not message.is_query(query):
                self.close()
                return
            self._waiting += 1
            self._owner.resolve_stream(query, self._reply)

    def _reply(self, response: bytes) -> None:
        self._waiting -= 1
        if self._socket.fileno() < 0:
            return
        self._out += len(response).to_bytes(2, "big") + response
        with contextlib.suppress(OSError):
            self._out = self._out[self._socket.send(self._out) :]
        self._watch()

    def close(self) -> None:
        """Close the connection."""
        self._timer.cancel()
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
        self._owner.left(self)
