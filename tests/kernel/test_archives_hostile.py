"""Hostile containers and tars against copying: nothing outside of the container's root is read or written."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dray.base.errors import DrayError, InvalidParameter
from dray.engine.archives.view import guard
from dray.linux import mounts
from dray.store.layers import copyin, extract, walk
from dray.store.layers.copyin import copy_in
from dray.store.layers.diff import write_layer
from dray.store.layers.tarwriter import TreeWriter
from dray.store.layers.walk import write_below, write_tree
from dray.store.snapshots import Change
from support.layers import entry, folder, hardlink, make, symlink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret").write_text("SECRET")
    return path


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    (path / "dst").mkdir(parents=True)
    return path


@pytest.fixture
def root(inside: Path) -> Iterator[int]:
    fd = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def names(chunks: Iterator[bytes]) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        return [member.name for member in tar]


@pytest.mark.parametrize(
    "hostile",
    [
        lambda out: make(symlink("dst/l", str(out)), entry("dst/l/evil", b"x")),
        lambda out: make(symlink("dst/l", "../.."), entry("dst/l/outside/evil", b"x")),
        lambda out: make(entry("../outside/evil", b"x")),
        lambda out: make(entry("dst/../../outside/evil", b"x")),
        lambda out: make(entry(f"{out}/evil", b"x")),
        lambda out: make(hardlink("dst/stolen", f"{out}/secret")),
        lambda out: make(hardlink("dst/stolen", "../outside/secret")),
        lambda out: make(symlink("dst/s", f"{out}/secret"), hardlink("dst/stolen", "dst/s"), entry("dst/s", b"x")),
        lambda out: make(symlink("dst/s", f"{out}/secret"), entry("dst/s", b"overwritten")),
        lambda out: make(symlink("dst/s", str(out)), folder("dst/s", mode=0o777)),
    ],
)
def test_tars_stay_inside(root: int, inside: Path, outside: Path, hostile: Callable[[Path], bytes]) -> None:
    before = os.stat(outside).st_mode
    try:
        copy_in(io.BytesIO(hostile(outside)), root, b"", guard=guard)
    except (DrayError, OSError):
        pass
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_text() == "SECRET"
    assert os.stat(outside / "secret").st_nlink == 1
    assert os.stat(outside).st_mode == before


def test_destination_behind_a_link(root: int, inside: Path, outside: Path) -> None:
    """The destination itself has been swapped for a link since it was looked up."""
    (inside / "dst").rmdir()
    os.symlink(outside, inside / "dst")
    with pytest.raises(FileNotFoundError):
        copy_in(io.BytesIO(make(entry("evil", b"x"))), root, b"dst", guard=guard)
    assert os.listdir(outside) == ["secret"]


def test_chmod_of_a_device_follows_no_link(inside: Path, outside: Path) -> None:
    os.symlink(outside / "secret", inside / "device")
    mode = os.stat(outside / "secret").st_mode
    fd = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="replaced by something else"):
            extract._change_mode(fd, b"device", 0o020000, 0o777)
    finally:
        os.close(fd)
    assert os.stat(outside / "secret").st_mode == mode


def test_directory_swapped_while_it_is_read(root: int, inside: Path, outside: Path) -> None:
    (inside / "dst" / "file").write_text("inside")
    chunks = write_below(root, TreeWriter())
    first = next(chunks)  # the directory's own entry: it is entered next
    (inside / "dst").rename(inside / "kept")
    os.symlink(outside, inside / "dst")
    assert b"SECRET" not in first + b"".join(chunks)


def test_directory_swapped_right_after_the_look(
    root: int, inside: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.symlink(outside, inside / "link")
    monkeypatch.setattr(walk.stat, "S_ISDIR", lambda mode: True)
    assert b"SECRET" not in b"".join(write_below(root, TreeWriter()))


def test_file_swapped_while_it_is_read(root: int, inside: Path, outside: Path) -> None:
    (inside / "file").write_text("inside")
    chunks = TreeWriter().entry(root, b"file", b"file")
    header = next(chunks)
    (inside / "file").unlink()
    os.symlink(outside / "secret", inside / "file")
    assert b"inside" in header + b"".join(chunks)


def test_layer_of_a_swapped_directory(inside: Path, outside: Path) -> None:
    """Between diff and layer the container has put a link in a directory's place."""
    (inside / "dst").rmdir()
    os.symlink(outside, inside / "dst")
    tar = b"".join(write_layer(inside, [Change("/dst/secret", "A")]))
    assert b"SECRET" not in tar


def test_vanished_files_are_left_out(root: int, inside: Path) -> None:
    for name in "abc":
        (inside / name).write_text(name)
    chunks = write_tree(root)
    first = next(chunks)
    (inside / "b").unlink()
    assert names(iter([first, *chunks])) == ["a", "c", "dst"]


def test_deep_trees_need_few_descriptors(root: int, inside: Path) -> None:
    above = os.dup(root)
    for _ in range(500):
        os.mkdir("d", dir_fd=above)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=above)
        os.close(above)
        above = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=above))
    os.close(above)
    before, most, count = len(os.listdir("/proc/self/fd")), 0, 0
    for _ in write_below(root, TreeWriter()):
        count += 1
        most = max(most, len(os.listdir("/proc/self/fd")))
    assert count == 502
    assert most - before < 80


def test_bombs_are_refused(root: int, inside: Path) -> None:
    import zstandard

    def bomb() -> bytes:
        header, _ = entry("zeros")
        header.size = 200 << 20
        packer = zstandard.ZstdCompressor(level=3).compressobj()
        packed = packer.compress(header.tobuf())
        for _ in range(200):
            packed += packer.compress(bytes(1 << 20))
        return packed + packer.flush()

    with pytest.raises(InvalidParameter, match="decompression bomb"):
        copy_in(io.BytesIO(bomb()), root, b"dst", guard=guard)
    assert os.stat(inside / "dst" / "zeros").st_size < 100 << 20


@pytest.mark.parametrize("damaged", [b"garbage " * 100, make(entry("a", b"x" * 5000))[:2000]])
def test_damaged_tars_are_named(root: int, damaged: bytes) -> None:
    with pytest.raises(InvalidParameter):
        copy_in(io.BytesIO(damaged), root, b"dst", guard=guard)


def test_kernel_file_systems_are_refused(inside: Path) -> None:
    """A directory swapped for a link to /proc is not written to, although it lies inside the root."""
    host = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(InvalidParameter, match="kernel file system"):
            copy_in(io.BytesIO(make(entry("sys/kernel/x", b"x"))), host, b"proc", guard=guard)
    finally:
        os.close(host)


def test_mounts_are_not_replaced(root: int, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (inside / "dst" / "mounted").write_text("kept")
    real = mounts.mount_id
    place = (inside / "dst" / "mounted").stat().st_ino
    monkeypatch.setattr(copyin.mounts, "mount_id", lambda fd: -1 if os.fstat(fd).st_ino == place else real(fd))
    for body in (make(entry("dst/mounted", b"x")), make(entry("dst", b"x"))):
        with pytest.raises(OSError, match="busy"):
            copy_in(io.BytesIO(body), root, b"", guard=guard)
    assert (inside / "dst" / "mounted").read_text() == "kept"
