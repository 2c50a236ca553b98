"""Hostile layers: nothing outside the directory is touched, nothing is filled up, every refusal says why."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import tarfile
from pathlib import Path

import pytest
import zstandard

from dray.base.errors import DrayError, InvalidParameter, Unavailable
from dray.store.layers.extract import NeedsLower
from dray.store.layers.stream import Budget
from dray.store.layers.unpack import unpack_layer
from support.layers import entry, folder, hardlink, make, source, symlink, unpack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside every unpack directory; it must never change."""
    path = tmp_path / "victim"
    path.write_text("untouched")
    os.chmod(path, 0o600)
    return path


def _untouched(victim: Path) -> None:
    assert victim.read_text() == "untouched"
    status = victim.stat()
    assert (status.st_mode & 0o7777, status.st_nlink, status.st_uid) == (0o600, 1, 0)


@pytest.mark.parametrize("overlay", [True, False])
@pytest.mark.parametrize(
    "name",
    ["../victim", "d/../../victim", "./../victim", "/../victim", "..", "a/../../victim", "../.wh.victim", "x/../../.wh.victim"],
)  # fmt: skip
def test_names_that_leave_are_refused(tmp_path: Path, victim: Path, name: str, overlay: bool) -> None:
    with pytest.raises(InvalidParameter, match="invalid name"):
        unpack(make(folder("d"), entry(name, b"evil")), tmp_path, overlay=overlay)
    _untouched(victim)


@pytest.mark.parametrize("name", [".wh..", ".wh...", "d/.wh..", "d/.wh...", ".wh."])
def test_whiteouts_of_dots_are_refused(tmp_path: Path, victim: Path, name: str) -> None:
    for overlay in (True, False):
        with pytest.raises(InvalidParameter, match="invalid whiteout"):
            unpack(make(folder("d"), entry(name)), tmp_path, overlay=overlay)
    _untouched(victim)


@pytest.mark.parametrize("overlay", [True, False])
def test_absolute_names_land_inside(tmp_path: Path, victim: Path, overlay: bool) -> None:
    out, _ = unpack(
        make(entry(str(victim), b"evil"), folder("/abs"), entry("//abs//x", b"1")), tmp_path, overlay=overlay
    )
    _untouched(victim)
    assert (out / str(victim).lstrip("/")).read_bytes() == b"evil"
    assert (out / "abs/x").read_bytes() == b"1"


@pytest.mark.parametrize("overlay", [True, False])
def test_links_out_do_not_lead_out(tmp_path: Path, victim: Path, overlay: bool) -> None:
    parent = str(tmp_path)
    tar = make(
        symlink("abs", parent),
        entry("abs/victim", b"evil"),
        symlink("rel", "../" * 3 + parent.lstrip("/")),
        entry("rel/.wh.victim"),
        symlink("file", str(victim)),
        entry("file", b"evil", mode=0o4777, uid=1234),
        symlink("chmod", str(victim)),
        folder("chmod", 0o777, uid=4321),
        symlink("opaque", parent),
        entry("opaque/.wh..wh..opq"),
        symlink("fifo", str(victim)),
        entry("fifo", kind=tarfile.FIFOTYPE, mode=0o777, uid=1234),
        symlink("x", str(victim)),
        entry("x", kind=tarfile.SYMTYPE, link=str(victim), uid=1234, pax={"SCHILY.xattr.user.a": "b"}),
    )
    unpack(tar, tmp_path, overlay=overlay)
    _untouched(victim)
    assert "user.a" not in os.listxattr(victim)


@pytest.mark.parametrize("overlay", [True, False])
@pytest.mark.parametrize("target", ["../victim", "/../victim", "d/../../victim"])
def test_hard_links_that_leave_are_refused(tmp_path: Path, victim: Path, target: str, overlay: bool) -> None:
    with pytest.raises(InvalidParameter):
        unpack(make(folder("d"), hardlink("h", target)), tmp_path, overlay=overlay)
    _untouched(victim)


