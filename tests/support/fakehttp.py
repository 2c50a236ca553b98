"""A web server that answers as the test says, the truth or not: for what no real registry would send.

`answer(request)` returns (status, headers, body) for an ordinary answer, or an iterator of bytes that are written to
the connection as they are, head and all; the connection is closed behind them.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support.registries import Authority


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = tuple[int, Mapping[str, str], bytes] | Iterator[bytes]


class FakeServer:
    """Serves on loopback from the constructor on; a context manager that ends it."""

    def __init__(
        self, answer: Callable[[Request], Answer], *, tls: Authority | None = None, folder: Path | None = None
    ) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.scheme = "http"
        if tls is not None:
            assert folder is not None
            folder.mkdir(parents=True, exist_ok=True)
            certificate, key = tls.issue(folder, "fake", hosts=("localhost", "127.0.0.1"))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self.scheme = "https"
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Its address with the scheme."""
        return f"{self.scheme}://{self.address}"

    def asked(self, method: str = "", path: str = "") -> list[Request]:
        """The requests so far of this method, with this in their path."""
        return [one for one in self.requests if (not method or one.method == method) and path in one.path]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, self.rfile.read(length))
                fake.requests.append(request)
                answer = fake.answer(request)
                if isinstance(answer, tuple):
                    self.ordinary(*answer)
                    return
                self.close_connection = True
                with contextlib.suppress(OSError):
                    for piece in answer:
                        if fake.stopped.is_set():
                            break
                        self.wfile.write(piece)

            def ordinary(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    if "Content-Length" not in headers and status not in (204, 304):
                        self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body)

            def handle(self) -> None:
                with contextlib.suppress(OSError, ssl.SSLError):
                    super().handle()

            def log_message(self, *_: Any) -> None:
                pass

        for verb in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT"):
            setattr(Handler, f"do_{verb}", Handler.do)
        return Handler

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
