"""A daemon that does nothing but listen: it answers from a table and remembers every request.

Both clients can be pointed at it, so that what they ask for can be compared without a container being made.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

CONTAINER_ID = "a" * 64
PING = {"Api-Version": "1.50", "Ostype": "linux", "Server": "Recorder"}


class Request:
    """One request: `query` is the sorted list of pairs, `body` JSON if it is JSON, else bytes."""

    def __init__(self, method: str, target: str, headers: dict[str, str], raw: bytes) -> None:
        self.method = method
        path, _, query = target.partition("?")
        parts = path.split("/", 2)
        versioned = len(parts) == 3 and parts[1].startswith("v1.")
        self.version = parts[1][1:] if versioned else ""
        self.path = f"/{parts[2]}" if versioned else path
        self.query = sorted(parse_qsl(query, keep_blank_values=True))
        self.headers = headers
        self.raw = raw
        self.body: Any = raw
        with contextlib.suppress(ValueError):
            self.body = json.loads(raw) if raw else None

    def __repr__(self) -> str:
        return f"{self.method} {self.path} {self.query} {self.body!r}"


class Recorder:
    """The listening daemon. `answers` maps (method, path) to (status, body); anything else is a 404."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="api-recorder-"))
        self.host = f"unix://{self.folder}/s"
        self.requests: list[Request] = []
        self.answers: dict[tuple[str, str], tuple[int, bytes]] = {
            ("POST", "/containers/create"): (201, json.dumps({"Id": CONTAINER_ID, "Warnings": []}).encode())
        }
        self.headers: dict[str, str] = dict(PING)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(f"{self.folder}/s")
        self._listener.listen(64)
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and drop every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join()
        shutil.rmtree(self.folder)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as stream:
            while request := _read(stream):
                if request.path != "/_ping":
                    self.requests.append(request)
                status, body = self.answers.get(
                    (request.method, request.path), (404, b'{"message":"nothing here"}')
                )
                if request.path == "/_ping":
                    status, body = 200, b"OK"
                head = {**self.headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
                lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in head.items()), "", ""]
                connection.sendall("\r\n".join(lines).encode() + (b"" if request.method == "HEAD" else body))

    def take(self) -> list[Request]:
        """Return the requests so far, and forget them."""
        found, self.requests = self.requests, []
        return found


def _read(stream: Any) -> Request | None:
    line = stream.readline()
    if not line:
        return None
    method, target, _ = line.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while text := stream.readline().decode().strip():
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    return Request(method, target, headers, _body(stream, headers))


def _body(stream: Any, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return bytes(stream.read(int(headers.get("content-length", 0))))
    parts = []
    while size := int(stream.readline(), 16):
        parts.append(stream.read(size))
        stream.readline()
    stream.readline()
    return b"".join(parts)


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    """A recorder for the time of a block."""
    recorder = Recorder()
    try:
        yield recorder
    finally:
        recorder.close()
