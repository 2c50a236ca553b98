"""What a container that may trace others sees of an exec before it is the program: nothing of the host."""

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
    for _ in range(30):
        engine.ok("exec", "box", "true")
    lines = set(engine.ok("logs", "box").split())
    assert "seen" in lines
    assert "host" not in lines
