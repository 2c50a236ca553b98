"""SIGHUP: what of daemon.json is applied to a daemon that runs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engines import Engine, until

pytestmark = pytest.mark.drayd_only("dockerd of Debian answers some of these otherwise")


@pytest.fixture
def file(engine: Engine, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "daemon.json"
    path.write_text("{}")
    engine.restart(extra=["--config-file", str(path)])
    yield path
    engine.restart()


def reload(engine: Engine, file: Path, content: dict[str, Any] | str) -> str:
    """Write the file, send the signal, wait until it is acted upon; return what was logged."""
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    seen = len(engine.log.read_text())
    os.kill(engine.pid, signal.SIGHUP)
    words = ("the configuration is reloaded", "the configuration is not reloaded")
    until(lambda: any(word in engine.log.read_text()[seen:] for word in words), what="the reload")
    return engine.log.read_text()[seen:]


def test_what_dockerd_reloads_is_reloaded(engine: Engine, file: Path) -> None:
    begin = int(time.time())
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    pid = engine.state("box")["Pid"]
    logged = reload(
        engine,
        file,
        {
            "debug": True,
            "labels": ["role=test"],
            "live-restore": False,
            "default-runtime": "other",
            "runtimes": {"other": {"path": "/usr/sbin/runc"}},
            "insecure-registries": ["registry.example:5000"],
            "registry-mirrors": ["https://mirror.example"],
            "max-concurrent-downloads": 7,
            "shutdown-timeout": 3,
            "features": {"cdi": False},
            "mtu": 1400,
        },
    )
    assert "in force after a restart of the daemon: mtu" in logged
    info = engine.get("/info")
    assert (info["Debug"], info["Labels"], info["LiveRestoreEnabled"]) == (True, ["role=test"], False)
    assert (info["DefaultRuntime"], "other" in info["Runtimes"]) == ("other", True)
    assert "registry.example:5000" in info["RegistryConfig"]["IndexConfigs"]
    assert info["RegistryConfig"]["Mirrors"] == ["https://mirror.example/"]
    assert info["CDISpecDirs"] == []
    assert engine.ok("run", "--rm", "--name", "second", "busybox", "echo", "ran") == "ran"
    assert "start of second" in engine.log.read_text()  # a line of the level debug
    assert engine.state("box")["Pid"] == pid
    events = engine.told(begin, "-f", "type=daemon", "--format", "{{json .}}")
    event = json.loads(events.splitlines()[-1])
    attributes = event["Actor"]["Attributes"]
    assert (event["Action"], event["Actor"]["ID"]) == ("reload", info["ID"])
    assert attributes["max-concurrent-downloads"] == "7"
    assert attributes["labels"] == '["role=test"]'
    engine.ok("rm", "-f", "box")


def test_a_key_taken_out_is_as_it_was(engine: Engine, file: Path) -> None:
    reload(engine, file, {"labels": ["a=b"], "debug": True})
    assert engine.get("/info")["Labels"] == ["a=b"]
    reload(engine, file, {})
    assert (engine.get("/info")["Labels"], engine.get("/info")["Debug"]) == ([], False)


BAD = [
    ("{", "invalid JSON"),
    ({"debug": "yes"}, "must be true or false"),
    ({"nonsense": 1}, "don't match any configuration option: nonsense"),
    ({"labels": ["x"]}, "a label is key=value"),
    ({"default-runtime": "gone"}, "specified default runtime 'gone' does not exist"),
    ({"registry-mirrors": ["ftp://x"]}, "ftp://x"),
    ({"features": {"magic": True}}, "features: 'magic' cannot be set"),
    ({"features": {"containerd-snapshotter": False}}, "containerd-snapshotter cannot be switched"),
]


def test_a_bad_file_changes_nothing(engine: Engine, file: Path) -> None:
    reload(engine, file, {"labels": ["kept=yes"]})
    for content, words in BAD:
        logged = reload(engine, file, content)
        assert "nothing has changed" in logged
        assert words in logged.replace('\\"', '"')
        assert engine.get("/info")["Labels"] == ["kept=yes"]
    file.write_text("{}")


def test_a_container_whose_runtime_is_gone_is_not_run_by_another(engine: Engine, file: Path) -> None:
    reload(engine, file, {"runtimes": {"other": {"path": "/usr/sbin/runc"}}})
    engine.ok("create", "--name", "box", "--runtime", "other", "busybox", "true")
    reload(engine, file, {})
    assert "unknown or invalid runtime name: other" in engine.fails("start", "box")
