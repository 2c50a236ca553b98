"""What dray adds for volumes: rename, export and import; and archives that mean harm."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support.engines import Engine

pytestmark = pytest.mark.drayd_only("Docker has no such verbs")


def dray(engine: Engine, *words: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "dray.cli", *words]
    env = {**os.environ, **engine.env, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    return subprocess.run(command, input=data, capture_output=True, env=env, timeout=60, check=False)


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


def test_export_and_import(engine: Engine) -> None:
    script = "mkdir /v/d; echo text > /v/d/f; ln -s d/f /v/l; ln /v/d/f /v/h; chown 5:6 /v/d/f; chmod 4750 /v/d/f; chown 7:8 /v; chmod 1770 /v"
    engine.ok("run", "--rm", "-v", "one:/v", "busybox", "sh", "-c", script)
    file = engine.base / "one.tar"
    done = dray(engine, "volume", "export", "one", "-o", str(file))
    assert done.returncode == 0, done.stderr
    done = dray(engine, "volume", "import", "two", str(file))
    assert (done.returncode, done.stdout) == (0, b"two\n"), done.stderr
    look = ["sh", "-c", "cat /v/l; stat -c '%n %u %g %a %h' /v /v/d/f; readlink /v/l"]
    first = engine.ok("run", "--rm", "-v", "one:/v", "busybox", *look)
    assert engine.ok("run", "--rm", "-v", "two:/v", "busybox", *look) == first
    assert "/v 7 8 1770" in first
    piped = dray(engine, "volume", "import", "three", data=dray(engine, "volume", "export", "one").stdout)
    assert piped.returncode == 0, piped.stderr
    assert engine.ok("run", "--rm", "-v", "three:/v", "busybox", *look) == first


def test_import_into_a_volume_with_files_is_refused(engine: Engine) -> None:
    engine.ok("run", "--rm", "-v", "one:/v", "busybox", "touch", "/v/f")
    done = dray(engine, "volume", "import", "one", data=archive((member("g"), b"1")))
    assert done.returncode == 1
    assert b"the volume has files already" in done.stderr
    assert engine.ok("run", "--rm", "-v", "one:/v", "busybox", "ls", "/v") == "f"


@pytest.mark.parametrize(
    "members",
    [
        [(member("../escaped"), b"1")],
        [(member("a/../../escaped"), b"1")],
        [(member("out", tarfile.SYMTYPE, "../../.."), b""), (member("out/escaped"), b"1")],
        [(member("out", tarfile.SYMTYPE, "/"), b""), (member("out/escaped"), b"1")],
        [(member("hard", tarfile.LNKTYPE, "../../../../engine.pid"), b"")],
    ],
)
def test_a_hostile_archive_leaves_the_volume(engine: Engine, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    done = dray(engine, "volume", "import", "bad", data=archive(*members))
    found = [path for path in engine.base.rglob("escaped") if "volumes/bad/_data" not in str(path)]
    assert found == []
    assert not Path("/escaped").exists()
    if done.returncode:
        assert engine.api("GET", "/volumes/bad")[0] == 404, "nothing stays of a failed import"
    else:
        for path in (engine.data_root / "volumes/bad/_data").rglob("*"):
            assert path.is_symlink() or path.stat().st_nlink == 1 or path.is_dir()


def test_a_damaged_archive(engine: Engine) -> None:
    done = dray(engine, "volume", "import", "bad", data=b"x" * 2000)
    assert done.returncode == 1
    assert b"Error response from daemon" in done.stderr
    assert engine.ok("volume", "ls", "-q") == ""


def test_rename(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "-v", "old:/v", "busybox", "sh", "-c", "echo kept >> /v/f; cat /v/f")
    engine.ok("create", "--name", "other", "--mount", "type=volume,src=old,dst=/w", "busybox", "cat", "/w/f")
    done = dray(engine, "volume", "rename", "old", "new")
    assert (done.returncode, done.stderr) == (0, b"")
    assert engine.ok("volume", "ls", "-q") == "new"
    shown = engine.inspect("box")
    assert shown["HostConfig"]["Binds"] == ["new:/v"]
    assert shown["Mounts"][0]["Name"] == "new"
    assert shown["Mounts"][0]["Source"] == str(engine.data_root / "volumes/new/_data")
    engine.restart()
    assert engine.ok("start", "-a", "other") == "kept"
    assert engine.ok("start", "-a", "box") == "kept\nkept"
    assert engine.ok("run", "--rm", "-v", "old:/v", "busybox", "ls", "/v") == "", "the old name is free"


def test_rename_is_refused(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "-v", "old:/v", "busybox", "sleep", "300")
    engine.ok("volume", "create", "taken")
    for words, status, message in (
        ("/volumes/old/rename?name=new", 409, "in use by running containers"),
        ("/volumes/taken/rename?name=old", 409, "there is a volume old already"),
        ("/volumes/taken/rename?name=../x", 400, "includes invalid characters"),
        ("/volumes/taken/rename?name=taken", 400, "the new name is the old one"),
        ("/volumes/nosuch/rename?name=fresh", 404, "no such volume"),
    ):
        answered, _, body = engine.api("POST", words)
        assert (answered, message in json.loads(body)["message"]) == (status, True), body
    assert sorted(engine.ok("volume", "ls", "-q").split()) == ["old", "taken"]
