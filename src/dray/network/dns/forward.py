"""Asking other name servers, from the container's own network namespace.

Every question goes out from a socket of its own, on a port that the kernel chose by chance and with an id that is
random, connected to the server: the kernel lets nobody else's datagrams in, and what comes from there must bear the
id and repeat the question. The query's other bytes go through as the client wrote them, and so does the answer.

A server that says nothing for `PATIENCE` seconds is not given up: the next one is asked beside it, and the first
good answer counts. One that refuses, fails or cannot be reached makes room for the next at once. TCP clients are
answered by TCP.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence

from dray.network.dns import message
from dray.network.dns.message import Query
from dray.network.dns.model import PORT, Server
from dray.network.dns.namespace import Home
from dray.shim.loop import HANGUP, IN, OUT, Loop

PATIENCE = 2.0  # seconds until the next server is asked as well
DEADLINE = 4.0  # seconds after the last one was asked
PER_SANDBOX = 1024  # questions under way: Docker's limit
IN_ALL = 8192
_MOST_SERVERS = 3  # resolv.conf(5)'s MAXNS
_DATAGRAM = 65535

Reply = Callable[[bytes], None]


class Budget:
    """How many questions may be under way in all."""

    def __init__(self, limit: int = IN_ALL) -> None:
        self.limit = limit
        self.used = 0


class Forwarder:
    """The questions of one sandbox that are under way; owns their sockets."""

    def __init__(self, loop: Loop, home: Home, netns: int, budget: Budget) -> None:
        self._loop = loop
        self._home = home
        self._netns = netns
        self._budget = budget
        self._asking: set[_Question] = set()

    def ask(self, servers: Sequence[Server], query: Query, data: bytes, reply: Reply, *, tcp: bool) -> bool:
        """Forward a query; `reply` gets the answer, SERVFAIL if there is none. False if too many are under way."""
        if len(self._asking) >= PER_SANDBOX or self._budget.used >= self._budget.limit:
            return False
        self._budget.used += 1
        question = _Question(self, list(servers[:_MOST_SERVERS]), query, data, reply, tcp=tcp)
        self._asking.add(question)
        question.next_server()
        return True

    def over(self, question: _Question) -> None:
        """A question has its answer."""
        if question in self._asking:
            self._asking.remove(question)
            self._budget.used -= 1

    def close(self) -> None:
        """Give all questions up without an answer."""
        for question in list(self._asking):
            question.close()

    @property
    def loop(self) -> Loop:
        """The loop that everything happens on."""
        return self._loop

    def socket(self, server: Server, kind: int) -> socket.socket:
        """Return a socket in the right namespace, connecting to the server."""
        host, _, zone = server.address.partition("%")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        kind |= socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        if server.host:
            made = socket.socket(family, kind)
        else:
            with self._home.away(self._netns):
                made = socket.socket(family, kind)
        try:
            target: tuple[str, int] | tuple[str, int, int, int] = (host, PORT)
            if zone:
                target = (host, PORT, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone))
            error = made.connect_ex(target)
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
        except BaseException:
            made.close()
            raise
        return made


class _Question:
    """One question to one server after the other."""

    def __init__(
        self, owner: Forwarder, servers: list[Server], query: Query, data: bytes, reply: Reply, *, tcp: bool
    ) -> None:
        self._owner = owner
        self._servers = servers
        self.query = query
        self.data = data
        self._reply = reply
        self._tcp = tcp
        self._attempts: set[_Datagram | _Stream] = set()
        self._timer = None if not servers else owner.loop.call_later(PATIENCE, self.next_server)

    def next_server(self) -> None:
        """Ask the next server, beside those that were asked before."""
        while self._servers:
            server = self._servers.pop(0)
            kind = socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM
            try:
                made = self._owner.socket(server, kind)
                self._attempts.add(_Stream(self, made) if self._tcp else _Datagram(self, made))
            except OSError:  # unreachable, or no descriptors left
                continue
            self._wait(PATIENCE if self._servers else DEADLINE)
            return
        if not self._attempts:
            self._fail()

    def _wait(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._owner.loop.call_later(seconds, self.next_server if self._servers else self._fail)

    def failed(self, attempt: _Datagram | _Stream) -> None:
        """A server could not be reached, or has nothing to say: the next one."""
        attempt.close()
        self._attempts.discard(attempt)
        self.next_server()

    def answered(self, attempt: _Datagram | _Stream, response: bytes) -> None:
        """A server has answered."""
        if message.rcode(response) in (message.SERVFAIL, message.REFUSED):
            self.failed(attempt)
        else:
            self._finish(self.data[:2] + response[2:])

    @property
    def loop(self) -> Loop:
        """The loop."""
        return self._owner.loop

    def _fail(self) -> None:
        self._finish(message.answer(self.query, rcode=message.SERVFAIL))

    def _finish(self, response: bytes) -> None:
        self.close()
        self._reply(response)

    def close(self) -> None:
        """Stop asking."""
        if self._timer is not None:
            self._timer.cancel()
        for attempt in self._attempts:
            attempt.close()
        self._attempts.clear()
        self._servers.clear()
        self._owner.over(self)


class _Datagram:
    """A question to one server by UDP; owns its socket."""

    def __init__(self, question: _Question, connection: socket.socket) -> None:
        self._question = question
        self._socket = connection
        self._id = os.urandom(2)
        try:
            connection.send(self._id + question.data[2:])
        except OSError:
            connection.close()
            raise
        question.loop.watch(connection.fileno(), IN, self._ready)

    def _ready(self, _events: int) -> None:
        try:
            response = self._socket.recv(_DATAGRAM)
        except BlockingIOError:
            return
        except OSError:
            self._question.failed(self)
            return
        if message.matches(response, self._id, self._question.query.question):
            self._question.answered(self, response)

    def close(self) -> None:
        """Close the socket."""
        if self._socket.fileno() >= 0:
            self._question.loop.forget(self._socket.fileno())
            self._socket.close()


class _Stream:
    """A question to one server by TCP; owns its socket."""

    def __init__(self, question: _Question, connection: socket.socket) -> None:
        self._question = question
        self._socket = connection
        self._id = os.urandom(2)
        body = self._id + question.data[2:]
        self._out = len(body).to_bytes(2, "big") + body
        self._in = b""
        question.loop.watch(connection.fileno(), OUT, self._ready)

    def _ready(self, events: int) -> None:
        try:
            if self._out:
                self._out = self._out[self._socket.send(self._out) :]
                if not self._out:
                    self._question.loop.watch(self._socket.fileno(), IN, self._ready)
            elif events & (IN | HANGUP):
                self._read()
        except BlockingIOError:
            return
        except OSError:
            self._question.failed(self)

    def _read(self) -> None:
        data = self._socket.recv(_DATAGRAM + 2)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._in += data
        length = int.from_bytes(self._in[:2], "big")
        if len(self._in) < 2 or len(self._in) < 2 + length:
            return
        response = self._in[2 : 2 + length]
        if message.matches(response, self._id, self._question.query.question):
            self._question.answered(self, response)
        else:
            self._question.failed(self)

    def close(self) -> None:
        """Close the socket."""
        if self._socket.fileno() >= 0:
            self._question.loop.forget(self._socket.fileno())
            self._socket.close()
