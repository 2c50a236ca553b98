"""Whole lives of containers on every storage driver, images of many layers, and a data root with two drivers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import cache
from support.disks import disk
from support.engines import Drayd, Engine, EngineFailed, until
from support.erofs import needs_erofs
from support.world import World

pytestmark = pytest.mark.drayd_only("storage drivers are told by drayd's own words")
NO_NETWORK = ("--network", "none")


@pytest.fixture
def place(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[Path]:
    """A folder for an engine; on btrfs for the driver of that name."""
    if getattr(request, "param", "") != "btrfs":
        yield tmp_path / "engine"
        return
    if shutil.which("mkfs.btrfs") is None or "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("btrfs: no mkfs.btrfs (btrfs-progs), or a kernel without it")
    with disk(tmp_path, "mkfs.btrfs", "-q", size=400 << 20) as path:
        yield path / "engine"


def launched(base: Path, *flags: str) -> Engine:
    engine = Drayd(base, flags=["--bridge", "dray-drv0", "--bip", "172.29.88.1/24", *flags])
    engine.start()
    return engine


def servers(base: Path) -> list[int]:
    """The fuse-overlayfs processes that serve directories below `base`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if words.startswith(b"fuse-overlayfs") and os.fsencode(base) in words:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    ("place", "driver"),
    [("", "fuse-overlayfs"), ("btrfs", "btrfs"), ("", "vfs"), ("", "erofs")],
    indirect=["place"],
    ids=["fuse-overlayfs", "btrfs", "vfs", "erofs"],
)
def test_life_of_a_container(place: Path, driver: str) -> None:
    if driver == "fuse-overlayfs" and not (shutil.which(driver) and os.path.exists("/dev/fuse")):
        pytest.skip("fuse-overlayfs: the program or /dev/fuse is missing")
    if driver == "erofs":
        needs_erofs(place.parent)
    engine = launched(place, "--storage-driver", driver)
    try:
        engine.load(cache.busybox_archive())
        assert engine.ok("info", "-f", "{{.Driver}}") == driver
        for runtime in ("dray", "runc"):
            engine.ok("run", "-d", *NO_NETWORK, "--runtime", runtime, "--name", f"c-{runtime}", "busybox", "sh", "-c",
                      "echo one > /one; rm -r /home; mkdir -p /home/new; sleep 600")  # fmt: skip
            name = f"c-{runtime}"
            until(lambda name=name: engine.docker("exec", name, "test", "-d", "/home/new").returncode == 0)  # type: ignore[misc]
        engine.kill()
        engine.start()
        for name in ("c-dray", "c-runc"):
            assert engine.ok("exec", name, "cat", "/one") == "one"
            assert {"A /one", "A /home/new"} <= set(engine.ok("diff", name).splitlines())
            engine.ok("stop", "-t", "0", name)
            until(lambda: driver != "fuse-overlayfs" or len(servers(place)) < 2, what="the server's end")
            (place / "in").write_text("copied")
            engine.ok("cp", str(place / "in"), f"{name}:/in")
            engine.ok("cp", f"{name}:/one", str(place / "out"))
            assert (place / "out").read_text() == "one\n"
            engine.ok("commit", name, f"made:{name}")
            assert engine.ok("run", "--rm", *NO_NETWORK, f"made:{name}", "cat", "/one", "/in") == "one\ncopied"
            assert engine.docker("run", "--rm", *NO_NETWORK, "busybox", "cat", "/one").returncode == 1
            engine.ok("export", "-o", str(place / "export.tar"), name)
            with tarfile.open(place / "export.tar") as tar:
                names = tar.getnames()
            assert {"one", "in", "home/new"} <= {found.rstrip("/") for found in names}
            engine.ok("save", "-o", str(place / "save.tar"), f"made:{name}")
            engine.ok("rmi", f"made:{name}")
            engine.load(place / "save.tar")
            assert engine.ok("run", "--rm", *NO_NETWORK, f"made:{name}", "cat", "/one", "/in") == "one\ncopied"
            engine.ok("start", name)
        engine.remove_everything()
        until(lambda: not servers(place), what="the servers' end")
    finally:
        engine.remove_everything()
        engine.destroy()


