"""The way in to a registry, with an access log that outlives the registry: what was sent of which range of which blob.

A registry writes a line when a request is over; killed in the middle it writes none. The access point stands in front
of it, passes GET and HEAD on, and counts every byte of every body at the moment the kernel takes it for the client:
what a client may have got, and a little more (what was under way when it went).
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from support.registries import DebianRegistry

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PIECE = 64 << 10


@dataclass
class Sent:
    """One answer with a body. `start`: the offset in the blob of its first byte; `count`: bytes that were sent."""

    path: str
    status: int
    start: int
    count: int = 0

    @property
    def digest(self) -> str:
        """The blob's digest, "" for anything else."""
        _, found, digest = self.path.partition("/blobs/")
        return digest if found else ""


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that broke off is what this is for."""


class AccessPoint:
    """Serves on a listening socket, of which it is the owner, at most `rate` bytes a second for all together."""

    def __init__(self, registry: DebianRegistry, listener: socket.socket, *, rate: float) -> None:
        self.registry = registry
        self.log: list[Sent] = []
        self._rate = rate
        self._pace = threading.Lock()
        self._clients: set[socket.socket] = set()
        point = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                point._clients.add(self.request)
                super().setup()

            def finish(self) -> None:
                point._clients.discard(self.request)
                with contextlib.suppress(OSError):
                    super().finish()

            def do_GET(self) -> None:
                try:
                    point._answer(self)
                except (OSError, http.client.HTTPException):
                    self.close_connection = True

            do_HEAD = do_GET  # noqa: N815 - the parent looks for this name

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server(("", 0), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        host, port = listener.getsockname()[:2]
        self.address = f"{host}:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        upstream = http.client.HTTPConnection(self.registry.host, self.registry.port, timeout=60)
        try:
            upstream.connect()
            # Little between registry and client, so that the registry's own log tells nearly the same.
            upstream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)
            upstream.request(handler.command, handler.path, headers=dict(handler.headers.items()))
            answer = upstream.getresponse()
            handler.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    handler.send_header(name, value)
            handler.end_headers()
            if handler.command == "GET":
                self._relay(handler, answer)
        finally:
            upstream.close()

    def _relay(self, handler: BaseHTTPRequestHandler, answer: http.client.HTTPResponse) -> None:
        match = _RANGE.match(answer.getheader("Content-Range", ""))
        entry = Sent(handler.path, answer.status, int(match[1]) if match else 0)
        self.log.append(entry)
        while data := answer.read1(_PIECE):
            with self._pace:
                time.sleep(len(data) / self._rate)
            view = memoryview(data)
            while view:
                taken = handler.connection.send(view)
                entry.count += taken
                view = view[taken:]
        handler.close_connection |= entry.count != int(
            answer.getheader("Content-Length", "0")
        )  # the registry died

    def sent(self, digest: str) -> int:
        """How many bytes of a blob were sent so far."""
        return sum(entry.count for entry in list(self.log) if entry.digest == digest)

    def close(self) -> None:
        """Cut everything."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> AccessPoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def repeated(log: Iterable[Sent]) -> list[tuple[Sent, int]]:
    """Return the answers about one blob that began with bytes that had been sent before, and how many these were."""
    found: list[tuple[Sent, int]] = []
    seen: list[tuple[int, int]] = []
    for entry in log:
        start, end = entry.start, entry.start + entry.count
        again, at = 0, start
        for first, last in sorted(seen):
            if last > at and first < end:
                again += min(last, end) - max(first, at)
                at = max(at, last)
        if again:
            found.append((entry, again))
        seen.append((start, end))
    return found
