"""Binds, named and anonymous volumes, VOLUME of an image, tmpfs and --mount."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import Engine, until


@pytest.fixture
def folder(engine: Engine) -> Path:
    """A folder of the host's with a file in it."""
    path = engine.base / "bind"
    path.mkdir(exist_ok=True)
    (path / "file").write_text("from the host\n")
    return path


def test_bind(engine: Engine, folder: Path) -> None:
    out = engine.ok(
        "run", "--rm", "-v", f"{folder}:/mnt", "busybox", "sh", "-c", "cat /mnt/file; echo back > /mnt/new"
    )
    assert out == "from the host"
    assert (folder / "new").read_text() == "back\n"


def test_bind_read_only(engine: Engine, folder: Path) -> None:
    done = engine.docker("run", "--rm", "-v", f"{folder}:/mnt:ro", "busybox", "touch", "/mnt/x")
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr


def test_bind_of_a_file(engine: Engine, folder: Path) -> None:
    assert (
        engine.ok("run", "--rm", "-v", f"{folder}/file:/etc/motd", "busybox", "cat", "/etc/motd")
        == "from the host"
    )


def test_bind_makes_a_missing_source(engine: Engine, folder: Path) -> None:
    engine.ok("run", "--rm", "-v", f"{folder}/made:/mnt", "busybox", "touch", "/mnt/x")
    assert (folder / "made" / "x").exists()


def test_mount_refuses_a_missing_source(engine: Engine, folder: Path) -> None:
    message = engine.fails(
        "run", "--rm", "--mount", f"type=bind,source={folder}/nosuch,target=/mnt", "busybox", "true", status=125
    )
    assert "bind source path does not exist" in message


def test_bind_of_a_relative_path_is_refused(engine: Engine) -> None:
    body = {"Image": "busybox", "HostConfig": {"Binds": ["a/b:/mnt"]}}
    status, _, answer = engine.api("POST", "/containers/create", body)
    assert status in (400, 500)
    assert "a/b" in json.loads(answer)["message"]


def test_inspect_of_mounts(engine: Engine, folder: Path) -> None:
    engine.ok("create", "--name", "box", "-v", f"{folder}:/mnt:ro", "-v", "named:/named", "busybox")
    mounts = {one["Destination"]: one for one in engine.inspect("box")["Mounts"]}
    bind, named = mounts["/mnt"], mounts["/named"]
    assert (bind["Type"], bind["Source"], bind["RW"], bind["Mode"]) == ("bind", str(folder), False, "ro")
    assert (named["Type"], named["Name"], named["Driver"], named["RW"]) == ("volume", "named", "local", True)
    assert named["Source"] == str(engine.data_root / "volumes" / "named" / "_data")


def test_named_volume_is_shared_and_stays(engine: Engine) -> None:
    engine.ok("run", "--rm", "-v", "named:/a", "busybox", "sh", "-c", "echo kept > /a/x")
    assert engine.ok("run", "--rm", "-v", "named:/b", "busybox", "cat", "/b/x") == "kept"
    assert "named" in [volume["Name"] for volume in engine.get("/volumes")["Volumes"]]


def test_volume_is_filled_from_the_image(engine: Engine) -> None:
    out = engine.ok(
        *("run", "--rm", "-v", "named:/data", "variants:volume", "sh", "-c"),
        "cat /data/file /data/sub/link; stat -c '%u %a' /data /data/file",
    )
    assert out.splitlines() == ["from the image", "from the image", "1000 750", "1000 644"]
    engine.ok("run", "--rm", "-v", "named:/data", "variants:volume", "rm", "/data/file")
    assert (
        engine.docker("run", "--rm", "-v", "named:/data", "variants:volume", "cat", "/data/file").returncode == 1
    )


def test_nocopy(engine: Engine) -> None:
    assert engine.ok("run", "--rm", "-v", "named:/data:nocopy", "variants:volume", "ls", "/data") == ""


def test_bind_hides_the_image(engine: Engine, folder: Path) -> None:
    out = engine.ok("run", "--rm", "-v", f"{folder}:/data", "variants:volume", "cat", "/data/file")
    assert out == "from the host"


