"""What every storage of the registry keeps: objects by key, uploads that grow, the registry's own rules on top."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dray.registry.server import names, s3
from dray.registry.server.collect import Collector
from dray.registry.server.disk import DiskStorage
from dray.registry.server.errors import Refusal
from dray.registry.server.leases import Leases
from dray.registry.server.repositories import Repositories
from dray.registry.server.s3 import S3Storage
from dray.registry.server.storage import Storage
from dray.registry.server.uploads import Uploads

MIB = 1 << 20
Open = Callable[[], Storage]


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["disk", "s3"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens the same storage again and again: what the opener before has left is there."""
    opened: list[Storage] = []
    make: Callable[[], Any]
    if request.param == "disk":
        make = lambda: DiskStorage(tmp_path / "registry")  # noqa: E731
    else:
        import boto3

        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        endpoint = request.getfixturevalue("s3_endpoint")
        bucket = "b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket=bucket)
        client.close()
        make = lambda: S3Storage(bucket=bucket, prefix="some/where", endpoint=endpoint)  # noqa: E731

    def again() -> Storage:
        if opened:
            opened.pop().close()
        opened.append(make())
        return opened[-1]

    yield again
    for one in opened:
        one.close()


@pytest.fixture
def storage(reopen: Open) -> Storage:
    return reopen()


def read(storage: Storage, key: str, start: int = 0, end: int | None = None) -> bytes | None:
    reader = storage.open(key, start, end)
    if reader is None:
        return None
    try:
        return b"".join(iter(lambda: reader.read(1000), b""))
    finally:
        reader.close()


def test_objects(storage: Storage) -> None:
    assert storage.get("a/b") is None
    assert storage.stat("a/b") is None
    assert storage.open("a/b") is None
    assert not storage.delete("a/b")
    storage.put({"a/b": b"one"})
    storage.put({"a/b": b"another"})
    assert storage.get("a/b") == b"another"
    stat = storage.stat("a/b")
    assert stat is not None
    assert stat.size == 7
    assert read(storage, "a/b", 1, 4) == b"not"
    assert read(storage, "a/b", 5) == b"er"
    assert read(storage, "a/b", 3, 3) == b""
    assert storage.delete("a/b")
    assert storage.get("a/b") is None


def test_an_empty_object(storage: Storage) -> None:
    storage.put({"a/empty": b""})
    assert storage.get("a/empty") == b""
    assert read(storage, "a/empty", 0, 0) == b""


def test_lists(storage: Storage) -> None:
    assert list(storage.list("none")) == []
    for key in ("f/a", "f/b.12345678.tmp", "f/g/c", "f/g/d", "fa/x"):
        storage.put({key: b""})
    assert sorted((entry.name, entry.folder) for entry in storage.list("f")) == [
        ("a", False), ("b.12345678.tmp", False), ("g", True),
    ]  # fmt: skip
    storage.delete_folder("f")
    assert list(storage.list("f")) == []
    assert storage.get("fa/x") == b""


def test_folders_that_are_empty_are_gone(storage: Storage) -> None:
    storage.put({"f/g/a": b""})
    storage.delete("f/g/a")
    assert list(storage.list("f")) == []
    storage.put({"f/g/b": b""})
    assert [entry.name for entry in storage.list("f/g")] == ["b"]


@pytest.mark.parametrize(
    "sizes", [[], [1], [3, 4], [5 * MIB], [9 * MIB, 1], [1, 8 * MIB, 8 * MIB - 1, 2], [MIB] * 7]
)
def test_uploads(reopen: Open, sizes: list[int]) -> None:
    """Every write in a request of its own, by a process of its own."""
    data = random.Random(1).randbytes(sum(sizes))
    position = 0
    for size in sizes:
        upload = reopen().upload("uploads/u")
        assert upload.offset == position
        upload.write(data[position : position + size])
        position += size
        upload.flush()
        upload.close()
    storage = reopen()
    upload = storage.upload("uploads/u")
    assert upload.offset == len(data)
    found = b""
    while piece := upload.read(len(found), MIB):
        found += piece
    assert found == data
    upload.commit("blobs/x")
    upload.close()
    assert read(storage, "blobs/x") == data
    storage.delete_folder("uploads/u")
    assert list(storage.list("uploads")) == []


def test_a_commit_leaves_an_object_of_that_key(storage: Storage) -> None:
    storage.put({"blobs/x": b"before"})
    upload = storage.upload("uploads/u")
    upload.write(b"after")
    upload.commit("blobs/x")
    upload.close()
    assert storage.get("blobs/x") == b"before"


def test_parts_get_larger() -> None:
    assert s3.part_size(0) == 8 * MIB
    assert sum(map(s3.part_size, range(9_999))) > 1_500_000_000_000


# --- the registry's rules, which need no more of a storage than this


