"""The daemon's view of a root that is mounted nowhere."""

import os

import pytest

from dray.base.errors import InvalidParameter
from dray.engine import rootfs
from dray.linux import libc
from dray.runtime.model import Mount


@pytest.fixture
def layers(tmp_path):
    for name in ("one", "two", "upper", "work"):
        (tmp_path / name / "etc").mkdir(parents=True)
    (tmp_path / "work" / "etc").rmdir()
    (tmp_path / "one/etc/passwd").write_text("lower\n")
    (tmp_path / "two/etc/passwd").write_text("middle\n")
    words = (f"lowerdir={tmp_path}/two:{tmp_path}/one", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    return tmp_path, [Mount("overlay", "overlay", words)]


def mounts():
    with open("/proc/self/mountinfo") as file:
        return file.read()


@pytest.mark.parametrize("old_kernel", [False, True])
def test_layers_are_merged_and_nothing_stays_mounted(layers, monkeypatch, old_kernel):
    path, snapshot = layers
    if old_kernel:
        monkeypatch.setattr("dray.linux.mounts.add_lower_layers", lambda context, lower: False)
    (path / "upper/etc/group").write_text("top\n")
    before = mounts()
    with rootfs.mounted(snapshot) as root:
        assert rootfs.read_small_file(root, "/etc/passwd") == "middle\n"
        assert rootfs.read_small_file(root, "/etc/group") == "top\n"
        assert mounts() == before
    with rootfs.mounted(snapshot, read_only=False) as root:
        os.close(os.open("etc/new", os.O_CREAT | os.O_WRONLY, dir_fd=root))
    assert (path / "upper/etc/new").exists()
    assert mounts() == before


def test_links_do_not_lead_out(layers):
    path, snapshot = layers
    secret = path / "secret"
    secret.write_text("host\n")
    (path / "upper/etc/passwd").symlink_to(secret)
    (path / "upper/up").symlink_to("../../../../../../../.." + str(secret))
    with rootfs.mounted(snapshot) as root:
        assert rootfs.read_small_file(root, "/etc/passwd") == ""
        assert rootfs.read_small_file(root, "/up") == ""


def test_only_small_regular_files_are_read(layers):
    path, snapshot = layers
    os.mkfifo(path / "upper/etc/fifo")
    (path / "upper/etc/large").write_bytes(b"x" * 100)
    with rootfs.mounted(snapshot) as root:
        assert rootfs.read_small_file(root, "/etc/fifo") == ""
        with pytest.raises(InvalidParameter, match="larger than 10 bytes"):
            rootfs.read_small_file(root, "/etc/large", limit=10)


def test_many_layers(tmp_path):
    lower = []
    for number in range(60):
        (tmp_path / f"layer-with-a-long-name-{number}").mkdir()
        (tmp_path / f"layer-with-a-long-name-{number}" / str(number)).write_text("x")
        lower.append(f"{tmp_path}/layer-with-a-long-name-{number}")
    with rootfs.mounted([Mount("overlay", "overlay", (f"lowerdir={':'.join(lower)}",))]) as root:
        assert len(os.listdir(root)) == 60
        assert libc.statfs(root).type == libc.OVERLAYFS_SUPER_MAGIC