def test_anonymous_volume_of_the_image(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "variants:volume", "sh", "-c", "echo more > /data/new; cat /data/file")
    (mount,) = engine.inspect("box")["Mounts"]
    assert mount["Type"] == "volume"
    assert mount["Destination"] == "/data"
    assert len(mount["Name"]) == 64
    engine.ok("start", "-a", "box")
    engine.ok("rm", "box")
    assert mount["Name"] in [volume["Name"] for volume in engine.get("/volumes")["Volumes"]]


@pytest.mark.parametrize("how", ["rm -v", "--rm"])
def test_anonymous_volume_goes_with_its_container(engine: Engine, how: str) -> None:
    if how == "--rm":
        engine.ok("run", "--rm", "-v", "/extra", "-v", "named:/kept", "variants:volume", "true")
    else:
        engine.ok("run", "--name", "box", "-v", "/extra", "-v", "named:/kept", "variants:volume", "true")
        assert len(engine.get("/volumes")["Volumes"]) == 3
        engine.ok("rm", "-v", "box")
    assert [volume["Name"] for volume in engine.get("/volumes")["Volumes"] or []] == ["named"]


def test_volumes_from(engine: Engine, folder: Path) -> None:
    engine.ok("create", "--name", "source", "-v", "named:/a", "-v", f"{folder}:/b", "busybox")
    out = engine.ok(
        "run", "--rm", "--volumes-from", "source:ro", "busybox", "sh", "-c", "cat /b/file; touch /a/x || echo no"
    )
    assert out.splitlines() == ["from the host", "no"]


def test_mount_flags(engine: Engine, folder: Path) -> None:
    out = engine.ok(
        *(
            "run",
            "--rm",
            "--mount",
            f"type=bind,src={folder},dst=/b,readonly",
            "--mount",
            "type=volume,src=named,dst=/v",
        ),
        *("--mount", "type=tmpfs,dst=/t,tmpfs-size=1048576,tmpfs-mode=1770", "busybox"),
        *("sh", "-c", "cat /b/file; touch /v/x; stat -c %a /t; grep -E ' /(b|t) ' /proc/mounts | cut -d' ' -f4"),
    )
    first, mode, *options = out.splitlines()
    assert (first, mode) == ("from the host", "1770")
    assert any(line.startswith("ro,") for line in options)
    assert any("size=1024k" in line for line in options)


def test_volume_in_use_is_not_removed(engine: Engine) -> None:
    engine.ok("create", "--name", "box", "-v", "named:/a", "busybox")
    status, _, body = engine.api("DELETE", "/volumes/named")
    assert status == 409
    assert "volume is in use" in json.loads(body)["message"]


def test_volume_commands(engine: Engine) -> None:
    assert engine.ok("volume", "create", "--label", "a=1", "one") == "one"
    assert engine.ok("volume", "create", "one") == "one"
    body = engine.inspect("one", kind="volume")
    assert (body["Driver"], body["Labels"], body["Scope"]) == ("local", {"a": "1"}, "local")
    assert body["Mountpoint"] == str(engine.data_root / "volumes" / "one" / "_data")
    assert engine.ok("volume", "ls", "-q") == "one"
    assert engine.ok("volume", "rm", "one") == "one"
    assert engine.api("GET", "/volumes/one")[0] == 404


