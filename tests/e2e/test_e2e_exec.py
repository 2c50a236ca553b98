"""`docker exec`: streams, users, environment, terminals, detached, privileges, and what inspect says of it."""

from __future__ import annotations

import json

import pytest

from support.engines import Engine, until


@pytest.fixture
def box(engine: Engine) -> str:
    engine.ok("run", "-d", "--name", "box", "-e", "OUTER=1", "-w", "/tmp", "busybox", "sleep", "600")
    return "box"


def test_streams_and_status(engine: Engine, box: str) -> None:
    done = engine.docker("exec", box, "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")


def test_input(engine: Engine, box: str) -> None:
    assert engine.ok("exec", "-i", box, "wc", "-c", input="12345") == "5"
    assert engine.ok("exec", box, "wc", "-c", input="12345") == "0"


def test_missing_and_not_executable(engine: Engine, box: str) -> None:
    missing = engine.docker("exec", box, "nosuch")
    assert missing.returncode in (126, 127)  # 126 before Docker 23
    assert "not found" in missing.stdout + missing.stderr
    assert engine.docker("exec", box, "/etc/passwd").returncode == 126


def test_environment_and_directory(engine: Engine, box: str) -> None:
    out = engine.ok("exec", "-e", "INNER=2", box, "sh", "-c", "pwd; echo $OUTER $INNER $HOME")
    assert out.splitlines() == ["/tmp", "1 2 /root"]
    assert engine.ok("exec", "-w", "/var/www", box, "pwd") == "/var/www"
    assert engine.docker("exec", "-w", "/no/such", box, "pwd").returncode in (126, 127)


@pytest.mark.parametrize(("user", "expected"), [("app", "1000 1000"), ("1:2", "1 2"), ("nobody", "65534 65534")])
def test_user(engine: Engine, box: str, user: str, expected: str) -> None:
    assert engine.ok("exec", "-u", user, box, "sh", "-c", "echo $(id -u) $(id -g)") == expected


def test_unknown_user(engine: Engine, box: str) -> None:
    done = engine.docker("exec", "-u", "nosuch", box, "id")
    assert done.returncode in (1, 126)
    assert "unable to find user nosuch" in done.stdout + done.stderr


def test_same_namespaces(engine: Engine, box: str) -> None:
    script = "for n in ipc mnt net pid uts; do readlink /proc/1/ns/$n; readlink /proc/self/ns/$n; done"
    lines = engine.ok("exec", box, "sh", "-c", script).split()
    assert lines[0::2] == lines[1::2]


def test_same_cgroup(engine: Engine, box: str) -> None:
    inside = engine.ok("exec", box, "sh", "-c", "diff /proc/1/cgroup /proc/self/cgroup && echo same")
    assert inside == "same"


def test_same_limits_of_rights(engine: Engine, box: str) -> None:
    def status(*flags: str) -> dict[str, str]:
        lines = engine.ok("exec", *flags, box, "cat", "/proc/self/status").splitlines()
        return {line.split(":")[0]: line.split(":")[1].strip() for line in lines}

    plain = status()
    assert int(plain["CapEff"], 16) == 0xA80425FB
    assert plain["Seccomp"] == "2"
    assert int(plain["CapInh"], 16) in (0, 0xA80425FB)
    assert int(status("-u", "1000")["CapEff"], 16) == 0


@pytest.mark.drayd_only("runc insists on all capabilities, and the machine may not have CAP_SYS_RESOURCE")
def test_privileged(engine: Engine, box: str) -> None:
    """All capabilities; the container's seccomp filter stays, as with runc."""
    line = engine.ok("exec", "--privileged", box, "grep", "CapEff", "/proc/self/status")
    assert int(line.split()[1], 16) & (1 << 21)  # CAP_SYS_ADMIN
    assert int(engine.ok("exec", box, "grep", "CapEff", "/proc/self/status").split()[1], 16) == 0xA80425FB


def test_detached(engine: Engine, box: str) -> None:
    assert engine.ok("exec", "-d", box, "sh", "-c", "sleep 0.1; echo done > /tmp/mark") == ""
    until(lambda: engine.docker("exec", box, "cat", "/tmp/mark").stdout == "done\n", what="the detached program")


def test_terminal(engine: Engine, box: str) -> None:
    with engine.terminal("exec", "-it", box, "sh", rows=33, columns=99) as tty:
        tty.expect("/tmp # ")
        tty.send("tty; stty size\n")
        tty.expect("/dev/pts/[0-9]+")
        tty.expect("33 99")
        tty.send("sleep 100\n")
        until(lambda: "sleep 100" in engine.ok("top", box).splitlines()[-1], what="the sleep")
        tty.send("\x03")
        tty.expect("/tmp # ")
        tty.send("exit 5\n")
        assert tty.wait() == 5


