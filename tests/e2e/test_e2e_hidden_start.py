"""What a container that may trace others sees of a process that joins it before that is the program: nothing of the host."""

from __future__ import annotations

import pytest

from support.engines import Engine

WATCH = """
while :; do
  for p in /proc/[0-9]*; do
    [ $p = /proc/1 ] && continue
    if [ -e $p/root/sbin/ldconfig ] || [ -e $p/cwd/sbin/ldconfig ]; then echo host; fi
    [ -e $p/root ] && echo seen
  done 2>/dev/null
done
"""


@pytest.mark.drayd_only("Debian's runc may not add capabilities on every machine")
def test_no_process_of_an_exec_has_the_hosts_root(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "--cap-add", "SYS_PTRACE", "busybox", "sh", "-c", WATCH)
    for _ in range(15):
        engine.ok("exec", "box", "true")
    lines = set(engine.ok("logs", "box").split())
    assert "seen" in lines
    assert "host" not in lines


@pytest.mark.drayd_only("Debian's runc may not add capabilities on every machine")
def test_no_process_that_joins_its_pids_has_the_hosts_root(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "--cap-add", "SYS_PTRACE", "busybox", "sh", "-c", WATCH)
    script = "kill -0 1 && cat /proc/1/comm && echo $$ && readlink /proc/self/ns/pid"
    for _ in range(12):
        comm, pid, namespace = engine.ok(
            "run", "--rm", "--pid", "container:box", "busybox", "sh", "-c", script
        ).split()
        assert (comm, int(pid) > 1) == ("sh", True)
    assert namespace == engine.ok("exec", "box", "readlink", "/proc/self/ns/pid")
    lines = set(engine.ok("logs", "box").split())
    assert "seen" in lines
    assert "host" not in lines
