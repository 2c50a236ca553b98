"""A resolver's process with a sandbox in a private host, and name servers for it to ask."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.rrset

from dray.linux import libc
from dray.network.dns.model import Member, Membership, Sandbox, Server
from dray.network.dns.service import Service
from dray.shim.spawn import Zygote

CLONE_NEWNET = 0x40000000
RESOLVER = ("127.0.0.11", 53)


@contextlib.contextmanager
def entered(netns: int) -> Iterator[None]:
    """Stand in another network namespace, with this thread alone."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.setns(netns, CLONE_NEWNET)
        yield
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)


class Container:
    """A network namespace with loopback up, and a process in it that stands for a container's first."""

    def __init__(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc.unshare(libc.CLONE_NEWNET)
            self.netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            self.process = subprocess.Popen(["sleep", "600"])
        finally:
            libc.setns(home, libc.CLONE_NEWNET)
            os.close(home)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.end()
        os.close(self.netns)

    def socket(self, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        with entered(self.netns):
            made = socket.socket(socket.AF_INET, kind)
        made.settimeout(10)
        return made

    def ask(self, name: str, kind: str = "A", *, tcp: bool = False, timeout: float = 10) -> dns.message.Message:
        """Ask the resolver from inside; TimeoutError without an answer."""
        query = dns.message.make_query(name, kind)
        with self.socket(socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as client:
            client.settimeout(timeout)
            client.connect(RESOLVER)
            wire = query.to_wire()
            if not tcp:
                client.send(wire)
                return dns.message.from_wire(client.recv(65535), raise_on_truncation=False)
            client.sendall(len(wire).to_bytes(2, "big") + wire)
            length = int.from_bytes(_exactly(client, 2), "big")
            return dns.message.from_wire(_exactly(client, length))

    def addresses(self, name: str, *, tcp: bool = False) -> list[str]:
        return [str(address) for rrset in self.ask(name, tcp=tcp).answer for address in rrset]


def _exactly(client: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = client.recv(length - len(data))
        if not more:
            raise ConnectionError("the resolver closed the connection")
        data += more
    return data


Answer = Callable[[dns.message.Message], list[bytes]]


def address(text: str) -> Answer:
    """Answer every question with one address."""

    def answer(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", text))
        return [response.to_wire()]

    return answer


class Upstream:
    """A name server on UDP and TCP that counts what it is asked; `answer` gives the messages sent back."""

    def __init__(
        self, host: str, answer: Answer, netns: int | None = None, *, stream: Answer | None = None
    ) -> None:
        self.names: list[str] = []
        self.ports: set[int] = set()
        self._answers = {"udp": answer, "tcp": stream or answer}
        with entered(netns) if netns is not None else contextlib.nullcontext():
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for one in (self._udp, self._tcp):
            one.bind((host, 53))
        self._tcp.listen()
        for target in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=target, daemon=True).start()

    def _think(self, protocol: str, data: bytes) -> list[bytes]:
        query = dns.message.from_wire(data)
        self.names.append(str(query.question[0].name).rstrip("."))
        return self._answers[protocol](query)

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, client = self._udp.recvfrom(65535)
                if not data:
                    return
                self.ports.add(client[1])
                for response in self._think("udp", data):
                    self._udp.sendto(response, client)

    def _serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._tcp.accept()
                with connection, contextlib.suppress(ConnectionError):
                    length = int.from_bytes(_exactly(connection, 2), "big")
                    for response in self._think("tcp", _exactly(connection, length)):
                        connection.sendall(len(response).to_bytes(2, "big") + response)

    def close(self) -> None:
        for one in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def sandbox(*, forward: bool = True, servers: list[Server] | None = None, ident: str = "box") -> Sandbox:
    return Sandbox(id=ident, networks=[Membership("n1", "app")], servers=servers or [], forward=forward)


MEMBERS = [Member("e1", "n1", ["web"], "172.18.0.2"), Member("e2", "n1", ["db", "data"], "172.18.0.3")]


class Lab:
    """A service with its process, from a zygote of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.zygote = Zygote.spawn()
        self.service = Service(self.zygote, str(directory))

    async def open(self, container: Container, asks: Sandbox) -> None:
        await self.service.open(asks, MEMBERS, container.netns)
        self.service.started(asks.id, container.process.pid)

    async def quiet(self) -> None:
        """Wait until everything has been told."""
        while self.service._tasks:
            await asyncio.wait(set(self.service._tasks))

    @property
    def pid(self) -> int:
        return self.service._process

    def crash(self) -> None:
        """The daemon is gone without a word, and another one is there."""
        client = self.service._client
        assert client is not None
        self.service._closing = True
        client.close()
        self.service = Service(self.zygote, str(self.directory))

    async def close(self) -> None:
        await self.service.adopt({}, [])
        await self.service.stop(end=True)
        self.zygote.close()


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    return False


@contextlib.contextmanager
def closing(*things: Container | Upstream) -> Iterator[None]:
    try:
        yield
    finally:
        for thing in things:
            thing.close()
