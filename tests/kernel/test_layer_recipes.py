"""Blobs that are dropped once unpacked, and made again byte for byte: recipes, encoders, the background work."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dray.base import digest as digests
from dray.base import failpoints
from dray.base.errors import NotFound, Unavailable
from dray.store.content import ContentStore
from dray.store.images import Images
from dray.store.images import usage as image_usage
from dray.store.metadata import Metadata
from dray.store.overlay import Overlay
from dray.store.recipes import encoders, playing
from dray.store.recipes.book import Head
from dray.store.recipes.discarding import KIND, Discarder
from dray.store.recipes.encoders import Encoding
from dray.store.recipes.playing import NotRebuilt, Recorder
from dray.store.recipes.tape import Damaged, TapeWriter, play, record
from dray.store.transfer import load, save
from support.layers import entry, folder, hardlink, make, symlink, unpack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

WORDS = b"".join(b"%d bottles of beer on the wall, %x\n" % (n, n * n) for n in range(12_000))
NOISE = b"".join(zlib.crc32(b"%d" % n).to_bytes(4, "little") for n in range(10_000))


def layer_of(*more: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    return make(
        folder("etc"), entry("etc/words", WORDS, mtime=1.25), entry("etc/noise", NOISE), *more, form=form
    )  # fmt: skip


def taped(tar: bytes, place: Path) -> bytes:
    """Unpack a tar, record it, and return what its tape plays."""
    directory, _ = unpack(tar, place)
    with (place / "tape").open("wb+") as file:
        record(iter([tar[:700], tar[700:]]), directory, TapeWriter(file))
        assert file.tell() < len(tar) // 3
        file.seek(0)
        return b"".join(play(file, directory))


@pytest.mark.parametrize("form", ["gnu", "pax0.0", "pax0.1", "pax1.0"])
def test_sparse_files(tmp_path: Path, form: str) -> None:
    holes = tmp_path / "holes"
    with holes.open("wb") as file:
        file.write(NOISE)
        file.seek(5_000_000)
        file.write(WORDS)
        file.truncate(9_000_000)
    kind, _, version = form.partition("x")
    words = ["--format=gnu"] if kind == "gnu" else ["--format=pax", f"--sparse-version={version}"]
    tar = subprocess.run(
        ["tar", "-C", tmp_path, "-c", "--sparse", *words, "holes"], capture_output=True, check=True
    ).stdout
    assert len(tar) < 4_000_000
    assert taped(tar, tmp_path) == tar


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_plain_tars(tmp_path: Path, form: int) -> None:
    long = "long/" * 18 + "name"
    tar = layer_of(
        entry(long, WORDS[:5000]),
        symlink("link", "etc/words"),
        hardlink("again", "etc/words"),
        entry("etc/.wh.gone", b""),
        entry("small", b"x" * 100),
        form=form,
    )
    assert taped(tar, tmp_path) == tar


def test_odd_tars(tmp_path: Path) -> None:
    """What is replaced later, lies behind a link, or follows the end of the archive."""
    tar = layer_of(
        entry("twice", WORDS[:9000]), entry("twice", WORDS[9000:20_000]),
        folder("real"), symlink("way", "real"), entry("way/in", WORDS[:7000]),
        entry("gone", WORDS[:9000]), entry("gone", kind=tarfile.FIFOTYPE),
    ) + b"\0" * 5120 + b"behind the end" * 90  # fmt: skip
    assert taped(tar, tmp_path) == tar


def test_a_tape_reads_only_regular_files_of_its_layer(tmp_path: Path) -> None:
    """Links that lead out of the layer, or a FIFO in a file's place, are not followed and do not block."""
    tar = layer_of(entry("dir/secret", WORDS[:9000]))
    directory, _ = unpack(tar, tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(WORDS[:9000])
    with (tmp_path / "tape").open("wb+") as file:
        record(iter([tar]), directory, TapeWriter(file))
        for swap in ("link", "fifo", "up"):
            shutil.rmtree(directory / "dir", ignore_errors=True)
            (directory / "dir").unlink(missing_ok=True)
            if swap == "up":
                (directory / "dir").symlink_to(outside)
            else:
                (directory / "dir").mkdir()
                secret = directory / "dir/secret"
                secret.symlink_to(outside / "secret") if swap == "link" else os.mkfifo(secret)
            file.seek(0)
            with pytest.raises(Damaged, match="dir/secret"):
                list(play(file, directory))


# --- encoders


def piped(*command: str, data: bytes) -> bytes:
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def named_gzip(data: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile("layer.tar", "wb", compresslevel=6, fileobj=out, mtime=1_600_000_000) as file:
        for at in range(0, len(data), 70_001):
            file.write(data[at : at + 70_001])
    return out.getvalue()


def raw_gzip(data: bytes, level: int, memory: int) -> bytes:
    deflate = zlib.compressobj(level, zlib.DEFLATED, 31, memory)
    return deflate.compress(data) + deflate.flush()


STREAMS = {
    "plain": lambda data: data,
    "Python's gzip": gzip.compress,
    "gzip with name and time": named_gzip,
    "zlib 1": lambda data: raw_gzip(data, 1, 8),
    "zlib 5, memory 9": lambda data: raw_gzip(data, 5, 9),
    "GNU gzip": lambda data: piped("gzip", "-c", data=data),
    "GNU gzip, best": lambda data: piped("gzip", "-9nc", data=data),
}


class Bench:
    """A content store, and a layer unpacked beside it."""

    def __init__(self, root: Path, tar: bytes) -> None:
        self.content = ContentStore(root / "content")
        self.directory, _ = unpack(tar, root)
        self.diff_id = digests.of(tar)

    def record(self, blob: bytes) -> Head:
        digest = self.content.put(blob)
        book = self.content.recipes
        place = book.relative(self.directory)
        head = Head(digest, len(blob), self.diff_id, "chain", place, Encoding())
        return Recorder(book, head, lambda: self.content.open(digest), self.directory, lambda: None).record()

    def dropped(self, blob: bytes) -> Head:
        head = self.record(blob)
        assert self.content.discard(head.digest)
        assert not self.content.path(head.digest).exists()
        return head

    def read(self, digest: str) -> bytes:
        with self.content.open(digest) as file:
            return file.read()


TAR = layer_of()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, TAR)


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_are_made_again(bench: Bench, kind: str) -> None:
    blob = STREAMS[kind](TAR)
    head = bench.dropped(blob)
    assert bench.content.has(head.digest)
    assert bench.content.size(head.digest) == len(blob)
    assert bench.content.taken(head.digest) < len(blob) // 2
    assert bench.read(head.digest) == blob


@pytest.mark.parametrize("kind", ["gzip with name and time", "GNU gzip"])
def test_only_the_beginning_is_tried_first(bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playing, "PROBE", 300_000)
    blob = STREAMS[kind](TAR)
    assert bench.read(bench.dropped(blob).digest) == blob


@pytest.mark.skipif(shutil.which("zstd") is None, reason="no program zstd here")
@pytest.mark.parametrize("flags", [["-3"], ["-7", "--no-check"], ["-3", f"--stream-size={len(TAR)}"]])
def test_zstd_of_the_program(bench: Bench, flags: list[str]) -> None:
    blob = piped("zstd", "-qc", *flags, data=TAR)
    head = bench.dropped(blob)
    assert bench.read(head.digest) == blob


@pytest.mark.parametrize(
    "blob",
    [
        gzip.compress(TAR[:30_000]) + gzip.compress(TAR[30_000:]),
        gzip.compress(TAR) + b"\0" * 100,
        zlib.compress(TAR),
    ],
    ids=["two members", "padding", "no gzip"],
)
def test_what_no_encoder_makes_is_kept(bench: Bench, blob: bytes) -> None:
    with pytest.raises(Exception, match=r"encoder|differently|decompressed|unpacks|tar"):
        bench.record(blob)
    digest = digests.of(blob)
    assert bench.content.path(digest).exists()
    assert digest not in bench.content.recipes


def test_files_of_another_layer_save_nothing(bench: Bench, tmp_path: Path) -> None:
    digest = bench.content.put(TAR)
    empty = tmp_path / "empty"
    empty.mkdir()
    head = Head(digest, len(TAR), bench.diff_id, "chain", bench.content.recipes.relative(empty), Encoding())
    noise = Recorder(
        bench.content.recipes, replace(head, size=200_000), lambda: bench.content.open(digest), empty, int
    )
    with pytest.raises(NotRebuilt, match="too little"):
        noise.record()


def test_a_changed_file_is_named_and_a_pull_is_asked_for(bench: Bench) -> None:
    head = bench.dropped(gzip.compress(TAR))
    with (bench.directory / "etc/noise").open("r+b") as file:
        file.seek(1000)
        file.write(b"!")
    with pytest.raises(NotFound, match=r"layer chain: its unpacked file /etc/noise was changed; pull the image"):
        bench.content.open(head.digest)
    assert not bench.content.has(head.digest)  # so a pull fetches it
    assert list((bench.content._root / "recipes").rglob("*.tmp")) == []


def test_another_version_of_an_encoder_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    head = bench.dropped(gzip.compress(TAR))
    real = zlib.compressobj
    monkeypatch.setattr(zlib, "compressobj", lambda level, *rest: real(1, *rest))
    with pytest.raises(Unavailable, match=r"zlib .* gives other bytes than zlib .*, level 9"):
        bench.content.open(head.digest)
    monkeypatch.undo()
    assert digests.of(bench.read(head.digest)) == head.digest


def test_readers_at_one_time_share_one_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    head = bench.dropped(TAR)
    made = []
    real = bench.content.recipes.stream
    monkeypatch.setattr(bench.content.recipes, "stream", lambda *rest: made.append(1) or real(*rest))
    first = bench.content.open(head.digest)
    inodes = []

    def read() -> None:
        with bench.content.open(head.digest) as file:
            inodes.append(os.fstat(file.fileno()).st_ino)
            assert file.read() == TAR

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inodes == [os.fstat(first.fileno()).st_ino] * 4
    assert made == [1]
    first.close()
    assert bench.read(head.digest) == TAR
    assert made == [1, 1]


def test_after_a_restart(bench: Bench, tmp_path: Path) -> None:
    blob = gzip.compress(TAR)
    head = bench.dropped(blob)
    (tmp_path / "content/recipes/left.tmp").write_bytes(b"half")
    bench.content = ContentStore(tmp_path / "content")
    assert bench.read(head.digest) == blob
    assert not (tmp_path / "content/recipes/left.tmp").exists()
    bench.directory.rename(tmp_path / "elsewhere")
    assert not ContentStore(tmp_path / "content").has(head.digest)


def test_restored_for_good(bench: Bench) -> None:
    blob = gzip.compress(TAR)
    head = bench.dropped(blob)
    bench.content.restore(head.digest)
    assert bench.content.path(head.digest).read_bytes() == blob
    assert bench.content.taken(head.digest) == len(blob)


def test_a_leased_blob_stays(bench: Bench) -> None:
    head = bench.record(TAR)
    with bench.content.lease() as one, bench.content.lease() as two:
        one.add(head.digest)
        two.add(head.digest)
        assert not bench.content.discard(head.digest)
    assert bench.content.discard(head.digest)


def test_collection_takes_recipes(bench: Bench) -> None:
    head = bench.dropped(TAR)
    taken = bench.content.taken(head.digest)
    assert dict(bench.content.walk()) == {head.digest: taken}
    assert bench.content.collect(set) == (1, taken)
    assert not bench.content.has(head.digest)
    with pytest.raises(NotFound):
        bench.content.open(head.digest)


# --- images


class Store:
    """An image store with a discarder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records = Metadata(root / "dray.db")
        self.content = ContentStore(root / "content")
        self.snapshots = Overlay(root / "overlay2", self.records)
        self.images = Images(self.records, self.content, self.snapshots)
        self.discarder = Discarder(self.images, self.records)

    def close(self) -> None:
        self.discarder.close()
        self.snapshots.close()
        self.records.close()

    def on_disk(self) -> int:
        """What lies there of blobs and layers."""
        files = [*self.root.glob("content/blobs/*/*"), *self.root.glob("content/recipes/*/*")]
        layers = [one for one in self.root.glob("overlay2/*/diff/**/*") if one.is_file() and not one.is_symlink()]
        return sum(one.stat().st_size for one in (*files, *layers))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "data")
    yield one
    one.close()


def archive(name: str, layers: list[tuple[bytes, bytes]]) -> bytes:
    """A Docker archive of (plain tar, blob)s."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["true"]},
            "rootfs": {"type": "layers", "diff_ids": [digests.of(tar) for tar, _ in layers]},
        }
    ).encode()
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    listing: list[dict[str, Any]] = [{"Config": "config.json", "RepoTags": [name], "Layers": names}]
    members = [entry(one, blob) for one, (_, blob) in zip(names, layers, strict=True)]
    return make(*members, entry("config.json", config), entry("manifest.json", json.dumps(listing).encode()))


