"""`store.transfer.pull` and `.push` on real stores, with a registry in memory."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dray.base import reference
from dray.base.errors import InvalidParameter, NotFound, Unavailable
from dray.oci import platform as platforms
from dray.oci.image import DOCKER_CONFIG, DOCKER_LAYER_GZIP, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from dray.registry.model import Repository
from dray.registry.remote import RemoteRegistries
from dray.registry.settings import RegistrySettings
from dray.store.content import ContentStore
from dray.store.images import Image, Images
from dray.store.images.sources import Sources
from dray.store.metadata import Metadata
from dray.store.overlay import Overlay
from dray.store.transfer import Cancellation, Cancelled, Downloads, Puller, Pusher, Uploads, pull, push
from dray.store.transfer import downloads as downloads_module
from support.engines import until
from support.fake_registry import FakeRegistry, layer, sha256
from support.fakehttp import FakeServer, Request
from support.registries import DrayRegistry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")


class Engine:
    """The stores of one daemon, and what its client hears."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records = Metadata(root / "dray.db")
        self.snapshots = Overlay(root / "overlay2", self.records)
        self.content = ContentStore(root / "content")
        self.events: list[tuple[str, str, str]] = []
        self.images = Images(
            self.records,
            self.content,
            self.snapshots,
            on_event=lambda action, actor, attributes: self.events.append((action, actor, attributes["name"])),
        )
        self.downloads = Downloads(self.content)
        self.said: list[dict[str, Any]] = []
        self.cancel = Cancellation()

    def pull(self, registry: Repository, word: str = "example.com/app:1", *, platform: str = "") -> list[Image]:
        wanted = platforms.parse(platform) if platform else None
        puller = Puller(
            self.images, self.downloads, registry, self.said.append, self.cancel, platform=wanted
        )  # fmt: skip
        name = reference.parse(word)
        every = not (name.tag or name.digest)
        pulled = pull(puller, registry, name, all_tags=every, report=self.said.append, images=self.images)
        return [one.image for one in pulled]

    def push(self, registry: Repository, word: str = "example.com/app:1", *, platform: str = "") -> None:
        wanted = platforms.parse(platform) if platform else None
        pusher = Pusher(
            self.images, Uploads(), registry, self.said.append, self.cancel, platform=wanted
        )  # fmt: skip
        name = reference.parse(word)
        push(pusher, self.images, name, all_tags=name.tag is None, report=self.said.append)

    def statuses(self) -> list[str]:
        return [message["status"] for message in self.said if "status" in message]

    def listed(self) -> list[str]:
        return sorted(tag for image in self.images.list() for tag in image.tags)

    def close(self) -> None:
        self.snapshots.close()
        self.records.close()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(downloads_module, "_DELAYS", (0.001,))
    made = Engine(tmp_path)
    yield made
    made.close()


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


def test_pull(engine: Engine, registry: FakeRegistry) -> None:
    target = registry.manifest_of([layer(1), layer(2), layer(3)], tag="1")
    (image,) = engine.pull(registry)
    assert image.id == target.digest
    assert image.tags == ("example.com/app:1",)
    assert image.digests == (f"example.com/app@{target.digest}",)
    assert all(engine.snapshots.exists(chain) for chain in image.chain_ids)
    assert (engine.snapshots.upper(image.chain_ids[0]) / "name1").read_text() == "1\n"
    statuses = engine.statuses()
    assert engine.said[0] == {"status": "Pulling from app", "id": "1"}
    assert statuses[1:4] == ["Pulling fs layer"] * 3
    for status in ("Downloading", "Verifying Checksum", "Download complete", "Extracting", "Pull complete"):
        assert status in statuses, status
    assert statuses[-2:] == [
        f"Digest: {target.digest}",
        "Status: Downloaded newer image for example.com/app:1",
    ]
    assert engine.events == [("pull", "example.com/app:1", "example.com/app")]
    assert engine.images.sources.of(image.id) == ("example.com/app",)
    assert list((engine.root / "content/ingest").iterdir()) == []


