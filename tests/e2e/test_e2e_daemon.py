"""The daemon itself: addresses to listen on, flags, daemon.json, and what clients of other versions meet."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import Engine
from support.leaks import descriptors


@pytest.fixture
def plain(engine: Engine) -> Iterator[Engine]:
    """The engine; started again without the test's flags afterwards."""
    yield engine
    if engine.daemon is not None:
        engine.remove_everything()
    engine.restart()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_tcp(plain: Engine) -> None:
    port = free_port()
    plain.restart(extra=["-H", f"tcp://127.0.0.1:{port}"])
    address = f"tcp://127.0.0.1:{port}"
    assert plain.ok("-H", address, "run", "--rm", "busybox", "echo", "over tcp") == "over tcp"
    done = plain.docker("-H", address, "run", "-i", "--rm", "busybox", "cat", input="x" * 100_000)
    assert done.stdout == "x" * 100_000
    plain.ok("-H", address, "run", "-d", "--name", "box", "busybox", "sleep", "600")
    assert plain.ok("-H", address, "exec", "box", "echo", "in") == "in"
    assert plain.ok("exec", "box", "echo", "both") == "both"
    with plain.terminal("-H", address, "exec", "-it", "box", "sh") as tty:
        tty.expect("# ")
        tty.send("exit 3\n")
        assert tty.wait() == 3


def test_ping(engine: Engine) -> None:
    for method in ("GET", "HEAD"):
        status, headers, body = engine.api(method, "/_ping")
        assert status == 200
        assert body == (b"OK" if method == "GET" else b"")
        assert headers["api-version"]
        assert headers["ostype"] == "linux"
        assert headers["docker-experimental"] == "false"
        assert headers["cache-control"] == "no-cache, no-store, must-revalidate"
        assert headers["content-type"] == "text/plain; charset=utf-8"


def test_versions_in_the_path(engine: Engine) -> None:
    newest = engine.api("GET", "/_ping")[1]["api-version"]
    assert engine.api("GET", "/v1.24/version")[0] == 200
    assert engine.api("GET", f"/v{newest}/version")[0] == 200
    status, headers, body = engine.api("GET", "/v1.99/version")
    assert status == 400
    assert "client version 1.99 is too new" in json.loads(body)["message"]
    assert headers["content-type"] == "application/json"
    status, _, body = engine.api("GET", "/v1.10/version")
    assert status == 400
    assert b"too old" in body  # as plain text: clients of that age knew no JSON errors


def test_unknown_pages(engine: Engine) -> None:
    status, headers, body = engine.api("GET", "/nosuch")
    assert status == 404
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["message"] == "page not found"


@pytest.mark.parametrize("version", ["1.24", "1.30", "1.40", "1.41"])
def test_old_clients(engine: Engine, version: str) -> None:
    env = {"DOCKER_API_VERSION": version}
    done = engine.docker("run", "--rm", "busybox", "echo", "hi", env=env)
    assert (done.returncode, done.stdout) == (0, "hi\n"), done.stderr
    done = engine.docker("ps", "-a", env=env)
    assert done.returncode == 0


def test_bad_requests(engine: Engine) -> None:
    status, _, body = engine.api("POST", "/containers/create", b"{broken")
    assert status == 400
    assert json.loads(body)["message"]
    assert engine.api("POST", "/containers/create", {"Image": 5})[0] in (400, 500)
    assert engine.api("POST", "/containers/create", {"Image": ""})[0] in (400, 404)
    assert engine.api("GET", "/containers/json?filters=nonsense")[0] == 400
    assert engine.api("GET", "/containers/nosuch/json")[0] == 404


def test_empty_lists_are_lists(engine: Engine) -> None:
    assert engine.api("GET", "/containers/json")[2].strip() == b"[]"
    volumes = engine.get("/volumes")
    assert volumes["Volumes"] == []


def test_version_and_info(engine: Engine) -> None:
    version = engine.get("/version")
    assert version["Os"] == "linux"
    assert version["Arch"] == "amd64"
    assert version["KernelVersion"]
    assert version["Components"][0]["Name"] == "Engine"
    info = engine.get("/info")
    assert info["DockerRootDir"] == str(engine.data_root)
    assert (info["Containers"], info["ContainersRunning"]) == (0, 0)
    assert info["Images"] >= 6
    assert info["NCPU"] >= 1
    assert info["OSType"] == "linux"
    engine.ok("info")


def test_descriptors_stay_flat(engine: Engine) -> None:
    def rounds(count: int) -> dict[str, int]:
        for _ in range(count):
            engine.docker("run", "--rm", "busybox", "true")
            engine.docker("exec", "box", "true")
            engine.docker("logs", "box")
        return descriptors(engine.pid)

    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    before = sum(rounds(3).values())
    after = sum(rounds(12).values())
    assert after <= before + 3


@pytest.mark.drayd_only("dockerd itself holds the streams of an abandoned exec")
def test_clients_that_go_away(engine: Engine) -> None:
    """Attach, exec, logs and events cut off in the middle leave nothing behind."""
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", "while :; do echo x; sleep 0.01; done")
    before = sum(descriptors(engine.pid).values())
    for words in (
        ["attach", "box"],
        ["logs", "-f", "box"],
        ["events"],
        ["exec", "box", "yes"],
        ["exec", "-i", "box", "cat"],
        ["wait", "box"],
    ):
        for _ in range(3):
            with engine.spawn(*words) as client:
                try:
                    client.wait(0.15)
                except subprocess.TimeoutExpired:
                    client.kill()
    deadline = time.monotonic() + 10
    while sum(descriptors(engine.pid).values()) > before + 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sum(descriptors(engine.pid).values()) <= before + 3
    assert engine.ok("exec", "box", "echo", "well") == "well"


def test_configuration_file(plain: Engine) -> None:
    path = plain.base / "daemon.json"
    path.write_text(json.dumps({"log-opts": {"max-size": "1m"}, "labels": ["a=1"], "debug": True}))
    plain.restart(extra=["--config-file", str(path)])
    info = plain.get("/info")
    assert info["Labels"] == ["a=1"]
    assert info["Debug"] is True
    plain.ok("create", "--name", "box", "busybox")
    assert plain.inspect("box")["HostConfig"]["LogConfig"]["Config"]["max-size"] == "1m"


def test_unknown_key_is_refused(engine: Engine) -> None:
    path = engine.base / "bad.json"
    path.write_text('{"no-such-key": 1}')
    command = [*engine.command(), "--config-file", str(path)]
    done = subprocess.run(
        command, env=engine.environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode != 0
    assert "no-such-key" in done.stderr + done.stdout


def test_unknown_flag_is_refused(engine: Engine) -> None:
    command = [*engine.command(), "--no-such-flag"]
    done = subprocess.run(
        command, env=engine.environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode != 0
    assert "no-such-flag" in done.stderr


def test_default_ulimit_and_log_driver(plain: Engine) -> None:
    plain.restart(extra=["--default-ulimit", "nofile=123:456", "--log-driver", "none"])
    assert plain.ok("run", "--rm", "busybox", "sh", "-c", "ulimit -Sn; ulimit -Hn").split() == ["123", "456"]
    plain.ok("create", "--name", "box", "busybox")
    assert plain.inspect("box")["HostConfig"]["LogConfig"]["Type"] == "none"


@pytest.mark.drayd_only("the limit of a Go program cannot be seen so")
def test_as_many_descriptors_as_the_hard_limit_allows(engine: Engine) -> None:
    limits = Path(f"/proc/{engine.pid}/limits").read_text()
    soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    assert soft == hard
