"""Unpacking: everything a tar can hold arrives, in both forms of output."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import random
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from dray.base.errors import InvalidParameter
from dray.store.layers.extract import NeedsLower
from support.layers import describe, entry, folder, hardlink, make, symlink, unpack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


def test_all_kinds(tmp_path: Path) -> None:
    long = "d/" + "x" * 150 + "/" + "y" * 200
    tar = make(
        folder("d", 0o2750, uid=5, gid=6),
        folder("d/" + "x" * 150),
        entry("d/plain", b"text", mode=0o640, uid=1000, gid=1001),
        entry("d/setuid", b"#!", mode=0o4755, uid=7),
        entry("d/empty", b""),
        entry(long, b"long"),
        symlink("d/link", "../../../etc/passwd"),
        symlink("d/longlink", "t" * 300),
        hardlink("d/hard", "d/plain"),
        entry("d/fifo", kind=tarfile.FIFOTYPE, mode=0o622),
        entry("d/null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
        entry("d/disk", kind=tarfile.BLKTYPE, device=(8, 1), mode=0o660, gid=6),
        entry("d/ünïcode", b"u"),
    )
    out, applied = unpack(tar, tmp_path)
    found = describe(out)
    assert found["d"] == ("d", 0o2750, 5, 6, None)
    assert found["d/plain"] == ("-", 0o640, 1000, 1001, b"text")
    assert found["d/setuid"] == ("-", 0o4755, 7, 0, b"#!")
    assert found["d/link"][4] == "../../../etc/passwd"
    assert found["d/longlink"][4] == "t" * 300
    assert found[long][4] == b"long"
    assert found["d/fifo"][:2] == ("p", 0o622)
    assert found["d/null"] == ("c", 0o666, 0, 0, (1, 3))
    assert found["d/disk"] == ("b", 0o660, 0, 6, (8, 1))
    assert found["d/ünïcode"][4] == b"u"
    assert (out / "d/hard").stat().st_ino == (out / "d/plain").stat().st_ino
    assert (out / "d/plain").stat().st_mtime == (out / "d").stat().st_mtime == 1_600_000_000
    assert (out / "d/link").lstat().st_mtime == 1_600_000_000
    assert applied.size == len(b"text" + b"#!" + b"long" + b"u")
    assert applied.implicit == {b""}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_forms(tmp_path: Path, form: int) -> None:
    name = "a" * 60 + "/" + "b" * 60 + "/c"
    out, _ = unpack(make(entry(name, b"x" * 1000, mtime=1), form=form), tmp_path)
    assert (out / name).read_bytes() == b"x" * 1000


def test_big_numbers_and_fractions(tmp_path: Path) -> None:
    gnu = make(entry("gnu", b"1", uid=3_000_000, gid=4_000_000_000, mtime=99_999_999_999), form=tarfile.GNU_FORMAT)
    out, _ = unpack(gnu, tmp_path)
    assert (out / "gnu").stat().st_uid == 3_000_000
    assert (out / "gnu").stat().st_gid == 4_000_000_000
    pax = make(entry("pax", b"1", uid=3_000_000, pax={"mtime": "1600000000.123456789"}))
    out, _ = unpack(pax, tmp_path)
    assert (out / "pax").stat().st_uid == 3_000_000
    assert (out / "pax").stat().st_mtime_ns == 1_600_000_000_123_456_789
    early, _ = unpack(make(entry("early", b"1", pax={"mtime": "-5.5"})), tmp_path)
    assert (early / "early").stat().st_mtime_ns == 0


def test_xattrs_but_not_overlayfs_own(tmp_path: Path) -> None:
    capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    pax = {
        "SCHILY.xattr.user.colour": "blue",
        "SCHILY.xattr.security.capability": capability.decode("utf-8"),
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
    }
    out, _ = unpack(make(entry("f", b"1", pax=pax), folder("d", pax=pax), symlink("l", "f")), tmp_path)
    assert os.getxattr(out / "f", "user.colour") == b"blue"
    assert os.getxattr(out / "f", "security.capability") == capability
    assert os.listxattr(out / "d") == ["user.colour"] or "trusted.overlay.opaque" not in os.listxattr(out / "d")
    assert not [name for name in os.listxattr(out / "d") if name.startswith("trusted.overlay")]


@pytest.mark.parametrize("version", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse(tmp_path: Path, version: str) -> None:
    original = tmp_path / "tree"
    original.mkdir()
    with (original / "sparse").open("wb") as file:
        for number in range(30):  # more pieces than one old header holds
            file.seek(number * (1 << 16) + 8192)
            file.write(bytes([number + 1]) * 4096)
        file.truncate(40 << 16)
    (original / "hole").touch()
    os.truncate(original / "hole", 1 << 20)
    (original / "after").write_text("still aligned")
    form = ["--format=gnu"] if version == "gnu" else ["--format=posix", f"--sparse-version={version}"]
    tar = subprocess.run(
        ["tar", "-C", original, "-S", *form, "-cf", "-", "."], check=True, capture_output=True
    ).stdout  # fmt: skip
    assert len(tar) < 400_000
    out, applied = unpack(tar, tmp_path)
    assert (out / "sparse").read_bytes() == (original / "sparse").read_bytes()
    assert (out / "hole").stat().st_size == 1 << 20
    assert (out / "after").read_text() == "still aligned"
    assert (out / "sparse").stat().st_blocks * 512 < 1 << 20
    assert applied.size == (40 << 16) + (1 << 20) + len("still aligned")


def test_compressions(tmp_path: Path) -> None:
    tar = make(entry("f", random.Random(1).randbytes(700_000)), entry("g", b"0" * 3_000_000))
    diff_id = "sha256:" + hashlib.sha256(tar).hexdigest()
    half = len(tar) // 2
    blobs = {
        "gzip": gzip.compress(tar, 1),
        "gzip members": gzip.compress(tar[:half], 1) + gzip.compress(tar[half:], 1),
        "zstd": zstandard.compress(tar),
        "zstd frames": b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + zstandard.compress(tar[:half]) + zstandard.compress(tar[half:]),
        "xz": lzma.compress(tar, preset=0),
        "xz streams": lzma.compress(tar[:half], preset=0) + lzma.compress(tar[half:], preset=0),
        "bzip2": __import__("bz2").compress(tar, 1),
        "plain": tar,
    }  # fmt: skip
    for name, blob in blobs.items():
        out, _ = unpack(blob, tmp_path, diff_id=diff_id)
        assert (out / "g").stat().st_size == 3_000_000, name
        with pytest.raises(InvalidParameter):
            unpack(blob[: len(blob) - len(blob) // 3], tmp_path, diff_id=diff_id)


def test_many_tiny_gzip_members(tmp_path: Path) -> None:
    tar = make(*(entry(f"f{n}", b"x" * n) for n in range(400)))
    blob = b"".join(gzip.compress(tar[at : at + 512], 1) for at in range(0, len(tar), 512))
    out, _ = unpack(blob, tmp_path, diff_id="sha256:" + hashlib.sha256(tar).hexdigest())
    assert len(list(out.iterdir())) == 400


def test_wrong_diff_id(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="wrong diff id"):
        unpack(make(entry("f", b"1")), tmp_path, diff_id="sha256:" + "0" * 64)


def test_trailing_bytes_count_for_the_diff_id(tmp_path: Path) -> None:
    tar = make(entry("f", b"1")) + bytes(100_000)
    out, _ = unpack(tar, tmp_path)
    assert (out / "f").read_bytes() == b"1"


def test_later_entries_replace_earlier_ones(tmp_path: Path) -> None:
    tar = make(
        entry("a", b"first", mode=0o600),
        entry("a", b"second", mode=0o644),
        folder("d", 0o700),
        entry("d/x", b"1"),
        folder("d", 0o755),
        folder("gone"),
        entry("gone/x", b"1"),
        symlink("gone", "d"),
        symlink("s", "nowhere"),
        entry("s", b"file now"),
        entry("t", b"file"),
        folder("t"),
        entry("t/in", b"in"),
        hardlink("h", "a"),
        hardlink("h", "a"),
    )
    out, _ = unpack(tar, tmp_path)
    found = describe(out)
    assert found["a"][4] == b"second"
    assert found["d"][1] == 0o755
    assert found["d/x"][4] == b"1"
    assert found["gone"][4] == "d"
    assert found["s"][4] == b"file now"
    assert found["t/in"][4] == b"in"
    assert found["h"][4] == b"second"


def test_directory_times_are_set_last(tmp_path: Path) -> None:
    out, _ = unpack(make(folder("d", mtime=5), entry("d/x", b"1"), entry("d/y", b"1")), tmp_path)
    assert (out / "d").stat().st_mtime == 5


def test_restrictive_umask_changes_nothing(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        out, _ = unpack(make(entry("f", b"1", mode=0o666), folder("d", 0o777), entry("i/x", b"1")), tmp_path)
    finally:
        os.umask(old)
    assert stat.S_IMODE((out / "f").stat().st_mode) == 0o666
    assert stat.S_IMODE((out / "d").stat().st_mode) == 0o777
    assert stat.S_IMODE((out / "i").stat().st_mode) == 0o755


def test_names_through_links_stay_inside(tmp_path: Path) -> None:
    tar = make(folder("real"), symlink("abs", "/real"), symlink("up", "../../../real"), symlink("void", "/made/here"),
               entry("abs/a", b"1"), entry("up/b", b"2"), entry("void/c", b"3"))  # fmt: skip
    out, _ = unpack(tar, tmp_path)
    assert sorted(os.listdir(out / "real")) == ["a", "b"]
    assert (out / "made/here/c").read_bytes() == b"3"


def test_hard_link_to_a_link(tmp_path: Path) -> None:
    out, _ = unpack(make(symlink("l", "/etc/shadow"), hardlink("h", "l")), tmp_path)
    assert os.readlink(out / "h") == "/etc/shadow"


# --- whiteouts


def test_whiteouts_in_overlay_form(tmp_path: Path) -> None:
    tar = make(
        entry("d/.wh.gone"),
        folder("opaque", 0o711),
        entry("opaque/.wh..wh..opq"),
        entry("opaque/new", b"1"),
        folder("late"),
        entry("late/x", b"1"),
        entry("late/.wh..wh..opq"),
        entry(".wh.again"),
        folder("again"),
        folder("both"),
        entry(".wh.both"),
        entry(".wh.file"),
        entry("file", b"new"),
        entry(".wh.deep"),
        entry("deep/x", b"1"),
        entry(".wh..wh.plnk/1", b"aufs"),
        entry(".wh..wh.aufs", b""),
    )
    out, applied = unpack(tar, tmp_path)
    found = describe(out)
    assert found["d/gone"][0] == "c"
    assert found["d/gone"][4] == (0, 0)
    opaque = {"opaque", "late", "again", "both", "deep"}
    for name in ["d", *opaque]:
        assert ("trusted.overlay.opaque" in os.listxattr(out / name)) == (name in opaque), name
    assert found["file"][4] == b"new"
    assert found["late/x"][4] == b"1"
    assert not any(".wh." in name for name in found if not name.startswith(".wh..wh.plnk"))
    assert applied.implicit >= {b"", b"d"}
    assert b"deep" not in applied.implicit


def test_opaque_root(tmp_path: Path) -> None:
    _, applied = unpack(make(entry(".wh..wh..opq"), entry("x", b"1")), tmp_path)
    assert applied.opaque_root


def test_whiteouts_in_plain_form(tmp_path: Path) -> None:
    target = tmp_path / "root"
    for name in ("gone/deep/x", "opaque/old", "opaque/kept/old", "stay/x", "again/old"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("lower")
    tar = make(
        entry(".wh.gone"),
        entry("opaque/kept/new", b"new"),
        entry("opaque/.wh..wh..opq"),
        entry(".wh.again"),
        entry("again/new", b"new"),
        entry(".wh.absent"),
        entry("stay/.wh.x"),
        entry("stay/x", b"upper"),
    )
    from dray.store.layers.unpack import unpack_layer
    from support.layers import source

    unpack_layer(source(tar, tmp_path), target, overlay=False)
    assert {name: value[4] for name, value in describe(target).items() if value[0] == "-"} == {
        "opaque/kept/new": b"new",
        "again/new": b"new",
        "stay/x": b"upper",
    }


# --- hard links below


def test_hard_link_below_needs_the_lower_layers(tmp_path: Path) -> None:
    with pytest.raises(NeedsLower):
        unpack(make(entry("x", b"1"), hardlink("d/new", "usr/lib/old")), tmp_path)


def test_hard_link_to_a_whited_out_name(tmp_path: Path) -> None:
    with pytest.raises((InvalidParameter, NeedsLower)):
        unpack(make(entry(".wh.old"), hardlink("new", "old")), tmp_path)


def test_real_tree_as_gnu_tar_sees_it(tmp_path: Path) -> None:
    """A tree of the host, written by GNU tar and unpacked by us, reads back the same."""
    for form in ("gnu", "posix", "ustar"):
        args = ["tar", "-C", "/etc", f"--format={form}", "--numeric-owner", "-cf", "-", "--exclude=*.lock", "."]
        tar = subprocess.run(args, check=True, capture_output=True).stdout
        out, _ = unpack(tar, tmp_path)
        reference = tmp_path / f"reference-{form}"
        reference.mkdir()
        subprocess.run(["tar", "-C", reference, "--numeric-owner", "-xpf", "-"], input=tar, check=True)
        assert describe(out) == describe(reference)
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            assert len(archive.getmembers()) == len(describe(out)) + 1
