"""Unmodified clients against the server with fake backends: the official command and docker-py."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from dray.server.listeners import Listener
from unit.server_fakes import ID, Fake, serving


class Running:
    """A server in a thread with a loop of its own."""

    def __init__(self, url: str) -> None:
        self._ready = threading.Event()
        self._url = url
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.fake: Fake
        self.address = ""

    async def _run(self) -> None:
        self.fake = Fake()
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serving(self.fake, Listener(url=self._url)) as servers:
            self.address = servers.addresses[0]
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def open_gate(self) -> None:
        self._loop.call_soon_threadsafe(self.fake.gate.set)


@pytest.fixture(params=["unix", "tcp"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    url = f"unix://{tmp_path}/api.sock" if request.param == "unix" else "tcp://127.0.0.1:0"
    with Running(url) as running:
        yield running


def command(server: Running, *arguments: str, stdin: bytes = b"", status: int = 0) -> str:
    import subprocess

    program = shutil.which("docker")
    assert program is not None, "the official docker client is needed"
    done = subprocess.run(
        [program, "-H", server.address, *arguments],
        input=stdin,
        capture_output=True,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )
    assert done.returncode == status, done.stderr
    return (done.stdout + done.stderr).decode()


def test_the_official_client_reads_what_we_tell(server: Running) -> None:
    assert "0.1.0" in command(server, "version")
    assert "Storage Driver: overlayfs" in command(server, "info")
    listed = command(server, "ps", "--no-trunc")
    assert ID in listed
    assert "0.0.0.0:8080->80/tcp" in listed
    assert "a/b" in command(server, "images")
    assert "bridge" in command(server, "network", "ls")
    assert '"Name": "/web"' in command(server, "inspect", "web")
    assert "No such" in command(server, "inspect", "nothing", status=1)
    assert "C /a" in command(server, "diff", "web").replace("A /a", "C /a")
    assert "Pulling <&>" in command(server, "pull", "busybox")
    assert "manifest unknown" in command(server, "pull", "fails", status=1)


def test_the_official_client_acts(server: Running) -> None:
    command(server, "start", "web")
    command(server, "stop", "-t", "-1", "web")
    assert server.fake.last("stop")[1]["timeout"] == -1
    assert "boom" in command(server, "start", "broken", status=1)
    assert ID in command(server, "create", "-m", "64m", "-p", "8080:80", "busybox", "true")
    _, config, host_config, _ = server.fake.last("create")
    assert (config.cmd, host_config.memory) == (["true"], 64 << 20)
    assert host_config.port_bindings["80/tcp"][0].host_port == "8080"
    assert config.exposed_ports.keys() == {"80/tcp"}
    server.open_gate()
    assert command(server, "wait", "web").strip() == "7"


def test_an_archive_is_uploaded_by_the_official_client(server: Running, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"tar" * 3_000_000)
    assert "Loaded image: a" in command(server, "load", "-i", str(archive))
    assert server.fake.received == archive.read_bytes()


def test_docker_py(server: Running) -> None:
    client = docker.DockerClient(base_url=server.address, version="auto", timeout=10)
    try:
        assert client.ping()
        assert client.version()["ApiVersion"] == "1.55"
        assert client.info()["OSType"] == "linux"
        assert [container.id for container in client.containers.list()] == [ID]
        assert client.containers.get("web").name == "web"
        with pytest.raises(docker.errors.NotFound, match="No such container: nothing"):
            client.containers.get("nothing")
        messages = list(client.api.pull("busybox", tag="latest", stream=True, decode=True))
        assert messages == [{"status": "Pulling <&>", "id": "1"}]
        assert client.containers.get("web").logs(stream=False) is not None
        assert next(client.containers.get("web").stats(decode=True))["id"] == ID
        server.open_gate()
        assert client.containers.get("web").wait() == {"StatusCode": 7}
        assert [event["Action"] for event in client.events(decode=True)] == ["create", "start"]
    finally:
        client.close()