def test_bind_propagation_is_private(engine: Engine, folder: Path) -> None:
    line = engine.ok("run", "--rm", "-v", f"{folder}:/mnt", "busybox", "grep", " /mnt ", "/proc/self/mountinfo")
    assert "shared:" not in line


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder on a shared mount of its own, with an empty folder in it."""
    place = tmp_path / "shared"
    (place / "inner").mkdir(parents=True)
    for words in (["--bind", str(place), str(place)], ["--make-shared", str(place)]):
        subprocess.run(["mount", *words], check=True)
    yield place
    subprocess.run(["umount", "-R", "-l", str(place)], check=True)


@pytest.mark.parametrize("mode", ["shared", "rshared"])
def test_mounts_made_in_a_shared_bind_are_seen_by_the_host(engine: Engine, shared: Path, mode: str) -> None:
    script = "mount -t tmpfs none /mnt/inner && touch /mnt/inner/made && sleep 600"
    engine.ok(
        "run", "-d", "--name", "box", "--privileged", "-v", f"{shared}:/mnt:{mode}", "busybox", "sh", "-c", script
    )
    until((shared / "inner" / "made").exists, what="the container's mount on the host")
    engine.ok("rm", "-f", "box")


def test_mounts_made_by_the_host_are_seen_in_a_slave_bind(engine: Engine, shared: Path) -> None:
    engine.ok(
        "run", "-d", "--name", "box", "--privileged", "-v", f"{shared}:/mnt:rslave", "busybox", "sleep", "600"
    )
    subprocess.run(["mount", "-t", "tmpfs", "none", str(shared / "inner")], check=True)
    assert "tmpfs" in engine.ok("exec", "box", "grep", " /mnt/inner ", "/proc/self/mountinfo")
    engine.ok(
        "exec", "box", "sh", "-c", "umount /mnt/inner && mount -t tmpfs none /mnt/inner && touch /mnt/inner/x"
    )
    assert not (shared / "inner" / "x").exists()


def test_what_is_not_shared_on_the_host_cannot_be_shared(engine: Engine, folder: Path) -> None:
    message = engine.fails("run", "-v", f"{folder}:/mnt:shared", "busybox", "true", status=125)
    assert f"path {folder} is mounted on" in message
    assert "but it is not a shared mount" in message
    message = engine.fails("run", "-v", f"{folder}:/mnt:slave", "busybox", "true", status=125)
    assert "but it is not a shared or slave mount" in message


def test_nested_targets_are_mounted_in_order(engine: Engine, folder: Path) -> None:
    out = engine.ok(
        *("run", "--rm", "-v", "inner:/a/b/c", "-v", f"{folder}:/a/b", "--tmpfs", "/a", "busybox", "sh", "-c"),
        "cat /a/b/file; ls -d /a/b/c; touch /a/b/c/x && ls /a/b/c",
    )
    assert out.splitlines() == ["from the host", "/a/b/c", "x"]


def test_duplicate_target_is_refused(engine: Engine) -> None:
    message = engine.fails("run", "-v", "one:/a", "-v", "two:/a", "busybox", "true", status=125)
    assert "Duplicate mount point: /a" in message


@pytest.mark.drayd_only("dockerd 20.10 prunes named volumes, too")
def test_uses_are_counted_and_what_is_pruned(engine: Engine) -> None:
    engine.ok("volume", "create", "--label", "keep=yes", "named")
    engine.ok("run", "--rm", "-v", "named:/v", "busybox", "sh", "-c", "echo 12345 > /v/f")
    engine.ok("create", "--name", "one", "-v", "named:/v", "-v", "/anonymous", "busybox")
    engine.ok("create", "--name", "two", "--volumes-from", "one", "busybox")

    def usage() -> dict[str, tuple[int, int]]:
        listed = engine.get("/v1.51/system/df?type=volume")["Volumes"]
        return {one["Name"]: (one["UsageData"]["RefCount"], one["UsageData"]["Size"]) for one in listed}

    counted = usage()
    assert len(counted) == 2
    assert counted["named"] == (2, 6)
    assert sorted(counted.values()) == [(2, 0), (2, 6)]
    assert "Total reclaimed space: 0B" in engine.ok("volume", "prune", "-f", "-a")  # they are in use
    engine.ok("rm", "one", "two")
    assert usage()["named"] == (0, 6)
    engine.ok("volume", "prune", "-f")
    assert list(usage()) == ["named"], "only anonymous volumes are pruned unless all are asked for"
    engine.ok("volume", "prune", "-f", "--filter", "all=1", "--filter", "label!=keep")
    assert list(usage()) == ["named"]
    assert "Total reclaimed space: 6B" in engine.ok("volume", "prune", "-f", "-a")
    assert usage() == {}


def test_a_bad_filter_is_refused_though_there_are_no_volumes(engine: Engine) -> None:
    assert "invalid filter 'dangling=[maybe]'" in engine.fails("volume", "ls", "-f", "dangling=maybe").lower()
