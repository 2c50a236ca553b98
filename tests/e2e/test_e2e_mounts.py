"""--mount with all its keys: parts of volumes, images, volumes with options; hostile links in volumes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import Engine, dray, until

RENAME_EXCHANGE = 2


def data(engine: Engine, name: str) -> Path:
    return engine.data_root / "volumes" / name / "_data"


def is_mounted(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


# -- a part of a volume


def test_part_of_a_volume(engine: Engine) -> None:
    engine.ok(
        "run", "--rm", "-v", "vol:/v", "busybox", "sh", "-c", "mkdir -p /v/a/b; echo 1 > /v/a/b/f; echo 2 > /v/top"
    )
    mount = "type=volume,src=vol,dst=/m,volume-subpath=a/b"
    assert engine.ok("run", "--rm", "--mount", mount, "busybox", "ls", "/m") == "f"
    assert (
        engine.ok(
            "run", "--rm", "--mount", "type=volume,src=vol,dst=/m,volume-subpath=top", "busybox", "cat", "/m"
        )
        == "2"
    )
    engine.ok("run", "--rm", "--mount", mount, "busybox", "touch", "/m/new")
    assert (data(engine, "vol") / "a/b/new").exists()
    done = engine.docker("run", "--rm", "--mount", mount + ",readonly", "busybox", "touch", "/m/x")
    assert "Read-only file system" in done.stderr


def test_a_start_that_fails_leaves_the_part_alone(engine: Engine) -> None:
    """What is mounted in the task directory is not deleted with it."""
    engine.ok("run", "--rm", "-v", "vol:/v", "busybox", "sh", "-c", "mkdir /v/a; echo 1 > /v/a/f")
    mount = "type=volume,src=vol,dst=/m,volume-subpath=a"
    engine.fails("run", "--rm", "--mount", mount, "busybox", "/no/such/program", status=127)
    assert (data(engine, "vol") / "a/f").read_text() == "1\n"


def test_a_part_must_exist(engine: Engine) -> None:
    message = engine.fails(
        "run", "--rm", "--mount", "type=volume,src=vol,dst=/m,volume-subpath=nosuch", "busybox", "true", status=127
    )
    assert f"cannot access path {data(engine, 'vol')}/nosuch: no such file or directory" in message


@pytest.mark.parametrize("subpath", ["../../..", "/etc", "a/../../b"])
def test_a_part_is_inside(engine: Engine, subpath: str) -> None:
    message = engine.fails(
        "run",
        "--rm",
        "--mount",
        f"type=volume,src=vol,dst=/m,volume-subpath={subpath}",
        "busybox",
        "true",
        status=125,
    )
    assert "subpath must be a relative path within the volume" in message


def test_a_link_leads_nowhere_outside(engine: Engine) -> None:
    engine.ok("volume", "create", "vol")
    for name, target in (("up", "../../../../../../etc"), ("absolute", "/etc"), ("proc", "/proc/self/root/etc")):
        (data(engine, "vol") / name).symlink_to(target)
        message = engine.fails(
            "run",
            "--rm",
            "--mount",
            f"type=volume,src=vol,dst=/m,volume-subpath={name}",
            "busybox",
            "true",
            status=125 if name == "proc" else 127,
        )
        assert "cannot access path" in message
    (data(engine, "vol") / "etc").mkdir()
    (data(engine, "vol") / "etc/own").write_text("")
    for name in ("up", "absolute"):
        mount = f"type=volume,src=vol,dst=/m,volume-subpath={name}"
        assert engine.ok("run", "--rm", "--mount", mount, "busybox", "ls", "/m") == "own"


@pytest.mark.drayd_only("dockerd 20.10 knows no subpaths")
def test_a_link_swapped_during_the_start_leads_nowhere_outside(engine: Engine) -> None:
    """A volume's other user swaps the directory and a link to the host's for as long as containers start."""
    engine.ok("volume", "create", "vol")
    base = data(engine, "vol")
    (base / "part").mkdir()
    (base / "part/inside").write_text("")
    outside = engine.base / "outside"
    outside.mkdir()
    (outside / "secret").write_text("")
    (base / "swap").symlink_to(outside)
    stop = threading.Event()
    libc = ctypes.CDLL(None)
    first, second = os.fsencode(base / "part"), os.fsencode(base / "swap")

    def swap() -> None:
        while not stop.is_set():
            libc.renameat2(-100, first, -100, second, RENAME_EXCHANGE)

    racer = threading.Thread(target=swap)
    racer.start()
    try:
        for _ in range(12):
            mount = "type=volume,src=vol,dst=/m,volume-subpath=part"
            done = engine.docker("run", "--rm", "--network", "none", "--mount", mount, "busybox", "ls", "/m")
            assert "secret" not in done.stdout
            assert done.stdout.strip() == "inside" or "cannot access path" in done.stderr
    finally:
        stop.set()
        racer.join()


def test_copying_from_a_stopped_container_sees_the_part(engine: Engine) -> None:
    engine.ok("run", "--rm", "-v", "vol:/v", "busybox", "sh", "-c", "mkdir /v/a; echo part > /v/a/f")
    engine.ok("create", "--name", "box", "--mount", "type=volume,src=vol,dst=/m,volume-subpath=a", "busybox")
    engine.ok("cp", "box:/m/f", str(engine.base / "copy"))
    assert (engine.base / "copy").read_text() == "part\n"
    engine.ok("rm", "box")
    assert (data(engine, "vol") / "a/f").exists(), "nothing is deleted through the mount"


# -- images as mounts


@pytest.mark.drayd_only("dockerd 20.10 cannot mount images")
def test_image_as_a_mount(engine: Engine) -> None:
    mount = "type=image,source=variants:volume,target=/img"
    assert engine.ok("run", "--rm", "--mount", mount, "busybox", "cat", "/img/data/file") == "from the image"
    done = engine.docker("run", "--rm", "--mount", mount, "busybox", "touch", "/img/x")
    assert "Read-only file system" in done.stderr
    part = mount + ",image-subpath=data"
    assert "file" in engine.ok("run", "--rm", "--mount", part, "busybox", "ls", "/img").split()
    message = engine.fails(
        "run", "--rm", "--mount", mount + ",image-subpath=nosuch", "busybox", "true", status=127
    )
    assert "cannot access path" in message
    message = engine.fails(
        "run", "--pull=never", "--mount", "type=image,source=nosuch,target=/x", "busybox", "true", status=125
    )
    assert "No such image: nosuch" in message
    assert [line for line in engine.mounts() if "/mounts/" in line] == []


@pytest.mark.drayd_only("dockerd 20.10 cannot mount images")
def test_a_mounted_image_is_in_use(engine: Engine) -> None:
    engine.ok("create", "--name", "made", "busybox")
    engine.ok("commit", "made", "mounted:1")
    engine.ok("rm", "made")
    engine.ok("create", "--name", "box", "--mount", "type=image,source=mounted:1,target=/img", "busybox")
    identity = engine.inspect("mounted:1", kind="image")["Id"]
    assert "image is being used by stopped container" in engine.fails("rmi", identity)
    used = [one["Containers"] for one in engine.get("/images/json") if one["Id"] == identity]
    assert used == [1]
    engine.ok("start", "-a", "box")
    engine.ok("restart", "-t", "0", "box")
    engine.ok("rm", "-f", "box")
    engine.ok("rmi", "mounted:1")


# -- volumes with options


def test_options_of_a_volume(engine: Engine) -> None:
    mount = "type=volume,src=vol,dst=/m,volume-driver=local,volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-opt=o=size=4m,volume-label=a=b"
    engine.ok("run", "-d", "--name", "one", "--mount", mount, "busybox", "sleep", "300")
    shown = engine.inspect("vol", kind="volume")
    assert (shown["Options"]["o"], shown["Labels"]) == ("size=4m", {"a": "b"})
    engine.ok("exec", "one", "touch", "/m/shared")
    assert engine.ok("run", "--rm", "-v", "vol:/m", "busybox", "ls", "/m") == "shared"
    assert is_mounted(data(engine, "vol"))
    engine.ok("rm", "-f", "one")
    until(lambda: not is_mounted(data(engine, "vol")), what="the volume being unmounted")
    engine.ok("volume", "rm", "vol")


def test_read_only_bind_volume(engine: Engine) -> None:
    source = engine.base / "source"
    source.mkdir()
    (source / "file").write_text("1")
    engine.ok("volume", "create", "-o", "type=none", "-o", "o=bind,ro", "-o", f"device={source}", "vol")
    done = engine.docker("run", "--rm", "-v", "vol:/m", "busybox", "sh", "-c", "cat /m/file; touch /m/x")
    assert done.stdout == "1"
    assert "Read-only file system" in done.stderr
    engine.ok("volume", "rm", "vol")
    assert (source / "file").exists()


def test_an_option_that_is_refused(engine: Engine) -> None:
    message = engine.fails("volume", "create", "-o", "colour=red", "vol")
    assert 'invalid option: "colour"' in message


@pytest.mark.drayd_only("dockerd 20.10 takes other options in silence")
def test_other_options_for_a_volume_that_exists(engine: Engine) -> None:
    engine.ok("volume", "create", "vol")
    message = engine.fails("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "vol")
    assert "volume already exists with other options (none)" in message


def test_a_missing_device_is_named(engine: Engine) -> None:
    engine.ok("volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=/no/such/place", "vol")
    message = engine.fails("run", "--rm", "-v", "vol:/m", "busybox", "true", status=127)
    assert "failed to mount local volume: mount /no/such/place:" in message
    assert "no such file or directory" in message


@pytest.mark.drayd_only("the test looks at drayd's own folders")
def test_a_killed_daemon_leaves_no_mount_of_a_volume(engine: Engine) -> None:
    for name in ("live", "dead"):
        engine.ok("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", name)
        engine.ok(
            "run", "-d", "--name", name, "-v", f"{name}:/m", "busybox", "sh", "-c", "echo 1 > /m/f; exec sleep 300"
        )
    pid = engine.inspect("dead")["State"]["Pid"]
    engine.kill()
    os.kill(pid, 9)
    engine.start()
    until(lambda: not is_mounted(data(engine, "dead")), what="the dead container's volume being unmounted")
    assert engine.ok("exec", "live", "cat", "/m/f") == "1"
    assert engine.ok("run", "--rm", "-v", "live:/n", "busybox", "cat", "/n/f") == "1", "the mount was taken over"
    engine.ok("rm", "-f", "live", "dead")
    until(lambda: not is_mounted(data(engine, "live")), what="the live container's volume being unmounted")
    engine.ok("volume", "rm", "live", "dead")


# -- errors


def test_a_file_on_a_directory_is_explained(engine: Engine) -> None:
    file = engine.base / "a-file"
    file.write_text("")
    message = engine.fails("run", "--rm", "-v", f"{file}:/tmp", "busybox", "true", status=125)
    assert "Are you trying to mount a directory onto a file (or vice-versa)?" in message
    message = engine.fails("run", "--rm", "-v", f"{engine.base}:/bin/busybox", "busybox", "true", status=125)
    assert "Are you trying to mount a directory onto a file (or vice-versa)?" in message


@pytest.mark.parametrize("kind", ["npipe", "cluster"])
def test_kinds_of_other_platforms_are_refused(engine: Engine, kind: str) -> None:
    body = {"Image": "busybox", "HostConfig": {"Mounts": [{"Type": kind, "Source": "x", "Target": "/x"}]}}
    status, _, answer = engine.api("POST", "/containers/create", body)
    assert status >= 400
    assert kind.encode() in answer


# -- binds


@pytest.fixture
def tree(engine: Engine, tmp_path: Path) -> Iterator[Path]:
    """A folder of the host's, with a mount in it that has a file."""
    path = tmp_path
    (path / "sub").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "sub", path / "sub"], check=True)
    (path / "sub/file").write_text("beneath\n")
    yield path
    engine.remove_everything()
    subprocess.run(["umount", "-l", path / "sub"], check=True)


