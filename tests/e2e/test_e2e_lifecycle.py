"""create, start, stop, restart, kill, pause, rename, wait, top, ps, rm, prune, update of containers."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from support.engines import Engine, until
from support.leaks import state

OBEYS = "trap 'exit 3' TERM; while :; do sleep 0.05; done"


def test_create_then_start(engine: Engine) -> None:
    engine.ok("create", "--name", "box", "busybox", "echo", "hi")
    created = engine.state("box")
    assert created["Status"] == "created"
    assert created["Running"] is False
    assert created["Pid"] == 0
    assert created["StartedAt"] == created["FinishedAt"] == "0001-01-01T00:00:00Z"
    assert engine.ok("start", "-a", "box") == "hi"
    ended = engine.state("box")
    assert (ended["Status"], ended["ExitCode"]) == ("exited", 0)
    assert created["StartedAt"] < ended["StartedAt"] <= ended["FinishedAt"]


def test_start_of_a_running_container_is_no_error(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    pid = engine.state("box")["Pid"]
    assert engine.api("POST", "/containers/box/start")[0] == 304
    assert engine.state("box")["Pid"] == pid


def test_container_can_be_started_again(engine: Engine) -> None:
    engine.docker(
        "run", "--name", "box", "busybox", "sh", "-c", "echo x >> /file; wc -l < /file; exit $(wc -l < /file)"
    )
    for count in (2, 3):
        done = engine.docker("start", "-a", "box")
        assert (done.stdout.strip(), done.returncode) == (str(count), count)


def test_stop_sends_term(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", OBEYS)
    assert engine.ok("stop", "box") == "box"
    ended = engine.state("box")
    assert (ended["Status"], ended["ExitCode"], ended["Pid"]) == ("exited", 3, 0)
    assert engine.api("POST", "/containers/box/stop")[0] == 304


def test_stop_kills_after_its_time(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")  # pid 1 ignores SIGTERM
    engine.ok("stop", "-t", "1", "box")
    assert engine.state("box")["ExitCode"] == 137


def test_stop_signal(engine: Engine) -> None:
    script = "trap 'exit 11' INT; trap 'exit 12' USR1; while :; do sleep 0.05; done"
    engine.ok("run", "-d", "--name", "image", "variants:web", "sh", "-c", script)
    engine.ok("run", "-d", "--name", "flag", "--stop-signal", "USR1", "variants:web", "sh", "-c", script)
    engine.ok("stop", "image", "flag")
    assert (engine.state("image")["ExitCode"], engine.state("flag")["ExitCode"]) == (11, 12)


def test_restart_keeps_a_container_of_rm(engine: Engine) -> None:
    engine.ok("run", "-d", "--rm", "--name", "box", "busybox", "sh", "-c", OBEYS)
    for _ in range(3):
        engine.ok("restart", "box")
        assert engine.state("box")["Status"] == "running"
    engine.ok("stop", "box")
    until(lambda: engine.docker("inspect", "box").returncode == 1, what="its removal")


def test_restart(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", OBEYS)
    first = engine.state("box")
    engine.ok("restart", "box")
    second = engine.state("box")
    assert second["Status"] == "running"
    assert second["Pid"] != first["Pid"]
    assert second["StartedAt"] > first["StartedAt"]
    assert engine.inspect("box")["RestartCount"] == 0


@pytest.mark.parametrize(("signal", "status"), [("TERM", 3), ("SIGTERM", 3), ("15", 3), ("KILL", 137)])
def test_kill(engine: Engine, signal: str, status: int) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", OBEYS)
    engine.ok("kill", "-s", signal, "box")
    assert engine.until_state("box", "exited")["ExitCode"] == status


def test_kill_of_a_stopped_container_is_refused(engine: Engine) -> None:
    engine.ok("create", "--name", "box", "busybox")
    assert "is not running" in engine.fails("kill", "box")
    assert engine.api("POST", "/containers/box/kill")[0] == 409
    assert engine.api("POST", "/containers/box/kill?signal=NOSUCH")[0] in (400, 409)


def test_pause(engine: Engine) -> None:
    engine.ok(
        "run",
        "-d",
        "--name",
        "box",
        "busybox",
        "sh",
        "-c",
        "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done",
    )
    until(lambda: engine.ok("logs", "box"), what="output")
    engine.ok("pause", "box")
    paused = engine.state("box")
    assert (paused["Status"], paused["Paused"], paused["Running"]) == ("paused", True, True)
    before = engine.ok("logs", "box")
    time.sleep(0.3)
    assert engine.ok("logs", "box") == before
    assert "(Paused)" in engine.ok("ps", "--format", "{{.Status}}")
    assert "is already paused" in engine.fails("pause", "box")
    assert "is paused, unpause the container before exec" in engine.fails("exec", "box", "true").lower()
    engine.ok("unpause", "box")
    until(lambda: engine.ok("logs", "box") != before, what="more output")
    assert "is not paused" in engine.fails("unpause", "box")


def test_paused_container_can_be_removed(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    engine.ok("pause", "box")
    engine.ok("rm", "-f", "box")


def test_rename(engine: Engine) -> None:
    made = engine.ok("run", "-d", "--name", "old", "busybox", "sleep", "600")
    engine.ok("rename", "old", "new")
    assert engine.inspect("new")["Id"] == made
    assert "No such container: old" in engine.fails("inspect", "--type", "container", "old")
    engine.ok("create", "--name", "other", "busybox")
    assert "already in use" in engine.fails("rename", "other", "new")
    assert "Invalid container name" in engine.fails("rename", "other", "a/b")
    assert engine.fails("rename", "other", "other")


@pytest.mark.parametrize("name", ["x", "-bad", "a b", "a/b", "ü"])
def test_bad_names(engine: Engine, name: str) -> None:
    status, _, body = engine.api("POST", f"/containers/create?name={_quote(name)}", {"Image": "busybox"})
    assert (status, "Invalid container name" in json.loads(body)["message"]) == (400, True)


def _quote(text: str) -> str:
    from urllib.parse import quote

    return quote(text)


def test_wait(engine: Engine) -> None:
    engine.ok("run", "-di", "--name", "box", "busybox", "sh", "-c", "read n; exit $n")
    with engine.spawn("wait", "box") as waiting:
        engine.docker("attach", "box", input="6\n")
        assert waiting.stdout is not None
        assert waiting.stdout.read() == b"6\n"
    assert engine.ok("wait", "box") == "6"


@pytest.mark.parametrize("condition", ["not-running", "next-exit", "removed"])
def test_wait_conditions(engine: Engine, condition: str) -> None:
    engine.ok("create", "--name", "box", "busybox", "sh", "-c", "exit 4")
    answers: list[tuple[int, bytes]] = []

    def wait() -> None:
        status, _, body = engine.api("POST", f"/containers/box/wait?condition={condition}", timeout=30)
        answers.append((status, body))

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        if condition == "not-running":  # a created container is not running: answered at once
            thread.join(20)
            assert json.loads(answers[0][1])["StatusCode"] == 0
            return
        time.sleep(0.3)
        assert thread.is_alive()
        engine.docker("start", "-a", "box")
        if condition == "removed":
            time.sleep(0.2)
            assert thread.is_alive()
            engine.ok("rm", "box")
        thread.join(20)
        assert answers[0][0] == 200
        assert json.loads(answers[0][1])["StatusCode"] == 4
    finally:
        engine.docker("rm", "-f", "box")
        thread.join(20)


def test_short_lives_are_all_recorded(engine: Engine) -> None:
    for number in range(12):
        assert (
            engine.docker("run", "--name", f"box{number}", "busybox", "sh", "-c", f"exit {number}").returncode
            == number
        )
    listed = engine.ok("ps", "-a", "--format", "{{.Names}} {{.Status}}").splitlines()
    assert {line.split(" ")[0]: line.split("(")[1].split(")")[0] for line in listed} == {
        f"box{n}": str(n) for n in range(12)
    }


def test_top(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", "sleep 601 & sleep 602; :")
    until(lambda: engine.ok("top", "box").count("sleep") >= 3, what="three processes")
    title, *lines = engine.ok("top", "box").splitlines()
    assert title.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert len(lines) == 3
    pid = str(engine.state("box")["Pid"])
    assert pid in [line.split()[1] for line in lines]
    title, *lines = engine.ok("top", "box", "-o", "pid,args").splitlines()
    assert title.split() == ["PID", "COMMAND"]
    assert {"sleep 601", "sleep 602"} <= {line.split(maxsplit=1)[1] for line in lines}
    engine.ok("kill", "box")
    engine.until_state("box", "exited")
    assert "is not running" in engine.fails("top", "box")


def test_ps_and_its_filters(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "runs", "-l", "tier=front", "busybox", "sleep", "600")
    engine.docker("run", "--name", "ended", "-l", "tier=back", "busybox", "sh", "-c", "exit 5")
    engine.ok("create", "--name", "made", "variants:web")

    def names(*filters: str) -> set[str]:
        flags = [word for one in filters for word in ("-f", one)]
        return set(engine.ok("ps", "-a", "--format", "{{.Names}}", *flags).split())

    assert engine.ok("ps", "--format", "{{.Names}}") == "runs"
    assert names() == {"runs", "ended", "made"}
    assert names("status=exited") == {"ended"}
    assert names("status=exited", "status=created") == {"ended", "made"}
    assert names("exited=5") == {"ended"}
    assert names("exited=0") == set()
    assert names("label=tier") == {"runs", "ended"}
    assert names("label=tier=back") == {"ended"}
    assert names("label=tier", "label=tier=front") == {"runs"}
    assert names("name=run") == {"runs"}
    assert names("name=^/?(made|ended)$") == {"made", "ended"}
    assert names("ancestor=variants:web") == {"made"}
    assert names("ancestor=busybox") >= {"runs", "ended"}
    assert names("id=" + engine.inspect("made")["Id"][:12]) == {"made"}
    assert names("since=runs") == {"ended", "made"}
    assert names("before=made") == {"runs", "ended"}
    assert names("network=bridge") == {"runs", "ended", "made"}
    assert names("network=" + engine.inspect("bridge", kind="network")["Id"][:8]) >= {"runs"}
    # Without -a only "status" brings those that do not run (as dockerd).
    for flag, shown in {"since=made": "", "before=made": "runs", "exited=5": "", "status=exited": "ended"}.items():
        assert engine.ok("ps", "-f", flag, "--format", "{{.Names}}") == shown, flag
    assert engine.ok("ps", "-l", "--format", "{{.Names}}") == "made"
    assert engine.ok("ps", "-n", "2", "--format", "{{.Names}}").split() == ["made", "ended"]
    assert "nosuch" in engine.fails("ps", "-f", "nosuch=1")
    assert engine.fails("ps", "-f", "status=nosuch")


def test_ps_table(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "-p", "127.0.0.1:18080:80", "variants:web")
    title, line = engine.ok("ps").splitlines()
    assert title.split("  ")[0] == "CONTAINER ID"
    cells = [cell.strip() for cell in line.split("   ") if cell.strip()]
    assert cells[0] == engine.inspect("box")["Id"][:12]
    assert cells[1:3] == ["variants:web", '"httpd -f -p 80 -h /…"']
    assert cells[4].startswith("Up ")
    assert cells[5] == "53/udp, 127.0.0.1:18080->80/tcp"
    assert cells[6] == "box"


def test_sizes(engine: Engine) -> None:
    engine.ok("run", "--name", "box", "busybox", "sh", "-c", "head -c 100000 /dev/zero > /file")
    (one,) = engine.get("/containers/json?all=1&size=1")
    assert 100_000 <= one["SizeRw"] < 120_000
    assert one["SizeRootFs"] > 1_000_000
    assert "SizeRw" not in engine.get("/containers/json?all=1")[0]
    sized = engine.get("/containers/box/json?size=1")
    assert (sized["SizeRw"], sized["SizeRootFs"]) == (one["SizeRw"], one["SizeRootFs"])


def test_rm(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    pid = engine.state("box")["Pid"]
    message = engine.fails("rm", "box")
    assert "container is running" in message or "You cannot remove a running container" in message
    assert engine.api("DELETE", "/containers/box")[0] == 409
    engine.ok("rm", "-f", "box")
    assert state(pid) in ("", "Z")
    assert engine.api("DELETE", "/containers/box")[0] == 404


def test_prune(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "runs", "busybox", "sleep", "600")
    engine.ok("run", "--name", "ended", "busybox", "sh", "-c", "head -c 50000 /dev/zero > /f")
    engine.ok("create", "--name", "kept", "-l", "keep", "busybox")
    status, _, body = engine.api("POST", '/containers/prune?filters={"nosuch":["x"]}')
    assert status == 400
    assert len(engine.get("/containers/json?all=1")) == 3
    ended = engine.inspect("ended")["Id"]
    status, _, body = engine.api("POST", '/containers/prune?filters={"label!":["keep"]}')
    answer = json.loads(body)
    assert (status, answer["ContainersDeleted"]) == (200, [ended])
    assert answer["SpaceReclaimed"] >= 50_000
    assert set(engine.ok("ps", "-a", "--format", "{{.Names}}").split()) == {"runs", "kept"}


@pytest.mark.parametrize(("policy", "restarts"), [("on-failure:2", 2), ("no", 0)])
def test_restart_policy(engine: Engine, policy: str, restarts: int) -> None:
    engine.ok("run", "-d", "--name", "box", "--restart", policy, "busybox", "sh", "-c", "exit 9")
    until(
        lambda: engine.inspect("box")["RestartCount"] == restarts and engine.state("box")["Status"] == "exited",
        what="the last restart",
    )
    assert engine.state("box")["ExitCode"] == 9


def test_restart_always_until_stopped(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "--restart", "always", "busybox", "sh", "-c", "echo up; sleep 0.1")
    until(lambda: engine.inspect("box")["RestartCount"] >= 2, what="two restarts")
    engine.ok("stop", "-t", "1", "box")
    count = engine.inspect("box")["RestartCount"]
    time.sleep(0.5)
    assert engine.state("box")["Status"] == "exited"
    assert engine.inspect("box")["RestartCount"] == count


def test_health(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "variants:healthy")
    assert engine.state("box")["Health"]["Status"] == "starting"
    until(lambda: engine.state("box")["Health"]["Status"] == "unhealthy", what="unhealthy")
    assert "(unhealthy)" in engine.ok("ps", "--format", "{{.Status}}")
    engine.ok("exec", "box", "touch", "/tmp/ok")
    until(lambda: engine.state("box")["Health"]["Status"] == "healthy", what="healthy")
    health = engine.state("box")["Health"]
    assert health["FailingStreak"] == 0
    assert {entry["ExitCode"] for entry in health["Log"]} == {0, 1}
    assert engine.ok("ps", "-q", "-f", "health=healthy")


def test_health_can_be_switched_off(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "--no-healthcheck", "variants:healthy")
    assert "Health" not in engine.state("box")


def test_diff_of_ids(engine: Engine) -> None:
    """A unique prefix of an ID is enough; an ambiguous one is refused."""
    made = [engine.ok("create", "busybox") for _ in range(17)]
    assert engine.inspect(made[0][:20])["Id"] == made[0]
    firsts = [one[0] for one in made]
    twice = next(letter for letter in firsts if firsts.count(letter) > 1)
    status, _, body = engine.api("GET", f"/containers/{twice}/json")
    assert status in (400, 404, 409, 500)
    assert json.loads(body)["message"]


def test_crash_loops_can_be_stopped_and_removed_at_any_moment(engine: Engine) -> None:
    for _ in range(6):
        engine.ok("run", "-d", "--name", "loop", "--restart", "always", "busybox", "true")
        until(lambda: engine.inspect("loop")["RestartCount"] >= 1, what="the loop")
        engine.ok("stop", "loop")
        assert engine.state("loop")["Status"] == "exited"
        engine.ok("start", "loop")
        engine.ok("rm", "-f", "loop")
        assert engine.docker("inspect", "loop").returncode != 0


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ({"PidMode": "container:nosuch"}, "No such container: nosuch"),
        ({"IpcMode": "container:nosuch"}, "No such container: nosuch"),
        ({"VolumesFrom": ["nosuch"]}, "No such container: nosuch"),
        ({"Links": ["nosuch:x"]}, "could not get container for nosuch: No such container: nosuch"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_creation_that_names_no_container_is_a_bad_request(
    engine: Engine, host: dict[str, Any], said: str
) -> None:
    """404 would have clients pull the image."""
    status, _, body = engine.api("POST", "/containers/create", {"Image": "busybox", "HostConfig": host})
    assert (status, json.loads(body)["message"]) == (400, said)


def test_the_container_whose_network_is_joined_may_come_later(engine: Engine) -> None:
    engine.ok("create", "--name", "guest", "--network", "container:host", "busybox", "ip", "addr")
    assert "No such container: host" in engine.fails("start", "guest")
    engine.ok("run", "-d", "--name", "host", "busybox", "sleep", "600")
    engine.ok("start", "guest")
    assert engine.ok("wait", "guest") == "0"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "config cannot be empty in order to create a container"),
        ({"HostConfig": {"Privileged": True}}, "config cannot be empty in order to create a container"),
        ({"Hostname": "x"}, "no command specified"),
    ],
)
def test_a_creation_says_what_it_is_of(engine: Engine, body: dict[str, Any], said: str) -> None:
    status, _, answer = engine.api("POST", "/containers/create", body)
    assert (status, json.loads(answer)["message"]) == (400, said)