def test_where_an_image_came_from_is_told_by_registries_alone(engine: Engine, registry: FakeRegistry) -> None:
    registry.manifest_of([layer(1)], tag="1")
    (image,) = engine.pull(registry)
    engine.images.tag("example.com/app:1", "claimed.example.org/x:1")
    assert engine.images.sources.of(image.id) == ("example.com/app",)
    engine.images.tag("example.com/app:1", "example.com/other:1")
    engine.push(FakeRegistry(), "example.com/other:1")
    assert Sources(engine.records).of(image.id) == ("example.com/app", "example.com/other")
    engine.images.delete(image.id, force=True, in_use=lambda _: [])
    assert Sources(engine.records).of(image.id) == ()


def test_an_image_that_is_here_is_not_fetched_again(engine: Engine, registry: FakeRegistry) -> None:
    registry.manifest_of([layer(1)], tag="1")
    engine.pull(registry)
    before, engine.said = dict(registry.served), []
    engine.pull(registry)
    assert registry.served == before
    assert engine.statuses()[-1] == "Status: Image is up to date for example.com/app:1"


def test_shared_layers_exist_already(engine: Engine, registry: FakeRegistry) -> None:
    registry.manifest_of([layer(1)], tag="1")
    registry.manifest_of([layer(1), layer(2)], tag="2")
    engine.pull(registry)
    engine.said = []
    engine.pull(registry, "example.com/app:2")
    assert engine.statuses()[1:3] == ["Already exists", "Pulling fs layer"]


def test_all_tags(engine: Engine, registry: FakeRegistry) -> None:
    registry.manifest_of([layer(1)], tag="1")
    registry.manifest_of([layer(2)], tag="2")
    engine.pull(registry, "example.com/app")
    assert engine.listed() == ["example.com/app:1", "example.com/app:2"]
    assert engine.statuses()[-1] == "Status: Downloaded newer image for example.com/app"


def test_by_digest(engine: Engine, registry: FakeRegistry) -> None:
    target = registry.manifest_of([layer(1)])
    (image,) = engine.pull(registry, f"example.com/app@{target.digest}")
    assert (image.tags, image.digests) == ((), (f"example.com/app@{target.digest}",))


def test_a_tag_that_moves_between_two_requests(engine: Engine, registry: FakeRegistry) -> None:
    """Everything is of the one answer that the tag was asked for with."""
    target = registry.manifest_of([layer(1)], tag="1")
    blobs = dict(registry.blobs)

    def move(digest: str, offset: int) -> None:
        registry.manifest_of([layer(9)], tag="1")

    registry.before_read = move
    (image,) = engine.pull(registry)
    assert image.id == target.digest
    assert set(dict(engine.content.walk())) == {target.digest, *blobs}


# --- platforms


def multi(registry: FakeRegistry) -> dict[str, Any]:
    manifests = {
        "amd64": registry.manifest_of([layer(1)]),
        "arm64/v8": registry.manifest_of([layer(2)], architecture="arm64"),
        "arm/v7": registry.manifest_of([layer(3)], architecture="arm"),
    }
    return {**manifests, "index": registry.index_of(manifests, tag="1")}


def test_only_the_platforms_content_is_fetched_and_the_index_kept(engine: Engine, registry: FakeRegistry) -> None:
    made = multi(registry)
    (image,) = engine.pull(registry, platform="linux/arm64")
    assert image.id == made["index"].digest
    here = set(dict(engine.content.walk()))
    assert {made["index"].digest, made["arm64/v8"].digest} <= here
    assert made["amd64"].digest not in here
    assert len(here) == 4


def test_a_missing_platform(engine: Engine, registry: FakeRegistry) -> None:
    multi(registry)
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x in the manifest list entries"):
        engine.pull(registry, platform="linux/s390x")
    assert engine.said[0]["status"] == "Pulling from app"  # the error comes in the stream, as dockerd's does
    assert engine.listed() == []


def test_a_single_image_for_another_platform(engine: Engine, registry: FakeRegistry) -> None:
    registry.manifest_of([layer(1)], tag="1", architecture="s390x")
    with pytest.raises(NotFound, match=r"does not provide the specified platform \(linux/amd64\)"):
        engine.pull(registry, platform="linux/amd64")


def test_an_index_in_an_index(engine: Engine, registry: FakeRegistry) -> None:
    inner = multi(registry)["index"]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_INDEX, "digest": inner.digest, "size": inner.size}
    ]}  # fmt: skip
    outer = registry.store(OCI_INDEX, json.dumps(document).encode(), "nested")
    (image,) = engine.pull(registry, "example.com/app:nested", platform="linux/arm/v7")
    assert image.id == outer.digest


