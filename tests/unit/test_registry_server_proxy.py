"""A registry as a pull-through cache of another one, and garbage collection while it serves."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.registries import DrayRegistry

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def push_blob(registry: DrayRegistry, name: str, data: bytes) -> str:
    status, _, answer = registry.request("POST", f"/v2/{name}/blobs/uploads/?digest={sha256(data)}", data)
    assert status == 201, answer
    return sha256(data)


def push(registry: DrayRegistry, name: str, tag: str, *layers: bytes, **more: Any) -> str:
    described = [{"digest": push_blob(registry, name, layer), "size": len(layer)} for layer in layers]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described[0], "layers": described, **more}
    data = json.dumps(document).encode()
    status, _, answer = registry.request(
        "PUT", f"/v2/{name}/manifests/{tag}", data, {"Content-Type": OCI_MANIFEST}
    )
    assert status == 201, answer
    return sha256(data)


class Pair:
    """A cache and the registry behind it."""

    def __init__(self, folder: Path) -> None:
        self.behind = DrayRegistry(folder / "behind")
        self.cache = DrayRegistry(folder / "cache", options=[f"--proxy={self.behind.url}"])

    def fetched(self, method: str = "GET") -> list[str]:
        """The paths that the cache asked for, in order."""
        return [one.path for one in self.behind.access_log() if one.method == method and "python" not in one.agent]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    one = Pair(tmp_path)
    yield one
    one.cache.stop()
    one.behind.stop()


def test_what_was_fetched_is_kept(pair: Pair) -> None:
    layer = random.Random(1).randbytes(3_000_000)
    digest = push(pair.behind, "team/app", "v1", layer)
    for _ in range(2):
        status, headers, body = pair.cache.request("GET", "/v2/team/app/manifests/v1")
        assert (status, headers["docker-content-digest"], sha256(body)) == (200, digest, digest)
        assert pair.cache.request("GET", f"/v2/team/app/blobs/{sha256(layer)}")[2] == layer
    gets = [one for one in pair.behind.access_log() if one.method == "GET" and "/blobs/" in one.path]
    assert len(gets) == 1
    pair.behind.kill()
    assert pair.cache.request("GET", "/v2/team/app/manifests/v1")[1]["docker-content-digest"] == digest
    assert (
        pair.cache.request("GET", f"/v2/team/app/blobs/{sha256(layer)}", None, {"Range": "bytes=5-9"})[2]
        == layer[5:10]
    )
    assert json.loads(pair.cache.request("GET", "/v2/team/app/tags/list")[2])["tags"] == ["v1"]
    status, _, body = pair.cache.request("GET", "/v2/team/app/manifests/v2")
    assert (status, json.loads(body)["errors"][0]["code"]) == (503, "UNAVAILABLE")


def test_asking_for_a_blobs_size_downloads_nothing(pair: Pair) -> None:
    layer = random.Random(3).randbytes(300_000)
    push(pair.behind, "team/app", "v1", layer)
    path = f"/v2/team/app/blobs/{sha256(layer)}"
    status, headers, body = pair.cache.request("HEAD", path)
    assert (status, headers["content-length"], headers["docker-content-digest"], body) == (
        *(200, "300000", sha256(layer)),
        b"",
    )
    assert pair.cache.request("HEAD", f"/v2/team/app/blobs/{sha256(b'none')}")[0] == 404
    assert pair.fetched("GET") == []
    assert list(pair.cache.data.glob("blobs/**/*")) == []
    assert pair.cache.request("GET", path)[2] == layer
    pair.behind.kill()
    assert pair.cache.request("HEAD", path)[1]["content-length"] == "300000"  # it is here now
    assert pair.cache.request("HEAD", f"/v2/team/app/blobs/{sha256(b'none')}")[0] == 503


def test_a_tag_that_moves_is_seen(pair: Pair) -> None:
    first = push(pair.behind, "a", "t", b"one")
    assert pair.cache.request("HEAD", "/v2/a/manifests/t")[1]["docker-content-digest"] == first
    second = push(pair.behind, "a", "t", b"two")
    assert pair.cache.request("GET", "/v2/a/manifests/t")[1]["docker-content-digest"] == second
    assert pair.cache.request("GET", f"/v2/a/manifests/{first}")[0] == 200
    pair.behind.request("DELETE", f"/v2/a/manifests/{second}")
    assert pair.cache.request("GET", "/v2/a/manifests/t")[0] == 404


def test_what_is_nowhere(pair: Pair) -> None:
    assert pair.cache.request("GET", "/v2/a/manifests/t")[0] == 404
    assert pair.cache.request("GET", f"/v2/a/blobs/{sha256(b'')}")[0] == 404
    assert pair.cache.request("GET", "/v2/a/tags/list")[0] == 404
    assert list((pair.cache.data).glob("uploads/*")) == []


def test_a_cache_takes_no_pushes(pair: Pair) -> None:
    for method, path in (("POST", "/v2/a/blobs/uploads/"), ("DELETE", "/v2/a/manifests/t")):
        status, _, body = pair.cache.request(method, path, b"")
        assert (status, json.loads(body)["errors"][0]["code"]) == (405, "UNSUPPORTED")


def test_many_clients_share_one_download(pair: Pair) -> None:
    layer = random.Random(2).randbytes(8_000_000)
    push(pair.behind, "a", "t", layer)
    found: list[bytes] = []

    def pull() -> None:
        found.append(pair.cache.request("GET", f"/v2/a/blobs/{sha256(layer)}")[2])

    threads = [threading.Thread(target=pull) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one == layer for one in found] == [True] * 6
    sent = sum(one.size for one in pair.behind.access_log() if one.method == "GET" and sha256(layer) in one.path)
    assert sent == len(layer)


def test_a_lie_is_never_served_whole(pair: Pair) -> None:
    layer = random.Random(3).randbytes(2_000_000)
    push(pair.behind, "a", "t", layer)
    digits = sha256(layer)[7:]
    (pair.behind.data / "blobs/sha256" / digits[:2] / digits).write_bytes(layer[:-1] + b"!")
    import http.client

    for _ in range(2):
        try:
            status, _, body = pair.cache.request("GET", f"/v2/a/blobs/sha256:{digits}")
        except (http.client.IncompleteRead, ConnectionError) as error:
            status, body = 502, getattr(error, "partial", b"")
        assert status == 502
        assert len(body) < len(layer)
    assert not list(pair.cache.data.glob(f"blobs/sha256/*/{digits}"))


def test_a_blob_of_another_repository_is_asked_for(pair: Pair) -> None:
    push(pair.behind, "mine", "t", b"shared")
    assert pair.cache.request("GET", f"/v2/mine/blobs/{sha256(b'shared')}")[0] == 200
    assert pair.cache.request("GET", f"/v2/other/blobs/{sha256(b'shared')}")[0] == 404
    push(pair.behind, "third", "t", b"shared")
    assert pair.cache.request("GET", f"/v2/third/blobs/{sha256(b'shared')}")[2] == b"shared"


def test_referrers_through_the_cache(pair: Pair) -> None:
    subject = push(pair.behind, "a", "t", b"image")
    about = push(
        pair.behind, "a", "about", b"sbom", subject={"digest": subject, "size": 1}, artifactType="text/sbom"
    )
    _, _, body = pair.cache.request("GET", f"/v2/a/referrers/{subject}?artifactType=text/sbom")
    assert [one["digest"] for one in json.loads(body)["manifests"]] == [about]


# --- garbage collection while it serves


def collect(registry: DrayRegistry) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dray.registry.server", "gc", f"--root={registry.data}", "--gc-grace=0"],
        capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_collection_by_command_with_and_without_a_server(tmp_path: Path) -> None:
    with DrayRegistry(tmp_path, options=["--gc-grace=0", "--gc-interval=0"]) as registry:
        digest = push(registry, "a", "t", b"one")
        push_blob(registry, "a", b"loose")
        assert collect(registry) == "removed 1 blobs (5 bytes), 1 links, 0 manifests, 0 uploads\n"
        registry.request("DELETE", f"/v2/a/manifests/{digest}")
    assert collect(registry).startswith("removed 2 blobs (")
    assert not list((registry.data / "blobs").rglob("?" * 64))


def test_collection_while_images_are_pushed(tmp_path: Path) -> None:
    """Images share layers, are deleted and pushed again, while garbage is collected without a pause."""
    options = ["--gc-grace=2s", "--gc-interval=0"]
    with DrayRegistry(tmp_path, options=options) as registry:
        ended = threading.Event()
        failed: list[str] = []
        kept: dict[str, str] = {}

        def work(seed: int) -> None:
            pick = random.Random(seed)
            try:
                while not ended.is_set():
                    name, tag = f"r{pick.randrange(2)}", f"t{seed}-{pick.randrange(3)}"
                    if pick.random() < 0.4 and f"{name}:{tag}" in kept:
                        digest = kept.pop(f"{name}:{tag}")
                        if digest not in kept.values():
                            registry.request("DELETE", f"/v2/{name}/manifests/{tag}")
                        continue
                    layers = [f"layer {pick.randrange(6)}".encode() * 100 for _ in range(3)]
                    for layer in layers:
                        path = f"/v2/{name}/blobs/{sha256(layer)}"
                        if registry.request("HEAD", path)[0] != 200:
                            push_blob(registry, name, layer)
                    described = [{"digest": sha256(layer), "size": len(layer)} for layer in layers]
                    document = {"schemaVersion": 2, "config": described[0], "layers": described}
                    data = json.dumps(document | {"annotations": {"by": tag}}).encode()
                    answer = registry.request(
                        "PUT", f"/v2/{name}/manifests/{tag}", data, {"Content-Type": OCI_MANIFEST}
                    )
                    if answer[0] != 201:
                        failed.append(f"{name}:{tag}: {answer[2]!r}")
                    kept[f"{name}:{tag}"] = sha256(data)
            except Exception as error:
                failed.append(repr(error))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 5
        import socket

        while time.monotonic() < until:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(registry.data / "control.sock"))
                sock.sendall(b"collect\n")
                assert sock.makefile().readline().startswith("removed ")
        ended.set()
        for thread in threads:
            thread.join()
        assert not failed
        for reference, digest in kept.items():
            name, _, tag = reference.partition(":")
            status, headers, body = registry.request("GET", f"/v2/{name}/manifests/{tag}")
            assert (status, headers["docker-content-digest"]) == (200, digest)
            for layer in json.loads(body)["layers"]:
                assert sha256(registry.request("GET", f"/v2/{name}/blobs/{layer['digest']}")[2]) == layer["digest"]
