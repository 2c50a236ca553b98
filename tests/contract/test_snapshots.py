"""One suite on every storage driver (`store.snapshots.Snapshots`)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dray.base.errors import Conflict, Internal, InvalidParameter, NotFound, Unavailable, Unsupported
from dray.engine import rootfs
from dray.linux import btrfs
from dray.runtime.model import Mount
from dray.runtime.operations import MountRoot
from dray.runtime.served import attachable, serve
from dray.runtime.stage import Stage
from dray.store.btrfs import Btrfs
from dray.store.erofs.driver import Erofs, probe
from dray.store.fuseoverlay import FuseOverlay
from dray.store.layers.diff import write_layer
from dray.store.metadata import Metadata
from dray.store.overlay import Overlay
from dray.store.snapshots import LayerSource
from dray.store.vfs import Vfs
from support.disks import disk
from support.layers import describe, entry, folder, hardlink, make, source, symlink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

Driver = Overlay | Vfs | Btrfs | FuseOverlay | Erofs
DRIVERS: dict[str, type[Driver]] = {kind.name: kind for kind in (Overlay, Vfs, Btrfs, FuseOverlay, Erofs)}
Opener = Callable[[], Driver]


@pytest.fixture(scope="session")
def btrfs_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A btrfs of its own, on a loop device."""
    if shutil.which("mkfs.btrfs") is None or "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("btrfs: no mkfs.btrfs (btrfs-progs), or a kernel without it")
    folder = tmp_path_factory.mktemp("btrfs")
    with disk(folder, "mkfs.btrfs", "-q", size=1 << 30) as path:
        yield path


