"""Backends that remember what they were asked and answer from memory, and a server over a socket of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from dray.api import models
from dray.api.requests import PathStat, PingStatus, Progress
from dray.base.errors import Conflict, NotFound, NotModified
from dray.server.backends import Backends
from dray.server.listeners import Listener, Servers

ID = "ab" * 32
IMAGE_ID = "sha256:" + "cd" * 32


class Fake:
    """All protocols at once. `calls` lists (verb, arguments); `gate` holds what waits."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.gate = asyncio.Event()
        self.cancelled: list[str] = []
        self.received = b""
        self.detached: list[Any] = []
        self.tty = False
        self.leave_open = False

    def note(self, verb: str, *arguments: Any) -> None:
        self.calls.append((verb, arguments))

    def last(self, verb: str) -> Any:
        return [arguments for name, arguments in self.calls if name == verb][-1]

    # System

    def ping(self) -> PingStatus:
        return PingStatus()

    async def info(self) -> models.SystemInfo:
        return models.SystemInfo(
            id="id", containers=1, os_type="linux", name="host", server_version="0.1.0", driver="overlayfs"
        )

    async def version(self) -> models.SystemVersion:
        return models.SystemVersion(
            version="0.1.0", os="linux", arch="amd64", platform=models.VersionPlatform(name="dray")
        )

    async def disk_usage(self, *, types: tuple[str, ...], verbose: bool) -> models.DiskUsage:
        self.note("df", types, verbose)
        usage = models.DiskUsage()
        usage.image_usage = models.ImagesDiskUsage(
            total_count=1, total_size=7, items=[models.ImageSummary(size=7)]
        )
        return usage

    async def authenticate(self, auth: models.AuthConfig) -> models.AuthResponse:
        self.note("auth", auth)
        return models.AuthResponse(status="Login Succeeded")

    # Containers

    async def create(self, *arguments: Any) -> Any:
        if isinstance(arguments[0], str):
            self.note("exec", *arguments)
            return models.IDResponse(id="e" * 64)
        self.note("create", *arguments)
        if arguments[1].image == "missing":
            raise NotFound("No such image: missing:latest")
        return models.ContainerCreateResponse(id=ID)

    async def list_containers(self, **options: Any) -> list[models.ContainerSummary]:
        self.note("list", options)
        summary = models.ContainerSummary(
            id=ID, names=["/web"], image="busybox", image_id=IMAGE_ID, command="sleep 1", created=1700000000
        )
        summary.state, summary.status = "running", "Up 2 minutes"
        summary.ports = [models.PortSummary(ip="0.0.0.0", private_port=80, public_port=8080, type="tcp")]
        summary.health = models.HealthSummary(status="none")
        return [summary]

    async def inspect(self, ref: str, **options: Any) -> Any:
        self.note("inspect", ref, options)
        if ref not in {"web", ID}:
            raise NotFound(f"No such container: {ref}")
        found = models.ContainerInspectResponse(id=ID, name="/web")
        found.network_settings.networks["bridge"] = models.EndpointSettings(
            ip_address="172.17.0.2", aliases=["a"], dns_names=["web"], mac_address="02:42:ac:11:00:02"
        )
        found.host_config.network_mode = "default"
        return found

    async def rename(self, ref: str, name: str) -> None:
        self.note("rename", ref, name)

    async def update(self, ref: str, request: models.ContainerUpdateRequest) -> models.ContainerUpdateResponse:
        self.note("update", ref, request)
        return models.ContainerUpdateResponse()

    async def remove(self, *arguments: Any, **options: Any) -> Any:
        self.note("remove", *arguments, options)
        return []

    async def prune(self, *arguments: Any) -> models.ContainerPruneReport:
        self.note("prune", *arguments)
        return models.ContainerPruneReport(space_reclaimed=3)

    async def top(self, ref: str, ps_args: str) -> models.ContainerTopResponse:
        return models.ContainerTopResponse(titles=["PID"], processes=[["1"]])

    async def changes(self, ref: str) -> list[models.FilesystemChange]:
        return [models.FilesystemChange(path="/a", kind=1)]

    async def stats(
        self, ref: str, *, stream: bool, one_shot: bool
    ) -> AsyncIterator[models.ContainerStatsResponse]:
        self.note("stats", stream, one_shot)
        if ref not in {"web", ID}:
            raise NotFound(f"No such container: {ref}")
        try:
            while True:
                yield models.ContainerStatsResponse(id=ID, name="/web", os_type="linux")
                if not stream:
                    return
                await asyncio.sleep(0.01)
        finally:
            self.cancelled.append("stats")

    # Lifecycle

    async def start(self, ref: str, *arguments: Any, **options: Any) -> None:
        self.note("start", ref, *arguments, options)
        if ref == "running":
            raise NotModified("container already started")
        if ref == "paused":
            raise Conflict("cannot start a paused container, try unpause instead")
        if ref == "broken":
            raise RuntimeError("boom")
        if ref == "slow":
            await self.gate.wait()
        if arguments and arguments[1] is not None:
            await self._take(await arguments[1].hijack(tty=arguments[0].tty))

    async def stop(self, ref: str, **options: Any) -> None:
        self.note("stop", ref, options)

    restart = stop

    async def kill(self, ref: str, *, signal: str) -> None:
        self.note("kill", ref, signal)

    async def pause(self, ref: str) -> None:
        self.note("pause", ref)

    async def unpause(self, ref: str) -> None:
        self.note("unpause", ref)

    async def wait(self, ref: str, condition: str) -> Any:
        self.note("wait", ref, condition)

        async def result() -> models.ContainerWaitResponse:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.append("wait")
                raise
            return models.ContainerWaitResponse(status_code=7)

        return result()

    async def resize(self, ref: str, height: int, width: int) -> None:
        self.note("resize", ref, height, width)

    # Streams

    async def _take(self, detached: Any) -> None:
        self.detached.append(detached)
        if self.leave_open:
            return
        with socket.socket(fileno=detached.fd) as sock:
            sock.sendall(b"<" + detached.leftover + b">")
            sock.shutdown(socket.SHUT_WR)

    async def attach(self, ref: str, options: Any, connection: Any) -> None:
        self.note("attach", ref, options)
        if ref == "missing":
            raise NotFound("No such container: missing")
        if ref == "slow":
            await self.gate.wait()
        await self._take(await connection.hijack(tty=self.tty))

    async def logs(self, ref: str, options: Any, connection: Any) -> None:
        self.note("logs", ref, options)
        if ref == "missing":
            raise NotFound("No such container: missing")
        detached = await connection.chunked_response(tty=self.tty)
        with socket.socket(fileno=detached.fd) as sock:
            sock.sendall(b"5\r\nhello\r\n0\r\n\r\n" if detached.chunked else b"hello")

    # Archives

    async def export(self, ref: str) -> AsyncIterator[bytes]:
        return self._bytes()

    async def _bytes(self) -> AsyncIterator[bytes]:
        try:
            for _ in range(3):
                yield b"x" * 1000
            if self.tty:
                raise OSError("disk gone")
        finally:
            self.cancelled.append("bytes")

    async def stat(self, ref: str, path: str) -> PathStat:
        if path != "/etc":
            raise NotFound(f"Could not find the file {path} in container {ref}")
        return PathStat(name="etc", size=4096, mode=(1 << 31) | 0o755, mtime="2024-01-01T00:00:00Z")

    async def read(self, ref: str, path: str) -> tuple[PathStat, AsyncIterator[bytes]]:
        return await self.stat(ref, path), self._bytes()

    async def write(self, ref: str, path: str, content: Any, **options: Any) -> None:
        self.note("write", ref, path, options)
        async with content.pipe() as fd:
            self.received = await asyncio.to_thread(_read_all, fd)

    # Images and transfer

    async def list_images(self, **options: Any) -> list[models.ImageSummary]:
        self.note("images", options)
        return [models.ImageSummary(id=IMAGE_ID, repo_tags=["a/b:c"], size=5, manifests=[])]

    async def history(self, name: str, *, platform: str) -> list[models.ImageHistoryResponseItem]:
        self.note("history", name, platform)
        return []

    async def tag(self, name: str, repo: str, tag: str) -> None:
        self.note("tag", name, repo, tag)

    async def commit(self, options: Any, config: Any) -> models.IDResponse:
        self.note("commit", options, config)
        return models.IDResponse(id=IMAGE_ID)

    async def attestations(self, name: str, **options: Any) -> list[models.AttestationStatement]:
        return []

    async def pull(self, image: str, tag: str, **options: Any) -> AsyncIterator[Progress]:
        self.note("pull", image, tag, options)
        if image == "nowhere":
            raise NotFound("pull access denied for nowhere")
        try:
            yield Progress(status="Pulling <&>", id="1")
            if image.endswith("fails"):
                raise NotFound("manifest unknown")
            if image == "slow":
                await self.gate.wait()
        finally:
            self.cancelled.append("pull")

    def push(self, name: str, tag: str, **options: Any) -> AsyncIterator[Progress]:
        return self.pull(name, tag, **options)

    async def import_(self, options: Any, content: Any) -> AsyncIterator[Progress]:
        self.note("import", options)
        async for chunk in content:
            self.received += chunk
        yield Progress(status=IMAGE_ID)

    async def load(self, content: Any, *, quiet: bool, platforms: tuple[str, ...]) -> AsyncIterator[Progress]:
        self.note("load", quiet, platforms)
        yield Progress(status="Loading")  # while the body is still on its way
        async with content.pipe() as fd:
            self.received = await asyncio.to_thread(_read_all, fd)
        yield Progress(stream="Loaded image: a\n")

    async def save(self, names: tuple[str, ...], *, platforms: tuple[str, ...]) -> AsyncIterator[bytes]:
        self.note("save", names, platforms)
        return self._bytes()

    async def search(self, term: str, **options: Any) -> list[models.ImageSearchResult]:
        return [models.ImageSearchResult(name=term)]

    async def distribution(self, name: str, *, auth: Any) -> models.DistributionInspect:
        self.note("distribution", name, auth)
        return models.DistributionInspect()

    # Events

    def subscribe(self, *, since: int, until: int, filters: Any) -> AsyncIterator[models.EventMessage]:
        self.note("events", since, until, dict(filters))
        return self._events()

    async def _events(self) -> AsyncIterator[models.EventMessage]:
        try:
            actor = models.EventActor(id=ID, attributes={"image": "busybox", "name": "web"})
            await self.gate.wait()
            yield models.EventMessage(type="image", action="create", actor=models.EventActor(id=IMAGE_ID))
            yield models.EventMessage(type="container", action="start", actor=actor, time=1, time_nano=1)
        finally:
            self.cancelled.append("events")


