"""A plugin of the tests: HTTP on a unix socket, with a handler for every call.

It records what it was asked, and does on demand what plugins do wrong: hang, die, answer nonsense.
"""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import json
import os
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dray.linux import libc

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


class Wires:
    """A network driver that makes a veth pair for each endpoint and an IPAM driver with one subnet; run where the
    daemon's network is. `netns`: a namespace to work in, a descriptor; the server's threads are nobody else's."""

    def __init__(self, netns: int | None = None) -> None:
        self.netns = netns
        self.networks: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.addresses: set[str] = set()
        self.pools: set[str] = set()
        self.gateway = ""
        self.answers: dict[str, Any] = {}  # what Join says besides

    def handlers(self) -> dict[str, Handler]:
        done: dict[str, Any] = {}
        return {
            "NetworkDriver.GetCapabilities": lambda _: {"Scope": "local"},
            "NetworkDriver.CreateNetwork": lambda asked: self.networks.update({asked["NetworkID"]: asked}) or done,
            "NetworkDriver.DeleteNetwork": lambda asked: self.networks.pop(asked["NetworkID"], {}) and done,
            "NetworkDriver.CreateEndpoint": self._create,
            "NetworkDriver.EndpointOperInfo": lambda _: {"Value": {}},
            "NetworkDriver.Join": self._join,
            "NetworkDriver.Leave": lambda _: done,
            "NetworkDriver.DeleteEndpoint": self._delete,
            "IpamDriver.GetCapabilities": lambda _: {"RequiresMACAddress": True, "RequiresRequestReplay": True},
            "IpamDriver.GetDefaultAddressSpaces": lambda _: {
                "LocalDefaultAddressSpace": "here",
                "GlobalDefaultAddressSpace": "everywhere",
            },
            "IpamDriver.RequestPool": self._pool,
            "IpamDriver.ReleasePool": lambda asked: self.pools.discard(asked["PoolID"]) or done,
            "IpamDriver.RequestAddress": self._address,
            "IpamDriver.ReleaseAddress": lambda asked: self.addresses.discard(asked["Address"]) or done,
        }

    def ip(self, *words: str) -> str:
        if self.netns is not None:
            libc.setns(self.netns, 0x40000000)
        return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.endpoints[asked["EndpointID"]] = asked
        return {"Interface": {}}

    def _join(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["EndpointID"][:6]
        self.ip("link", "add", f"h{name}", "type", "veth", "peer", "name", f"c{name}")
        self.ip("link", "set", f"h{name}", "up")
        if self.gateway:
            self.ip("address", "add", f"{self.gateway}/24", "dev", f"h{name}")
        return {
            "InterfaceName": {"SrcName": f"c{name}", "DstPrefix": "wire"},
            "Gateway": self.gateway,
            "StaticRoutes": None,
            **self.answers,
        }

    def _delete(self, asked: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.ip("link", "del", f"h{asked['EndpointID'][:6]}")
        return {} if self.endpoints.pop(asked["EndpointID"], None) else {"Err": "no such endpoint"}

    def _pool(self, asked: dict[str, Any]) -> dict[str, Any]:
        pool = asked["Pool"] or "10.9.0.0/24"
        self.pools.add(f"pool-{pool}")
        return {"PoolID": f"pool-{pool}", "Pool": pool}

    def _address(self, asked: dict[str, Any]) -> dict[str, Any]:
        subnet = ipaddress.ip_network(asked["PoolID"].removeprefix("pool-"))
        wanted = [asked["Address"]] if asked["Address"] else [str(host) for host in subnet.hosts()]
        for address in wanted:
            if address not in self.addresses:
                self.addresses.add(address)
                return {"Address": f"{address}/{subnet.prefixlen}"}
        return {"Err": "no address left"}
