"""The image tables: pull, push, a cold run, what limits them; and the registry beside Debian's.

`stack` is 1 GB of Debian packages in 12 layers, `steps` has 60 small layers. Both lie in Debian's docker-registry on
loopback; pushes go to a registry that is made empty for each of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accounting import Account, disk
from peers import MANIFEST, PEERS, Limit, Peer
from rows import Row, clock
from tables import Table

from images import cache
from support.registries import DebianRegistry, DrayRegistry
from support.world import World

REGISTRIES: dict[str, type[DebianRegistry]] = {"drayd": DrayRegistry, "docker-registry": DebianRegistry}
FEW = {"repeats": 3, "quick": 1, "patience": 20.0}


@dataclass
class Costly(Row):
    """A row with what it costs besides time: processor seconds, memory, and the disk if `stored`."""

    warm: bool = False
    stored: bool = False

    def metrics(self) -> list[tuple[str, str, str]]:
        found = [(self.name, "s", self.target), ("  processor", "s", ""), ("  memory at the height", "MB", "")]
        return [*found, ("  disk", "MB", "")] if self.stored else found

    def cost(self, account: Account, act: Callable[[], object]) -> list[float]:
        """Time, processor and memory of `act`."""
        with account.watched() as told:
            taken = clock(act)
        return [taken, told["cpu"], told["memory"]]


@dataclass
class Pull(Costly):
    """An image that is not here, from Debian's registry."""

    image: str = ""
    stored: bool = True

    def figures(self, engine: Any) -> list[float]:
        peer: Peer = engine
        before = disk(peer.data)
        found = self.cost(peer.account, lambda: peer.pull(self.image))
        used = disk(peer.data) - before
        peer.forget(self.image)
        return [*found, used]

    def clean(self, engine: Any) -> None:
        pass


@dataclass
class Push(Costly):
    """An image that is here, to a registry that is empty."""

    image: str = ""
    registry: type[DebianRegistry] = DebianRegistry

    def prepare(self, engine: Any) -> None:
        engine.pull(self.image)

    def figures(self, engine: Any) -> list[float]:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, self.registry(Path(folder)) as registry:
            target = f"{registry.address}/pushed:latest"
            found = self.cost(engine.account, lambda: engine.push(self.image, target))
            if engine.name != "podman":
                engine.forget(target)
        return found

    def clean(self, engine: Any) -> None:
        engine.forget(self.image)


@dataclass
class ColdRun(Row):
    """`run --rm IMAGE true` of an image that is not here: first byte to running container, and its end."""

    image: str = ""
    warm: bool = False
    unit: str = "s"

    def measure(self, engine: Any) -> float:
        taken = clock(lambda: engine.run(self.image))
        engine.forget(self.image)
        return taken

    def clean(self, engine: Any) -> None:
        pass


@dataclass
class Plain(Costly):
    """One plain tool on the layers of an image, two at a time."""

    image: str = ""
    script: str = ""

    def prepare(self, engine: Limit) -> None:  # type: ignore[override]
        engine.each(engine.layers(self.image), 'curl -sf "$1" -o "$2.gz"; gunzip -k "$2.gz"; mv "$2" "$2.tar"')

    def figures(self, engine: Any) -> list[float]:
        limit: Limit = engine
        found = self.cost(limit.account, lambda: limit.each(limit.layers(self.image), self.script))
        for path in limit.data.glob("*.d"):
            subprocess.run(["rm", "-rf", str(path)], check=True)
        os.sync()
        return found

    def clean(self, engine: Any) -> None:
        engine.forget()


def image_rows(address: str) -> list[Row]:
    """Pull, push, cold run, and what plain tools take."""
    stack, steps = f"{address}/stack", f"{address}/steps"
    senders = ("drayd", "dockerd", "podman")

    def plain(name: str, script: str) -> Plain:
        return Plain(name, image=stack, script=script, only=("limit",), **FEW)  # type: ignore[arg-type]

    return [
        Pull("pull, 12 layers, 1 GB", target="≤ 0.50", image=stack, **FEW),  # type: ignore[arg-type]
        Pull("pull, 60 small layers", target="≤ 0.50", image=steps, **FEW),  # type: ignore[arg-type]
        plain("limit: curl | sha256sum", 'curl -sf "$1" | sha256sum'),
        plain("limit: gunzip", 'gunzip -c "$2.gz" > /dev/null'),
        plain("limit: tar x", 'mkdir "$2.d"; tar -x -C "$2.d" -f "$2.tar"'),
        ColdRun("cold run --rm stack true", image=stack, only=senders[:2], **FEW),  # type: ignore[arg-type]
        ColdRun("cold run --rm steps true", image=steps, only=senders[:2], **FEW),  # type: ignore[arg-type]
        Push("push to docker-registry, 1 GB", image=stack, only=senders, **FEW),  # type: ignore[arg-type]
        Push("push to dray registry, 1 GB", image=stack, registry=DrayRegistry, only=senders, **FEW),  # type: ignore[arg-type]
        Push("push to docker-registry, 60 layers", image=steps, only=senders, **FEW),  # type: ignore[arg-type]
    ]


# --- registries