@pytest.mark.parametrize("overlay", [True, False])
def test_hard_links_through_links_out(tmp_path: Path, victim: Path, overlay: bool) -> None:
    tar = make(symlink("out", str(tmp_path)), hardlink("h", "out/victim"), entry("h", b"evil"))
    with pytest.raises((InvalidParameter, NeedsLower)):
        unpack(tar, tmp_path, overlay=overlay)
    absolute = make(hardlink("h", str(victim)), entry("h", b"evil"))
    with pytest.raises((InvalidParameter, NeedsLower)):
        unpack(absolute, tmp_path, overlay=overlay)
    _untouched(victim)


def test_hard_link_to_a_directory_or_the_root(tmp_path: Path) -> None:
    for target in ("d", ".", "/"):
        with pytest.raises(InvalidParameter, match="hard link to a directory"):
            unpack(make(folder("d"), hardlink("h", target)), tmp_path)


def test_link_loops(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="not a directory"):
        unpack(make(symlink("a", "b"), symlink("b", "a"), entry("a/x", b"1")), tmp_path)


def test_a_file_where_a_directory_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="not a directory"):
        unpack(make(entry("f", b"1"), entry("f/x", b"1")), tmp_path)


def test_the_root_is_a_directory(tmp_path: Path) -> None:
    for bad in (symlink("./", "/etc"), entry(".", b"x")):
        with pytest.raises(InvalidParameter):
            unpack(make(bad), tmp_path)


def test_huge_names(tmp_path: Path) -> None:
    for name in ("x" * 256, "d/" * 300 + "x", ("y" * 200 + "/") * 25 + "z", "n" * 5000):
        with pytest.raises(InvalidParameter, match="invalid name"):
            unpack(make(entry(name, b"1")), tmp_path)
    with pytest.raises(InvalidParameter):
        unpack(make(symlink("s", "t" * 5000)), tmp_path)


def test_huge_headers_are_not_read_into_memory(tmp_path: Path) -> None:
    for kind in (b"x", b"g", b"L", b"K"):
        info = tarfile.TarInfo("h")
        info.type, info.size = kind, 3 << 30
        with pytest.raises(InvalidParameter, match="header of"):
            unpack(info.tobuf(tarfile.GNU_FORMAT), tmp_path)


def test_a_size_beyond_the_disk(tmp_path: Path) -> None:
    info = tarfile.TarInfo("big")
    info.size = 1 << 60
    with pytest.raises(Unavailable, match="no space left"):
        unpack(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096), tmp_path)


def test_device_numbers_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="out of range"):
        unpack(make(entry("c", kind=tarfile.CHRTYPE, device=(1 << 20, 0))), tmp_path)


def test_owners_out_of_range(tmp_path: Path) -> None:
    for pax in ({"uid": str(1 << 33)}, {"gid": "4294967295"}, {"uid": "-5"}, {"uid": "1e3"}):
        with pytest.raises(InvalidParameter):
            unpack(make(entry("f", b"1", pax=pax)), tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        b"999 path=x\n",
        b"5 a=b\n",
        b"path=x\n",
        b"12 path=xyzw\n",
        b"10 mtime=x\n",
        b"-3 a=b\n",
        b"0 a=b\n",
        b"2 x",
    ],
)
def test_damaged_pax_records(tmp_path: Path, record: bytes) -> None:
    info = tarfile.TarInfo("h")
    info.type, info.size = b"x", len(record)
    tar = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + make(entry("f", b"1"))
    with pytest.raises(InvalidParameter, match="PAX"):
        unpack(tar, tmp_path)


def test_sparse_maps_that_lie(tmp_path: Path) -> None:
    good = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "100"}
    for mapping in ("0,200", "50,10,0,10", "0,5", "0", "10,-5", "x,y", "0,9999999999999999999999"):
        with pytest.raises(InvalidParameter):
            unpack(make(entry("s", b"0123456789", pax={**good, "GNU.sparse.map": mapping})), tmp_path)
    first = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "100"}
    for data in (b"1\n", b"99999999\n" + bytes(600), b"1\n0\n", bytes(1024), b"7" * 2000):
        with pytest.raises(InvalidParameter):
            unpack(make(entry("s", data, pax=first)), tmp_path)


@pytest.mark.parametrize("cut", [100, 511, 512, 700, 1500])
def test_truncated(tmp_path: Path, cut: int) -> None:
    tar = make(entry("f", b"x" * 2000))
    with pytest.raises(InvalidParameter, match=r"EOF|checksum"):
        unpack(tar[:cut], tmp_path)