# --- what is refused


def test_no_container_image(engine: Engine, registry: FakeRegistry) -> None:
    chart = "application/vnd.cncf.helm.config.v1+json"
    registry.manifest_of([layer(1)], tag="1", config_type=chart)
    with pytest.raises(InvalidParameter, match=f"unsupported media type {chart.replace('+', '.')}"):
        engine.pull(registry)
    assert engine.listed() == []


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"layer_type": "application/vnd.example+tar"}, "unsupported layer media type application/vnd.example"),
    ],
)
def test_layers_that_are_not_for_us(
    engine: Engine, registry: FakeRegistry, extra: dict[str, Any], reason: str
) -> None:
    registry.manifest_of([layer(1)], tag="1", **extra)
    with pytest.raises(InvalidParameter, match=reason):
        engine.pull(registry)
    assert sum(registry.served.values()) == 0


def test_a_layer_at_a_foreign_address(engine: Engine, tmp_path: Path) -> None:
    """Fetched from there, in parts, since the registry has it not; pushed like any other."""
    tar = layer(1)
    blob = gzip.compress(tar)
    rootfs = {"type": "layers", "diff_ids": [sha256(tar)]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()

    def gives(request: Request) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, blob

    with DrayRegistry(tmp_path / "one") as one, DrayRegistry(tmp_path / "two") as two, FakeServer(gives) as far:
        registries = RemoteRegistries(RegistrySettings(insecure_hosts=frozenset({far.address})))
        near = registries.repository(reference.parse(f"{one.address}/app"), push=True)
        upload = near.upload(sha256(config))
        assert upload is not None
        upload.send(config)
        upload.commit(sha256(config))
        described = {
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "digest": sha256(blob),
            "size": len(blob),
            "urls": [f"{far.url}/layer"],
        }
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "digest": sha256(config), "size": len(config)},
            "layers": [described],
        }
        near.put_manifest("1", DOCKER_MANIFEST, json.dumps(document).encode())
        (image,) = engine.pull(near, f"{one.address}/app:1")
        assert (engine.snapshots.upper(image.chain_ids[0]) / "name1").read_text() == "1\n"
        engine.images.tag(image.id, f"{two.address}/app:1")
        other = registries.repository(reference.parse(f"{two.address}/app"), push=True)
        engine.push(other, f"{two.address}/app:1")
        assert other.has_blob(sha256(blob))
        near.close()
        other.close()


def test_schema_1(engine: Engine, registry: FakeRegistry) -> None:
    registry.store(OCI_MANIFEST, b'{"schemaVersion": 1, "fsLayers": []}', "1")
    with pytest.raises(InvalidParameter, match="schema 1"):
        engine.pull(registry)


def test_an_ambiguous_manifest(engine: Engine, registry: FakeRegistry) -> None:
    registry.store(OCI_MANIFEST, b'{"schemaVersion": 2, "manifests": [], "layers": []}', "1")
    with pytest.raises(InvalidParameter, match="ambiguous"):
        engine.pull(registry)


@pytest.mark.parametrize("damage", ["other", "truncated", "bomb"])
def test_hostile_layers_leave_nothing_listed(engine: Engine, registry: FakeRegistry, damage: str) -> None:
    """The blob's digest is right each time: what it holds is not what the config says, or is no layer."""
    good = layer(1)
    data = {
        "other": gzip.compress(layer(2)),
        "truncated": gzip.compress(good)[:-2000],
        "bomb": gzip.compress(b"\0" * (100 << 20)) + b"",
    }[damage]
    target = registry.manifest_of([good])
    _, raw = registry.manifests[target.digest]
    document = json.loads(raw)
    document["layers"][0] |= {"digest": registry.add(data), "size": len(data)}
    registry.store(OCI_MANIFEST, json.dumps(document).encode(), "1")
    with pytest.raises(InvalidParameter):
        engine.pull(registry)
    assert engine.listed() == []
    assert engine.snapshots.list() == []


