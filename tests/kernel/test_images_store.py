"""Images from end to end: load, resolve, list, tag, delete, collect, save, import; and what a crash leaves."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dray.base import digest as digests
from dray.base.errors import Conflict, InvalidParameter, NotFound
from dray.oci import platform as platforms
from dray.store import helloworld
from dray.store.content import ContentStore
from dray.store.images import Images, ImageUser
from dray.store.metadata import Metadata
from dray.store.overlay import Overlay
from dray.store.transfer import import_image, load, save
from support.layers import entry, folder, make

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")


class Pipe(io.RawIOBase):
    """A stream that can only be read forwards, in small pieces."""

    def __init__(self, data: bytes, piece: int = 5000) -> None:
        self._source = io.BytesIO(data)
        self._piece = piece

    def read(self, size: int = -1) -> bytes:
        return self._source.read(min(size if size >= 0 else self._piece, self._piece))


@dataclass
class Store:
    """Everything below one folder."""

    root: Path
    records: Metadata
    content: ContentStore
    snapshots: Overlay
    images: Images
    events: list[tuple[str, str, str]]

    def close(self) -> None:
        self.snapshots.close()
        self.records.close()


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Callable[[], Store]]:
    opened: list[Store] = []

    def again() -> Store:
        while opened:
            opened.pop().close()
        root = tmp_path / "data"
        records, content = Metadata(root / "metadata.db"), ContentStore(root / "content")
        snapshots = Overlay(root / "overlay2", records)
        events: list[tuple[str, str, str]] = []
        images = Images(
            records, content, snapshots, on_event=lambda action, actor, extra: events.append((action, actor, extra["name"]))
        )  # fmt: skip
        opened.append(Store(root, records, content, snapshots, images, events))
        return opened[0]

    yield again
    while opened:
        opened.pop().close()


@pytest.fixture
def store(reopen: Callable[[], Store]) -> Store:
    return reopen()


def config_for(layers: list[bytes], **fields: object) -> bytes:
    return json.dumps(
        {
            "architecture": platforms.host().architecture,
            "os": "linux",
            "created": "2024-01-02T03:04:05Z",
            "config": {"Cmd": ["sh"], "Labels": {"k": "v"}},
            "rootfs": {"type": "layers", "diff_ids": [digests.of(layer) for layer in layers]},
            "history": [{"created_by": f"step {n}"} for n in range(len(layers))] + [{"created_by": "CMD", "empty_layer": True}],
            **fields,
        }
    ).encode()  # fmt: skip


def archive(files: dict[str, bytes | str]) -> bytes:
    """A tar of files; a str is a symbolic link's target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def docker_archive(*images: tuple[list[bytes], list[str]], late: bool = True, **fields: object) -> bytes:
    files: dict[str, bytes | str] = {}
    listing = []
    for layers, tags in images:
        config = config_for(layers, **fields)
        name = digests.of(config).partition(":")[2] + ".json"
        files[name] = config
        paths = []
        for layer in layers:
            folder_name = digests.of(layer).partition(":")[2]
            files[f"{folder_name}/VERSION"] = b"1.0"
            files[f"{folder_name}/layer.tar"] = layer
            paths.append(f"{folder_name}/layer.tar")
        listing.append({"Config": name, "RepoTags": tags or None, "Layers": paths})
    manifest = {"manifest.json": json.dumps(listing).encode()}
    return archive({**files, **manifest} if late else {**manifest, **files})


BASE = make(folder("etc"), entry("etc/a", b"a" * 3000))
TOP = make(entry("b", b"b"))
ONE = docker_archive(([BASE, TOP], ["one:1", "example.com/one:1"]))


def nobody(image_id: str) -> list[ImageUser]:
    return []


# --- load


def test_load_a_docker_archive(store: Store) -> None:
    said: list[dict[str, Any]] = []
    (loaded,) = load(store.images, Pipe(ONE), progress=said.append)
    assert loaded.names == ("one:1", "example.com/one:1")
    lines = [message["stream"] for message in said if "stream" in message]
    assert lines == ["Loaded image: one:1\n", "Loaded image: example.com/one:1\n"]
    bars = [message for message in said if message.get("status") == "Loading layer"]
    assert bars
    assert bars[-1]["progressDetail"]["current"] == bars[-1]["progressDetail"]["total"]
    image = store.images.resolve("one:1")
    assert image.id == image.manifest
    assert set(image.tags) == {"one:1", "example.com/one:1"}
    assert f"one@{image.id}" in image.digests
    assert image.config.config
    assert image.config.config.cmd == ["sh"]
    assert image.labels == {"k": "v"}
    assert image.diff_ids == (digests.of(BASE), digests.of(TOP))
    assert image.unpacked_size == 3001
    assert (store.snapshots.upper(image.chain_ids[0]) / "etc/a").stat().st_size == 3000
    assert store.events == [("load", image.id, "one:1")]


