"""Connections to registries: urllib3's, with a deadline on what a socket timeout does not bound.

A socket timeout starts again with every byte, so a peer that sends one byte every few seconds, or `100 Continue`
without end, would hold a thread for ever. A `Watchdog` shuts the socket of whatever has passed its deadline down;
the blocked call then fails.

A host that is gone without a word (cut off, switched off) is noticed by keepalive probes after `DEAD` seconds; a
registry that is only slow answers them, and has the longer timeouts of `transport`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from urllib3 import PoolManager, ProxyManager, make_headers
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import HTTPResponse

DEAD = 20.0  # seconds after which a silent host that answers no probe counts as gone
_PROBES, _PACE = 3, 4  # probes that may be lost, seconds between them
_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(DEAD) - _PROBES * _PACE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PACE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES),
)
_TICK = 0.5  # seconds between two looks at the deadlines
_IDLE = 5.0  # seconds without anything to watch after which the thread ends


class Watchdog:
    """Shuts sockets down that have passed their deadline. Its thread runs only while something is watched."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[float, socket.socket, threading.Event]] = {}
        self._serial = 0
        self._running = False

    @contextlib.contextmanager
    def watch(self, sock: socket.socket, seconds: float) -> Iterator[threading.Event]:
        """Bound the time of a block that uses `sock`; past it the event is set and the socket shut down."""
        expired = threading.Event()
        with self._lock:
            self._serial += 1
            mine = self._serial
            self._watched[mine] = (time.monotonic() + seconds, sock, expired)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="registry-deadlines", daemon=True).start()
        try:
            yield expired
        finally:
            with self._lock:
                self._watched.pop(mine, None)

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(_TICK)
            now = time.monotonic()
            with self._lock:
                if self._watched:
                    last = now
                elif now - last > _IDLE:
                    self._running = False
                    return
                late = [key for key, (deadline, _, _) in self._watched.items() if deadline < now]
                for key in late:
                    _, sock, expired = self._watched.pop(key)
                    expired.set()
                    shut(sock)


WATCHDOG = Watchdog()


def shut(sock: socket.socket) -> None:
    """End a socket under whoever is blocked on it. Not SSLSocket.shutdown, which takes its state from the reader."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Guarded:
    """What both kinds of connection get: deadlines for connecting and for a response's head."""

    patience = 60.0  # seconds for the head of a response, and for a TLS handshake
    sock: Any

    timeout: Any

    def _new_conn(self) -> socket.socket:
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        self.__dict__["raw_sock"] = sock
        stack: contextlib.ExitStack | None = self.__dict__.get("connecting")
        if stack is not None:
            stack.enter_context(WATCHDOG.watch(sock, self.patience))
        return sock

    def connect(self) -> None:
        """Connect, and shake hands, within `patience`."""
        with contextlib.ExitStack() as stack:
            self.__dict__["connecting"] = stack
            try:
                super().connect()  # type: ignore[misc]
            finally:
                self.__dict__["connecting"] = None

    def getresponse(self) -> HTTPResponse:
        """Read the head of an answer within `patience`, or the request's own if that is longer."""
        sock = self.sock
        if not isinstance(sock, socket.socket):  # TLS inside TLS to a proxy
            sock = self.__dict__["raw_sock"]
        allowed = self.timeout if isinstance(self.timeout, (int, float)) else 0.0
        with WATCHDOG.watch(sock, max(self.patience, allowed)) as expired:
            try:
                response: HTTPResponse = super().getresponse()  # type: ignore[misc]
            except Exception as error:
                if not expired.is_set():
                    raise
                raise TimeoutError("the head of the answer did not end") from error
        if expired.is_set():  # a socket's end looks like the end of the head
            response.close()
            raise TimeoutError("the head of the answer did not end")
        response.dray_sock = sock  # type: ignore[attr-defined]
        return response


class GuardedHTTPConnection(_Guarded, HTTPConnection):  # type: ignore[misc]
    """HTTP with deadlines."""


class GuardedHTTPSConnection(_Guarded, HTTPSConnection):  # type: ignore[misc]
    """HTTPS with deadlines."""


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = GuardedHTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = GuardedHTTPSConnection

    def _validate_conn(self, conn: Any) -> None:
        # The parent warns of every unverified connection; here they are unverified by configuration alone.
        if conn.is_closed:
            conn.connect()


POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


def open_manager(proxy: str, context: ssl.SSLContext, *, size: int = 16) -> PoolManager:
    """Return pools of connections, straight or through a proxy, that verify what `context` says."""
    kept: dict[str, Any] = {"maxsize": size, "num_pools": 8, "ssl_context": context, "retries": False}
    kept["socket_options"] = _OPTIONS
    if not context.check_hostname:
        kept.update(cert_reqs="CERT_NONE", assert_hostname=False)
    if not proxy:
        manager = PoolManager(**kept)
    else:
        parts = urlsplit(proxy)
        headers = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers = make_headers(proxy_basic_auth=pair)
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        manager = ProxyManager(
            address, proxy_headers=headers, proxy_ssl_context=ssl.create_default_context(), **kept
        )
    manager.pool_classes_by_scheme = POOLS
    return manager