def test_a_blob_with_another_digest(engine: Engine, registry: FakeRegistry) -> None:
    target = registry.manifest_of([layer(1)], tag="1")
    digest = json.loads(registry.manifests[target.digest][1])["layers"][0]["digest"]
    registry.blobs[digest] = registry.blobs[digest][:-1] + b"!"
    with pytest.raises(InvalidParameter, match=f"expected {digest}"):
        engine.pull(registry)
    assert engine.listed() == []
    assert not engine.content.has(digest)


def test_a_config_with_another_digest(engine: Engine, registry: FakeRegistry) -> None:
    target = registry.manifest_of([layer(1)], tag="1")
    digest = json.loads(registry.manifests[target.digest][1])["config"]["digest"]
    registry.blobs[digest] = registry.blobs[digest].replace(b"here", b"hare")
    with pytest.raises(InvalidParameter, match=f"expected {digest}"):
        engine.pull(registry)
    assert engine.listed() == []


# --- breaking off


def test_a_pull_that_broke_off_fetches_nothing_twice(engine: Engine, registry: FakeRegistry) -> None:
    """Layers that came whole, and parts of others, are still there for the next pull; then nothing is left over."""
    target = registry.manifest_of([layer(n) for n in range(4)], tag="1")
    third = json.loads(registry.manifests[target.digest][1])["layers"][3]["digest"]

    def breaks(digest: str, offset: int) -> None:
        if digest == third and offset > 100_000:
            raise Unavailable("connection reset")

    registry.before_read = breaks
    with pytest.raises(Unavailable):
        engine.pull(registry)
    assert engine.listed() == []
    engine.images.collect()
    registry.before_read = lambda digest, offset: None
    engine.pull(registry)
    document = json.loads(registry.manifests[target.digest][1])
    assert {
        digest: registry.served[digest] for digest in registry.served if digest != document["config"]["digest"]
    } == {item["digest"]: item["size"] for item in document["layers"]}
    assert list((engine.root / "content/ingest").iterdir()) == []


def test_a_client_that_goes_away(engine: Engine, registry: FakeRegistry) -> None:
    registry.manifest_of([layer(1)], tag="1")
    gate = threading.Event()
    registry.before_read = lambda digest, offset: engine.cancel.cancel() or (gate.wait(0.3) and None)
    with pytest.raises(Cancelled):
        engine.pull(registry)
    assert engine.listed() == []
    until(lambda: not engine.downloads._transfers)


def test_overlapping_pulls_do_not_put_off_the_collection(engine: Engine, registry: FakeRegistry) -> None:
    registry.manifest_of([layer(1)], tag="1")
    registry.manifest_of([layer(2)], tag="2")
    (first,) = engine.pull(registry)
    with engine.images.hold(named=True) as lease:  # another pull, that takes long
        engine.images.keep_layers(lease, ["sha256:" + "0" * 64])
        engine.images.delete("example.com/app:1", in_use=lambda _: [])
        assert not engine.snapshots.exists(first.chain_ids[0])
    (second,) = engine.pull(registry, "example.com/app:2")
    with engine.images.hold(named=True) as lease:
        engine.images.keep_layers(lease, second.chain_ids)
        engine.images.delete("example.com/app:2", in_use=lambda _: [])
        assert engine.snapshots.exists(second.chain_ids[0])
    engine.images.collect()
    assert not engine.snapshots.exists(second.chain_ids[0])


# --- push


def pulled(engine: Engine, **options: Any) -> tuple[FakeRegistry, Image]:
    source = FakeRegistry()
    source.manifest_of([layer(1), layer(2)], tag="1", **options)
    (image,) = engine.pull(source)
    engine.said, engine.events = [], []
    return source, image


def test_push_sends_everything_in_order_and_as_it_is(engine: Engine) -> None:
    source, image = pulled(engine, layer_type=DOCKER_LAYER_GZIP)
    registry = FakeRegistry()
    engine.push(registry)
    assert registry.blobs.keys() == source.blobs.keys()
    assert registry.manifests["1"] == source.manifests["1"]
    assert [kind for kind, _ in registry.log] == ["blob"] * 3 + ["manifest"]
    statuses = engine.statuses()
    assert statuses[0] == "The push refers to repository [example.com/app]"
    assert {"Preparing", "Waiting", "Pushing", "Pushed"} <= set(statuses)
    assert statuses[-1] == f"1: digest: {image.id} size: {image.target.size}"
    assert engine.said[-1]["aux"] == {"Tag": "1", "Digest": image.id, "Size": image.target.size}
    assert engine.events == [("push", "example.com/app:1", "example.com/app")]


