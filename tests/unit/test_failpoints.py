"""Failpoints: every name stands in the sources, and kills exactly when it is told to."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import dray
from dray.base import failpoints

SOURCES = Path(dray.__file__).parent


def reached() -> Counter[str]:
    """The names in calls of `failpoints.reach`, each as often as it is passed somewhere."""
    found: Counter[str] = Counter()
    for path in SOURCES.rglob("*.py"):
        if "failpoints.reach" not in path.read_text():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.reach":
                (name,) = node.args
                assert isinstance(name, ast.Constant), path
                found[name.value] += 1
    return found


def test_every_failpoint_stands_in_one_place() -> None:
    assert reached() == Counter(failpoints.names())


def run(setting: str, passes: str) -> subprocess.CompletedProcess[str]:
    code = f"from dray.base import failpoints as f\nfor name in {passes.split()!r}: f.reach(name); print(name)"
    environment = {**os.environ, "DRAY_FAILPOINT": setting, "PYTHONPATH": str(SOURCES.parent)}
    command = [sys.executable, "-u", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_the_armed_one_kills() -> None:
    done = run("start.task", "start.files start.task start.recorded")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["start.files"]


def test_the_count_says_which_time() -> None:
    done = run("start.task:3", "start.task start.task start.files start.task")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["start.task", "start.task", "start.files"]


def test_none_armed_passes() -> None:
    assert run("", "start.task").stdout.split() == ["start.task"]


def test_a_wrong_setting_is_told() -> None:
    for setting in ("nosuch", "start.task:0", "start.task:x", "start.task:-1"):
        done = run(setting, "start.task")
        assert done.returncode == 1
        assert f"DRAY_FAILPOINT={setting}" in done.stderr