def many_layers(archive: Path, count: int, target: Path) -> Path:
    """A docker archive: the one image of `archive` with further layers, each a file /layers/fN, `count` in all."""
    with tarfile.open(archive) as source:

        def read(name: str) -> bytes:
            member = source.extractfile(name)
            assert member is not None
            return member.read()

        entry = json.loads(read("manifest.json"))[0]
        config = json.loads(read(entry["Config"]))
        layers = [read(name) for name in entry["Layers"]]
    while len(layers) < count:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo(f"layers/f{len(layers)}")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
        layers.append(buffer.getvalue())
        config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(layers[-1]).hexdigest())
    config.pop("history", None)
    files = {f"{number}.tar": data for number, data in enumerate(layers)}
    manifest = [{"Config": "config.json", "RepoTags": [f"many:{count}"], "Layers": list(files)}]
    files |= {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
    with tarfile.open(target, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target


def test_images_of_many_layers(place: Path, tmp_path: Path) -> None:
    """More layers than a page of mount options holds; more than the kernel stacks is refused before anything."""
    engine = launched(place, "--storage-driver", "overlay2")
    try:
        engine.load(many_layers(cache.busybox_archive(), 60, tmp_path / "60.tar"))
        engine.load(many_layers(cache.busybox_archive(), 260, tmp_path / "260.tar"))
        count = ("sh", "-c", "ls /layers | wc -l")
        assert engine.ok("run", "--rm", *NO_NETWORK, "many:60", *count) == "59"
        for runtime in ("dray", "runc"):
            assert engine.ok("run", "--rm", *NO_NETWORK, "--runtime", runtime, "many:260", *count) == "259"
        engine.ok("run", "-d", *NO_NETWORK, "--name", "deep", "many:260", "sleep", "600")
        assert engine.ok("exec", "deep", *count) == "259"
        engine.ok("exec", "deep", "rm", "/layers/f100")
        engine.ok("stop", "-t", "0", "deep")
        assert engine.ok("diff", "deep") == "C /layers\nD /layers/f100"
        engine.ok("cp", "deep:/layers/f200", str(tmp_path / "f200"))
        engine.ok("cp", str(tmp_path / "f200"), "deep:/layers/mine")
        engine.ok("commit", "deep", "deeper")
        assert engine.ok("run", "--rm", *NO_NETWORK, "deeper", *count) == "259"
        refused = engine.fails("load", "-i", str(many_layers(cache.busybox_archive(), 500, tmp_path / "500.tar")))
        assert "can stack 499" in refused
        assert "many:500" not in engine.ok("images", "--format", "{{.Repository}}:{{.Tag}}")
    finally:
        engine.remove_everything()
        engine.destroy()


def test_a_data_root_with_two_drivers(place: Path) -> None:
    engine = launched(place)
    try:
        engine.load(cache.busybox_archive())
        assert engine.ok("info", "-f", "{{.Driver}}") == "overlay2"
        engine.ok("run", "-d", *NO_NETWORK, "--name", "first", "busybox", "sleep", "600")
        engine.stop()
        with pytest.raises(EngineFailed, match=r"first.*stop them under --storage-driver=overlay2"):
            engine.start(extra=["--storage-driver", "vfs"])
        engine.daemon = None
        engine.start()
        engine.ok("stop", "-t", "0", "first")
        engine.restart(extra=["--storage-driver", "vfs"])
        assert re.search(r"of overlay2 the data root has \d+ layers and 1 containers", engine.log.read_text())
        assert engine.ok("ps", "-aq") == ""
        assert engine.ok("run", "--name", "second", *NO_NETWORK, "busybox", "echo", "unpacked") == "unpacked"
        assert "already in use" in engine.docker("create", "--name", "first", "busybox").stderr
        engine.stop()
        with pytest.raises(EngineFailed, match="several storage drivers"):
            engine.start()
        engine.daemon = None
        engine.start(extra=["--storage-driver", "overlay2"])
        assert engine.ok("ps", "-a", "--format", "{{.Names}}") == "first"
        engine.ok("start", "first")
        engine.remove_everything()
        engine.restart(extra=["--storage-driver", "vfs"])
        assert engine.ok("ps", "-a", "--format", "{{.Names}}") == "second"
    finally:
        engine.remove_everything()
        engine.destroy()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--storage-driver", "aufs"], "Docker itself removed it in 24.0"),
        (["--storage-driver", "zfs"], "zfs"),
        (["--storage-driver", "nonsense"], "use one of overlay2, fuse-overlayfs, btrfs, erofs, vfs"),
        (["--storage-driver", "btrfs"], "is not on btrfs"),
        (["--storage-opt", "overlay2.size=1G"], "overlay2.size=1G"),
    ],
)
def test_refusals(place: Path, flags: list[str], words: str) -> None:
    with pytest.raises(EngineFailed, match=words):
        launched(place, *flags)
