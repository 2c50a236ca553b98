"""Connections of attached clients: framing, queues, detach keys, half-close.

A client owns its socket. Output goes straight to it with one writev(2) of header and payload; what the socket
does not take is queued, and a queue past QUEUE_LIMIT makes the process's output wait (see `stdio`). Input is
unmasked (websocket), searched for the detach keys (terminals only) and passed on.

An end in order: `finish` lets the queue run empty, half-closes, and waits a little for the client to close its
side, because closing a socket with unread input makes the kernel throw away output that is still on its way.
`drop` closes at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from typing import Protocol

from dray.shim.loop import HANGUP, IN, OUT, Loop, Timer
from dray.shim.model import AttachRequest
from dray.wire import stdcopy, websocket

QUEUE_LIMIT = 1 << 20  # bytes that wait for one client before the process has to
READ_SIZE = 256 << 10
LINGER = 10.0  # seconds for a client to close its side after the end
PEER_TIMEOUT = 60_000  # milliseconds after which a TCP peer that acknowledges nothing counts as dead

_VECTORS = 64


class Owner(Protocol):
    """What a client tells of itself (`stdio.Streams`)."""

    def client_input(self, client: Client, data: bytes) -> None:
        """Bytes for the process."""

    def client_input_ended(self, client: Client) -> None:
        """The client half-closed, or is gone."""

    def client_relieved(self, client: Client) -> None:
        """The queue is short again."""

    def client_detached(self, client: Client) -> None:
        """The detach keys were typed."""

    def client_closed(self, client: Client) -> None:
        """The socket is closed; nothing more will come."""


class DetachKeys:
    """Find a sequence in a stream of input, holding back what may be its beginning."""

    __slots__ = ("_keys", "_matched")

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return (bytes to pass on, whether the sequence is complete); the rest of `data` is then dropped."""
        keys = self._keys
        if not keys or (not self._matched and keys[0] not in data):
            return data, False
        data = keys[: self._matched] + data
        found = data.find(keys)
        if found >= 0:
            self._matched = 0
            return data[:found], True
        for length in range(min(len(keys) - 1, len(data)), 0, -1):
            if data.endswith(keys[:length]):
                self._matched = length
                return data[:-length], False
        self._matched = 0
        return data, False


