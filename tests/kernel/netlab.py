"""A private "host" network namespace for tests, and what stands in for the zygote.

The test's own thread moves into the namespace and back, so that sockets, /proc/sys/net and child processes are
those of the private host. Nothing of the machine's network is touched.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from dray.base.records import Change
from dray.linux import libc
from dray.linux.links import Links, up_request, veth_request

CLONE_NEWNET = 0x40000000


def current_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def entered(netns: int) -> Iterator[None]:
    home = current_namespace()
    try:
        libc.setns(netns, CLONE_NEWNET)
        yield
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)


@contextlib.contextmanager
def private_host() -> Iterator[int]:
    """Stand in a new network namespace with loopback up; yields its descriptor."""
    home = current_namespace()
    libc.unshare(CLONE_NEWNET)
    netns = current_namespace()
    try:
        with Links.open() as links:
            links.apply([up_request(1)])
        yield netns
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(netns)
        os.close(home)


class LocalNamespaces:
    """NamespaceSource without a zygote: counts what it gave."""

    def __init__(self) -> None:
        self.given = 0

    async def new_network_namespace(self) -> tuple[int, int]:
        home = current_namespace()
        try:
            libc.unshare(CLONE_NEWNET)
            netns = current_namespace()
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0).detach()
        finally:
            libc.setns(home, CLONE_NEWNET)
            os.close(home)
        self.given += 1
        return netns, sock

    async def new_mapped_network_namespace(self, maps: tuple[str, str]) -> tuple[int, int, int]:
        """Not without a zygote: making one forks."""
        raise AssertionError("no test without a zygote asks for this")

    async def new_network_namespace_in(self, user: int) -> tuple[int, int]:
        """Not without a zygote."""
        raise AssertionError("no test without a zygote asks for this")


class MemoryRecords:
    """Records in a dict."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], bytes] = {}

    def get(self, kind: str, key: str) -> bytes | None:
        return self.rows.get((kind, key))

    def scan(self, kind: str) -> list[tuple[str, bytes]]:
        return sorted((key, value) for (of, key), value in self.rows.items() if of == kind)

    def write(self, changes: Sequence[Change]) -> None:
        for kind, key, value in changes:
            if value is None:
                self.rows.pop((kind, key), None)
            else:
                self.rows[kind, key] = value

    def sync(self) -> None:
        pass


def output(netns: int | None, *argv: str, timeout: float = 10) -> str:
    """Run a program, in a namespace if given; return stdout and stderr together."""
    with entered(netns) if netns is not None else contextlib.nullcontext():
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    return done.stdout + done.stderr


@contextlib.contextmanager
def private_neighbour(host: int) -> Iterator[int]:
    """A second host, 192.0.2.9, on a wire (`wire` here, `eth0` there); yields its namespace."""
    libc.unshare(CLONE_NEWNET)
    outside = current_namespace()
    with Links.open() as links:
        links.apply([up_request(1)])
    libc.setns(host, CLONE_NEWNET)
    with Links.open() as links:
        links.apply([veth_request("wire", "eth0", peer_netns=outside, master=0, mac="02:00:00:00:00:09")])
    output(None, "ip", "address", "add", "192.0.2.1/24", "dev", "wire")
    output(None, "ip", "-6", "address", "add", "2001:db8::1/64", "dev", "wire", "nodad")
    output(None, "ip", "link", "set", "wire", "up")
    output(outside, "ip", "address", "add", "192.0.2.9/24", "dev", "eth0")
    output(outside, "ip", "-6", "address", "add", "2001:db8::9/64", "dev", "eth0", "nodad")
    output(outside, "ip", "link", "set", "eth0", "up")
    output(outside, "ip", "route", "add", "172.16.0.0/12", "via", "192.0.2.1")
    try:
        yield outside
    finally:
        os.close(outside)


class Server:
    """A TCP or UDP server in a namespace that answers with the peer's address and what it got."""

    def __init__(self, netns: int | None, port: int, *, udp: bool = False, family: int = socket.AF_INET) -> None:
        self.received: list[bytes] = []
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        with entered(netns) if netns is not None else contextlib.nullcontext():
            self._socket = socket.socket(family, kind)
        if not udp:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        if not udp:
            self._socket.listen()
        self._thread = threading.Thread(target=self._serve_udp if udp else self._serve_tcp, daemon=True)
        self._thread.start()

    def _serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = self._socket.accept()
                threading.Thread(target=self._talk, args=(connection, peer[0]), daemon=True).start()

    @staticmethod
    def _talk(connection: socket.socket, peer: str) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(f"{peer} {data.decode()}".encode())

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = self._socket.recvfrom(65536)
                if peer is None:  # shut down
                    return
                self.received.append(data)
                self._socket.sendto(f"{peer[0]} {data.decode()}".encode(), peer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(timeout=0.2)


def say(
    netns: int | None, address: str, port: int, *, udp: bool = False, timeout: float = 1.0, source: str = ""
) -> str:
    """Send "hi" to a server from a namespace; return its answer, or the name of what went wrong."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with entered(netns) if netns is not None else contextlib.nullcontext():
        client = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    with client:
        client.settimeout(timeout)
        try:
            if source:
                client.bind((source, 0))
            client.connect((address, port))
            client.sendall(b"hi")
            return client.recv(100).decode()
        except (OSError, TimeoutError) as error:
            return type(error).__name__ + (f" {error.errno}" if error.errno else "")


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def command(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]
