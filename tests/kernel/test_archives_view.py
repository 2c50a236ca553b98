"""The file system of a container that does not run, put together in a mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dray.base.errors import Forbidden
from dray.engine import rootfs
from dray.engine.archives.view import MissingPoints, Point, View, check_writable, of_running, of_stopped
from dray.runtime.model import Mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")


@dataclass
class Ground:
    """An overlay's directories, sources to mount, and a place for it."""

    path: Path
    mount: Mount

    def view(self, *points: Point, writable: bool = False) -> View:
        return of_stopped(self.mount, points, str(self.path / "place"), writable=writable)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    for name in ("lower/data", "lower/etc", "upper", "work", "place", "volume", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lower/etc/hosts").write_text("lower")
    (tmp_path / "upper/written").write_text("upper")
    (tmp_path / "volume/file").write_text("volume")
    words = (f"lowerdir={tmp_path}/lower", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    before = Path("/proc/self/mountinfo").read_text()
    yield Ground(tmp_path, Mount("overlay", "overlay", words))
    assert Path("/proc/self/mountinfo").read_text() == before


def read(view: View, path: str) -> str:
    with os.fdopen(rootfs.open_in(view.root, path, os.O_RDONLY)) as file:
        return file.read()


def test_root_and_mounts_are_seen(ground: Ground) -> None:
    volume = Point("/data", str(ground.path / "volume"))
    hosts = Point("/etc/hosts", str(ground.path / "volume/file"), recursive=False)
    view = ground.view(volume, hosts)
    assert read(view, "/written") == "upper"
    assert read(view, "/data/file") == read(view, "/etc/hosts") == "volume"
    assert not os.listdir(ground.path / "place")
    view.close()
    assert not os.listdir(ground.path / "lower/data")


def test_reading_changes_nothing(ground: Ground) -> None:
    view = ground.view()
    with pytest.raises(OSError, match="Read-only"):
        rootfs.open_in(view.root, "/new", os.O_WRONLY | os.O_CREAT)
    view.close()


def test_writing_goes_to_the_upper_directory_and_the_volume(ground: Ground) -> None:
    view = ground.view(Point("/data", str(ground.path / "volume")), writable=True)
    for path in ("etc/new", "data/new"):
        above, base = path.split("/")
        fd = rootfs.open_in(view.root, above, os.O_PATH)
        os.close(os.open(base, os.O_WRONLY | os.O_CREAT, dir_fd=fd))
        os.close(fd)
    view.close()
    assert (ground.path / "upper/etc/new").exists()
    assert (ground.path / "volume/new").exists()
    assert not (ground.path / "upper/data").exists()


def test_read_only_mounts_stay_so(ground: Ground) -> None:
    view = ground.view(Point("/data", str(ground.path / "volume"), rw=False), writable=True)
    fd = rootfs.open_in(view.root, "/data", os.O_PATH)
    with pytest.raises(OSError, match="Read-only"):
        os.open("x", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
    os.close(fd)
    with pytest.raises(Forbidden, match="mounted volume is marked read-only"):
        check_writable(view, "data/deeper", read_only_root=False)
    check_writable(view, "database", read_only_root=False)
    with pytest.raises(Forbidden, match="container rootfs is marked read-only"):
        check_writable(view, "database", read_only_root=True)
    view.close()


def test_mount_points_are_made_by_writing_views_only(ground: Ground) -> None:
    point = Point("/new/point", str(ground.path / "volume"))
    with pytest.raises(MissingPoints):
        ground.view(point)
    ground.view(point, writable=True).close()
    assert (ground.path / "upper/new/point").is_dir()
    view = ground.view(point)
    assert read(view, "/new/point/file") == "volume"
    view.close()


def test_mount_points_behind_links_stay_inside(ground: Ground) -> None:
    os.symlink(f"{'../' * 20}{ground.path}/outside", ground.path / "upper/climbing")
    os.symlink(ground.path / "outside", ground.path / "upper/absolute")
    points = [Point(f"/{name}/point", str(ground.path / "volume")) for name in ("climbing", "absolute")]
    ground.view(*points, writable=True).close()
    assert not os.listdir(ground.path / "outside")


def test_the_deepest_mount_counts(ground: Ground) -> None:
    outer, inner = Point("/data", "a"), Point("/data/inner", "b", rw=False)
    view = ground.view()
    view.points = [outer, inner]
    assert view.point_of("data/inner/x") is inner
    assert view.point_of("data/inner2") is outer
    assert view.point_of("datum") is None
    view.close()


def test_nothing_is_left_of_a_view_that_fails(ground: Ground) -> None:
    before = len(os.listdir("/proc/self/fd"))
    broken = Mount("overlay", "overlay", ("lowerdir=/nosuch/a:/nosuch/b",))
    with pytest.raises(OSError, match="No such file"):
        of_stopped(broken, [], str(ground.path / "place"), writable=False)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_dropped_view_closes_itself(ground: Ground) -> None:
    before = len(os.listdir("/proc/self/fd"))
    view = ground.view()
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del view
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_the_containers_own_process_is_looked_at() -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        try:
            assert of_running(process.pid, "0" * 64, []) is None
        finally:
            process.kill()
    assert of_running(process.pid, "0" * 64, []) is None
