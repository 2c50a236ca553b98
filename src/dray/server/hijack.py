"""Connections that stop being HTTP: attach, exec start and logs give the client's socket away.

`EngineConnection` is aiohttp's request handler behind a gate. While no request is in progress the gate reads each
request's head; if that is one that may be hijacked, aiohttp is fed exactly that request, and what the client sends
behind it is held back: it is stdin, not HTTP. The next request passes once this one is answered without a hijack.

Taking the socket: the descriptor is duplicated, aiohttp's transport is aborted (which closes its own descriptor
and never shuts the socket down), and the head of the response is written to the duplicate. Heads on the wire
(moby `postContainersAttach`, `postContainerExecStart`):

    with an Upgrade header     HTTP/1.1 101 UPGRADED, Content-Type, Connection: Upgrade, Upgrade: tcp
    without                    HTTP/1.1 200 OK, Content-Type: application/vnd.docker.raw-stream
    websocket                  HTTP/1.1 101 Switching Protocols, Sec-WebSocket-Accept
    logs                       HTTP/1.1 200 OK, Content-Type, Connection: close, Transfer-Encoding: chunked
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from dray.api.requests import MULTIPLEXED_STREAM, RAW_STREAM, Detached
from dray.api.versions import Version
from dray.base.errors import InvalidParameter
from dray.server.httpserver import BaseRequest, RequestHandler, StreamReader, StreamResponse

Kind = Literal["attach", "websocket", "exec", "logs"]

HEAD_LIMIT = 64 << 10
HOLD_LIMIT = 256 << 10

_HIJACKABLE = re.compile(
    rb"(?:GET|POST) (?:http://[^/ ]*)?(?:/v[0-9.]+)?/(?:containers/[^ ]+?/attach(?:/ws)?|exec/[^ ]+?/start)[? ]"
)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class EngineConnection(RequestHandler):
    """One client connection."""

    __slots__ = (
        "_answered",
        "_cancellable",
        "_eof",
        "_held",
        "_holding",
        "_last_body",
        "_missing",
        "_partial",
        "_unsplit",
    )

    def __init__(self, manager: Any, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._answered = 0
        self._cancellable: asyncio.Task[Any] | None = None
        self._last_body: StreamReader | None = None
        self._partial = b""  # the beginning of a head
        self._missing = 0  # bytes of a hijackable request's body that are still to come
        self._holding = False  # a hijackable request is in progress
        self._unsplit = False  # ... and its end could not be told
        self._held = bytearray()
        self._eof = False  # the client closed its sending half behind a hijackable request

    # The gate

    def data_received(self, data: bytes) -> None:
        """Feed aiohttp, or hold back what is not HTTP."""
        if self._holding and not self._missing:
            self._hold(data)
        elif self._missing:
            self._feed_body(data)
        elif self._between_requests():
            self._feed_head(self._partial + data)
        else:
            self._feed(data)

    def _between_requests(self) -> bool:
        return self._request_count == self._answered and (self._last_body is None or self._last_body.is_eof())

    def _feed(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            self._last_body = self._messages[-1][1]

    def _feed_head(self, data: bytes) -> None:
        self._partial = b""
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 and len(data) < HEAD_LIMIT and data[:1] in b"GP":
            self._partial = data
            return
        if end < 4 or not _HIJACKABLE.match(data):
            self._feed(data)
            return
        self._holding = True
        if _CHUNKED.search(data, 0, end):
            self._unsplit = True
            self._feed(data)
            self._holding = False
            return
        length = _LENGTH.search(data, 0, end)
        self._missing = int(length[1]) if length else 0
        head, rest = data[:end], data[end:]
        self._feed(head)
        if self._missing:
            self._feed_body(rest)
        elif rest:
            self._hold(rest)

    def _feed_body(self, data: bytes) -> None:
        part, rest = data[: self._missing], data[self._missing :]
        self._missing -= len(part)
        self._feed(part)
        if rest:
            self._hold(rest)

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) >= HOLD_LIMIT and self.transport is not None:
            self.transport.pause_reading()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection until its last request is answered when the client only closed its sending half. A
        client that has left altogether looks the same: what should end with it ends now."""
        asked = self._holding or self._messages or self._request_count != self._answered
        whole = not self._missing and (self._last_body is None or self._last_body.is_eof())
        self._eof = bool(asked and whole and self._cancellable is None)
        return True if self._eof else None

    async def _handle_request(
        self,
        request: BaseRequest,
        start_time: float | None,
        request_handler: Callable[[BaseRequest], Awaitable[StreamResponse]],
    ) -> tuple[StreamResponse, bool]:
        try:
            return await super()._handle_request(request, start_time, request_handler)
        finally:
            self._answered += 1
            self._cancellable = None
            self._unsplit = False
            if self._holding:
                self._release()
            if self._eof and not self._messages:
                self.close()

    def _release(self) -> None:
        """Let the next request pass: this one was answered without a hijack."""
        held, self._held = bytes(self._held), bytearray()
        self._holding = False
        if self.transport is None or self._missing:
            return
        self.transport.resume_reading()
        if held:
            self._loop.call_soon(self.data_received, held)

    # Losing and leaving

    def cancel_on_loss(self) -> None:
        """Cancel the current task when the client disconnects, or has."""
        self._cancellable = asyncio.current_task()
        if self._eof and not self._holding and self._cancellable is not None:
            self._cancellable.cancel()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the request in progress if it asked for that; others run to their end."""
        super().connection_lost(exc)
        if self._cancellable is not None:
            self._cancellable.cancel()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """End the connection; what would be cancelled by the client's leaving is not waited for."""
        if self._cancellable is not None:
            self._cancellable.cancel()
        await super().shutdown(timeout)

    async def take(self) -> tuple[int, bytes]:
        """Take the socket out: return a blocking descriptor of it and what the client sent behind its request."""
        if self._unsplit:
            raise InvalidParameter("a request that takes over its connection needs a Content-Length, not chunks")
        transport = self.transport
        while transport is not None and not transport.is_closing() and transport.get_write_buffer_size():
            await asyncio.sleep(0.001)
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        transport.pause_reading()
        fd = os.dup(transport.get_extra_info("socket").fileno())
        held, self._held = bytes(self._held), bytearray()
        self._holding = False
        self._cancellable = None
        transport.set_protocol(asyncio.Protocol())  # it has the transport's end for itself
        transport.abort()
        super().connection_lost(None)
        os.set_blocking(fd, True)
        return fd, held