def test_push_of_what_is_there_sends_nothing(engine: Engine) -> None:
    source, _ = pulled(engine)
    engine.push(source)
    assert [kind for kind, _ in source.log] == ["manifest"]
    assert engine.statuses().count("Layer already exists") == 2


def test_push_goes_on_after_a_broken_chunk(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(push.__globals__, "_DELAYS", (0.001,) * 4)
    source, _ = pulled(engine)
    registry = FakeRegistry()
    registry.break_uploads = 3
    engine.push(registry)
    assert registry.blobs == source.blobs


def test_push_mounts_from_another_repository(engine: Engine) -> None:
    source, _ = pulled(engine)
    engine.images.tag("example.com/app:1", "example.com/copy:1")
    registry = FakeRegistry("example.com/copy")
    registry.mounts = {"app": set(source.blobs)}
    engine.push(registry, "example.com/copy:1")
    assert [kind for kind, _ in registry.log] == ["mount"] * 3 + ["manifest"]
    assert engine.statuses().count("Mounted from app") == 2


def test_push_of_an_index_of_which_one_platform_is_here(engine: Engine) -> None:
    source = FakeRegistry()
    made = multi(source)
    engine.pull(source, platform="linux/arm64")
    engine.said = []
    registry = FakeRegistry()
    engine.push(registry)
    assert sha256(registry.manifests["1"][1]) == made["arm64/v8"].digest
    (note,) = [m["aux"] for m in engine.said if "manifestPushedInsteadOfIndex" in m.get("aux", {})]
    assert note["originalIndex"]["digest"] == made["index"].digest
    assert note["selectedManifest"]["digest"] == made["arm64/v8"].digest


def test_push_of_an_index_whose_rest_the_registry_has(engine: Engine) -> None:
    source = FakeRegistry()
    made = multi(source)
    engine.pull(source)
    engine.images.tag("example.com/app:1", "example.com/app:2")
    engine.push(source, "example.com/app:2")
    assert sha256(source.manifests["2"][1]) == made["index"].digest


def test_push_of_a_whole_index_puts_the_index_last(engine: Engine) -> None:
    source = FakeRegistry()
    made = multi(source)
    for name in ("linux/amd64", "linux/arm64", "linux/arm/v7"):
        engine.pull(source, platform=name)
    registry = FakeRegistry()
    engine.push(registry)
    puts = [name for kind, name in registry.log if kind == "manifest"]
    assert puts == [made["amd64"].digest, made["arm64/v8"].digest, made["arm/v7"].digest, "1"]


def test_push_of_several_platforms_of_more_asks_which(engine: Engine) -> None:
    source = FakeRegistry()
    made = multi(source)
    for name in ("linux/amd64", "linux/arm64"):
        engine.pull(source, platform=name)
    with pytest.raises(InvalidParameter, match="choose one with --platform"):
        engine.push(FakeRegistry())
    registry = FakeRegistry()
    engine.push(registry, platform="linux/amd64")
    assert sha256(registry.manifests["1"][1]) == made["amd64"].digest


def test_push_all_tags(engine: Engine) -> None:
    pulled(engine)
    engine.images.tag("example.com/app:1", "example.com/app:2")
    engine.images.tag("example.com/app:1", "example.com/other:3")
    registry = FakeRegistry()
    engine.push(registry, "example.com/app")
    assert {name for name in registry.manifests if ":" not in name} == {"1", "2"}


def test_push_of_what_is_not_here(engine: Engine) -> None:
    with pytest.raises(NotFound, match="An image does not exist locally with the tag"):
        engine.push(FakeRegistry())


def test_docker_types_come_through(engine: Engine) -> None:
    source = FakeRegistry()
    target = source.manifest_of([layer(1)])
    raw = source.manifests[target.digest][1].replace(OCI_MANIFEST.encode(), DOCKER_MANIFEST.encode())
    source.store(DOCKER_MANIFEST, raw, "1")
    engine.pull(source)
    registry = FakeRegistry()
    engine.push(registry)
    assert registry.manifests["1"] == (DOCKER_MANIFEST, raw)