def test_terminal_detach(engine: Engine, box: str) -> None:
    with engine.terminal("exec", "-it", box, "sh") as tty:
        tty.expect("# ")
        tty.send("\x10\x11")
        tty.wait()
    until(lambda: "sh" in engine.ok("top", box, "-o", "pid,comm").split(), what="the shell")


def test_large_output(engine: Engine, box: str) -> None:
    with engine.spawn("exec", box, "head", "-c", "30000000", "/dev/zero") as client:
        out, _ = client.communicate(timeout=60)
    assert len(out) == 30_000_000


def test_many_at_once(engine: Engine, box: str) -> None:
    clients = [engine.spawn("exec", box, "sh", "-c", f"echo {n}; exit {n}") for n in range(10)]
    processes = [client.__enter__() for client in clients]
    try:
        for number, process in enumerate(processes):
            out, _ = process.communicate(timeout=60)
            assert (out, process.returncode) == (b"%d\n" % number, number)
    finally:
        for client in clients:
            client.__exit__(None, None, None)


def test_not_running(engine: Engine) -> None:
    engine.ok("create", "--name", "box", "busybox")
    assert "is not running" in engine.fails("exec", "box", "true")
    assert engine.api("POST", "/containers/box/exec", {"Cmd": ["true"]})[0] == 409
    assert engine.api("POST", "/containers/nosuch/exec", {"Cmd": ["true"]})[0] == 404
    assert engine.api("POST", "/exec/nosuch/start", {"Detach": True})[0] == 404


def test_inspect(engine: Engine, box: str) -> None:
    body = {"Cmd": ["sh", "-c", "exit 4"], "Env": ["A=1"], "User": "app", "AttachStdout": True}
    status, _, answer = engine.api("POST", f"/containers/{box}/exec", body)
    assert status == 201
    made = json.loads(answer)["Id"]
    before = engine.get(f"/exec/{made}/json")
    assert (before["Running"], before["ExitCode"]) == (False, None)
    assert before["ProcessConfig"]["arguments"] == ["-c", "exit 4"]
    assert before["ProcessConfig"]["entrypoint"] == "sh"
    assert before["ProcessConfig"]["user"] == "app"
    assert engine.inspect(box)["ExecIDs"] == [made]
    assert engine.api("POST", f"/exec/{made}/start", {"Detach": True})[0] == 200
    until(lambda: engine.get(f"/exec/{made}/json")["Running"] is False, what="the exec's end")
    assert engine.get(f"/exec/{made}/json")["ExitCode"] == 4
    assert engine.api("POST", f"/exec/{made}/start", {"Detach": True})[0] == 409


def test_ends_with_its_container(engine: Engine, box: str) -> None:
    with engine.spawn("exec", box, "sleep", "600") as client:
        until(lambda: engine.inspect(box)["ExecIDs"], what="the exec")
        until(lambda: engine.ok("top", box).count("sleep") == 2, what="the exec's program")
        engine.ok("kill", box)
        assert client.wait(20) == 137


def test_statuses_are_never_lost(engine: Engine, box: str) -> None:
    for number in range(40):
        assert engine.docker("exec", box, "sh", "-c", f"echo x; exit {number + 1}").returncode == number + 1


def test_an_exec_that_never_started_lapses_with_the_run(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    _, _, body = engine.api("POST", "/containers/box/exec", {"Cmd": ["true"]})
    made = json.loads(body)["Id"]
    engine.ok("restart", "-t", "0", "box")
    for status, _, body in (
        engine.api("POST", f"/exec/{made}/start", {"Detach": True}),
        engine.api("GET", f"/exec/{made}/json"),
    ):
        assert (status, json.loads(body)["message"]) == (404, f"No such exec instance: {made}")


def test_only_a_terminal_has_a_kind(engine: Engine) -> None:
    engine.ok("run", "-dt", "--name", "box", "busybox", "sleep", "600")
    engine.ok("run", "-d", "--name", "own", "-e", "TERM=vt100", "busybox", "sleep", "600")
    kind = ("sh", "-c", "echo [$TERM]")
    assert engine.ok("exec", "box", *kind) == "[]"
    assert engine.ok("exec", "-t", "box", *kind).strip() == "[xterm]"
    assert engine.ok("exec", "own", *kind) == "[vt100]"
