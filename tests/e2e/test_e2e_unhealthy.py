"""Restart of unhealthy containers, which Docker lacks: a label asks for it."""

from __future__ import annotations

import time

import pytest

from support.engines import Engine, until

pytestmark = pytest.mark.drayd_only("dockerd restarts no unhealthy container")
SICK = (
    *("--health-cmd", "test -e /well", "--health-interval", "100ms", "--health-retries", "1", "--stop-timeout", "0"),
    *("busybox", "sh", "-c", "echo run >>/runs; sleep 600"),
)  # fmt: skip


def runs(engine: Engine, name: str) -> int:
    done = engine.docker("exec", name, "cat", "/runs")
    return len(done.stdout.split()) if done.returncode == 0 else 0


def test_an_unhealthy_container_is_restarted_until_it_is_well(engine: Engine) -> None:
    begin = int(time.time())
    engine.ok("run", "-d", "--name", "box", "-l", "dray.restart-unhealthy=true", *SICK)
    until(lambda: runs(engine, "box") >= 3, what="the third run")
    until(lambda: engine.docker("exec", "box", "touch", "/well").returncode == 0, what="the cure")
    until(lambda: engine.state("box")["Health"]["Status"] == "healthy", what="healthy")
    found = engine.inspect("box")
    assert found["RestartCount"] >= 2
    events = engine.told(begin, "-f", "container=box", "--format", "{{.Action}}").splitlines()
    first = events.index("restart-unhealthy")
    assert "health_status: unhealthy" in events[: first + 2]
    assert events[first:].index("die") < events[first:].index("start")


def test_without_the_label_it_is_left_alone(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", *SICK)
    until(lambda: engine.state("box")["Health"]["FailingStreak"] >= 3, what="three failures")
    assert runs(engine, "box") == 1


def test_a_stop_by_hand_holds(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "-l", "dray.restart-unhealthy=true", *SICK)
    until(lambda: runs(engine, "box") >= 2, what="the second run")
    engine.ok("stop", "box")
    time.sleep(0.5)
    assert engine.state("box")["Status"] == "exited"


def test_health_is_watched_after_a_restart_by_policy(engine: Engine) -> None:
    engine.ok(
        *("run", "-d", "--name", "box", "--restart", "always", "--health-cmd", "test -e /well"),
        *(
            "--health-interval",
            "100ms",
            "busybox",
            "sh",
            "-c",
            "test -e /well || { touch /well; exit 1; }; sleep 600",
        ),
    )
    until(lambda: engine.inspect("box")["RestartCount"] == 1, what="the restart")
    until(lambda: engine.state("box")["Health"]["Status"] == "healthy", what="healthy")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-l", "dray.restart-unhealthy=perhaps"], "use true or false"),
        (["--rm", "-l", "dray.restart-unhealthy=true"], "can't create 'AutoRemove' container"),
    ],
)
def test_what_makes_no_sense_is_refused(engine: Engine, options: list[str], words: str) -> None:
    assert words in engine.fails("run", *options, "busybox", "true", status=125)