@pytest.fixture(params=["overlay2", "vfs", "btrfs", "fuse-overlayfs", "erofs"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Open the driver, or open it again as after a kill."""
    opened: list[tuple[Driver, Metadata]] = []
    kind = DRIVERS[request.param]
    root = tmp_path / "data" / request.param
    root.parent.mkdir()
    if request.param == "btrfs":
        below = request.getfixturevalue("btrfs_disk") / tmp_path.name
        below.mkdir()
        root.symlink_to(below)
    if request.param == "fuse-overlayfs" and not (shutil.which("fuse-overlayfs") and os.path.exists("/dev/fuse")):
        pytest.skip("fuse-overlayfs: the program or /dev/fuse is missing")

    if request.param == "erofs":
        try:
            probe(root.parent)
        except Unsupported as error:
            pytest.skip(str(error))

    def close() -> None:
        for driver, records in opened:
            driver.close()
            records.close()
        opened.clear()

    def again() -> Driver:
        close()
        records = Metadata(tmp_path / "data" / "metadata.db")
        opened.append((kind(root, records), records))
        return opened[0][0]

    yield again
    close()


@pytest.fixture
def driver(reopen: Opener) -> Driver:
    return reopen()


@contextlib.contextmanager
def mounted(mounts: list[Mount], at: Path) -> Iterator[Path]:
    """Mount as the runtime does."""
    at.mkdir(exist_ok=True)
    with attachable(mounts) as (mount,):
        MountRoot(str(at), (mount,)).execute(stage := Stage(cgroup_paths={}, enter_cgroup=lambda: None))
    os.close(stage.root)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


def stack(folder: Path, *tars: bytes) -> list[LayerSource]:
    sources: list[LayerSource] = []
    for number, tar in enumerate(tars):
        parent = sources[-1].chain_id if sources else None
        sources.append(source(tar, folder, chain_id=f"sha256:{number:064x}", parent=parent))
    return sources


def contents(driver: Driver, key: str, tmp_path: Path) -> dict[str, object]:
    with mounted(driver.mounts(key), tmp_path / "look") as root:
        return {name: what[4] if what[0] in "-l" else what[0] for name, what in describe(root).items()}


BASE = make(
    folder("./", 0o751, uid=3),
    folder("etc", 0o750, uid=1, gid=2, mtime=77),
    entry("etc/a", b"a"),
    entry("etc/b", b"b"),
    folder("var/lib/deep", 0o700),
    entry("var/lib/deep/x", b"x"),
    symlink("lib", "usr/lib"),
    entry("usr/lib/so", b"so", mode=0o755, uid=9),
)


def test_layers_stack(driver: Driver, tmp_path: Path) -> None:
    top = make(entry("etc/.wh.a"), entry("etc/c", b"c"), entry("var/lib/.wh.deep"), entry("new/d", b"d"))
    layers = stack(tmp_path, BASE, top)
    driver.unpack(layers)
    driver.prepare("c1", layers[1].chain_id)
    found = contents(driver, "c1", tmp_path)
    assert found == {
        "etc": "d", "etc/b": b"b", "etc/c": b"c", "var": "d", "var/lib": "d", "lib": "usr/lib",
        "usr": "d", "usr/lib": "d", "usr/lib/so": b"so", "new": "d", "new/d": b"d",
    }  # fmt: skip


def test_unlisted_directories_keep_their_attributes(driver: Driver, tmp_path: Path) -> None:
    """The middle layer says nothing about / and etc, the top one neither: both must look as in the base."""
    layers = stack(tmp_path, BASE, make(entry("etc/n", b"1")), make(entry("etc/m", b"2")))
    driver.unpack(layers)
    driver.prepare("c1", layers[-1].chain_id)
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        status = (root / "etc").stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o750, 1, 2)
        assert (root.stat().st_mode & 0o7777, root.stat().st_uid) == (0o751, 3)


def test_unlisted_directories_keep_their_xattrs(driver: Driver, tmp_path: Path) -> None:
    base = make(folder("etc", 0o700, pax={"SCHILY.xattr.user.note": "kept"}), entry("etc/a", b"a"))
    layers = stack(tmp_path, base, make(entry("etc/n", b"1")))
    driver.unpack(layers)
    driver.prepare("c1", layers[-1].chain_id)
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        assert os.getxattr(root / "etc", "user.note") == b"kept"
        assert (root / "etc").stat().st_mode & 0o7777 == 0o700
        assert sorted(os.listdir(root / "etc")) == ["a", "n"]


def test_a_replaced_directory_does_not_inherit(driver: Driver, tmp_path: Path) -> None:
    layers = stack(tmp_path, BASE, make(entry(".wh.etc")), make(entry("etc/new", b"1")))
    driver.unpack(layers)
    driver.prepare("c1", layers[-1].chain_id)
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        assert os.listdir(root / "etc") == ["new"]
        assert (root / "etc").stat().st_mode & 0o7777 == 0o755
        assert (root / "etc").stat().st_uid == 0


def test_opaque_directory_and_root(driver: Driver, tmp_path: Path) -> None:
    layers = stack(tmp_path, BASE, make(folder("etc"), entry("etc/.wh..wh..opq"), entry("etc/z", b"z")),
                   make(entry("over", b"1"), entry(".wh..wh..opq")))  # fmt: skip
    driver.unpack(layers)
    driver.prepare("c1", layers[1].chain_id)
    assert {name for name in contents(driver, "c1", tmp_path) if name.startswith("etc/")} == {"etc/z"}
    driver.prepare("c2", layers[2].chain_id)
    assert contents(driver, "c2", tmp_path) == {"over": b"1"}


def test_hard_link_into_a_lower_layer(driver: Driver, tmp_path: Path) -> None:
    top = make(hardlink("usr/lib/so.1", "usr/lib/so"), hardlink("so.2", "usr/lib/so.1"))
    later = make(entry("usr/lib/so", b"replaced"))
    layers = stack(tmp_path, BASE, make(entry("other", b"o")), top, later)
    driver.unpack(layers)
    driver.prepare("c1", layers[2].chain_id)
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        status = [os.stat(root / name) for name in ("usr/lib/so", "usr/lib/so.1", "so.2")]
        assert {item.st_ino for item in status} == {status[0].st_ino}
        assert (status[0].st_uid, status[0].st_mode & 0o777) == (9, 0o755)
        assert (root / "so.2").read_bytes() == b"so"
    driver.prepare("c2", layers[3].chain_id)
    assert contents(driver, "c2", tmp_path)["so.2"] == b"so"
    assert contents(driver, "c2", tmp_path)["usr/lib/so"] == b"replaced"


def test_hard_link_to_nowhere(driver: Driver, tmp_path: Path) -> None:
    layers = stack(tmp_path, BASE, make(hardlink("x", "not/there")))
    with pytest.raises(InvalidParameter, match="nowhere"):
        driver.unpack(layers)
    assert driver.exists(layers[0].chain_id)
    assert not driver.exists(layers[1].chain_id)


def test_a_failed_layer_leaves_nothing(driver: Driver, tmp_path: Path, reopen: Opener) -> None:
    good, bad = stack(tmp_path, make(entry("x", b"1")), make(entry("../x", b"1")))
    with pytest.raises(InvalidParameter):
        driver.unpack([good, bad])
    assert not driver.exists(bad.chain_id)
    assert len(driver.list()) <= 1
    driver.unpack([good])
    driver.prepare("c", good.chain_id)
    assert contents(driver, "c", tmp_path) == {"x": b"1"}


def test_writes_stay_apart(driver: Driver, tmp_path: Path) -> None:
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    driver.prepare("c1", layer.chain_id)
    driver.prepare("c2", layer.chain_id)
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        (root / "etc/a").write_text("changed")
        (root / "mine").write_text("12345")
        (root / "etc/b").unlink()
    assert "mine" not in contents(driver, "c2", tmp_path)
    assert contents(driver, "c2", tmp_path)["etc/b"] == b"b"
    assert contents(driver, layer.chain_id, tmp_path)["etc/a"] == b"a"
    assert driver.usage("c1").size == len("changed12345")
    assert driver.usage("c2").size == 0


def test_nothing_below(driver: Driver, tmp_path: Path) -> None:
    driver.prepare("scratch", None)
    with mounted(driver.mounts("scratch"), tmp_path / "m") as root:
        assert os.listdir(root) == []
        (root / "f").write_text("1")
        assert root.stat().st_mode & 0o7777 == 0o755
    assert contents(driver, "scratch", tmp_path) == {"f": b"1"}
    assert [(change.path, change.kind) for change in driver.changes("scratch")] == [("/f", "A")]


def test_views_are_read_only(driver: Driver, tmp_path: Path) -> None:
    layers = stack(tmp_path, BASE, make(entry("top", b"1")))
    driver.unpack(layers)
    for key in ("v1", "v2"):
        driver.prepare(key, layers[int(key[1]) - 1].chain_id, read_only=True)
        with mounted(driver.mounts(key), tmp_path / "m") as root:
            assert (root / "etc/a").read_text() == "a"
            with pytest.raises(OSError, match="Read-only"):
                (root / "new").write_text("x")
    assert {info.kind for info in driver.list()} == {"committed", "view"}


def test_keys(driver: Driver, tmp_path: Path) -> None:
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    driver.prepare("c1", layer.chain_id)
    with pytest.raises(Conflict):
        driver.prepare("c1", layer.chain_id)
    with pytest.raises(NotFound):
        driver.prepare("c2", "sha256:" + "f" * 64)
    for key in ("", "../x", "a/b", ".hidden", "x\n"):
        with pytest.raises(InvalidParameter):
            driver.prepare(key, None)
    for verb in (driver.mounts, driver.upper, driver.usage, driver.changes, driver.remove):
        with pytest.raises(NotFound):
            verb("nobody")
    with pytest.raises(Conflict):
        driver.remove(layer.chain_id)
    driver.remove("c1")
    assert not driver.exists("c1")
    driver.remove(layer.chain_id)
    assert driver.list() == []


def test_changes(driver: Driver, tmp_path: Path) -> None:
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    driver.prepare("c1", layer.chain_id)
    assert driver.changes("c1") == []
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        (root / "etc/a").write_text("changed")
        (root / "etc/b").unlink()
        (root / "new/sub").mkdir(parents=True)
        (root / "new/sub/f").write_text("1")
        subprocess.run(["rm", "-r", root / "var/lib/deep"], check=True)
        os.symlink("x", root / "link")
        os.chmod(root / "usr/lib/so", 0o700)
    assert [(change.path, change.kind) for change in driver.changes("c1")] == [
        ("/etc", "C"), ("/etc/a", "C"), ("/etc/b", "D"), ("/link", "A"), ("/new", "A"), ("/new/sub", "A"),
        ("/new/sub/f", "A"), ("/usr", "C"), ("/usr/lib", "C"), ("/usr/lib/so", "C"), ("/var", "C"),
        ("/var/lib", "C"), ("/var/lib/deep", "D"),
    ]  # fmt: skip


def test_a_directory_made_anew(driver: Driver, tmp_path: Path) -> None:
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    driver.prepare("c1", layer.chain_id)
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        subprocess.run(["rm", "-r", root / "etc"], check=True)
        (root / "etc").mkdir()
        (root / "etc/b").write_text("other")
    kinds = {change.path: change.kind for change in driver.changes("c1")}
    assert kinds == {"/etc": "C", "/etc/a": "D", "/etc/b": "C"}


def test_a_layer_of_the_changes_gives_the_same_tree(driver: Driver, tmp_path: Path) -> None:
    """diff, then apply on the same base: the two trees are the same, and so are two runs of the writer."""
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    driver.prepare("c1", layer.chain_id)
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        (root / "etc/a").write_text("changed")
        (root / "etc/b").unlink()
        subprocess.run(["rm", "-r", root / "var"], check=True)
        (root / "var").mkdir(mode=0o711)
        (root / "var" / ("long" * 40)).mkdir()
        (root / "var" / ("long" * 40) / "ü").write_text("u" * 10_000)
        os.link(root / "etc/a", root / "hard")
        os.mkfifo(root / "fifo")
        os.chown(root / "fifo", 3_000_000, 5)
        os.setxattr(root / "etc/a", "user.note", b"kept \n\0 bytes")
        expected = describe(root)
    changes = driver.changes("c1")
    tar = b"".join(write_layer(driver.upper("c1"), changes))
    assert tar == b"".join(write_layer(driver.upper("c1"), changes))
    again = source(tar, tmp_path, chain_id="sha256:" + "e" * 64, parent=layer.chain_id)
    driver.unpack([layer, again])
    driver.prepare("c2", again.chain_id)
    with mounted(driver.mounts("c2"), tmp_path / "m") as root:
        assert describe(root) == expected
        assert os.getxattr(root / "etc/a", "user.note") == b"kept \n\0 bytes"
        assert (root / "hard").stat().st_ino == (root / "etc/a").stat().st_ino


def test_commit(driver: Driver, tmp_path: Path) -> None:
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    driver.prepare("c1", layer.chain_id)
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        (root / "etc/a").unlink()
        (root / "added").write_text("1")
    driver.commit("c1", "sha256:" + "d" * 64, "sha256:" + "c" * 64)
    assert not driver.exists("c1")
    driver.prepare("c1", "sha256:" + "d" * 64)
    found = contents(driver, "c1", tmp_path)
    assert found["added"] == b"1"
    assert "etc/a" not in found


def test_everything_is_there_after_a_restart(reopen: Opener, tmp_path: Path) -> None:
    driver = reopen()
    layers = stack(tmp_path, BASE, make(entry("x", b"1")))
    driver.unpack(layers)
    driver.prepare("c1", layers[1].chain_id)
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        (root / "mine").write_text("1")
    before = sorted(driver.list(), key=str)
    driver = reopen()
    assert sorted(driver.list(), key=str) == before
    assert contents(driver, "c1", tmp_path)["mine"] == b"1"
    driver.prepare("c2", layers[0].chain_id)


def test_leftovers_of_a_crash_go(reopen: Opener, tmp_path: Path) -> None:
    driver = reopen()
    root = tmp_path / "data" / driver.name
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    driver.prepare("c1", layer.chain_id)
    driver.empty_trash()
    (root / "zz" / "diff").mkdir(parents=True)
    (root / "zz" / "diff" / "half").write_text("unpacked")
    (root / "trash" / "old").mkdir()
    driver = reopen()
    driver.empty_trash()
    assert not (root / "zz").exists()
    assert os.listdir(root / "trash") == []
    assert contents(driver, "c1", tmp_path)["etc/a"] == b"a"
    assert driver.exists(layer.chain_id)


def test_layers_torn_by_a_power_loss_are_unpacked_again(
    reopen: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = reopen()
    settled, torn = stack(tmp_path, BASE, make(entry("x", b"1")))
    driver.unpack([settled])
    driver.settle()
    monkeypatch.setattr("dray.store.ledger.Ledger.settle_later", lambda self: None)
    driver.unpack([settled, torn])
    driver.prepare("c1", torn.chain_id)
    monkeypatch.setattr("dray.store.ledger.boot_id", lambda: "another boot")
    driver = reopen()
    assert driver.exists(settled.chain_id)
    assert not driver.exists(torn.chain_id)
    with pytest.raises(NotFound):
        driver.mounts("c1") if driver.name == "overlay2" else driver.mounts(torn.chain_id)
    driver.unpack([settled, torn])
    assert contents(driver, "c1", tmp_path)["x"] == b"1"


def test_an_upper_directory_lost_by_a_power_loss_is_made_anew(reopen: Opener, tmp_path: Path) -> None:
    driver = reopen()
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    driver.prepare("c1", layer.chain_id)
    subprocess.run(["rm", "-r", driver.upper("c1").parent], check=True)
    driver = reopen()
    assert contents(driver, "c1", tmp_path)["etc/a"] == b"a"
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        assert root.stat().st_mode & 0o7777 == 0o751


def test_another_user_cannot_walk_in(driver: Driver, tmp_path: Path) -> None:
    """CVE-2021-41091: files with set-user-id bits inside layers are out of reach of the host's users."""
    (layer,) = stack(tmp_path, make(folder("./", 0o777), entry("suid", b"#!/bin/sh\n", mode=0o4755)))
    driver.unpack([layer])
    driver.prepare("c1", layer.chain_id)
    for parent in [tmp_path, *tmp_path.parents][:-2]:
        os.chmod(parent, os.stat(parent).st_mode | 0o711)
    for key in (layer.chain_id, "c1"):
        target = driver.upper(key)
        result = subprocess.run(["ls", target], user=65534, group=65534, capture_output=True, check=False)
        assert result.returncode != 0
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        assert root.stat().st_mode & 0o7777 == 0o777


def test_many_layers_fit_into_the_mount_options(driver: Driver, tmp_path: Path) -> None:
    tars = [make(entry(f"f{number}", b"1")) for number in range(60)]
    layers = stack(tmp_path, *tars)
    driver.unpack(layers)
    driver.prepare("c1", layers[-1].chain_id)
    assert len(contents(driver, "c1", tmp_path)) == 60


def test_unpack_reports_progress(driver: Driver, tmp_path: Path) -> None:
    layers = stack(tmp_path, BASE, make(entry("x", os.urandom(3 << 20))))
    told: list[tuple[str, int, int]] = []
    driver.unpack(layers, lambda *what: told.append(what))
    for layer in layers:
        steps = [done for key, done, total in told if key == layer.chain_id and total == layer.size]
        assert steps == sorted(steps)
        assert steps[-1] == layer.size


def test_large_layers_in_processes(driver: Driver, tmp_path: Path) -> None:
    """From a size on, layers are unpacked by processes; the outcome and the errors are the same."""
    big = entry("big", os.urandom(9 << 20))
    above = make(big, entry("etc/n\udcff", b"odd name"), folder("o"), entry("o/.wh..wh..opq"))
    linked = make(big, hardlink("l", "etc/a"))
    told: list[tuple[str, int, int]] = []
    layers = stack(tmp_path, BASE, above, linked)
    driver.unpack(layers, lambda *what: told.append(what))
    driver.prepare("c1", layers[-1].chain_id)
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        assert (root / "etc").stat().st_mode & 0o7777 == 0o750
        assert (root / "etc/n\udcff").read_bytes() == b"odd name"
        assert (root / "l").stat().st_ino == (root / "etc/a").stat().st_ino
        assert (root / "big").stat().st_size == 9 << 20
    assert any(key == layers[1].chain_id and done == total for key, done, total in told)
    bad = stack(tmp_path, BASE, make(big, entry("../x", b"1")))
    bad[1] = LayerSource("sha256:" + "9" * 64, bad[0].chain_id, bad[1].diff_id, bad[1].open, size=bad[1].size)
    extra = LayerSource("sha256:" + "8" * 64, bad[1].chain_id, bad[0].diff_id, bad[0].open, size=bad[0].size)
    with pytest.raises(InvalidParameter, match="leaves the root"):
        driver.unpack([*bad, extra])
    assert not driver.exists(bad[1].chain_id)


def test_hostile_layers_stay_inside(driver: Driver, tmp_path: Path) -> None:
    """A layer writes, links and deletes through links of a lower one: nothing outside is touched."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    out = str(tmp_path)
    base = make(
        symlink("abs", out), symlink("rel", "../../../../../../../../../.." + out), symlink("file", str(victim))
    )
    top = make(
        entry("abs/victim", b"evil"), entry("rel/.wh.victim"), entry("file", b"evil", mode=0o4777), entry("abs/.wh..wh..opq")
    )  # fmt: skip
    layers = stack(tmp_path, base, top)
    try:
        driver.unpack(layers)
    except InvalidParameter:
        pass
    else:
        driver.prepare("c", layers[-1].chain_id)
        with mounted(driver.mounts("c"), tmp_path / "m") as root:
            assert not (root / "abs").is_symlink() or driver.name in ("vfs", "btrfs")
        driver.changes("c")
    assert victim.read_text() == "untouched"
    assert victim.stat().st_mode & 0o7000 == 0


def test_a_daemon_killed_while_it_unpacks(reopen: Opener, tmp_path: Path) -> None:
    layers = stack(tmp_path, BASE, make(entry("big", os.urandom(3 << 20)), entry("etc/c", b"c")))
    child = os.fork()
    if child == 0:
        try:
            driver = reopen()
            driver.unpack(layers[:1])
            driver.unpack(layers, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    driver = reopen()
    root = tmp_path / "data" / driver.name
    driver.empty_trash()
    assert driver.exists(layers[0].chain_id)
    assert not driver.exists(layers[1].chain_id)
    assert os.listdir(root / "trash") == []
    assert len({entry.name for entry in root.iterdir()} - {"trash", "l"}) == 1
    driver.unpack(layers)
    driver.prepare("c", layers[1].chain_id)
    assert contents(driver, "c", tmp_path)["etc/c"] == b"c"


@pytest.mark.parametrize("reopen", ["overlay2", "btrfs"], indirect=True)
def test_a_full_disk(reopen: Opener, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The error says that the disk is full, nothing is left, and what fits can be unpacked afterwards."""
    kind = request.node.callspec.params["reopen"]
    maker = ("mkfs.btrfs", "-q") if kind == "btrfs" else ("mkfs.ext4", "-q")
    context = disk(request.getfixturevalue("tmp_path_factory").mktemp("full"), *maker, size=200 << 20)
    place = tmp_path / "data" / kind
    place.unlink(missing_ok=True)
    place.symlink_to(context.__enter__())
    request.addfinalizer(lambda: context.__exit__(None, None, None))
    driver = reopen()
    request.addfinalizer(driver.close)
    good, bad = stack(tmp_path, BASE, make(*(entry(f"big{number}", bytes(24 << 20)) for number in range(10))))
    driver.unpack([good])
    with pytest.raises((Unavailable, OSError), match=r"no space left|No space left"):
        driver.unpack([good, bad])
    driver.empty_trash()
    assert not driver.exists(bad.chain_id)
    assert driver.exists(good.chain_id)
    driver.prepare("c", good.chain_id)
    assert contents(driver, "c", tmp_path)["etc/a"] == b"a"


@pytest.mark.parametrize("reopen", ["btrfs"], indirect=True)
def test_subvolumes_that_a_container_made(reopen: Opener, tmp_path: Path) -> None:
    """They go with the container, at any depth; a layer made of it has directories in their place."""
    driver = reopen()
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    for key in ("c1", "c2"):
        driver.prepare(key, layer.chain_id)
        with mounted(driver.mounts(key), tmp_path / "m") as root:
            btrfs.create(root / "outer")
            (root / "outer/deep").mkdir()
            btrfs.create(root / "outer/deep/inner")
            (root / "outer/deep/inner/f").write_text("nested")
    assert ("/outer/deep/inner/f", "A") in [(change.path, change.kind) for change in driver.changes("c1")]
    driver.commit("c1", "sha256:" + "d" * 64, "sha256:" + "c" * 64)
    driver.prepare("c3", "sha256:" + "d" * 64)
    assert contents(driver, "c3", tmp_path)["outer/deep/inner/f"] == b"nested"
    driver.remove("c2")
    driver.remove("c3")
    driver.empty_trash()
    root = tmp_path / "data" / "btrfs"
    assert os.listdir(root / "trash") == []
    left = [path.name for path in root.rglob("*") if path.is_dir() and btrfs.is_subvolume(path.lstat())]
    assert left == ["dir", "dir"]


@pytest.mark.parametrize("reopen", ["btrfs"], indirect=True)
def test_a_change_that_hides_its_time(reopen: Opener, tmp_path: Path) -> None:
    driver = reopen()
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    driver.prepare("c", layer.chain_id)
    with mounted(driver.mounts("c"), tmp_path / "m") as root:
        before = (root / "etc/a").stat()
        (root / "etc/a").write_text("b")
        os.utime(root / "etc/a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ("/etc/a", "C") in [(change.path, change.kind) for change in driver.changes("c")]


@pytest.mark.parametrize("reopen", ["overlay2"], indirect=True)
def test_kernels_that_take_layers_in_one_page_only(
    reopen: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = reopen()
    layers = stack(tmp_path, *[make(entry(f"f{number}", b"1")) for number in range(130)])
    driver.unpack(layers)
    driver.prepare("c", layers[-1].chain_id)
    monkeypatch.setattr("dray.linux.mounts.add_lower_layers", lambda context, layers: False)
    (mount,) = driver.mounts("c")
    assert len(",".join(mount.options)) > os.sysconf("SC_PAGESIZE")
    assert len(contents(driver, "c", tmp_path)) == 130
    with rootfs.mounted([mount]) as root:
        assert len(os.listdir(root)) == 130


@pytest.mark.parametrize("reopen", ["overlay2"], indirect=True)
def test_more_layers_than_the_kernel_stacks(reopen: Opener, tmp_path: Path) -> None:
    driver = reopen()
    layers = stack(tmp_path, *[make(entry(f"f{number}", b"1")) for number in range(500)])
    with pytest.raises(InvalidParameter, match="can stack 499"):
        driver.unpack(layers)
    assert driver.list() == []


@pytest.mark.parametrize("reopen", ["fuse-overlayfs"], indirect=True)
def test_the_server_ends_with_its_mount(reopen: Opener, tmp_path: Path) -> None:
    driver = reopen()
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    driver.prepare("c", layer.chain_id)
    tree, pid = serve(driver.mounts("c")[0])
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.close(tree)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    bad = Mount("fuse-overlayfs", "fuse-overlayfs", (f"lowerdir={tmp_path}/not/there",))
    with pytest.raises(Internal, match="fuse-overlayfs: "):
        serve(bad)


@pytest.mark.parametrize("reopen", ["erofs"], indirect=True)
def test_a_layer_is_mounted_once_and_held_by_a_descriptor(reopen: Opener, tmp_path: Path) -> None:
    """All that stand on it share its memory; the host sees no mount; a removed layer is let go."""
    driver = reopen()
    (layer,) = stack(tmp_path, BASE)
    before = Path("/proc/self/mountinfo").read_text()
    driver.unpack([layer])
    for key in ("c1", "c2"):
        driver.prepare(key, layer.chain_id)
    lower = {
        word for key in ("c1", "c2") for word in driver.mounts(key)[0].options if word.startswith("lowerdir=")
    }
    assert len(lower) == 1
    assert Path("/proc/self/mountinfo").read_text() == before
    held = Path(lower.pop().partition("=")[2])
    assert sorted(os.listdir(f"{held}/.")) == ["etc", "lib", "usr", "var"]
    for key in ("c1", "c2", layer.chain_id):
        driver.remove(key)
    assert not os.path.lexists(held)


@pytest.mark.parametrize("reopen", ["erofs"], indirect=True)
def test_a_layer_of_a_commit_lies_between_images(reopen: Opener, tmp_path: Path) -> None:
    driver = reopen()
    (layer,) = stack(tmp_path, BASE)
    driver.unpack([layer])
    driver.prepare("c1", layer.chain_id)
    with mounted(driver.mounts("c1"), tmp_path / "m") as root:
        (root / "etc/a").unlink()
    middle = "sha256:" + "d" * 64
    driver.commit("c1", middle, "sha256:" + "c" * 64)
    top = source(make(entry("etc/z", b"z"), hardlink("b2", "etc/b")), tmp_path, chain_id="sha256:" + "e" * 64,
                 parent=middle)  # fmt: skip
    driver.unpack([top])
    driver.prepare("c2", top.chain_id)
    found = contents(driver, "c2", tmp_path)
    assert (found["etc/b"], found["b2"], found["etc/z"]) == (b"b", b"b", b"z")
    assert "etc/a" not in found
    assert [change.path for change in driver.changes(top.chain_id)] == ["/b2", "/etc", "/etc/b", "/etc/z"]
