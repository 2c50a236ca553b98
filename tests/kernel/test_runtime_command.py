"""`dray-runtime` as a command, and external runtimes behind the same protocol."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dray.base.errors import StartError
from dray.linux import cgroups
from dray.runtime import checkpoint
from dray.runtime.external import ExternalRuntime
from dray.runtime.main import main
from dray.runtime.model import ExecRequest
from kernel.runtime_bundle import CGROUP, Box, docker_spec, drain, make_root, reap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    make_root(tmp_path / "bundle/rootfs")
    yield tmp_path / "bundle"
    cgroups.prune(CGROUP)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def configure(bundle: Path, id: str, *args: str, **process: Any) -> None:
    spec = docker_spec(*args)
    spec["process"].update(process)
    spec["linux"]["cgroupsPath"] = f"{CGROUP}/{id}"
    (bundle / "config.json").write_text(json.dumps(spec))


def command(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "dray.runtime.main", "--root", str(bundle / "state"), *arguments]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    with open(bundle / "out", "w+") as out, open(bundle / "err", "w+") as err:  # a pipe would wait for init's end
        ended = subprocess.run(argv, cwd=bundle, env=environment, stdout=out, stderr=err, timeout=60, check=False)
    return subprocess.CompletedProcess(
        argv, ended.returncode, (bundle / "out").read_text(), (bundle / "err").read_text()
    )


def test_the_life_of_a_container_by_its_verbs(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(bundle / "state")]
    configure(bundle, "one", "sleep", "100")
    assert main([*root, "create", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), "one"]) == 0
    pid = int((bundle / "pid").read_text())

    def state() -> dict[str, Any]:
        capfd.readouterr()
        assert main([*root, "state", "one"]) == 0
        answer: dict[str, Any] = json.loads(capfd.readouterr().out)
        return answer

    assert (state()["status"], state()["pid"]) == ("created", pid)
    assert main([*root, "create", "--bundle", str(bundle), "one"]) == 1
    assert "exists" in capfd.readouterr().err
    assert main([*root, "start", "one"]) == 0
    assert state()["status"] == "running"
    assert main([*root, "start", "one"]) == 1
    assert main([*root, "exec", "one", "sh", "-c", "echo inside; exit 4"]) == 4
    assert "inside" in capfd.readouterr().out
    assert main([*root, "ps", "--format", "json", "one"]) == 0
    assert json.loads(capfd.readouterr().out) == [pid]
    assert main([*root, "pause", "one"]) == 0
    assert state()["status"] == "paused"
    assert main([*root, "resume", "one"]) == 0
    assert main([*root, "update", "--pids-limit", "50", "one"]) == 0
    assert main([*root, "delete", "one"]) == 1
    assert main([*root, "kill", "one", "KILL"]) == 0
    assert reap(pid) == 137
    assert state()["status"] == "stopped"
    assert main([*root, "list", "-q"]) == 0
    assert capfd.readouterr().out == "one\n"
    assert main([*root, "delete", "one"]) == 0
    assert main([*root, "delete", "--force", "one"]) == 0
    assert list((bundle / "state").iterdir()) == []


def test_create_in_one_process_start_in_another(bundle: Path) -> None:
    configure(bundle, "two", "sh", "-c", "echo ran > /ran")
    assert command(bundle, "create", "two").returncode == 0
    try:
        assert command(bundle, "start", "two").returncode == 0
        for _ in range(100):
            if (bundle / "rootfs/ran").exists():
                break
            time.sleep(0.05)
        assert (bundle / "rootfs/ran").read_text() == "ran\n"
    finally:
        assert command(bundle, "delete", "--force", "two").returncode == 0


def test_run_in_the_foreground(bundle: Path) -> None:
    configure(bundle, "three", "sh", "-c", "echo out; exit 3")
    ended = command(bundle, "run", "three")
    assert (ended.stdout, ended.returncode) == ("out\n", 3)
    configure(bundle, "four", "nosuch")
    log = bundle / "log"
    ended = command(bundle, "--log", str(log), "--log-format", "json", "run", "four")
    assert ended.returncode == 1
    assert json.loads(log.read_text())["msg"].endswith('exec: "nosuch": executable file not found in $PATH')
    assert "systemd" in command(bundle, "--systemd-cgroup", "run", "five").stderr


def test_console_socket(bundle: Path) -> None:
    configure(bundle, "tty", "tty", terminal=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bundle / "console"))
        listener.listen(1)
        arguments = ["--root", str(bundle / "state"), "create", "--bundle", str(bundle)]
        pid_file = str(bundle / "pid")
        assert main([*arguments, "--console-socket", str(bundle / "console"), "--pid-file", pid_file, "tty"]) == 0
        connection, _ = listener.accept()
        _, (master,), _, _ = socket.recv_fds(connection, 100, 1)
        connection.close()
    assert main(["--root", str(bundle / "state"), "start", "tty"]) == 0
    assert drain(master) == "/dev/pts/0\r\n"
    os.close(master)
    reap(int((bundle / "pid").read_text()))
    assert main(["--root", str(bundle / "state"), "delete", "tty"]) == 0


def test_spec_and_features(bundle: Path) -> None:
    assert command(bundle, "spec").returncode == 0
    assert json.loads((bundle / "config.json").read_text())["process"]["args"] == ["sh"]
    assert command(bundle, "spec").returncode == 1
    assert "pid" in json.loads(command(bundle, "features").stdout)["linux"]["namespaces"]


@pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc")
def test_runc_behind_the_protocol(tmp_path: Path) -> None:
    """In a forked process: the external runtime takes a mount namespace for good."""
    pid = os.fork()
    if pid == 0:
        try:
            _drive_runc(tmp_path)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    code = reap(pid)
    cgroups.prune(CGROUP)
    for unified in Path("/sys/fs/cgroup/unified").glob(CGROUP.strip("/")):  # runc joins it in the hybrid layout
        unified.rmdir()
    assert code == 0
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def _drive_runc(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    box = Box(make_root(tmp_path / "image"), tmp_path / "bundle")
    box.runtime = ExternalRuntime("runc", state_root=tmp_path / "state")
    assert box.run(docker_spec("sh", "-c", "echo out; exit 5")).code == 5
    with pytest.raises(StartError) as caught:
        box.run(docker_spec("nosuch"))
    assert caught.value.exit_code == 127
    spec = docker_spec("sleep", "100")
    id, started = box.create(spec)
    box.runtime.start(id)
    assert box.exec(id, {**spec["process"], "args": ["hostname"]}).output == "box\n"
    request = ExecRequest(
        id, {**spec["process"], "args": ["stty", "size"], "terminal": True}, None, console_size=(7, 8)
    )
    terminal = box.runtime.exec(request)
    assert terminal.console is not None
    assert drain(terminal.console).split() == ["7", "8"]
    reap(terminal.pid)
    assert box.runtime.pids(id) == [started.pid]
    box.runtime.pause(id)
    box.runtime.resume(id)
    box.runtime.update(id, {"pids": {"limit": 50}})
    box.runtime.kill(id, signal.SIGKILL)
    assert reap(box.live.pop(id)) == 137
    box.runtime.delete(id)


def test_events_and_verbs_that_are_refused(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(bundle / "state")]
    configure(bundle, "watched", "sleep", "100")
    pid_file = bundle / "pid"
    assert main([*root, "create", "--bundle", str(bundle), "--pid-file", str(pid_file), "watched"]) == 0
    assert main([*root, "start", "watched"]) == 0
    capfd.readouterr()
    assert main([*root, "events", "--stats", "watched"]) == 0
    event = json.loads(capfd.readouterr().out)
    assert (event["type"], event["id"]) == ("stats", "watched")
    assert event["data"]["memory"]["usage"]["usage"] > 0
    assert event["data"]["cpu"]["usage"]["total"] > 0
    if checkpoint.check({}, []):  # where criu can, tests/vm shows it
        assert main([*root, "checkpoint", "--image-path", str(tmp_path / "images"), "watched"]) == 1
        assert "checkpoint is not supported: " in capfd.readouterr().err
        assert not (tmp_path / "images").exists()
    watcher = subprocess.Popen(
        [sys.executable, "-m", "dray.runtime.main", *root, "events", "--interval", "50ms", "watched"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    with watcher:
        assert watcher.stdout is not None
        assert [json.loads(watcher.stdout.readline())["type"] for _ in range(2)] == ["stats", "stats"]
        assert main([*root, "kill", "watched", "KILL"]) == 0
        assert watcher.wait(20) == 0
    reap(int(pid_file.read_text()))
    assert main([*root, "delete", "watched"]) == 0


def test_preserved_descriptors(bundle: Path, tmp_path: Path) -> None:
    configure(bundle, "kept", "sh", "-c", "cat <&3; ls /proc/self/fd; echo $LISTEN_FDS $LISTEN_PID")
    (tmp_path / "words").write_text("kept\n")
    arguments = f"{sys.executable} -m dray.runtime.main --root {bundle}/state run"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}

    def run(flags: str, redirect: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", f"exec {arguments} {flags} kept {redirect}"],
            cwd=bundle, env={**environment, **extra}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert run("--preserve-fds 1", f"3<{tmp_path}/words").stdout.split() == ["kept", "0", "1", "2", "3", "4"]
    listening = run("", f"3<{tmp_path}/words", LISTEN_FDS="1")
    assert listening.stdout.split() == ["kept", "0", "1", "2", "3", "4", "1", "1"]
    missing = run("--preserve-fds 2", f"3<{tmp_path}/words")
    assert (missing.returncode, "descriptor 4 is not open" in missing.stderr) == (1, True)
    assert run("", f"3<{tmp_path}/words").stdout.split() == ["0", "1", "2", "3"]  # 3 is the listing itself
