"""A disk that is full: clear errors, nothing half-made, running containers can still be ended, and it all comes back."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import cache
from support.engines import Drayd, Engine, until
from support.world import World

pytestmark = pytest.mark.drayd_only("the words of the errors and the restart are drayd's")


@pytest.fixture
def small(world: World, tmp_path: Path) -> Iterator[Engine]:
    """A daemon whose data root has little room; it has a bridge of its own beside the session's engine."""
    base = tmp_path / "small"
    base.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140m", "none", str(base)], check=True)
    engine = Drayd(base, flags=["--bridge", "dray-small0", "--bip", "172.29.77.1/24"])
    try:
        engine.start()
        engine.load(cache.busybox_archive())
        yield engine
        engine.remove_everything()
        engine.stop()
    finally:
        subprocess.run(["umount", "-l", str(base)], check=True)


def fill(engine: Engine) -> Path:
    filler = engine.base / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def test_full_disk(small: Engine) -> None:
    for name in ("stopped", "killed", "runs", "policy"):
        more = ["--restart", "always"] if name == "policy" else []
        small.ok("run", "-d", "--name", name, *more, "busybox", "sleep", "600")
    small.ok(
        "run", "-d", "--name", "ends", "busybox", "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; exit 4"
    )
    small.ok("create", "--name", "waits", "busybox", "sleep", "600")
    filler = fill(small)
    for command in (["create", "busybox"], ["run", "-d", "busybox", "sleep", "600"], ["volume", "create", "vol"]):
        failed = small.docker(*command)
        assert failed.returncode in (1, 125)
        assert "full" in failed.stderr or "space" in failed.stderr
    assert small.docker("start", "waits").returncode == 1
    assert small.ok("volume", "ls", "-q") == ""
    assert sorted(small.ok("ps", "-a", "--format", "{{.Names}}").split()) == sorted(
        ["stopped", "killed", "runs", "policy", "ends", "waits"]
    )
    small.ok("stop", "-t", "0", "stopped")
    small.ok("kill", "killed")
    small.ok("kill", "-s", "KILL", "ends")
    assert small.state("stopped")["ExitCode"] == small.state("killed")["ExitCode"] == 137
    assert small.state("waits")["Status"] == "created"
    # Removals need a write, too: the space for it is kept.
    small.ok("rename", "waits", "waited")
    small.ok("rename", "waited", "waits")
    small.ok("rm", "killed")
    small.ok("rm", "-f", "ends")
    small.kill()
    small.start()
    assert small.state("runs")["Status"] == "running"
    assert small.state("stopped")["Status"] == "exited"
    filler.unlink()
    small.ok("run", "--rm", "busybox", "true")
    small.ok("start", "waits", "stopped")
    until(lambda: small.state("waits")["Status"] == "running", what="the start")