class Client:
    """One attached connection; owns `fd`."""

    def __init__(self, loop: Loop, owner: Owner, fd: int, request: AttachRequest, *, tty: bool) -> None:
        self._loop = loop
        self._owner = owner
        self._fd = fd
        self.request = request
        self._framed = request.framed and not tty and not request.websocket
        self._decoder = websocket.Decoder() if request.websocket else None
        self._keys = DetachKeys(request.detach_keys if tty else b"")
        self._queue: deque[memoryview] = deque()
        self.queued = 0
        self.taken = 0  # bytes the socket accepted so far
        self._reading = True  # the client's side is open
        self._held = False  # the process's input is full: the client has to wait
        self._ending = False  # the queue runs empty, then the end
        self._half_closed = False
        self._linger: Timer | None = None
        os.set_blocking(fd, False)
        _keep_alive(fd)
        self._update()

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self._fd < 0

    @property
    def full(self) -> bool:
        """Whether the process has to wait for this client."""
        return self.queued > QUEUE_LIMIT

    def start(self) -> None:
        """Handle the bytes that came behind the client's request."""
        if self.request.leftover:
            self._take(self.request.leftover)

    # --- output ---

    def send(self, stream: int, data: bytes) -> None:
        """Send output of the process: at once if possible, else by the queue."""
        if self._fd < 0 or self._ending:
            return
        if self._framed:
            parts = [stdcopy.HEADER.pack(stream, len(data)), data]
        elif self._decoder is not None:
            parts = [websocket.header(websocket.BINARY, len(data)), data]
        else:
            parts = [data]
        self._send(parts)

    def _send(self, parts: list[bytes]) -> None:
        written = 0
        if not self._queue:
            try:
                written = os.writev(self._fd, parts)
            except BlockingIOError:
                pass
            except OSError:
                self.drop()
                return
            self.taken += written
        for part in parts:
            if written >= len(part):
                written -= len(part)
                continue
            self._queue.append(memoryview(part)[written:])
            self.queued += len(part) - written
            written = 0
        if self._queue:
            self._update()

    def _flush(self) -> None:
        was_full = self.full
        while self._queue:
            vector = [self._queue[index] for index in range(min(len(self._queue), _VECTORS))]
            try:
                written = os.writev(self._fd, vector)
            except BlockingIOError:
                break
            except OSError:
                self.drop()
                return
            self.taken += written
            self.queued -= written
            while written:
                head = self._queue[0]
                if written < len(head):
                    self._queue[0] = head[written:]
                    break
                written -= len(head)
                self._queue.popleft()
        if was_full and not self.full:
            self._owner.client_relieved(self)
        if not self._queue and self._ending:
            self._half_close()
        self._update()

    def finish(self) -> None:
        """Let the client have everything that is queued, then end the connection."""
        if self._fd < 0 or self._ending:
            return
        if self._decoder is not None:
            self._send([websocket.close_frame()])
            if self._fd < 0:
                return
        self._ending = True
        if not self._queue:
            self._half_close()
        self._update()

    def _half_close(self) -> None:
        if self._half_closed or self._fd < 0:
            return
        self._half_closed = True
        _shutdown(self._fd, socket.SHUT_WR)
        if not self._reading:
            self.drop()
            return
        self._held = False
        self._linger = self._loop.call_later(LINGER, self.drop)

    def drop(self) -> None:
        """Close now; what is queued is lost."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._loop.forget(fd)
        _shutdown(fd, socket.SHUT_RDWR)
        os.close(fd)
        self._queue.clear()
        self.queued = 0
        if self._linger is not None:
            self._linger.cancel()
        if self._reading:
            self._reading = False
            self._owner.client_input_ended(self)
        self._owner.client_closed(self)

    # --- input ---

    def hold(self, held: bool) -> None:
        """Stop or go on reading from the client."""
        if self._held != held and self._fd >= 0 and not self._half_closed:
            self._held = held
            self._update()

    def _update(self) -> None:
        if self._fd < 0:
            return
        events = OUT if self._queue else 0
        if self._reading and not self._held:
            events |= IN
        elif self._held and not events:
            # A hang-up is reported whatever is asked for, and again and again: not before it can be handled.
            self._loop.forget(self._fd)
            return
        self._loop.watch(self._fd, events, self._ready)

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
        if self._fd >= 0 and events & (IN | HANGUP):
            if self._reading and not self._held:
                self._read()
            elif events & HANGUP and not self._held:
                self.drop()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self.drop()
            return
        if data:
            self._take(data)
        else:
            self._input_ended()

    def _take(self, data: bytes) -> None:
        if self._half_closed or self._ending:
            return  # read only so that the end is a clean one
        if self._decoder is None:
            self._pass_on(data)
            return
        try:
            pieces = self._decoder.feed(data)
        except websocket.ProtocolError as error:
            self._send([websocket.close_frame(error.code)])
            self.drop()
            return
        for opcode, payload in pieces:
            if opcode == websocket.PING:
                self._send([websocket.frame(websocket.PONG, payload)])
            elif opcode == websocket.CLOSE:
                self._input_ended()
            elif opcode != websocket.PONG:
                self._pass_on(payload)
            if self._fd < 0 or not self._reading:
                return

    def _pass_on(self, data: bytes) -> None:
        if not self.request.stdin:
            return
        data, detached = self._keys.feed(data)
        if data:
            self._owner.client_input(self, data)
        if detached and self._fd >= 0:
            self._owner.client_detached(self)
            self.finish()

    def _input_ended(self) -> None:
        if not self._reading:
            return
        self._reading = False
        if self._half_closed:
            self.drop()
            return
        self._update()
        self._owner.client_input_ended(self)
        if self._decoder is not None:
            self.finish()


def _shutdown(fd: int, how: int) -> None:
    """shutdown(2): closing alone ends nothing while another process holds the same socket."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        connection.shutdown(how)


def _keep_alive(fd: int) -> None:
    """Notice a TCP peer whose machine is gone; no matter for other sockets."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT)
