"""The daemon that nobody misses: killed at every bad moment, shims killed, the machine restarted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from images import cache
from support.engines import Engine, until
from support.leaks import command_line, state
from support.world import HOST_ADDRESS, World

pytestmark = pytest.mark.drayd_only("dockerd's containers end with it")

COUNTS = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done"


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])


def test_containers_run_on_and_logs_grow(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", COUNTS)
    before = engine.state("box")
    until(lambda: engine.ok("logs", "box"), what="output")
    log = Path(engine.inspect("box")["LogPath"])
    engine.kill()
    size = log.stat().st_size
    until(lambda: log.stat().st_size > size + 200, what="a growing log while the daemon is away")
    assert state(before["Pid"]) not in ("", "Z")
    engine.start()
    after = engine.state("box")
    assert (after["Status"], after["Pid"], after["StartedAt"]) == ("running", before["Pid"], before["StartedAt"])
    numbers = [int(line) for line in engine.ok("logs", "box").split()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert engine.ok("exec", "box", "echo", "in") == "in"
    engine.ok("stop", "-t", "0", "box")
    assert engine.state("box")["ExitCode"] == 137


def test_exit_while_the_daemon_is_away(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", "sleep 0.5; echo last; exit 9")
    pid = engine.state("box")["Pid"]
    engine.kill()
    until(lambda: state(pid) == "", what="the container's end")
    ended = time.time()
    time.sleep(1)
    engine.start()
    known = engine.state("box")
    assert (known["Status"], known["ExitCode"], known["Running"]) == ("exited", 9, False)
    finished = subprocess.run(
        ["date", "-d", known["FinishedAt"], "+%s.%N"], capture_output=True, text=True, check=True
    )
    assert abs(float(finished.stdout) - ended) < 0.9
    assert engine.ok("logs", "box") == "last"
    assert engine.ok("wait", "box") == "9"


def test_polite_stop_disturbs_nothing_either(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    pid = engine.state("box")["Pid"]
    assert engine.stop() == 0
    assert not engine.socket.exists()
    assert not engine.pidfile.exists()
    assert state(pid) not in ("", "Z")
    engine.start()
    assert engine.state("box")["Pid"] == pid


def test_a_daemon_that_stops_its_containers_starts_what_its_policies_want(engine: Engine) -> None:
    """live-restore off: as dockerd, where a stop with the daemon is no stop by hand."""
    policies = {"always": "always", "unless": "unless-stopped", "failed": "on-failure", "plain": "no"}
    engine.restart(extra=["--live-restore=false", "--shutdown-timeout", "1"])
    try:
        for name, policy in policies.items():
            engine.ok("run", "-d", "--name", name, "--restart", policy, "busybox", "sleep", "600")
        engine.ok("run", "-d", "--name", "byhand", "--restart", "unless-stopped", "busybox", "sleep", "600")
        engine.ok("run", "-d", "--rm", "--name", "gone", "busybox", "sleep", "600")
        engine.ok("stop", "-t", "0", "byhand")
        pids = [engine.state(name)["Pid"] for name in (*policies, "gone")]
        assert engine.stop() == 0
        assert [state(pid) for pid in pids] == [""] * len(pids)
    finally:
        engine.start()
    for name in ("always", "unless", "failed"):
        engine.until_state(name, "running")
    assert (engine.state("plain")["Status"], engine.state("plain")["ExitCode"]) == ("exited", 137)
    assert engine.state("byhand")["Status"] == "exited"
    assert "gone" not in engine.ok("ps", "-a", "--format", "{{.Names}}").split()


def started(engine: Engine) -> None:
    """Output flows before the client has the answer to its start request; without that answer it gives up."""
    engine.until_state("box", "running")
    time.sleep(0.3)


def test_attached_client_stays_attached(engine: Engine) -> None:
    with engine.spawn("run", "-i", "--name", "box", "busybox", "cat") as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"before\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"before\n"
        started(engine)
        engine.kill()
        client.stdin.write(b"while\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"while\n"
        engine.start()
        client.stdin.write(b"after\n")
        client.stdin.close()
        assert client.stdout.read() == b"after\n"


def test_attach_with_100_megabytes_flowing(engine: Engine) -> None:
    """The client gets every byte, though the daemon dies in the middle."""
    total = 100_000_000
    script = f"head -c {total // 2} /dev/zero; read go; head -c {total // 2} /dev/zero"
    with engine.spawn("run", "-i", "--name", "box", "busybox", "sh", "-c", script) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        got = len(client.stdout.read(10_000_000))
        started(engine)
        engine.kill()
        client.stdin.write(b"go\n")
        client.stdin.flush()
        while chunk := client.stdout.read(1 << 20):
            got += len(chunk)
            if got > total * 3 // 4 and engine.daemon is None:
                engine.start()
        assert got == total
    if engine.daemon is None:
        engine.start()
    assert engine.until_state("box", "exited")["ExitCode"] == 0


def test_published_port_works_without_the_daemon(engine: Engine) -> None:
    from test_e2e_network import page

    engine.ok("run", "-d", "--name", "web", "-p", "18080:80", "variants:web")
    assert page("127.0.0.1", 18080) == "busybox page\n"
    engine.kill()
    for address in ("127.0.0.1", HOST_ADDRESS):
        assert page(address, 18080) == "busybox page\n"
    stop = threading.Event()
    failures: list[Exception] = []

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                page(HOST_ADDRESS, 18080, timeout=0)
            except (OSError, AssertionError) as error:
                failures.append(error)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        engine.start()
        time.sleep(0.3)
    finally:
        stop.set()
        asking.join()
    assert not failures
    assert engine.ports("web")["80/tcp"][0]["HostPort"] == "18080"
    engine.ok("rm", "-f", "web")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 18080), timeout=2).close()


def test_addresses_stay_reserved(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "one", "busybox", "sleep", "600")
    engine.kill()
    engine.start()
    engine.ok("run", "-d", "--name", "two", "busybox", "sleep", "600")
    assert engine.address("one") != engine.address("two")
    message = engine.fails("create", "--name", "one", "busybox")
    assert "already in use" in message


def test_exec_survives(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    with engine.spawn("exec", "-i", "box", "cat") as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"x\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"x\n"
        engine.kill()
        client.stdin.write(b"y\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"y\n"
        engine.start()
        client.stdin.close()
        assert client.stdout.read() == b""


def test_removal_after_the_daemons_return(engine: Engine) -> None:
    """--rm is kept as a promise over the daemon's death."""
    engine.ok("run", "-d", "--rm", "--name", "box", "-v", "/anonymous", "busybox", "sleep", "0.5")
    pid = engine.state("box")["Pid"]
    engine.kill()
    until(lambda: state(pid) == "", what="the container's end")
    engine.start()
    until(lambda: engine.docker("inspect", "box").returncode == 1, what="the removal")
    assert not engine.get("/volumes")["Volumes"]