@pytest.mark.parametrize(
    ("options", "beneath", "writable"),
    [
        ("", True, True),
        (",bind-recursive=disabled", False, True),
        (",readonly", True, False),
        (",readonly,bind-recursive=writable", True, True),
        (",readonly,bind-recursive=readonly,bind-propagation=rprivate", True, False),
    ],
)
def test_what_is_mounted_in_a_bind(
    engine: Engine, tree: Path, options: str, beneath: bool, writable: bool
) -> None:
    script = "cat /m/sub/file; touch /m/sub/new && echo written"
    out = engine.docker(
        *("run", "--rm", "--mount", f"type=bind,src={tree},dst=/m{options}", "busybox", "sh", "-c", script)
    ).stdout
    assert ("beneath" in out, "written" in out) == (beneath, writable)
    assert (tree / "sub/new").exists() == (beneath and writable)


def test_a_source_that_is_made_on_demand(engine: Engine) -> None:
    path = engine.base / "made" / "here"
    asked = f"type=bind,src={path},dst=/m"
    assert "bind source path does not exist" in engine.fails(
        "run", "--rm", "--mount", asked, "busybox", "true", status=125
    )
    dray(engine, "run", "--rm", "--mount", f"{asked},bind-create-src", "busybox", "touch", "/m/file")
    assert (path / "file").exists()
    assert "cannot mix 'bind-*' options" in dray(
        engine, "create", "--mount", "type=volume,dst=/m,bind-create-src", "busybox", status=125
    )
