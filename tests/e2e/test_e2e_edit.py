"""`dray edit`: a container that exists is changed, and nothing is lost whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.engines import Drayd, Engine, dray, until

pytestmark = pytest.mark.drayd_only("Docker cannot change a container that exists")


def test_everything_at_once(engine: Engine, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("bound\n")
    engine.ok(
        *("run", "-d", "--name", "box", "-e", "OLD=1", "-e", "KEEP=2", "-l", "gone=1", "-p", "127.0.0.1::80"),
        *(
            "-v",
            "data:/data",
            "-v",
            "/anonymous",
            "busybox",
            "sh",
            "-c",
            "env >/seen; trap exit TERM; sleep 600 & wait",
        ),
    )
    before = engine.inspect("box")
    engine.ok("exec", "box", "sh", "-c", "echo written >/layer; echo kept >/anonymous/file")
    shown = dray(
        engine,
        *("edit", "-e", "NEW=x y", "-e", "KEEP=3", "--env-rm", "OLD", "-l", "role=web", "--label-rm", "gone"),
        *("-p", "127.0.0.1::90/udp", "--publish-rm", "80", "-v", f"{tmp_path}:/in:ro", "-v", "more:/more"),
        *("--volume-rm", "/data", "--name", "crate", "box"),
    )
    assert shown == "crate\n"
    after = engine.inspect("crate")
    assert after["Id"] == before["Id"]
    assert after["State"]["Running"]
    assert engine.docker("inspect", "box").returncode == 1
    seen = engine.ok("exec", "crate", "cat", "/seen").splitlines()
    assert {"NEW=x y", "KEEP=3"} <= set(seen)
    assert not any(line.startswith("OLD=") for line in seen)
    assert after["Config"]["Labels"] == {"role": "web"}
    assert sorted(after["NetworkSettings"]["Ports"]) == ["80/tcp", "90/udp"]
    assert after["HostConfig"]["PortBindings"].keys() == {"90/udp"}
    assert engine.ok("exec", "crate", "cat", "/layer", "/anonymous/file", "/in/file").split() == [
        "written",
        "kept",
        "bound",
    ]
    assert {mount["Destination"] for mount in after["Mounts"]} == {"/anonymous", "/in", "/more"}
    assert engine.ok("volume", "ls", "-q", "-f", "name=data") == "data"
    # What is shown is what another start makes, too.
    engine.ok("restart", "-t", "0", "crate")
    assert engine.ok("exec", "crate", "cat", "/more/../in/file") == "bound"


def test_a_stopped_container_stays_stopped(engine: Engine) -> None:
    engine.ok("create", "--name", "box", "busybox", "sh", "-c", "echo $A")
    dray(engine, "edit", "-e", "A=1", "box")
    assert engine.state("box")["Status"] == "created"
    assert engine.ok("start", "-a", "box") == "1"


def test_a_container_of_rm_is_not_removed(engine: Engine) -> None:
    engine.ok("run", "-d", "--rm", "--name", "box", "busybox", "sh", "-c", "trap exit TERM; sleep 600 & wait")
    dray(engine, "edit", "-l", "a=b", "box")
    assert engine.inspect("box")["Config"]["Labels"] == {"a": "b"}
    engine.ok("stop", "box")
    until(lambda: engine.ok("ps", "-aq") == "", what="its removal")


REFUSED: list[tuple[list[str], str]] = [
    (["--env-rm", "NONE"], "there is no environment variable NONE to remove"),
    (["--label-rm", "none"], "there is no label none to remove"),
    (["--publish-rm", "81"], "there is no published port 81/tcp to remove"),
    (["--volume-rm", "/none"], "there is no mount at /none to remove"),
    (["-v", "/only"], "a new volume needs a name"),
    (["--mount", "type=bind,source=/does/not/exist,target=/x"], "bind source path does not exist"),
    (["--name", "second"], "is already in use by container"),
    (["-e", ""], "invalid environment variable"),
    ([], "nothing to change"),
]


def test_what_cannot_be_done_changes_nothing(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", "trap exit TERM; sleep 600 & wait")
    engine.ok("create", "--name", "second", "busybox")
    before = engine.inspect("box")
    for words, message in REFUSED:
        shown = dray(engine, "edit", *words, "box", status=125 if words == ["-e", ""] else 1)
        assert message in shown
        after = engine.inspect("box")
        assert (after["Config"], after["HostConfig"]) == (before["Config"], before["HostConfig"])
        assert after["State"]["Running"]


def test_what_does_not_start_is_put_back(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "holder", "-p", "127.0.0.1:18083:80", "busybox", "sleep", "600")
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", "trap exit TERM; sleep 600 & wait")
    shown = dray(engine, "edit", "-p", "127.0.0.1:18083:80", "box", status=1)
    assert "does not start, and is as it was" in shown
    assert engine.inspect("box")["HostConfig"]["PortBindings"] in ({}, None)
    assert engine.state("box")["Running"]


@pytest.mark.parametrize(
    ("place", "changed"),
    [
        ("edit.noted", False),
        ("edit.stopped", False),
        ("edit.volumes", False),
        ("edit.written", True),
        ("edit.started", True),
    ],
)
def test_a_daemon_killed_half_way(
    engine: Engine, place: str, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the old container or the new one, and it runs."""
    assert isinstance(engine, Drayd)
    engine.stop()
    monkeypatch.setenv("DRAY_FAILPOINT", place)
    engine.start()
    engine.ok(
        *("run", "-d", "--name", "box", "-e", "A=old", "busybox", "sh", "-c"),
        "test -e /layer || echo written >/layer; trap exit TERM; sleep 600 & wait",
    )
    dray(engine, "edit", "-e", "A=new", "-v", "more:/more", "--name", "crate", "box", status=1)
    assert engine.daemon is not None
    assert engine.daemon.wait(10) == -9
    engine.daemon = None
    monkeypatch.delenv("DRAY_FAILPOINT")
    engine.start()
    name = "crate" if changed else "box"
    engine.until_state(name, "running")
    assert engine.ok("ps", "-a", "--format", "{{.Names}}") == name
    assert (
        engine.ok("exec", name, "sh", "-c", "echo $A; cat /layer") == ("new" if changed else "old") + "\nwritten"
    )
    assert os.path.exists(engine.data_root)