BASE = make(folder("base"), entry("base/file", WORDS[:100_000]))


def test_images_are_the_same_with_and_without_their_blobs(store: Store) -> None:
    blob = gzip.compress(TAR)
    load(store.images, io.BytesIO(archive("app:1", [(BASE, BASE), (TAR, blob)])))
    before = b"".join(save(store.images, ["app:1"]))
    size = store.images.resolve("app:1").content_size
    assert store.discarder.round() == 2
    image = store.images.resolve("app:1")
    assert image.content_size < size // 4
    assert image_usage.measure(store.images, []).total == store.on_disk()
    assert [words[1].split()[0] for words in store.discarder.summary()] == ["2", "0"]
    assert b"".join(save(store.images, ["app:1"])) == before
    assert store.discarder.round() == 0


def test_what_stays_is_looked_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = gzip.compress(TAR[:30_000]) + gzip.compress(TAR[30_000:])
    load(store.images, io.BytesIO(archive("app:1", [(TAR, blob)])))
    assert store.discarder.round() == 0
    assert [key for key, _ in store.records.scan(KIND)] == [digests.of(blob)]
    tried = []
    monkeypatch.setattr(Recorder, "record", lambda self: tried.append(1))
    assert store.discarder.round() == 0
    assert tried == []
    monkeypatch.setattr(encoders, "version_of", lambda name: "9")
    monkeypatch.setattr("dray.store.recipes.discarding.version_of", lambda name: "9")
    store.discarder.round()
    assert tried == [1]


