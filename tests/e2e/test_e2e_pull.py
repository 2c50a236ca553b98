"""Pull, push and run from a real registry (Debian's docker-registry): also when daemon, registry, network or disk fail."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images.archive import Entry, Image, layer_tar, write_docker_archive
from support.engines import Drayd, Engine, until
from support.registries import PROGRAM, DebianRegistry
from support.world import World

pytestmark = [
    pytest.mark.drayd_only("pulls that resume and the words of the errors are drayd's"),
    pytest.mark.skipif(PROGRAM is None, reason="docker-registry is not installed"),
]

LAYERS, LAYER_SIZE = 3, 8 << 20
TOTAL = LAYERS * LAYER_SIZE


class Throttle:
    """Forwards TCP connections to a registry at a pace, and counts the bytes that come back."""

    def __init__(self, target: DebianRegistry, *, rate: float) -> None:
        self._target, self._rate = target, rate
        self.received = 0
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._run(self._accept)

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
                self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection((self._target.host, self._target.port), timeout=10)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        self._sockets += [client, server]
        self._run(self._copy, client, server, False)
        self._run(self._copy, server, client, True)

    def _copy(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(32 << 10):
                if counted:
                    with self._lock:
                        self.received += len(data)
                        time.sleep(len(data) / self._rate)  # one pace for all connections
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut everything, and let no thread live on."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()


@pytest.fixture(scope="module")
def registry(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianRegistry]:
    with DebianRegistry(tmp_path_factory.mktemp("registry")) as one:
        yield one


@pytest.fixture
def bulk(engine: Engine, registry: DebianRegistry, tmp_path: Path) -> str:
    """The path of an image with layers that do not compress, in the registry and not on the engine."""
    path = "bulk"
    if registry.request("GET", f"/v2/{path}/tags/list")[0] != 200:
        source = random.Random(4)
        layers = [
            layer_tar([Entry(f"data{n}", data=source.randbytes(LAYER_SIZE), mode=0o644)]) for n in range(LAYERS)
        ]
        archive = tmp_path / "bulk.tar"
        name = f"{registry.address}/{path}:latest"
        write_docker_archive([Image(layers, {"Cmd": ["/none"]}, [name])], archive)
        engine.load(archive)
        engine.ok("push", name)
        engine.ok("rmi", name)
    return path


def images(engine: Engine) -> set[str]:
    return set(engine.ok("images", "--format", "{{.Repository}}:{{.Tag}}").split())


def test_push_run_and_pull(engine: Engine, registry: DebianRegistry) -> None:
    name = f"{registry.address}/team/box:1"
    engine.ok("tag", "busybox", name)
    said = engine.ok("push", name)
    assert f"The push refers to repository [{registry.address}/team/box]" in said
    assert ": Pushed" in said
    assert "1: digest: sha256:" in said
    assert "Layer already exists" in engine.ok("push", name)
    copy = f"{registry.address}/team/copy:2"
    engine.ok("tag", name, copy)
    assert "Mounted from team/box" in engine.ok("push", copy)
    engine.ok("rmi", name, copy)
    assert engine.ok("run", "--rm", "--network", "none", name, "echo", "hello").splitlines()[-1] == "hello"
    assert f"Status: Image is up to date for {name}" in engine.ok("pull", name)
    said = engine.ok("pull", "--all-tags", copy.rpartition(":")[0])
    assert f"Status: Downloaded newer image for {copy.rpartition(':')[0]}" in said
    engine.ok("rmi", name, copy)


def test_what_is_not_there(engine: Engine, registry: DebianRegistry) -> None:
    said = engine.fails("pull", f"{registry.address}/team/nothing:1")
    assert f"manifest for {registry.address}/team/nothing:1 not found" in said
    status, _ = engine.api("POST", f"/images/create?fromImage={registry.address}/team/nothing&tag=1")[:2]
    assert status == 404
    assert "An image does not exist locally" in engine.fails("push", f"{registry.address}/team/nothing:1")


def test_killed_at_any_moment_it_goes_on(engine: Engine, registry: DebianRegistry, bulk: str) -> None:
    """kill -9 of the daemon, again and again: never a half image, and hardly a byte twice."""
    slow = Throttle(registry, rate=24e6)
    name = f"{slow.address}/{bulk}:latest"
    kills = 0
    moments = random.Random(time.time_ns())
    try:
        for _ in range(4):
            before = slow.received
            with engine.spawn("pull", name) as client:
                until(lambda: slow.received - before > 100_000 or client.poll() is not None)  # noqa: B023
                time.sleep(moments.uniform(0, 0.15))
                ended = client.poll() is not None
                engine.kill()
                client.wait(10)
            engine.start()
            if ended:
                break
            kills += 1
            assert name not in images(engine)
        engine.ok("pull", name)
    finally:
        slow.close()
    assert kills >= 2
    assert name in images(engine)
    # In flight in each of three connections at a kill: what the journal does not know, and the sockets' buffers.
    assert slow.received < TOTAL + kills * 3 * (1 << 20) + (1 << 20)
    engine.ok("create", "--name", "box", name)
    engine.ok("rm", "box")
    engine.ok("rmi", name)
    assert not list((engine.data_root / "content/ingest").iterdir())
    until(lambda: len(list((engine.data_root / "content/blobs/sha256").iterdir())) < 40, what="collection")


def test_the_registry_dies_meanwhile(engine: Engine, registry: DebianRegistry, bulk: str) -> None:
    slow = Throttle(registry, rate=24e6)
    name = f"{slow.address}/{bulk}:latest"
    try:
        with engine.spawn("pull", name, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
            until(lambda: slow.received > TOTAL // 4)
            registry.kill()
            registry.start()
            said, _ = client.communicate(timeout=60)
            assert client.returncode == 0, said
    finally:
        slow.close()
    assert slow.received < TOTAL + 6 * (1 << 20)
    engine.ok("rmi", name)


def test_interrupted_by_its_user(engine: Engine, registry: DebianRegistry, bulk: str) -> None:
    slow = Throttle(registry, rate=24e6)
    name = f"{slow.address}/{bulk}:latest"
    try:
        with engine.spawn("pull", name) as client:
            until(lambda: slow.received > TOTAL // 4)
            client.send_signal(signal.SIGINT)
            assert client.wait(10) != 0
        seen = -1
        while seen != slow.received:  # the download ends with its client
            seen = slow.received
            time.sleep(0.3)
        assert seen < TOTAL
        assert name not in images(engine)
        engine.ok("pull", name)
    finally:
        slow.close()
    assert slow.received < TOTAL + 4 * (1 << 20)
    engine.ok("rmi", name)


@pytest.fixture
def small(engine: Engine, tmp_path: Path) -> Iterator[Engine]:
    """A daemon whose data root has little room, beside the session's engine (and gone before that looks for leaks)."""
    base = tmp_path / "small"
    base.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "none", str(base)], check=True)
    one = Drayd(base, flags=["--bridge", "dray-small1", "--bip", "172.29.78.1/24"])
    try:
        one.start()
        yield one
        one.remove_everything()
        one.stop()
    finally:
        subprocess.run(["umount", "-l", str(base)], check=True)


def test_a_full_disk(bulk: str, small: Engine, registry: DebianRegistry) -> None:
    """A clear error, nothing listed; with room again, the rest is fetched."""
    name = f"{registry.address}/{bulk}:latest"
    filler = small.base / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - TOTAL * 2 // 3)
    said = small.fails("pull", name)
    assert "no space left" in said
    assert images(small) == set()
    filler.unlink()
    small.ok("pull", name)
    assert images(small) == {name}