def test_not_a_tar(tmp_path: Path) -> None:
    for blob in (
        b"hello world" * 200,
        os.urandom(4096),
        b"\x1f\x8b" + os.urandom(5000),
        b"\x28\xb5\x2f\xfd" + b"x" * 900,
    ):
        with pytest.raises(InvalidParameter):
            unpack(blob, tmp_path)


def test_unknown_types_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("m")
    info.type = b"M"
    with pytest.raises(InvalidParameter, match="unhandled tar header type"):
        unpack(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024), tmp_path)


def test_gzip_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    tar = make(entry("zeros", bytes(40 << 20)))
    blob = gzip.compress(tar, 9)
    layer = source(blob, tmp_path, diff_id="sha256:" + hashlib.sha256(tar).hexdigest())
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(InvalidParameter, match="limit for one layer"):
        unpack_layer(layer, target, overlay=True, budget=Budget(target, limit=8 << 20))
    with pytest.raises(Unavailable, match="no space left"):
        unpack_layer(layer, target, overlay=True, budget=Budget(target, reserve=1 << 60))


def test_zstd_bomb_stops_at_the_ratio(tmp_path: Path) -> None:
    """Zstandard reaches ratios that no honest layer has."""
    info = tarfile.TarInfo("zeros")
    info.size = 1 << 34
    compressor = zstandard.ZstdCompressor(level=19).compressobj()
    parts = [compressor.compress(info.tobuf(tarfile.GNU_FORMAT))]
    parts += [compressor.compress(bytes(1 << 20)) for _ in range(200)]
    blob = b"".join([*parts, compressor.flush()])
    assert len(blob) < 40_000
    with pytest.raises((InvalidParameter, Unavailable), match=r"decompression bomb|no space"):
        unpack(blob, tmp_path)


def test_xz_memory_is_bounded(tmp_path: Path) -> None:
    import lzma

    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    header = lzma.compress(b"x" * 100, format=lzma.FORMAT_XZ, filters=filters)
    with pytest.raises(InvalidParameter, match="decompressed"):
        unpack(header, tmp_path)


def test_deep_trees_can_be_removed(tmp_path: Path) -> None:
    """Links let a tar build a tree deeper than any path; replacing and removing it must still work."""
    from dray.store.trash import Trash

    entries = []
    below = ""
    for level in range(8):
        entries.append(folder(below + "d/" * 250))
        entries.append(symlink(f"l{level}", "/" + (f"l{level - 1}/" if level else "") + "d/" * 250))
        below = f"l{level}/"
    out, _ = unpack(make(*entries), tmp_path)
    trash = Trash(tmp_path / "trash")
    trash.throw(out)
    trash.empty()
    trash.close()
    assert list((tmp_path / "trash").iterdir()) == []


def test_random_damage_is_always_an_error_or_a_tree(tmp_path: Path) -> None:
    """Flipping bytes in a rich tar never ends in anything but our errors, and never leaves the directory."""
    import random

    pax = {"SCHILY.xattr.user.a": "b", "mtime": "1.5"}
    tar = make(folder("d"), entry("d/f", b"data" * 300, pax=pax), symlink("l", "../../.."), entry("l/x", b"1"),
               hardlink("h", "d/f"), entry("d/.wh.y"), entry("n" * 150, b"2"))  # fmt: skip
    rng = random.Random(7)
    before = sorted(os.listdir(tmp_path.parent))
    for number in range(150):
        damaged = bytearray(tar)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(damaged))
            damaged[at] = rng.randrange(256)
            block = at // 512 * 512
            if rng.random() < 0.7:  # repair the checksum, so that the damage reaches further
                header = damaged[block : block + 512]
                header[148:156] = b" " * 8
                struct.pack_into("8s", damaged, block + 148, b"%06o\0 " % sum(header))
        work = tmp_path / f"w{number}"
        work.mkdir()
        try:
            unpack(bytes(damaged), work)
        except (DrayError, NeedsLower):
            pass
    assert sorted(os.listdir(tmp_path.parent)) == before