class House:
    def __init__(self, storage: Storage, *, grace: float = 0.0, untagged: bool = False) -> None:
        self.repositories = Repositories(storage, Leases(0.0))
        self.uploads = Uploads(self.repositories, 0.0)
        self.collector = Collector(self.repositories, self.uploads, grace=grace, untagged=untagged)

    def push(self, name: str, data: bytes) -> str:
        session = self.uploads.begin(name)
        self.uploads.open(session)
        session.write(data)
        digest = session.digest("sha256")
        self.uploads.commit(session, digest)
        return digest

    def push_image(self, name: str, tag: str | None, *layers: bytes) -> str:
        from dray.registry.server import documents

        digests = [self.push(name, layer) for layer in layers]
        listed = ",".join(f'{{"digest":"{digest}","size":1}}' for digest in digests)
        data = f'{{"schemaVersion":2,"config":{{"digest":"{digests[0]}","size":1}},"layers":[{listed}]}}'.encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        document = documents.read(data, digest, "")
        self.repositories.put_manifest(name, digest, data, document, tags=[tag] if tag else [])
        return digest


def test_a_wrong_digest_leaves_nothing(storage: Storage) -> None:
    house = House(storage)
    session = house.uploads.begin("r")
    house.uploads.open(session)
    session.write(b"data")
    with pytest.raises(Refusal, match="did not match"):
        house.uploads.commit(session, f"sha256:{'0' * 64}")
    assert [list(storage.list(folder)) for folder in ("blobs/sha256", "uploads", "repositories")] == [[], [], []]


def test_collection_takes_what_nothing_refers_to(storage: Storage) -> None:
    house = House(storage)
    kept = house.push_image("r", "t", b"config", b"layer")
    loose = house.push("r", b"loose")
    shared = house.push("r", b"only the other one's")
    house.push_image("s", "t", b"config", b"only the other one's")
    done = house.collector.collect()
    assert (done.blobs, done.links, done.manifests) == (1, 2, 0)
    assert storage.get(names.blob(loose)) is None
    assert house.repositories.blob_size("r", shared) is None
    assert house.repositories.blob_size("s", shared) is not None
    assert house.repositories.manifest("r", "t").digest == kept
    house.repositories.delete_manifest("r", kept)
    house.repositories.delete_manifest("s", house.repositories.resolve("s", "t"))
    done = house.collector.collect()
    assert done.blobs == 5
    assert list(storage.list("repositories")) == []
    assert list(storage.list("blobs/sha256")) == []


def test_collection_of_untagged_manifests(storage: Storage) -> None:
    house = House(storage, untagged=True)
    old, new = house.push_image("r", "t", b"1"), house.push_image("r", "t", b"2")
    assert old != new
    done = house.collector.collect()
    assert (done.manifests, done.blobs) == (1, 2)
    assert house.repositories.manifests("r") == [new]


def test_collection_spares_the_young_and_the_leased(storage: Storage) -> None:
    young = House(storage, grace=60.0)
    digest = young.push("r", b"young")
    assert young.collector.collect().blobs == 0
    house = House(storage)
    house.repositories.leases = leases = Leases(0.0)
    house.collector = Collector(house.repositories, house.uploads, grace=0.0, untagged=False)
    with leases.hold({digest}):
        assert house.collector.collect().links == 0
    assert house.collector.collect().blobs == 1


def test_collection_spares_what_comes_while_it_marks(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The push of an image whose blobs are there already, between the mark and the sweep."""
    house = House(storage)
    digest = house.push("r", b"config")
    sweep = house.collector._sweep_blobs

    def late(live: set[str], done: Any) -> None:
        house.push_image("r", "t", b"config")
        sweep(live, done)

    monkeypatch.setattr(house.collector, "_sweep_blobs", late)
    house.collector.collect()
    assert house.repositories.manifest("r", "t")
    assert house.repositories.blob_size("r", digest) == 6


def test_expired_uploads_go(storage: Storage) -> None:
    house = House(storage)
    session = house.uploads.begin("r")
    house.uploads.open(session)
    session.write(b"abc")
    house.uploads.rest(session)
    assert house.uploads.expire(now=session.used - 1) == 0
    assert House(storage).uploads.expire(now=session.used - 60) == 0
    assert house.uploads.expire(now=session.used + 1) == 1
    assert list(storage.list("uploads")) == []
    with pytest.raises(Refusal):
        house.uploads.find("r", session.identifier)


def test_a_server_on_a_bucket(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: chunks, a restart in the middle, the digest, a range, redirects when they are asked for."""
    import boto3

    from support.registries import DrayRegistry

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket="served")
    client.close()
    data = random.Random(7).randbytes(9_000_000)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    options = ["--s3-bucket=served", f"--s3-endpoint={s3_endpoint}"]
    with DrayRegistry(tmp_path, options=options) as registry:
        place = registry.request("POST", "/v2/a/blobs/uploads/")[1]["location"]
        assert registry.request("PATCH", place, data[:8_700_000])[0] == 202
        registry.kill()
        registry.start()
        assert registry.request("GET", place)[1]["range"] == "0-8699999"
        assert registry.request("PUT", f"{place}?digest={digest}", data[8_700_000:])[0] == 201
        assert registry.request("GET", f"/v2/a/blobs/{digest}")[2] == data
        span = registry.request("GET", f"/v2/a/blobs/{digest}", headers={"Range": "bytes=10-19"})
        assert (span[0], span[2]) == (206, data[10:20])
        registry.stop()
        registry.options.append("--s3-redirect")
        registry.start()
        status, headers, _ = registry.request("GET", f"/v2/a/blobs/{digest}")
        assert status == 307
        assert headers["location"].startswith(s3_endpoint)