class FakeVolumes:
    async def create(self, request: models.VolumeCreateRequest) -> models.Volume:
        return models.Volume(name=request.name)

    async def list_volumes(self, filters: Any) -> models.VolumeListResponse:
        return models.VolumeListResponse()

    async def inspect(self, name: str) -> models.Volume:
        raise NotFound(f"get {name}: no such volume")

    async def remove(self, name: str, *, force: bool) -> None:
        pass

    async def prune(self, filters: Any) -> models.VolumePruneReport:
        return models.VolumePruneReport(volumes_deleted=filters.values_of("all"))


class FakeNetworks:
    async def create(self, request: models.NetworkCreateRequest) -> models.NetworkCreateResponse:
        return models.NetworkCreateResponse(id=request.name)

    async def list_networks(self, filters: Any) -> list[models.NetworkSummary]:
        return [models.NetworkSummary(name="bridge")]

    async def inspect(self, ref: str, *, verbose: bool, scope: str) -> models.NetworkInspect:
        if ref != "bridge":
            raise NotFound(f"network {ref} not found")
        return models.NetworkInspect(name=ref)

    async def remove(self, ref: str) -> None:
        pass

    async def connect(self, ref: str, request: Any) -> None:
        pass

    async def disconnect(self, ref: str, request: Any) -> None:
        pass

    async def prune(self, filters: Any) -> models.NetworkPruneReport:
        return models.NetworkPruneReport()