class ClientConnection:
    """The connection of one call (`api.requests.Connection`)."""

    def __init__(
        self,
        protocol: EngineConnection,
        request: BaseRequest,
        version: Version,
        kind: Kind,
        common_headers: dict[str, str],
    ) -> None:
        self._protocol = protocol
        self._request = request
        self._version = version
        self._kind = kind
        self._common = _lines(common_headers)
        self._detached = False

    @property
    def version(self) -> Version:
        """The API version of the request."""
        return self._version

    @property
    def detached(self) -> bool:
        """Whether the socket was taken already."""
        return self._detached

    async def hijack(self, *, tty: bool) -> Detached:
        """Answer an attach or exec start and give the socket up."""
        headers = self._request.headers
        if self._kind == "websocket":
            return await self._detach(_websocket_head(headers), multiplexed=False, websocket=True)
        # Exec has the usual headers as well, attach has not (moby).
        extra = self._common if self._kind == "exec" else ""
        if "Upgrade" in headers:
            kind = self._stream_type(tty)
            head = f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {kind}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n{extra}\r\n"
        else:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {RAW_STREAM}\r\n{extra}\r\n"
        return await self._detach(head.encode(), multiplexed=not tty)

    async def chunked_response(self, *, tty: bool) -> Detached:
        """Answer a logs request with the head of a chunked 200 and give the socket up."""
        chunked = self._request.version >= (1, 1)
        # The socket ends with the log; a client that kept it for its next request would find it closed.
        framing = "Connection: close\r\n" + ("Transfer-Encoding: chunked\r\n" if chunked else "")
        head = f"HTTP/1.1 200 OK\r\n{self._common}Content-Type: {self._stream_type(tty)}\r\n{framing}\r\n"
        return await self._detach(head.encode(), multiplexed=not tty, chunked=chunked)

    def _stream_type(self, tty: bool) -> str:
        return MULTIPLEXED_STREAM if not tty and self._version >= (1, 42) else RAW_STREAM

    async def _detach(
        self, head: bytes, *, multiplexed: bool, chunked: bool = False, websocket: bool = False
    ) -> Detached:
        if self._detached:
            raise RuntimeError("the connection was taken already")
        fd, leftover = await self._protocol.take()
        self._detached = True
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                sock.sendall(head)  # a fresh connection's buffer takes it at once
        except OSError:
            os.close(fd)
            raise
        return Detached(fd, leftover, multiplexed=multiplexed, chunked=chunked, websocket=websocket)


def _lines(headers: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def check_websocket(headers: Any) -> None:
    """Refuse what is not a websocket handshake (RFC 6455, 4.2.1)."""
    key = headers.get("Sec-WebSocket-Key", "")
    try:
        nonce = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        nonce = b""
    upgrade = headers.get("Upgrade", "").lower() == "websocket"
    if not upgrade or len(nonce) != 16 or headers.get("Sec-WebSocket-Version") != "13":
        raise InvalidParameter("not a websocket handshake: Upgrade, Sec-WebSocket-Key and -Version 13 are needed")


def _websocket_head(headers: Any) -> bytes:
    check_websocket(headers)
    key = headers["Sec-WebSocket-Key"].strip().encode()
    accept = base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest()).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ).encode()