def test_the_manifest_is_the_one_containerd_makes(store: Store) -> None:
    """Its digest is the image's id, so every byte counts."""
    load(store.images, Pipe(ONE))
    image = store.images.resolve("one:1")
    config = config_for([BASE, TOP])
    expected = (
        '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":'
        f'{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{digests.of(config)}","size":{len(config)}}},'
        '"layers":['
        f'{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar","digest":"{digests.of(BASE)}","size":{len(BASE)}}},'
        f'{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar","digest":"{digests.of(TOP)}","size":{len(TOP)}}}]}}'
    ).encode()
    assert store.content.read(image.id) == expected


@pytest.mark.parametrize("compress", [lambda data: data, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("late", [True, False])
def test_order_and_outer_compression(store: Store, compress: Callable[[bytes], bytes], late: bool) -> None:
    data = compress(docker_archive(([BASE], ["a:1"]), ([BASE, TOP], ["b:1"]), ([TOP], []), late=late))
    said: list[dict[str, Any]] = []
    load(store.images, Pipe(data), progress=said.append, quiet=True)
    assert [message["stream"].partition(":")[0] for message in said] == [
        "Loaded image",
        "Loaded image",
        "Loaded image ID",
    ]
    assert len(store.images.list()) == 3
    assert [image.tags for image in store.images.list() if image.dangling] == [()]


def test_old_archives_share_layers_by_link(store: Store) -> None:
    config = config_for([BASE, BASE])
    files: dict[str, bytes | str] = {
        "c.json": config,
        "x/layer.tar": BASE,
        "y/layer.tar": "../x/layer.tar",
        "manifest.json": json.dumps([{"Config": "c.json", "RepoTags": ["l:1"], "Layers": ["x/layer.tar", "y/layer.tar"]}]).encode(),
    }  # fmt: skip
    load(store.images, Pipe(archive(files)))
    assert len(store.images.resolve("l:1").chain_ids) == 2


def test_hello_world_keeps_both_platforms(store: Store) -> None:
    load(store.images, Pipe(helloworld.archive()))
    image = store.images.resolve("hello-world")
    assert image.id != image.manifest
    assert [str(item.platform) for item in image.manifests] == ["linux/amd64", "linux/arm64"]
    assert all(item.available for item in image.manifests)
    arm = store.images.resolve("hello-world", platforms.parse("linux/arm64"))
    assert arm.id == image.id
    assert str(arm.platform) == "linux/arm64"
    if str(platforms.host()) == "linux/amd64":
        assert arm.chain_id
        assert not store.snapshots.exists(arm.chain_id)
    store.images.ensure_unpacked(arm)
    assert arm.chain_id
    assert store.snapshots.exists(arm.chain_id)
    with pytest.raises(NotFound, match=r"does not provide the specified platform \(linux/s390x\)"):
        store.images.resolve("hello-world", platforms.parse("linux/s390x"))


def test_load_for_a_platform_that_is_not_there(store: Store) -> None:
    with pytest.raises(NotFound, match="linux/s390x"):
        load(store.images, Pipe(helloworld.archive()), platforms=[platforms.parse("linux/s390x")])
    assert store.images.list() == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither index.json nor manifest.json"),
        (archive({"x": b"1"}), "neither index.json nor manifest.json"),
        (archive({"manifest.json": b"{"}), "manifest.json"),
        (archive({"manifest.json": b'[{"Config":"c.json","Layers":[]}]'}), "config c.json not found"),
        (archive({"manifest.json": b'[{"Config":"c.json","Layers":["l"]}]', "c.json": config_for([BASE])}), "layer l not found"),
        (archive({"index.json": b'{"schemaVersion":2,"manifests":[]}'}), "no images"),
        (archive({"blobs/sha256/" + "a" * 64: b"not that"}), "unexpected digest"),
        (archive({"blobs/sha256/zz": b"x"}), "neither"),
        (archive({"../../evil": b"x"}), "leaves it"),
        (ONE[: len(ONE) // 2], "EOF"),
        (b"no tar at all" * 100, "damaged tar"),
    ],
)  # fmt: skip
def test_bad_archives(store: Store, data: bytes, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        load(store.images, Pipe(data))
    assert store.images.list() == []
    store.images.collect()
    assert list(store.content.walk()) == []
    assert store.snapshots.list() == []


def test_a_config_that_lies_about_its_layers(store: Store) -> None:
    data = docker_archive(
        ([BASE, TOP], ["x:1"]), rootfs={"type": "layers", "diff_ids": [digests.of(BASE), digests.of(b"")]}
    )
    with pytest.raises(InvalidParameter, match="wrong diff id"):
        load(store.images, Pipe(data))
    assert store.images.list() == []
    store.images.collect()
    assert list(store.content.walk()) == []
    assert store.snapshots.list() == []


def test_a_name_that_moves_leaves_the_old_image_dangling(store: Store) -> None:
    load(store.images, Pipe(docker_archive(([BASE], ["x:1"]))))
    old = store.images.resolve("x:1")
    load(store.images, Pipe(docker_archive(([TOP], ["x:1"]))))
    assert store.images.resolve("x:1").id != old.id
    assert store.images.resolve(old.id).dangling
    load(store.images, Pipe(docker_archive(([BASE], ["x:1"]))))
    assert store.images.resolve(old.id).tags == ("x:1",)
    assert len([image for image in store.images.list() if image.dangling]) == 1


# --- resolve


def test_resolve(store: Store) -> None:
    load(store.images, Pipe(ONE))
    image = store.images.resolve("one:1")
    digits = image.id.partition(":")[2]
    for word in ("docker.io/library/one:1", "library/one:1", image.id, digits, digits[:12], digits[:1], f"one@{image.id}",
                 f"one:1@{image.id}", f"sha256:{digits[:7]}"):  # fmt: skip
        assert store.images.resolve(word).id == image.id, word
    for word, shown in (
        ("one", "one:latest"),
        ("nosuch", "nosuch:latest"),
        ("a/b:c", "a/b:c"),
        ("sha256:" + "0" * 64,) * 2,
    ):
        with pytest.raises(NotFound, match=f"^No such image: {shown}$"):
            store.images.resolve(word)
    with pytest.raises(InvalidParameter):
        store.images.resolve("Not A Name")


def test_a_name_wins_over_an_id(store: Store) -> None:
    load(store.images, Pipe(ONE))
    digits = store.images.resolve("one:1").id.partition(":")[2]
    load(store.images, Pipe(docker_archive(([TOP], [f"{digits[:8]}:latest"]))))
    assert store.images.resolve(digits[:8]).id != f"sha256:{digits}"


def test_ambiguous_ids(store: Store) -> None:
    for number in range(17):  # more than hexadecimal digits: two must share the first
        load(store.images, Pipe(docker_archive(([TOP], [f"x:{number}"]), author=str(number))))
    digits = [image.id.partition(":")[2][0] for image in store.images.list()]
    (shared, *_) = (digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(NotFound, match="ambiguous"):
        store.images.resolve(shared)


# --- tag, history, delete


def test_tag(store: Store) -> None:
    load(store.images, Pipe(ONE))
    image = store.images.tag("one:1", "two")
    assert "two:latest" in image.tags
    assert store.events[-1] == ("tag", image.id, "two:latest")
    with pytest.raises(InvalidParameter, match="refusing to create a tag with a digest"):
        store.images.tag("one:1", f"two@{image.id}")
    with pytest.raises(NotFound):
        store.images.tag("nosuch", "x")
    with pytest.raises(InvalidParameter):
        store.images.tag("one:1", "UPPER")


def test_history(store: Store) -> None:
    load(store.images, Pipe(ONE))
    image = store.images.resolve("one:1")
    steps = store.images.history(image)
    assert [(step["CreatedBy"], step["Size"]) for step in steps] == [("CMD", 0), ("step 1", 1), ("step 0", 3000)]
    assert [step["Id"] for step in steps] == [image.id, "<missing>", "<missing>"]


def test_parents_and_children(store: Store) -> None:
    load(store.images, Pipe(docker_archive(([BASE], ["base:1"]), ([BASE, TOP], ["child:1"]))))
    base, child = store.images.resolve("base:1"), store.images.resolve("child:1")
    assert [image.id for image in store.images.children(base)] == [child.id]
    assert [image.id for image in store.images.parents(child)] == [base.id]


def test_delete_everything(store: Store) -> None:
    load(store.images, Pipe(docker_archive(([BASE], ["base:1"]), ([BASE, TOP], ["child:1", "child:2"]))))
    child = store.images.resolve("child:1")
    assert store.images.delete("child:1", in_use=nobody) == [{"Untagged": "child:1"}]
    assert store.images.delete("child:2", in_use=nobody) == [{"Untagged": "child:2"}, {"Deleted": child.id}]
    assert store.events[-2:] == [("untag", child.id, child.id), ("delete", child.id, child.id)]
    base = store.images.resolve("base:1")
    assert {info.key for info in store.snapshots.list()} == set(base.chain_ids)
    assert {digest for digest, _ in store.content.walk()} == {base.id, base.config_digest, digests.of(BASE)}
    store.images.delete(base.id[:20], in_use=nobody)
    assert list(store.content.walk()) == []
    assert store.snapshots.list() == []
    with pytest.raises(NotFound, match="No such image: base:1"):
        store.images.delete("base:1", in_use=nobody)


def test_delete_in_use(store: Store) -> None:
    load(store.images, Pipe(ONE))
    image = store.images.resolve("one:1")
    store.snapshots.prepare("c1", image.chain_id)
    store.images.delete("example.com/one:1", in_use=nobody)

    def used(image_id: str) -> list[ImageUser]:
        return [ImageUser("c" * 64, running=False)] if image_id == image.id else []

    with pytest.raises(Conflict, match="must be forced"):
        store.images.delete("one:1", in_use=used)
    assert store.images.delete("one:1", force=True, in_use=used) == [{"Untagged": "one:1"}]
    assert store.images.resolve(image.id).dangling
    assert store.images.delete(image.id, force=True, in_use=used) == [{"Deleted": image.id}]
    assert store.images.list() == []
    assert store.snapshots.exists(image.chain_ids[-1]), "the container still stands on it"
    store.snapshots.remove("c1")
    store.images.collect()
    assert store.snapshots.list() == []


def test_prune_takes_dangling_parents(store: Store) -> None:
    load(store.images, Pipe(docker_archive(([BASE], []), ([BASE, TOP], ["child:1"]))))
    parent = next(image for image in store.images.list() if image.dangling)
    child = store.images.resolve("child:1")
    lines = store.images.delete("child:1", in_use=nobody)
    assert lines == [{"Untagged": "child:1"}, {"Deleted": child.id}, {"Deleted": parent.id}]
    load(store.images, Pipe(docker_archive(([BASE], []), ([BASE, TOP], ["child:1"]))))
    assert len(store.images.delete("child:1", prune=False, in_use=nobody)) == 2
    assert len(store.images.list()) == 1


def test_a_damaged_image_can_be_listed_and_deleted(reopen: Callable[[], Store]) -> None:
    store = reopen()
    load(store.images, Pipe(ONE))
    image = store.images.resolve("one:1")
    store.content.path(image.config_digest).write_bytes(b"{}")
    store = reopen()
    assert [item.id for item in store.images.list()] == [image.id]
    store.images.delete(image.id, force=True, in_use=nobody)
    assert store.images.list() == []


# --- save


@pytest.mark.parametrize("names", [["one:1"], ["one:1", "hello-world"], ["one:1", "example.com/one:1"]])
def test_save_and_load_again(store: Store, tmp_path: Path, names: list[str]) -> None:
    load(store.images, Pipe(ONE))
    load(store.images, Pipe(helloworld.archive()))
    data = b"".join(save(store.images, names))
    assert data == b"".join(save(store.images, names))
    before = {name: store.images.resolve(name).id for name in names}
    for image in store.images.list():
        store.images.delete(image.id, force=True, in_use=nobody)
    assert list(store.content.walk()) == []
    load(store.images, Pipe(data))
    assert {name: store.images.resolve(name).id for name in names} == before
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getnames()
        listing = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert members == sorted(members)
    assert all(set(item) == {"Config", "RepoTags", "Layers"} for item in listing)
    assert {tag for item in listing for tag in item["RepoTags"] or []} == {
        n if ":" in n else f"{n}:latest" for n in names
    }
    assert all(path in members for item in listing for path in [item["Config"], *item["Layers"]])


def test_save_one_platform(store: Store) -> None:
    load(store.images, Pipe(helloworld.archive()))
    data = b"".join(save(store.images, ["hello-world"], platforms=[platforms.parse("linux/arm64")]))
    arm = store.images.resolve("hello-world", platforms.parse("linux/arm64"))
    store.images.delete("hello-world", in_use=nobody)
    load(store.images, Pipe(data))
    assert store.images.resolve("hello-world").id == arm.manifest
    with pytest.raises(NotFound, match="s390x"):
        save(store.images, ["hello-world"], platforms=[platforms.parse("linux/s390x")])


def test_save_of_an_unknown_image_fails_before_the_first_byte(store: Store) -> None:
    with pytest.raises(NotFound, match="No such image: nosuch:latest"):
        save(store.images, ["nosuch"])
    with pytest.raises(InvalidParameter):
        save(store.images, [])


# --- import


def test_import(store: Store) -> None:
    tar = make(folder("bin"), entry("bin/x", b"x" * 10, mode=0o755))
    image = import_image(
        store.images,
        Pipe(gzip.compress(tar)),
        reference="docker.io/library/imp:1",
        message="hello",
        changes=["CMD /bin/x", "ENV A=b"],
        platform=platforms.parse("linux/arm64"),
    )
    assert store.images.resolve("imp:1").id == image.id
    assert image.diff_ids == (digests.of(tar),)
    assert str(image.platform) == "linux/arm64"
    assert image.config.config
    assert image.config.config.env == ["A=b"]
    assert image.config.history
    assert image.config.history[0].comment == "hello"
    assert image.chain_id
    assert (store.snapshots.upper(image.chain_id) / "bin/x").stat().st_mode & 0o777 == 0o755
    assert store.events == [("import", image.id, image.id)]


def test_a_failed_import_leaves_nothing(store: Store) -> None:
    for data, changes in ((make(entry("../x", b"1")), []), (b"junk" * 500, []), (BASE, ["RUN x"])):
        with pytest.raises(InvalidParameter):
            import_image(store.images, Pipe(data), reference="docker.io/library/x:1", changes=changes)
    assert store.images.list() == []
    store.images.collect()
    assert list(store.content.walk()) == []


# --- crashes

KILLED = """
import sys, os, signal
from pathlib import Path
from dray.store.metadata import Metadata
from dray.store.content import ContentStore
from dray.store.overlay import Overlay
from dray.store.images import Images
from dray.store.transfer import load
root, stop = Path(sys.argv[1]), int(sys.argv[2])
records, content = Metadata(root / "metadata.db"), ContentStore(root / "content")
calls = 0
def count(frame, event, argument):
    global calls
    if event == "call" and "/store/" in frame.f_code.co_filename:
        calls += 1
        if calls >= stop:
            os.kill(os.getpid(), signal.SIGKILL)
import threading
threading.setprofile(count)
sys.setprofile(count)
load(Images(records, content, Overlay(root / "overlay2", records)), open(sys.argv[3], "rb"))
sys.setprofile(None)
print("done", calls)
"""


def test_killed_at_any_moment_of_a_load(reopen: Callable[[], Store], tmp_path: Path) -> None:
    """Whatever was on its way is not listed, or whole; nothing of it is left after the next start."""
    (tmp_path / "one.tar").write_bytes(ONE)
    finished = False
    stop, killed = 40, 0
    while not finished:
        result = subprocess.run(
            [sys.executable, "-c", KILLED, tmp_path / "data", str(stop), tmp_path / "one.tar"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        finished = result.returncode == 0
        assert finished or result.returncode == -signal.SIGKILL, result.stderr
        killed += not finished
        store = reopen()
        store.images.repair()
        for image in store.images.list():
            assert image.unpacked_size == 3001
            assert all(store.snapshots.exists(key) for key in image.chain_ids)
        if not store.images.list():
            assert list(store.content.walk()) == []
            assert store.snapshots.list() == []
        store.snapshots.empty_trash()
        assert set(os.listdir(tmp_path / "data/content/ingest")) == set()
        for image in store.images.list():
            store.images.delete(image.id, force=True, in_use=nobody)
        store.close()
        stop = int(stop * 1.5)
    assert killed > 5


def test_a_power_loss_after_load_is_repaired_from_the_blobs(
    reopen: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dray.store.ledger.Ledger.settle_later", lambda self: None)
    store = reopen()
    load(store.images, Pipe(ONE))
    image = store.images.resolve("one:1")
    store.snapshots.prepare("c1", image.chain_id)
    monkeypatch.setattr("dray.store.ledger.boot_id", lambda: "another boot")
    subprocess.run(["rm", "-r", store.snapshots.upper(image.chain_ids[0])], check=True)
    store = reopen()
    store.images.repair()
    assert image.chain_id
    assert store.snapshots.mounts("c1")
    assert (store.snapshots.upper(image.chain_ids[0]) / "etc/a").stat().st_size == 3000
