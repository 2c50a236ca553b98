"""A layer as an EROFS image shows what the same layer as files shows; the kernel reads both."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import tarfile
from pathlib import Path

import pytest

from dray.base.errors import DrayError, InvalidParameter
from dray.store.erofs import nodes as limits
from dray.store.erofs.builder import Builder
from dray.store.erofs.image import Image, Space
from dray.store.erofs.indexing import index_layer, mounted
from dray.store.layers.extract import NeedsLower
from dray.store.layers.stream import Budget
from dray.store.snapshots import LayerSource
from support.erofs import files, image, inodes, needs_erofs
from support.layers import entry, folder, hardlink, make, source, symlink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

Member = tuple[tarfile.TarInfo, bytes]
PAX = {
    "SCHILY.xattr.user.note": "kept",
    "SCHILY.xattr.trusted.t": "x" * 2000,
    "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    "SCHILY.xattr.trusted.overlay.redirect": "/secret",
    "SCHILY.xattr.nonsense.a": "not kept",
    "mtime": "1234567890.123456789",
}


def access(*entries: tuple[int, int, int]) -> dict[str, str]:
    """An access control list of (tag, permissions, id)."""
    value = b"\2\0\0\0" + b"".join(struct.pack("<HHI", *one) for one in entries)
    return {"SCHILY.xattr.system.posix_acl_access": value.decode("utf-8", "surrogateescape")}


NOBODY = 0xFFFFFFFF
MINIMAL = access((0x01, 7, NOBODY), (0x04, 5, NOBODY), (0x20, 1, NOBODY))
ACL = access((0x01, 6, NOBODY), (0x02, 7, 5), (0x04, 4, NOBODY), (0x10, 5, NOBODY), (0x20, 0, NOBODY))


@pytest.fixture(autouse=True)
def kernel(tmp_path: Path) -> None:
    needs_erofs(tmp_path)


def sparse(name: str, size: int, *pieces: tuple[int, bytes]) -> Member:
    """A file with holes, as PAX 0.1 has it."""
    listed = ",".join(f"{offset},{len(data)}" for offset, data in pieces)
    pax = {"GNU.sparse.size": str(size), "GNU.sparse.numblocks": str(len(pieces)), "GNU.sparse.map": listed}
    return entry(name, b"".join(data for _, data in pieces), pax=pax)


def rich() -> bytes:
    rng = random.Random(3)
    sizes = (0, 1, 511, 512, 513, 4095, 4096, 4097, 100_001)
    return make(
        folder("./", 0o2751, uid=3, pax=PAX),
        *(entry(f"sizes/{size}", rng.randbytes(size), uid=70_000, gid=4_000_000_000, mode=0o4755) for size in sizes),
        *(entry(f"many/{number:x}{'n' * (number % 250)}", b"%d" % number) for number in range(1500)),
        *(symlink(f"links/{length}", "t" * length) for length in (1, 60, 300, 447, 448, 449, 1000, 4000)),
        *(entry(f"odd/{name}", b"1") for name in ("!", "-a", "..a", "...", ".a", "\udcff\udcfe", "ü", "n" * 255)),
        entry("attributes", b"1", pax=PAX),
        entry("acl/minimal", b"1", pax=MINIMAL),
        entry("acl/full", b"1", pax=ACL),
        folder("empty", 0o1777, mtime=77),
        folder("deep/" + "d/" * 200, 0o700),
        entry("null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
        entry("disk", kind=tarfile.BLKTYPE, device=(259, 1_000_000)),
        entry("fifo", kind=tarfile.FIFOTYPE, mode=0o600),
        hardlink("hard/1", "sizes/513"), hardlink("hard/2", "hard/1"), hardlink("hard/l", "links/60"),
        entry("gone/.wh.name"), entry("gone/.wh.again"), entry("gone/again", b"back"),
        folder("whole"), entry("whole/own", b"1"), entry("whole/.wh..wh..opq"),
        folder("covered"), entry(".wh.covered"), entry(".wh.uncovered"), entry("uncovered/x", b"1"),
        sparse("holes/small", 9000, (0, b"a" * 512), (4096, b"b" * 4096)),
        sparse("holes/odd", 70_001, (1, b"c"), (5000, b"d" * 5001), (70_000, b"e")),
        sparse("holes/tail", 50_000, (512, b"f" * 1024)),
        sparse("holes/all", 50_000),
        entry("replaced/by/a/file", b"1"), entry("replaced", b"2"),
        entry("kind", b"1"), folder("kind"),
        entry("lost/name", b"1"), hardlink("kept", "lost/name"), entry("lost", b"2"),
    )  # fmt: skip


@pytest.mark.parametrize("form", ["whole", "no end"])
def test_the_same_as_files(tmp_path: Path, form: str) -> None:
    tar = rich()
    if form == "no end":
        tar = make(entry("last", b"x" * 700))[: 512 + 700]
    out = files(tar, tmp_path)
    with image(tar, tmp_path) as root:
        assert inodes(root, times=False) == inodes(out, times=False)
        if form == "whole":
            assert os.lstat(f"{root}/attributes").st_mtime_ns == 1234567890123456789
            assert os.lstat(f"{root}/empty").st_mtime == 77
            assert (os.statvfs(root).f_flag & os.ST_RDONLY) == os.ST_RDONLY
            with pytest.raises(FileNotFoundError):
                os.lstat(f"{root}/many/zz")


def strange(rng: random.Random) -> bytes:
    """A tar of a few names over and over, through links, with marks and hard links among them."""
    names = ["a", "b", "a/b", "a/c", "b/a", "l", "l/a", "m/x", "a/b/c", "l/.wh.a", ".wh.a", "a/.wh.b", "a/.wh..wh..opq",
             ".wh.m", "m", "../a", "a/../b", "/abs/a", "."]  # fmt: skip
    members: list[Member] = []
    for _ in range(rng.randint(1, 14)):
        name = rng.choice(names)
        kind = rng.randrange(9)
        if kind < 3:
            members.append(entry(name, rng.randbytes(rng.choice((0, 5, 600))), uid=rng.randrange(3)))
        elif kind < 5:
            members.append(folder(name, rng.choice((0o755, 0o700)), uid=rng.randrange(3)))
        elif kind < 7:
            members.append(symlink(name, rng.choice(("a", "../b", "/a/b", "l", "nowhere/x", "..", "/", "m"))))
        elif kind == 7:
            members.append(hardlink(name, rng.choice(names)))
        else:
            members.append(entry(name, kind=tarfile.CHRTYPE, device=(rng.randrange(2), 0)))
    return make(*members)


def test_strange_tars_are_the_same_or_refused_by_both(tmp_path: Path) -> None:
    same = 0
    for seed in range(250):
        tar = strange(random.Random(seed))
        try:
            out = files(tar, tmp_path)
        except (DrayError, NeedsLower) as error:
            with pytest.raises(type(error)), image(tar, tmp_path):
                pass
            continue
        with image(tar, tmp_path) as root:
            assert inodes(root, times=False) == inodes(out, times=False), seed
        same += 1
    assert same > 50


def verified(tar: bytes, folder: Path) -> LayerSource:
    found = source(tar, folder)
    return LayerSource(found.chain_id, None, found.diff_id, found.open, verified=True, size=found.size)


def test_a_tar_that_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    tar = rich()
    out = files(tar, tmp_path)
    place = tmp_path / "linked"
    place.mkdir()
    index_layer(verified(tar, tmp_path), place)
    assert (place / "layer.tar").stat().st_nlink == 2
    assert (place / "layer.erofs").stat().st_size < len(tar) / 2 + 8192
    fd = mounted(place)
    try:
        assert inodes(f"/proc/self/fd/{fd}/.", times=False) == inodes(out, times=False)
    finally:
        os.close(fd)


def test_a_tar_that_ends_within_a_block_is_written(tmp_path: Path) -> None:
    """The kernel reads whole blocks."""
    place = tmp_path / "image"
    place.mkdir()
    index_layer(verified(make(entry("last", b"x" * 700))[: 512 + 700], tmp_path), place)
    fd = mounted(place)
    try:
        assert Path(f"/proc/self/fd/{fd}/last").read_bytes() == b"x" * 700
    finally:
        os.close(fd)


def test_files_beyond_4_gib(tmp_path: Path) -> None:
    """One whole, in a tar that is itself mostly a hole of the disk; one with holes."""
    size = (5 << 30) + 5
    big = tarfile.TarInfo("big")
    big.size = size
    path = tmp_path / "tar"
    with path.open("wb") as file:
        file.write(big.tobuf(tarfile.PAX_FORMAT))
        start = file.tell()
        file.seek(start + size - 3)
        file.write(b"end")
        file.write(bytes(-size % 512))
        file.write(make(sparse("holes", size, (0, b"a"), ((5 << 30), b"bcdef")), entry("after", b"1")))
    place = tmp_path / "image"
    place.mkdir()
    index_layer(
        LayerSource("c", None, "d", lambda: path.open("rb"), verified=True, size=path.stat().st_size), place
    )
    fd = mounted(place)
    try:
        for name, tail in (("big", b"\0\0end"), ("holes", b"bcdef")):
            with open(f"/proc/self/fd/{fd}/{name}", "rb") as file:
                assert os.fstat(file.fileno()).st_size == size
                file.seek(size - 5)
                assert file.read() == tail
                file.seek(4 << 30)
                assert file.read(9) == bytes(9)
        assert Path(f"/proc/self/fd/{fd}/after").read_bytes() == b"1"
    finally:
        os.close(fd)
    assert (place / "layer.erofs").stat().st_blocks < 4096


@pytest.mark.parametrize(("data", "size"), [(512, 1_000_000), (1 << 40, 5), (-512, 5)])
def test_no_file_shows_what_is_outside_the_tar(tmp_path: Path, data: int, size: int) -> None:
    """Whatever the reader of headers may have got wrong: an address outside the tar is never written."""
    tar = make(entry("f", b"12345"))
    budget = Budget(tmp_path)
    builder = Builder(budget)
    with (tmp_path / "image").open("w+b") as file:
        space = Space(file.fileno(), budget=budget)
        space.stored(len(tar))
        node = limits.Node(0o100644)
        node.data, node.size = data, size
        builder.nodes.put(builder.nodes.root, b"f", node)
        with pytest.raises(InvalidParameter, match="outside the tar"):
            Image(space, builder.nodes).write()
        node.pieces = [(0, size)]
        with pytest.raises(InvalidParameter, match="outside the tar"):
            Image(space, builder.nodes).write()


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LIMIT", 50)
    monkeypatch.setattr(limits, "TEXT", 100_000)
    for tar in (
        make(*(entry(f"f{number}") for number in range(60))),
        make(entry("a/" * 60 + "f")),
        make(sparse("f", 1 << 40, (0, b"1"))),
        make(*(entry(f"f{number}", pax={"SCHILY.xattr.user.a": "x" * 30_000}) for number in range(5))),
    ):
        with pytest.raises(InvalidParameter, match="overlay2"), image(tar, tmp_path):
            pass


def test_wrong_digest(tmp_path: Path) -> None:
    place = tmp_path / "image"
    place.mkdir()
    with pytest.raises(InvalidParameter, match="wrong diff id"):
        index_layer(source(make(entry("f")), tmp_path, diff_id="sha256:" + hashlib.sha256().hexdigest()), place)