def _read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def backends(fake: Any) -> Backends:
    return Backends(
        system=fake,
        containers=fake,
        lifecycle=fake,
        streams=fake,
        archives=fake,
        execs=fake,
        images=fake,
        transfer=fake,
        events=fake,
        networks=FakeNetworks(),
        volumes=FakeVolumes(),
    )


@contextlib.asynccontextmanager
async def serving(fake: Any, *listeners: Listener) -> AsyncIterator[Servers]:
    servers = Servers(backends(fake))
    await servers.listen(listeners)
    try:
        yield servers
    finally:
        await servers.close(grace=0.2)


async def exchange(path: str, request: bytes) -> bytes:
    """Send bytes, half-close nothing, read until the server closes or the answer is whole by its length."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        lowered = head.lower()
        if b"content-length:" in lowered:
            length = int(lowered.split(b"content-length:")[1].split(b"\r\n")[0])
            return head + (b"" if request.startswith(b"HEAD") else await reader.readexactly(length))
        if b" 204 " in head or b" 304 " in head:
            return head
        return head + await reader.read()
    finally:
        writer.close()


def get(path: str, *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    """Write a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: docker", *headers]
    if body or method in {"POST", "PUT"}:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def post(path: str, body: bytes = b"", *headers: str) -> bytes:
    """Write a POST request with a JSON body."""
    kind = ("Content-Type: application/json",) if body else ()
    return get(path, *kind, *headers, method="POST", body=body)
