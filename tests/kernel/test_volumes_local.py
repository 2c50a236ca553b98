"""The local volume driver."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dray.base.errors import Conflict, InvalidParameter, NotFound
from dray.store.metadata import Metadata
from dray.volumes.local import ANONYMOUS, Volumes, copy_up
from support.layers import describe

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and mounts need root")


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Callable[[], Volumes]]:
    records: list[Metadata] = []

    def again() -> Volumes:
        while records:
            records.pop().close()
        records.append(Metadata(tmp_path / "metadata.db"))
        return Volumes(tmp_path / "volumes", records[0])

    yield again
    while records:
        records.pop().close()
    for path in (tmp_path / "volumes").glob("*/_data"):
        subprocess.run(["umount", "-q", path], check=False)


@pytest.fixture
def volumes(reopen: Callable[[], Volumes]) -> Volumes:
    return reopen()


def test_create_inspect_list_remove(volumes: Volumes, tmp_path: Path) -> None:
    volume = volumes.create("data", labels={"a": "b"})
    assert volume.mountpoint == str(tmp_path / "volumes/data/_data")
    assert os.path.isdir(volume.mountpoint)
    assert volumes.inspect("data") == volume == volumes.create("data", labels={"ignored": "now"})
    assert not volumes.is_anonymous("data")
    anonymous = volumes.create()
    assert len(anonymous.name) == 64
    assert anonymous.labels == {ANONYMOUS: ""}
    assert volumes.is_anonymous(anonymous.name)
    assert [item.name for item in volumes.list()] == sorted(["data", anonymous.name])
    Path(volume.mountpoint, "file").write_text("12345")
    assert volumes.size("data") == 5
    volumes.remove("data")
    assert not volumes.exists("data")
    assert not os.path.exists(volume.mountpoint)
    assert os.listdir(tmp_path / "volumes/.trash") == []


@pytest.mark.parametrize(
    ("verb", "kind", "words"),
    [
        (lambda v: v.create("x"), InvalidParameter, "volume name is too short"),
        (lambda v: v.create("a/b"), InvalidParameter, "includes invalid characters for a local volume name"),
        (lambda v: v.create("../x"), InvalidParameter, "includes invalid characters"),
        (lambda v: v.create("ok\n"), InvalidParameter, "includes invalid characters"),
        (lambda v: v.create("vol", driver="nosuch"), NotFound, 'plugin "nosuch" not found'),
        (lambda v: v.create("vol", options={"foo": "1"}), InvalidParameter, 'create vol: invalid option: "foo"'),
        (lambda v: v.create("vol", options={"type": "tmpfs"}), InvalidParameter, 'missing required option: "device"'),
        (lambda v: v.create("vol", options={"size": "1g"}), InvalidParameter, "quota size requested but no quota support"),
        (lambda v: v.inspect("nosuch"), NotFound, "^get nosuch: no such volume$"),
        (lambda v: v.remove("nosuch"), NotFound, "no such volume"),
        (lambda v: v.remove("used", in_use=["c1", "c2"]), Conflict, r"^remove used: volume is in use - \[c1, c2\]$"),
    ],
)  # fmt: skip
def test_errors(volumes: Volumes, verb: Callable[[Volumes], object], kind: type[Exception], words: str) -> None:
    volumes.create("used")
    with pytest.raises(kind, match=words):
        verb(volumes)
    assert [item.name for item in volumes.list()] == ["used"]


def test_force_removal_of_nothing(volumes: Volumes) -> None:
    volumes.remove("nosuch", force=True)


def test_copy_up(volumes: Volumes, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.mkdir(mode=0o1770)
    os.chmod(image, 0o1770)
    os.chown(image, 5, 6)
    (image / "sub").mkdir(mode=0o700)
    (image / "sub/file").write_text("text")
    os.chown(image / "sub/file", 7, 8)
    os.chmod(image / "sub/file", 0o4750)
    os.link(image / "sub/file", image / "hard")
    os.symlink("/etc/passwd", image / "link")
    os.mknod(image / "dev", 0o20600, os.makedev(1, 3))
    os.setxattr(image / "hard", "user.x", b"y")
    volume = volumes.create("data")
    assert copy_up(volume.mountpoint, image)
    target = Path(volume.mountpoint)
    assert describe(target) == describe(image)
    status = target.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o1770, 5, 6)
    assert (target / "hard").stat().st_ino == (target / "sub/file").stat().st_ino
    assert os.getxattr(target / "hard", "user.x") == b"y"
    (target / "link").unlink()
    assert not copy_up(volume.mountpoint, image), "it has files now"
    assert not (target / "link").is_symlink()


def test_copy_up_from_a_descriptor_of_a_sparse_file(volumes: Volumes, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.mkdir()
    with (image / "sparse").open("wb") as file:
        file.seek(50 << 20)
        file.write(b"end")
    volume = volumes.create("data")
    fd = os.open(image, os.O_RDONLY | os.O_DIRECTORY)
    try:
        copy_up(volume.mountpoint, fd)
    finally:
        os.close(fd)
    copy = os.stat(f"{volume.mountpoint}/sparse")
    assert copy.st_size == (50 << 20) + 3
    assert copy.st_blocks * 512 < 1 << 20


def test_plain_volume_mounts(volumes: Volumes) -> None:
    volume = volumes.create("data")
    mount = volumes.mounts_for("data")
    assert (mount.type, mount.source, mount.options) == ("bind", volume.mountpoint, ("rbind", "rw"))


def test_tmpfs_volume_is_mounted_once_and_released(volumes: Volumes) -> None:
    volume = volumes.create("tmp", options={"type": "tmpfs", "device": "tmpfs", "o": "size=4m,uid=1000"})
    assert not os.path.ismount(volume.mountpoint)
    assert volumes.mounts_for("tmp").source == volume.mountpoint
    assert os.path.ismount(volume.mountpoint)
    Path(volume.mountpoint, "shared").write_text("1")
    volumes.mounts_for("tmp")
    assert os.listdir(volume.mountpoint) == ["shared"]
    status = os.statvfs(volume.mountpoint)
    assert status.f_blocks * status.f_frsize == 4 << 20
    assert os.stat(volume.mountpoint).st_uid == 1000
    volumes.release("tmp")
    assert not os.path.ismount(volume.mountpoint)
    assert os.listdir(volume.mountpoint) == []
    volumes.mounts_for("tmp")
    volumes.remove("tmp")
    assert not os.path.exists(volume.mountpoint)


def test_bind_volume(volumes: Volumes, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_text("1")
    volume = volumes.create("bind", options={"type": "none", "device": str(tmp_path / "dir"), "o": "bind,ro"})
    mount = volumes.mounts_for("bind")
    assert (mount.source, mount.options) == (volume.mountpoint, ("rbind", "ro"))
    assert os.listdir(volume.mountpoint) == ["file"]
    with pytest.raises(OSError, match="Read-only"):
        Path(volume.mountpoint, "new").write_text("")
    volumes.release("bind")
    assert os.listdir(volume.mountpoint) == []
    volumes.mounts_for("bind")
    volumes.create("gone", options={"type": "none", "device": str(tmp_path / "nosuch"), "o": "bind"})
    with pytest.raises(InvalidParameter, match=r"failed to mount local volume: mount .*nosuch:.* no such file"):
        volumes.mounts_for("gone")
    volumes.remove("bind")
    assert (tmp_path / "dir/file").read_text() == "1", "removing the volume leaves what it showed"


def test_other_options_for_a_volume_that_exists_are_refused(volumes: Volumes) -> None:
    options = {"type": "tmpfs", "device": "tmpfs"}
    volume = volumes.create("tmp", options=options)
    assert volumes.create("tmp", options=options) == volumes.create("tmp") == volume
    with pytest.raises(Conflict, match=r"already exists with other options \(device=tmpfs, type=tmpfs\)"):
        volumes.create("tmp", options={**options, "o": "size=1m"})


def test_a_file_server_that_is_not_there(volumes: Volumes) -> None:
    volumes.create("nfs", options={"type": "nfs", "device": ":/x", "o": "addr=127.0.0.1,soft,timeo=1,retrans=1"})
    words = r"failed to mount local volume: mount :/x:/.*/nfs/_data, data: addr=127\.0\.0\.1,.*: (no such device|connection refused)"
    with pytest.raises(InvalidParameter, match=words):
        volumes.mounts_for("nfs")
    volumes.create("name", options={"type": "nfs", "device": ":/x", "o": "addr=no-such-host.invalid"})
    with pytest.raises(InvalidParameter, match="error resolving passed in network volume address"):
        volumes.mounts_for("name")


def test_a_volume_that_cannot_be_written_down_leaves_nothing(
    volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Metadata, "write", full)
    with pytest.raises(OSError, match="No space left"):
        volumes.create("data")
    monkeypatch.undo()
    assert not volumes.exists("data")
    assert not (tmp_path / "volumes/data").exists()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_size_is_kept_to_by_a_project_quota(kind: str, tmp_path: Path) -> None:
    image, place = tmp_path / "image", tmp_path / "place"
    place.mkdir()
    subprocess.run(["truncate", "-s", "320M", image], check=True)
    words = ["-O", "project,quota", "-E", "quotatype=prjquota"] if kind == "ext4" else []
    subprocess.run([f"mkfs.{kind}", "-q", *words, image], check=True)
    if subprocess.run(["mount", "-o", "loop,prjquota", image, place], capture_output=True, check=False).returncode:
        pytest.skip(f"this kernel has no quotas on {kind}")
    records = Metadata(tmp_path / "records.db")
    try:
        volumes = Volumes(place / "volumes", records)
        small = volumes.create("small", options={"size": "1m"})
        plain = volumes.create("plain")
        with pytest.raises(OSError, match=r"space|quota"):
            Path(small.mountpoint, "file").write_bytes(bytes(2 << 20))
        Path(plain.mountpoint, "file").write_bytes(bytes(2 << 20))
        volumes.remove("small")
    finally:
        records.close()
        subprocess.run(["umount", place], check=True)


def test_a_mount_that_fails(volumes: Volumes) -> None:
    volumes.create("bad", options={"type": "nosuchfs", "device": "x"})
    with pytest.raises(InvalidParameter, match=r"failed to mount local volume: mount x:.*no such device"):
        volumes.mounts_for("bad")


def test_restart(reopen: Callable[[], Volumes], tmp_path: Path) -> None:
    volumes = reopen()
    kept = volumes.create("kept", labels={"x": "y"}, options=None)
    Path(kept.mountpoint, "file").write_text("1")
    lost = volumes.create("lost")
    subprocess.run(["rm", "-r", Path(lost.mountpoint).parent], check=True)
    (tmp_path / "volumes/adopted/_data").mkdir(parents=True)
    (tmp_path / "volumes/adopted/_data/file").write_text("data without a record")
    (tmp_path / "volumes/half/_data").mkdir(parents=True)
    (tmp_path / "volumes/.trash/old").mkdir()
    volumes = reopen()
    assert [volume.name for volume in volumes.list()] == ["adopted", "kept", "lost"]
    assert volumes.inspect("kept") == kept
    assert os.path.isdir(lost.mountpoint)
    assert sorted(os.listdir(tmp_path / "volumes")) == [".trash", "adopted", "kept", "lost"]
    assert os.listdir(tmp_path / "volumes/.trash") == []


def test_a_removal_that_was_cut_short_is_finished(
    reopen: Callable[[], Volumes], monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = reopen()
    volume = volumes.create("data")
    Path(volume.mountpoint, "file").write_text("1")
    monkeypatch.setattr(Volumes, "_discard", lambda self, volume: None)
    volumes.remove("data")
    monkeypatch.undo()
    volumes = reopen()
    assert not volumes.exists("data")
    assert not os.path.exists(volume.mountpoint)


def test_another_user_cannot_list_volumes(volumes: Volumes, tmp_path: Path) -> None:
    volumes.create("data")
    for parent in [tmp_path, *tmp_path.parents][:-2]:
        os.chmod(parent, os.stat(parent).st_mode | 0o711)
    result = subprocess.run(
        ["ls", tmp_path / "volumes"], user=65534, group=65534, capture_output=True, check=False
    )
    assert result.returncode != 0


def test_a_rename_that_was_cut_short_is_finished(
    reopen: Callable[[], Volumes], monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = reopen()
    Path(volumes.create("old").mountpoint, "file").write_text("1")
    with monkeypatch.context() as killed:
        killed.setattr(Volumes, "_move", lambda self, volume: volume)
        volumes.rename("old", "new", [])
    volumes = reopen()
    assert [volume.name for volume in volumes.list()] == ["new"]
    assert os.listdir(volumes.inspect("new").mountpoint) == ["file"]
    assert volumes.inspect("new").before == ""
