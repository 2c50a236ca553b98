"""The same containers with an external OCI runtime under the same shim."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import Engine

pytestmark = pytest.mark.drayd_only("dockerd runs runc in every other test, and is not told of crun")


UNIFIED = Path("/sys/fs/cgroup/unified")


@pytest.fixture(params=["runc", "crun"])
def runtime(request: pytest.FixtureRequest, engine: Engine) -> Iterator[str]:
    """The runtime's name. crun refuses hosts with v1 and v2 controllers both: the v2 hierarchy goes meanwhile."""
    hybrid = request.param == "crun" and UNIFIED.is_mount()
    if hybrid:
        subprocess.run(["umount", str(UNIFIED)], check=True)
        engine.restart()
    yield str(request.param)
    engine.remove_everything()
    if hybrid:
        subprocess.run(["mount", "-t", "cgroup2", "cgroup", str(UNIFIED)], check=True)
        engine.restart()


def test_run(engine: Engine, runtime: str) -> None:
    done = engine.docker(
        "run", "--rm", "--runtime", runtime, "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_input(engine: Engine, runtime: str) -> None:
    assert engine.ok("run", "-i", "--rm", "--runtime", runtime, "busybox", "cat", input="hello\n") == "hello"


def test_missing_program(engine: Engine, runtime: str) -> None:
    assert engine.docker("run", "--rm", "--runtime", runtime, "busybox", "nosuch").returncode == 127


def test_life(engine: Engine, runtime: str) -> None:
    engine.ok("run", "-d", "--name", "box", "--runtime", runtime, "-p", "18080:80", "-m", "64m", "variants:web")
    assert engine.inspect("box")["HostConfig"]["Runtime"] == runtime
    assert engine.ok("exec", "box", "sh", "-c", "echo $$ $(id -u)").split()[1] == "0"
    with engine.terminal("exec", "-it", "box", "sh") as tty:
        tty.expect("# ")
        tty.send("exit 3\n")
        assert tty.wait() == 3
    engine.ok("pause", "box")
    engine.ok("unpause", "box")
    engine.ok("stop", "-t", "1", "box")
    engine.ok("start", "box")
    engine.ok("kill", "box")
    assert engine.until_state("box", "exited")["ExitCode"] == 137
    engine.ok("rm", "box")


def test_terminal(engine: Engine, runtime: str) -> None:
    with engine.terminal("run", "-it", "--rm", "--runtime", runtime, "busybox", "sh", rows=30, columns=100) as tty:
        tty.expect("/ # ")
        tty.send("stty size\n")
        tty.expect("30 100")
        tty.send("exit 4\n")
        assert tty.wait() == 4


def test_daemon_killed(engine: Engine, runtime: str) -> None:
    engine.ok("run", "-d", "--name", "box", "--runtime", runtime, "busybox", "sh", "-c", "sleep 0.6; exit 5")
    engine.kill()
    engine.start()
    assert engine.ok("wait", "box") == "5"


def test_unknown_runtime(engine: Engine) -> None:
    assert "nosuch" in engine.fails("run", "--rm", "--runtime", "nosuch", "busybox", "true", status=125)