def test_restart_policy_after_the_daemons_return(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "--restart", "always", "busybox", "sleep", "0.7")
    engine.ok("create", "--name", "stopped", "--restart", "always", "busybox", "sleep", "600")
    engine.ok("start", "stopped")
    engine.ok("stop", "-t", "0", "stopped")
    pid = engine.state("box")["Pid"]
    engine.kill()
    until(lambda: state(pid) == "", what="the container's end")
    engine.start()
    until(lambda: engine.state("box")["Pid"] not in (0, pid), what="a new process")


def kill_during(engine: Engine, act: Callable[[], object], delay: float) -> None:
    """Start `act` in a thread and kill the daemon `delay` seconds later."""
    thread = threading.Thread(target=_quiet, args=(act,))
    thread.start()
    time.sleep(delay)
    engine.kill()
    thread.join(30)
    engine.start()


def _quiet(act: Callable[[], object]) -> None:
    with contextlib.suppress(OSError, AssertionError):
        act()


DELAYS = [0.0, 0.003, 0.006, 0.01, 0.015, 0.02, 0.03, 0.05]


@pytest.mark.parametrize("delay", DELAYS)
def test_killed_in_the_middle_of_a_create(engine: Engine, delay: float) -> None:
    answers: list[int] = []

    def create() -> None:
        for number in range(20):
            body = {"Image": "busybox", "Cmd": ["true"], "Volumes": {"/v": {}}}
            status, _, _ = engine.api("POST", f"/containers/create?name=box{number}", body)
            answers.append(status)

    kill_during(engine, create, delay)
    listed = {name.removeprefix("/") for one in engine.get("/containers/json?all=1") for name in one["Names"]}
    # Everything that was acknowledged is there, and works; the one in flight may be.
    acknowledged = {f"box{n}" for n, status in enumerate(answers) if status == 201}
    assert acknowledged <= listed <= acknowledged | {f"box{len(answers)}"}
    for name in listed:
        assert engine.api("POST", f"/containers/{name}/start")[0] == 204
        assert engine.ok("wait", name) == "0"
        assert engine.api("DELETE", f"/containers/{name}?v=1")[0] == 204
    assert not engine.get("/volumes")["Volumes"]


@pytest.mark.parametrize("delay", DELAYS)
def test_killed_in_the_middle_of_a_start(engine: Engine, delay: float) -> None:
    names = [f"box{n}" for n in range(8)]
    for name in names:
        engine.ok("create", "--name", name, "-p", "127.0.0.1::80", "busybox", "sleep", "600")
    answers: dict[str, int] = {}

    def start() -> None:
        for name in names:
            answers[name] = engine.api("POST", f"/containers/{name}/start")[0]

    kill_during(engine, start, delay)
    for name in names:
        known = engine.state(name)
        if answers.get(name) == 204:
            assert known["Status"] == "running", name
        if known["Status"] == "running":
            assert state(known["Pid"]) not in ("", "Z")
            assert engine.ok("exec", name, "echo", "in") == "in"
        else:
            engine.ok("start", name)
        engine.ok("rm", "-f", name)


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.4])
def test_killed_in_the_middle_of_a_load(engine: Engine, delay: float) -> None:
    path = cache.medium_archive()
    kill_during(engine, lambda: engine.docker("load", "-i", str(path)), delay)
    done = engine.docker("image", "inspect", "bulk:medium")
    if done.returncode != 0:
        engine.load(path)
    assert engine.ok("run", "--rm", "bulk:medium", "sh", "-c", "ls -d /bulk* | wc -l") == "12"
    engine.ok("rmi", "bulk:medium")
    # What a broken load left in the store must not stay: the same again must take no more room.
    size = _used(engine.data_root)
    engine.load(path)
    engine.ok("rmi", "bulk:medium")
    until(lambda: _used(engine.data_root) < size + 5_000_000, what="the room given back")


