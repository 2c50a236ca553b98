"""One HTTP/1.1 connection and one answer on it (RFC 9112, of it what an Engine API client needs).

A `Response` whose body is unread owns its `Connection`; read to the end it gives the connection back to the
transport, `close()` drops it, and `hijack()` hands it over with the bytes that were read ahead.
"""

from __future__ import annotations

import json
import socket

from dray.client.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from dray.client.transport import Transport

CHUNK = 256 * 1024
_MAX_LINE = 64 * 1024


class Connection:
    """One stream to the daemon with its read-ahead buffer. Owns the socket (and the ssh program behind it)."""

    __slots__ = ("_child", "buffer", "sock")

    def __init__(self, sock: socket.socket, child: Any = None) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self._child = child

    def close(self) -> None:
        """Close the socket; an ssh program behind it is ended and reaped."""
        self.sock.close()
        if self._child is not None:
            self._child.terminate()
            self._child.wait()
            self._child = None

    def fill(self) -> bool:
        """Read once into the buffer; False at the end of the stream."""
        data = self.sock.recv(CHUNK)
        self.buffer += data
        return bool(data)

    def line(self) -> bytes:
        """Return the next line without its end; ProtocolError if the stream ends before one."""
        start = 0
        while (end := self.buffer.find(b"\n", start)) < 0:
            start = len(self.buffer)
            if start > _MAX_LINE:
                raise ProtocolError("the answer's header line is too long")
            if not self.fill():
                raise ProtocolError("the connection was closed before an answer came (unexpected EOF)")
        line = bytes(self.buffer[:end]).rstrip(b"\r")
        del self.buffer[: end + 1]
        return line

    def take(self, limit: int) -> bytes:
        """Return up to `limit` bytes, buffered ones first; empty at the end of the stream."""
        if not self.buffer:
            return self.sock.recv(min(limit, CHUNK))
        data = bytes(self.buffer[:limit])
        del self.buffer[:limit]
        return data


class Response:
    """An answer: `status`, `headers` (lower-case names), and a body that is read once."""

    __slots__ = ("_connection", "_left", "_mode", "_transport", "headers", "status")

    def __init__(self, transport: Transport, connection: Connection, method: str) -> None:
        self._transport = transport
        self._connection: Connection | None = connection
        parts = connection.line().split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise ProtocolError("the answer is not HTTP; is this the daemon's address, and does it need TLS?")
        self.status = int(parts[1])
        self.headers: dict[str, str] = {}
        while line := connection.line():
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._left = 0
        if method == "HEAD" or self.status in (204, 304):
            self._mode = "none"
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._mode = "chunked"
        elif (length := self.headers.get("content-length")) is not None:
            self._mode, self._left = "length", int(length)
        else:
            self._mode = "close"
        if self._mode == "none" or (self._mode == "length" and not self._left):
            self._finish()

    def _finish(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.release(
                connection, keep=self._mode != "close" and self.headers.get("connection") != "close"
            )
        self._mode = "none"

    def close(self) -> None:
        """Drop what is unread, and the connection with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _next_chunk(self, connection: Connection) -> None:
        self._left = int(connection.line().split(b";")[0], 16)
        if not self._left:
            while connection.line():
                pass
            self._finish()

    def read1(self, limit: int = CHUNK) -> bytes:
        """Return some of the body as soon as there is some; empty at its end."""
        connection = self._connection
        if connection is None:
            return b""
        try:
            if self._mode == "close":
                data = connection.take(limit)
                if not data:
                    self._finish()
                return data
            if not self._left:
                self._next_chunk(connection)
                if not self._left:
                    return b""
            data = connection.take(min(limit, self._left))
        except (ValueError, OSError) as error:
            self.close()
            raise ProtocolError(f"reading the daemon's answer failed: {error}") from error
        if not data:
            self.close()
            raise ProtocolError("the daemon closed the connection in the middle of its answer (unexpected EOF)")
        self._left -= len(data)
        if not self._left:
            if self._mode == "length":
                self._finish()
            elif connection.line():
                raise ProtocolError("malformed chunk in the daemon's answer")
        return data

    def read(self) -> bytes:
        """Return the whole body."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """Yield the body in pieces as they come."""
        while data := self.read1():
            yield data

    def lines(self) -> Iterator[bytes]:
        """Yield the body's lines, without their ends."""
        rest = b""
        for data in self.chunks():
            *lines, rest = (rest + data).split(b"\n")
            yield from lines
        if rest:
            yield rest

    def documents(self) -> Iterator[Any]:
        """Yield the JSON documents of a stream (one after another, whatever stands between them)."""
        for line in self.lines():
            if text := line.strip(b" \r\x1e"):
                yield json.loads(text)

    def json(self) -> Any:
        """Return the body as JSON; None when it is empty."""
        body = self.read()
        try:
            return json.loads(body) if body else None
        except ValueError as error:
            raise ProtocolError(f"the daemon's answer is not JSON: {error}") from error

    def hijack(self) -> Connection:
        """Return the connection: from here on it carries the raw stream, and the caller closes it."""
        connection, self._connection = self._connection, None
        if connection is None:
            raise ProtocolError("the daemon did not upgrade the connection")
        return connection