def test_another_image_has_the_blob_on_other_layers(store: Store) -> None:
    """Its only unpacked form goes with the first image: the blob comes back before that."""
    blob = gzip.compress(TAR)
    load(store.images, io.BytesIO(archive("first:1", [(TAR, blob)])))
    assert store.discarder.round() == 1
    load(store.images, io.BytesIO(archive("second:1", [(BASE, BASE), (TAR, blob)])))
    store.images.delete("first:1", in_use=lambda _: [])
    digest = digests.of(blob)
    with store.content.open(digest) as file:
        assert file.read() == blob
    assert store.discarder.round() == 2
    assert store.content.recipes.head(digest) is not None
    archived = b"".join(save(store.images, ["second:1"]))
    assert blob in archived
    store.images.delete("second:1", in_use=lambda _: [])
    assert list(store.content.walk()) == []
    assert [info for info in store.snapshots.list() if info.kind == "committed"] == []


def test_layers_are_unpacked_from_what_was_dropped(store: Store) -> None:
    """Another image stands on the same blob: nothing of it needs to be fetched."""
    blob = gzip.compress(TAR)
    load(store.images, io.BytesIO(archive("first:1", [(TAR, blob)])))
    store.discarder.round()
    load(store.images, io.BytesIO(archive("second:1", [(BASE, BASE), (TAR, blob)])))
    top = store.images.resolve("second:1").chain_ids[-1]
    assert (store.snapshots.upper(top) / "etc/noise").read_bytes() == NOISE