def _used(folder: Path) -> int:
    listed = subprocess.run(["du", "-sxB1", str(folder)], capture_output=True, text=True, check=False)
    return int(listed.stdout.split()[0])


def test_shim_killed(engine: Engine) -> None:
    """Its container is stopped and shown exited."""
    engine.ok("run", "-d", "--name", "box", "-p", "18080:80", "variants:web")
    pid = engine.state("box")["Pid"]
    shim = parent(pid)
    assert shim not in (1, engine.pid), command_line(shim)
    os.kill(shim, signal.SIGKILL)
    engine.until_state("box", "exited")
    until(lambda: state(pid) in ("", "Z"), what="the program's end")
    assert engine.state("box")["ExitCode"] != 0
    engine.ok("start", "box")
    from test_e2e_network import page

    assert page("127.0.0.1", 18080) == "busybox page\n"


def test_shim_killed_while_the_daemon_is_away(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    pid = engine.state("box")["Pid"]
    engine.kill()
    os.kill(parent(pid), signal.SIGKILL)
    engine.start()
    engine.until_state("box", "exited")
    until(lambda: state(pid) in ("", "Z"), what="the program's end")


def test_container_program_killed_from_outside(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    os.kill(engine.state("box")["Pid"], signal.SIGKILL)
    assert engine.until_state("box", "exited")["ExitCode"] == 137


def reboot(engine: Engine, world: World) -> None:
    """What a power failure does: every process gone, every mount, link and cgroup, the run folder empty."""
    engine.kill()
    world.kill_all()
    for mount in reversed(engine.mounts()):
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
    shutil.rmtree(engine.exec_root, ignore_errors=True)
    subprocess.run(["ip", "link", "delete", engine.bridge], check=False, capture_output=True)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    for folder, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def test_machine_restart(engine: Engine, world: World) -> None:
    engine.ok("run", "-d", "--name", "plain", "busybox", "sleep", "600")
    engine.ok("run", "-d", "--name", "always", "--restart", "always", "-p", "18080:80", "variants:web")
    engine.ok("run", "-d", "--name", "unless", "--restart", "unless-stopped", "busybox", "sleep", "600")
    engine.ok("run", "-d", "--name", "failing", "--restart", "on-failure", "busybox", "sleep", "600")
    engine.ok("run", "-d", "--name", "halted", "--restart", "unless-stopped", "busybox", "sleep", "600")
    engine.ok("stop", "-t", "0", "halted")
    engine.ok("run", "-d", "--rm", "--name", "passing", "busybox", "sleep", "600")
    engine.ok("create", "--name", "made", "busybox")
    engine.ok("run", "--name", "kept", "-v", "named:/v", "busybox", "sh", "-c", "echo kept > /v/x; echo in > /y")
    try:
        reboot(engine, world)
    finally:
        engine.start()
    assert engine.until_state("plain", "exited")["ExitCode"] == 255
    for name in ("always", "unless", "failing"):
        engine.until_state(name, "running")
    assert engine.state("halted")["Status"] == "exited"
    assert engine.state("made")["Status"] == "created"
    until(lambda: engine.docker("inspect", "passing").returncode == 1, what="the --rm container's removal")
    from test_e2e_network import page

    assert page("127.0.0.1", 18080) == "busybox page\n"
    assert engine.ok("run", "--rm", "-v", "named:/v", "busybox", "cat", "/v/x") == "kept"
    engine.ok("start", "plain")
    assert engine.ok("exec", "plain", "echo", "in") == "in"


def test_second_daemon_on_the_same_folders_is_refused(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    done = subprocess.run(
        engine.command(), env=engine.environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode != 0
    assert done.stderr.strip()
    assert engine.state("box")["Status"] == "running"


@pytest.mark.parametrize("shared", ["--data-root", "--exec-root", "-H"])
def test_second_daemon_is_refused_whatever_it_shares(engine: Engine, tmp_path: Path, shared: str) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    command = engine.command()
    for flag in ("--data-root", "--exec-root", "--pidfile", "-H"):
        if flag != shared:
            own = str(tmp_path / flag.strip("-"))
            command[command.index(flag) + 1] = f"unix://{own}" if flag == "-H" else own
    done = subprocess.run(
        command, env=engine.environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert shared in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert engine.state("box")["Status"] == "running"


def test_many_kills(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", COUNTS)
    for _ in range(5):
        engine.kill()
        engine.start()
    numbers = [int(line) for line in engine.ok("logs", "box").split()]
    assert numbers == list(range(1, len(numbers) + 1))
