"""`discard-compressed-layers`: the daemon killed between the steps, and what clients see."""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.base import failpoints
from images.archive import Entry, Image, layer_tar, write_docker_archive
from support.engines import Drayd, until
from support.registries import DrayRegistry
from support.world import World

pytestmark = pytest.mark.drayd_only("dockerd keeps every blob")

TEXT = b"".join(b"line %d of a file that compresses\n" % number for number in range(40_000))


@pytest.fixture
def engine(world: World, tmp_path: Path) -> Iterator[Drayd]:
    one = Drayd(tmp_path / "engine", flags=["--bridge", "dray-bl0", "--discard-compressed-layers"])
    one.subnet = "172.29.93."
    yield one
    if one.daemon is not None:
        one.stop()


def blobs(engine: Drayd) -> list[Path]:
    """The layers' files; manifests and configs are smaller."""
    folder = engine.data_root / "content/blobs/sha256"
    return [blob for blob in folder.iterdir() if blob.stat().st_size > 16 << 10]


def saved(engine: Drayd) -> str:
    path = engine.base / "saved.tar"
    engine.ok("save", "-o", str(path), "app:1")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def archived(folder: Path) -> Path:
    """An archive of one image; its one layer is plain, as `docker save` has them."""
    path = folder / "app.tar"
    if not path.exists():
        tar = layer_tar([Entry("etc", "dir"), Entry("etc/text", data=TEXT), Entry("etc/more", data=TEXT[::-1])])
        config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["true"]}}
        write_docker_archive([Image([tar], config, ["app:1"])], path)
    return path


@pytest.mark.parametrize("name", failpoints.names("discard"))
def test_killed_between_the_steps(engine: Drayd, tmp_path: Path, name: str) -> None:
    engine.variables[failpoints.VARIABLE] = name
    engine.start()
    engine.docker("load", "-i", str(archived(tmp_path)))
    assert engine.daemon is not None
    assert engine.daemon.wait(30) == -signal.SIGKILL
    engine.daemon = None
    assert len(blobs(engine)) == (0 if name == "discard.dropped" else 1)
    del engine.variables[failpoints.VARIABLE]
    engine.start()
    if "app" in engine.ok("images", "--format", "{{.Repository}}"):
        until(lambda: not blobs(engine), what="the blob to go")
        saved(engine)
    engine.ok("load", "-i", str(archived(tmp_path)))
    until(lambda: not blobs(engine), what="the blob to go again")
    dropped = saved(engine)
    engine.stop()
    engine.flags.remove("--discard-compressed-layers")
    engine.start()
    engine.ok("load", "-i", str(archived(tmp_path)))
    assert len(blobs(engine)) == 1
    assert saved(engine) == dropped
    engine.ok("rmi", "app:1")
    assert not any((engine.data_root / "content/recipes/sha256").iterdir())


def test_what_clients_see(engine: Drayd, tmp_path: Path) -> None:
    engine.start()
    engine.ok("load", "-i", str(archived(tmp_path)))
    until(lambda: not blobs(engine), what="the blob to go")
    assert re.search(r"Discarded Compressed Layers: 1 \([0-9.]+MB saved\)", engine.ok("info"))
    files = [*engine.data_root.glob("content/blobs/*/*"), *engine.data_root.glob("content/recipes/*/*")]
    layers = [file for file in engine.data_root.glob("overlay2/*/diff/**/*") if file.is_file()]
    on_disk = sum(file.stat().st_size for file in (*files, *layers))
    assert engine.get("/v1.52/system/df")["ImageUsage"]["TotalSize"] == on_disk
    with DrayRegistry(tmp_path / "registry") as registry:
        name = f"{registry.address}/app:1"
        engine.ok("tag", "app:1", name)
        pushed = re.search(r"digest: (sha256:\w+)", engine.ok("push", name))
        assert pushed
        assert not blobs(engine)
        text = next(engine.data_root.glob("overlay2/*/diff/etc/text"))
        text.write_bytes(b"damaged" + TEXT[7:])
        registry.stop()
    with DrayRegistry(tmp_path / "another") as empty:
        engine.ok("tag", "app:1", f"{empty.address}/app:1")
        assert "etc/text was changed; pull the image again" in engine.fails("push", f"{empty.address}/app:1")
        assert "pull it again" in engine.fails("save", "-o", str(tmp_path / "out.tar"), "app:1")
    with DrayRegistry(tmp_path / "registry", port=registry.port):
        engine.ok("pull", name)
        engine.ok("save", "-o", str(tmp_path / "out.tar"), name)
