"""Connections through published ports go on while the daemon is away and when it comes back."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from support.engines import Engine, until
from support.world import HOST_ADDRESS

pytestmark = pytest.mark.drayd_only("dockerd's containers end with it")

TCP, UDP = 18080, 18053
SIZE = 64 << 10


class Flow:
    """One connection on which every byte sent is waited for; counts the rounds."""

    def __init__(self, address: str, *, kind: socket.SocketKind) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.what = f"{kind.name} {address}"
        self.rounds = 0
        self.failure: BaseException | None = None
        self._kind = kind
        self._socket = socket.socket(family, kind)
        self._socket.settimeout(5)
        try:
            self._socket.connect((address, TCP if kind == socket.SOCK_STREAM else UDP))
        except OSError:
            self._socket.close()
            raise
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def ready(self) -> bool:
        """Whether the other end answers: a port may be open before its program listens."""
        try:
            self._socket.send(b"?")
            return self._socket.recv(10) == b"?"
        except OSError:
            return False

    def begin(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._round()
                self.rounds += 1
                self._over.wait(0.005)
        except BaseException as error:
            self.failure = error

    def _round(self) -> None:
        if self._kind == socket.SOCK_DGRAM:
            asked = b"%d" % self.rounds
            self._socket.send(asked)
            assert self._socket.recv(100) == asked
            return
        asked = os.urandom(SIZE)
        self._socket.sendall(asked)
        got = b""
        while len(got) < SIZE:
            part = self._socket.recv(SIZE - len(got))
            assert part, "the connection was closed"
            got += part
        assert got == asked

    def goes_on(self) -> None:
        """Insist on ten more rounds."""
        before = self.rounds
        until(lambda: self.failure or self.rounds > before + 10, what=f"{self.what} to go on")
        assert self.failure is None, (self.what, self.failure)

    def close(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()


@pytest.fixture
def echo(nginx_engine: Engine) -> Iterator[Engine]:
    engine = nginx_engine
    script = "socat TCP-LISTEN:80,fork,reuseaddr PIPE & exec socat UDP-LISTEN:53,fork,reuseaddr PIPE"
    engine.ok("network", "create", "flows")
    engine.ok(
        *("run", "-d", "--name", "echo", "--network", "flows", "-p", f"{TCP}:80", "-p", f"{UDP}:53/udp"),
        *("nginx", "sh", "-c", script),
    )
    yield engine
    if engine.daemon is None:
        engine.start()
    engine.ok("rm", "-f", "echo")
    engine.ok("network", "rm", "flows")


def opened(address: str, kind: socket.SocketKind) -> Flow:
    flows: list[Flow] = []

    def attempt() -> bool:
        try:
            flow = Flow(address, kind=kind)
        except OSError:
            return False
        if flow.ready():
            flows.append(flow)
        else:
            flow.close()
        return bool(flows)

    until(attempt, what=f"an answer of {address}")
    return flows[0]


def test_flows_outlive_the_daemon(echo: Engine) -> None:
    """TCP and UDP, redirected by the kernel (IPv4) and forwarded by the shim (::1): not a byte is lost."""
    engine = echo
    flows = [
        opened(address, kind)
        for address in ("127.0.0.1", HOST_ADDRESS, "::1")
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    ]
    try:
        for flow in flows:
            flow.begin()

        def all_go_on() -> None:
            for flow in flows:
                flow.goes_on()

        all_go_on()
        engine.kill()
        all_go_on()
        engine.start()
        all_go_on()
        assert engine.stop() == 0
        all_go_on()
        engine.start()
        all_go_on()
    finally:
        for flow in flows:
            flow.close()