def test_nothing_is_dropped_before_its_layer_is_on_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    load(store.images, io.BytesIO(archive("app:1", [(TAR, TAR)])))
    order = []
    settle, discard = store.snapshots.settle, store.content.discard
    monkeypatch.setattr(store.snapshots, "settle", lambda: (order.append("settle"), settle())[1])
    monkeypatch.setattr(store.content, "discard", lambda digest: (order.append("discard"), discard(digest))[1])
    store.discarder.round()
    assert order == ["settle", "discard"]
    assert all(not layer.boot for layer in store.snapshots._ledger.layers.values())


def dies(store: Store) -> None:
    """Pass the failpoints of both ways."""
    store.discarder.round()
    store.images.delete("first:1", in_use=lambda _: [])


class Killed(BaseException):
    """The daemon ends here."""


@pytest.mark.parametrize("name", [*failpoints.names("discard"), *failpoints.names("restore")])
def test_killed_between_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def reach(passed: str) -> None:
        if passed == name:
            raise Killed

    blob, store = gzip.compress(TAR), Store(tmp_path)
    load(store.images, io.BytesIO(archive("first:1", [(TAR, blob)])))
    if name == "restore.made":
        store.discarder.round()
    load(store.images, io.BytesIO(archive("second:1", [(BASE, BASE), (TAR, blob)])))
    monkeypatch.setattr(failpoints, "reach", reach)
    with pytest.raises(Killed):
        dies(store)
    monkeypatch.undo()
    store.close()
    store = Store(tmp_path)
    store.images.repair()
    with store.content.open(digests.of(blob)) as file:
        assert file.read() == blob
    store.discarder.round()
    archived = b"".join(save(store.images, ["second:1"]))
    assert blob in archived
    assert image_usage.measure(store.images, []).total == store.on_disk()
    for image in ("first:1", "second:1"):
        if store.images.target_of(f"docker.io/library/{image}"):
            store.images.delete(image, in_use=lambda _: [])
    assert list(store.content.walk()) == []
    store.close()