class Shelf:
    """A registry as a subject, counted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.account = Account(name)
        self._folder = tempfile.TemporaryDirectory(dir="/var/tmp")
        with self.account.inside():
            self.registry = REGISTRIES[name](Path(self._folder.name))

    @property
    def url(self) -> str:
        return self.registry.url

    def close(self) -> None:
        self.registry.stop()
        self._folder.cleanup()
        self.account.close()


@dataclass
class BlobIn(Costly):
    """One blob of 1 GB into the registry, by curl in one request."""

    blob: Path = Path()
    digest: str = ""

    def figures(self, engine: Any) -> list[float]:
        return self.cost(engine.account, lambda: self._send(engine))

    def _send(self, shelf: Shelf) -> None:
        status, headers, _ = shelf.registry.request("POST", "/v2/bench/blobs/uploads/")
        assert status == 202, status
        place = headers["location"]
        place = place if place.startswith("http") else shelf.url + place
        target = f"{place}{'&' if '?' in place else '?'}digest={self.digest}"
        subprocess.run(["curl", "-sf", "-T", str(self.blob), "-X", "PUT", target], check=True, capture_output=True)

    def clean(self, engine: Any) -> None:
        pass


@dataclass
class BlobOut(BlobIn):
    """The same out of it."""

    def prepare(self, engine: Any) -> None:
        self._send(engine)

    def figures(self, engine: Any) -> list[float]:
        fetch = ["curl", "-sf", f"{engine.url}/v2/bench/blobs/{self.digest}", "-o", "/dev/null"]
        return self.cost(engine.account, lambda: subprocess.run(fetch, check=True))


EMPTY = b"{}"


def manifest(number: int) -> bytes:
    """A small manifest, a different one for each number."""
    digest = hashlib.sha256(EMPTY).hexdigest()
    config = f'{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:{digest}","size":{len(EMPTY)}}}'
    return (
        f'{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[],'
        f'"annotations":{{"number":"{number}"}}}}'
    ).encode()


@dataclass
class ManifestsIn(Row):
    """Small manifests put under tags by four connections; how many a second."""

    unit: str = "1/s"
    count: int = 400
    connections: int = 4
    more_is_better: bool = True

    def prepare(self, engine: Any) -> None:
        _, headers, _ = engine.registry.request("POST", "/v2/small/blobs/uploads/")
        place = headers["location"].removeprefix(engine.url)
        target = f"{place}{'&' if '?' in place else '?'}digest=sha256:{hashlib.sha256(EMPTY).hexdigest()}"
        status, _, _ = engine.registry.request("PUT", target, EMPTY, {"Content-Type": "application/octet-stream"})
        assert status == 201, status

    def measure(self, engine: Any) -> float:
        salt = time.time_ns()
        failed: list[int] = []

        def put(first: int) -> None:
            connection = http.client.HTTPConnection(engine.registry.host, engine.registry.port, timeout=30)
            for number in range(first, self.count, self.connections):
                body = manifest(salt + number)
                connection.request("PUT", f"/v2/small/manifests/t{number}", body, {"Content-Type": MANIFEST})
                answer = connection.getresponse()
                answer.read()
                if answer.status != 201:
                    failed.append(answer.status)
            connection.close()

        def all_of_them() -> None:
            threads = [threading.Thread(target=put, args=(n,)) for n in range(self.connections)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        taken = clock(all_of_them)
        assert not failed, failed[:3]
        return self.count / taken

    def clean(self, engine: Any) -> None:
        pass


@dataclass
class ManifestsOut(ManifestsIn):
    """One small manifest by tag, asked for by wrk over eight connections; answers a second."""

    def prepare(self, engine: Any) -> None:
        super().prepare(engine)
        status, _, _ = engine.registry.request(
            "PUT", "/v2/small/manifests/one", manifest(0), {"Content-Type": MANIFEST}
        )
        assert status == 201, status

    def measure(self, engine: Any) -> float:
        command = [
            "wrk",
            "-t1",
            "-c8",
            "-d2s",
            "-H",
            f"Accept: {MANIFEST}",
            f"{engine.url}/v2/small/manifests/one",
        ]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert "Non-2xx" not in told, told
        found = re.search(r"Requests/sec:\s+([\d.]+)", told)
        assert found, told
        return float(found[1])


def blob(folder: Path) -> tuple[Path, str]:
    """1 GB that no compression makes smaller, and its digest."""
    path, digest = folder / "blob", hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(1000):
            block = os.urandom(1_000_000)
            digest.update(block)
            file.write(block)
    return path, f"sha256:{digest.hexdigest()}"


def registry_rows(path: Path, digest: str) -> list[Row]:
    """The registry beside Debian's."""
    return [
        BlobIn("registry: a blob of 1 GB in", blob=path, digest=digest, **FEW),  # type: ignore[arg-type]
        BlobOut("registry: a blob of 1 GB out", blob=path, digest=digest, **FEW),  # type: ignore[arg-type]
        ManifestsIn("registry: small manifests in", **FEW),  # type: ignore[arg-type]
        ManifestsOut("registry: a small manifest out", **FEW),  # type: ignore[arg-type]
    ]


def tables(stack: contextlib.ExitStack, world: World, names: list[str]) -> Iterator[Table]:
    """Engines and plain tools; everything is taken down when `stack` ends."""
    archives = {"stack": cache.stack_layout(), "steps": cache.steps_layout()}
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
    world.enter()
    stack.callback(world.leave)
    with contextlib.ExitStack() as first:
        registry = first.enter_context(DebianRegistry(folder / "registry"))
        for name, archive in archives.items():
            copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci-archive:{archive}"]
            subprocess.run([*copy, f"docker://{registry.address}/{name}:latest"], check=True)
        peers = []
        for name in names:
            peers.append(PEERS[name]())
            first.callback(peers[-1].close)
        yield Table("Images, from and to a registry on loopback", peers, image_rows(registry.address))


def registry_tables(stack: contextlib.ExitStack, world: World, names: list[str]) -> Iterator[Table]:
    """The registries side by side."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
    world.enter()
    stack.callback(world.leave)
    shelves = [Shelf(name) for name in names]
    for shelf in shelves:
        stack.callback(shelf.close)
    yield Table("`dray registry serve` beside docker-registry", shelves, registry_rows(*blob(folder)))
