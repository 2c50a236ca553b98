"""A plugin of the tests: HTTP on a unix socket, with a handler for every call.

It records what it was asked, and does on demand what plugins do wrong: hang, die, answer nonsense.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Handler = Callable[[dict[str, Any]], Any]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    request_queue_size = 5  # small, so that a burst meets a full backlog
    daemon_threads = True
    plugin: FakePlugin


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        plugin = self.server.plugin
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        method = self.path.removeprefix("/")
        status, answer = plugin.answer(method, body)
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


class FakePlugin:
    """A plugin listening at `path`. `handlers` answer calls: an object, bytes as they are, or (status, object)."""

    def __init__(self, path: Path, implements: list[str], handlers: Mapping[str, Handler] | None = None) -> None:
        self.path = path
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.handlers: dict[str, Handler] = {"Plugin.Activate": lambda _: {"Implements": implements}}
        self.handlers |= handlers or {}
        self.released = threading.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._server = _Server(str(path), _Request)
        self._server.plugin = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def answer(self, method: str, body: bytes) -> tuple[int, bytes]:
        asked = json.loads(body or b"{}")
        self.calls.append((method, asked))
        if method not in self.handlers:
            return 404, b'{"Err": "unknown call"}'
        said = self.handlers[method](asked)
        status, said = said if isinstance(said, tuple) else (200, said)
        return status, said if isinstance(said, bytes) else json.dumps(said).encode()

    def asked(self, method: str) -> list[dict[str, Any]]:
        """What a call was asked with, each time."""
        return [arguments for name, arguments in self.calls if name == method]

    def hang(self, method: str) -> None:
        """Have a call never answered, until `released`."""

        def wait(_: dict[str, Any]) -> dict[str, Any]:
            self.released.wait()
            return {}

        self.handlers[method] = wait

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


@contextlib.contextmanager
def running(
    path: Path, implements: list[str], handlers: Mapping[str, Handler] | None = None
) -> Iterator[FakePlugin]:
    """A plugin for the time of a block."""
    plugin = FakePlugin(path, implements, handlers)
    try:
        yield plugin
    finally:
        plugin.close()


def volume_handlers(root: Path) -> dict[str, Handler]:
    """A volume driver that keeps its volumes as directories in `root`."""
    root.mkdir(exist_ok=True)

    def described(name: str, *, status: bool = False) -> dict[str, Any]:
        shown: dict[str, Any] = {"Name": name, "Mountpoint": str(root / name)}
        return shown | ({"Status": {"kind": "test"}} if status else {})

    def known(asked: dict[str, Any]) -> bool:
        return (root / asked["Name"]).is_dir()

    def get(asked: dict[str, Any]) -> Any:
        return {"Volume": described(asked["Name"], status=True)} if known(asked) else {"Err": "no such volume"}

    return {
        "VolumeDriver.Capabilities": lambda _: {"Capabilities": {"Scope": "global"}},
        "VolumeDriver.Create": lambda asked: (root / asked["Name"]).mkdir(exist_ok=True) or {"Err": ""},
        "VolumeDriver.Remove": lambda asked: shutil.rmtree(root / asked["Name"]) or {"Err": ""},
        "VolumeDriver.Mount": lambda asked: {"Mountpoint": str(root / asked["Name"]), "Err": ""},
        "VolumeDriver.Unmount": lambda _: {"Err": ""},
        "VolumeDriver.Path": lambda asked: {"Mountpoint": str(root / asked["Name"])},
        "VolumeDriver.Get": get,
        "VolumeDriver.List": lambda _: {
            "Volumes": [described(path.name) for path in sorted(root.iterdir()) if path.name[0] != "."]
        },
    }
