"""TLS in front of the API: every TLS connection becomes a socket pair, one end of which the HTTP server serves.

So the HTTP server sees plain sockets only, hijacking works the same everywhere, and half-close survives: a client's
close_notify becomes a shutdown of the inner socket's sending half, while output goes on until the inner end
closes (asyncio's own TLS drops the connection at the client's close_notify).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable

HANDSHAKE_TIMEOUT = 10.0
_CHUNK = 256 << 10

Serve = Callable[[socket.socket], Awaitable[None]]


def server_context(certificate: str, key: str, *, client_ca: str | None = None) -> ssl.SSLContext:
    """Return a context with our certificate; with `client_ca`, clients must show a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


class TlsConnection:
    """One TLS connection: the outer socket, TLS in memory, the inner socket."""

    def __init__(self, outer: socket.socket, context: ssl.SSLContext) -> None:
        self._outer = outer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._sending = asyncio.Lock()
        self._loop = asyncio.get_running_loop()

    async def serve(self, serve: Serve) -> None:
        """Handshake, give one end of a socket pair to `serve`, and pump until both directions have ended."""
        self._outer.setblocking(False)
        with self._outer:
            try:
                async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                    await self._handshake()
            except (ssl.SSLError, OSError, TimeoutError):
                await self._last_words()
                return
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            with ours:
                await serve(theirs)
                inward = asyncio.ensure_future(self._pump_in(ours))
                try:
                    await self._pump_out(ours)
                finally:
                    inward.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await inward

    async def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._receive():
                    raise ConnectionResetError("the client has gone") from None
            else:
                await self._flush()
                return

    async def _receive(self) -> bool:
        data = await self._loop.sock_recv(self._outer, _CHUNK)
        if not data:
            self._incoming.write_eof()
            return False
        self._incoming.write(data)
        return True

    async def _flush(self) -> None:
        async with self._sending:
            while data := self._outgoing.read():
                await self._loop.sock_sendall(self._outer, data)

    async def _last_words(self) -> None:
        """Send the alert that says why, if there is one."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await self._flush()

    async def _pump_in(self, inner: socket.socket) -> None:
        """Client to server. A client that went away without a close_notify resets the inner connection too."""
        try:
            while True:
                try:
                    data = self._tls.read(_CHUNK)
                except ssl.SSLWantReadError:
                    await self._flush()  # TLS 1.3 answers key updates
                    if not await self._receive():
                        break
                    continue
                if not data:
                    break
                await self._loop.sock_sendall(inner, data)
        except (ssl.SSLError, OSError):
            pass
        with contextlib.suppress(OSError):
            inner.shutdown(socket.SHUT_WR)

    async def _pump_out(self, inner: socket.socket) -> None:
        """Server to client, then close_notify."""
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await self._loop.sock_recv(inner, _CHUNK):
                self._tls.write(data)
                await self._flush()
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        with contextlib.suppress(OSError):
            await self._flush()


class TlsListener:
    """Accepts TLS connections on a listening socket; closes it and ends its connections on `close`."""

    def __init__(self, listening: socket.socket, context: ssl.SSLContext, serve: Serve) -> None:
        self._listening = listening
        self._context = context
        self._serve = serve
        self._connections: set[asyncio.Task[None]] = set()
        listening.setblocking(False)
        self._accepting = asyncio.ensure_future(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                outer, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                if self._listening.fileno() < 0:
                    return
                await asyncio.sleep(0.1 if error.errno else 0)  # out of descriptors: wait for some to be closed
                continue
            task = asyncio.ensure_future(TlsConnection(outer, self._context).serve(self._serve))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def close(self) -> None:
        """Stop accepting and end what was accepted."""
        self._accepting.cancel()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(self._accepting, *self._connections, return_exceptions=True)
        with contextlib.suppress(OSError):
            self._listening.close()
