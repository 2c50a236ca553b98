"""`docker run` with every flag: the effect inside the container, or the refusal's words."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dray.linux.cgroups import capabilities
from support.engines import Engine
from support.option_cases import CASES, ULIMITS, V1, Case

PARTITION = next(
    (f"/dev/{name}" for name in sorted(os.listdir("/sys/block")) if not name.startswith(("loop", "ram", "zram"))), ""
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "env").write_text('# a comment\nONE=1\n\nTWO="2" # 3\nTHREE_NOT_SET\n')
    (tmp_path / "labels").write_text("# a comment\none=1\ntwo\n")
    tmp_path.chmod(0o755)
    return tmp_path


def _book(engine: Engine, name: str, case: Case) -> None:
    assert case.book is not None
    controller, first, second, on_first, on_second = case.book
    pid = engine.state(name)["Pid"]
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") or (not V1 and controllers == ""):
            root = Path("/sys/fs/cgroup") / (controller if V1 else "")
            text = Path(f"{root}{path}/{first if V1 else second}").read_text().strip()
            assert re.fullmatch(on_first if V1 else on_second, text), text
            return
    raise AssertionError(f"no cgroup of {controller}")


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_flag(engine: Engine, case: Case, folder: Path) -> None:
    options = [option.replace("{folder}", str(folder)).replace("{device}", PARTITION) for option in case.options]
    if any("{device}" in option for option in case.options) and not PARTITION:
        pytest.skip("this machine has no block device")
    if case.needs and not getattr(capabilities(), case.needs):
        assert case.otherwise is not None
        case = case.otherwise
    name = "called" if "--name" in options else "box"
    if case.book is not None:
        options.append("-d")
    command = ["sh", "-c", case.script] if "--entrypoint" not in options else ["-c", case.script]
    named = [] if name == "called" else ["--name", name]
    done = engine.docker("run", *named, *options, "busybox", *command, input="given")
    if case.refused:
        assert (done.returncode, case.refused in done.stderr) == (125, True), done.stderr
        assert engine.ok("ps", "-aq", "-f", "status=running") == ""
        return
    assert done.returncode == 0, done.stderr
    assert case.warns in done.stderr
    if case.book is not None:
        _book(engine, name, case)
    elif "-d" not in options:
        expected = case.output.replace("{uts}", re.escape(os.readlink("/proc/self/ns/uts")))
        assert re.fullmatch(expected, done.stdout.removesuffix("\n")), done.stdout
    if case.inspect:
        assert re.fullmatch(case.shown, engine.ok("inspect", "-f", case.inspect, name))
    if case.name == "--rm":
        assert engine.ok("ps", "-aq") == ""
    if case.name == "--cidfile":
        assert (folder / "id").read_text() == engine.inspect(name)["Id"]
    if "/dray/options-test" in options:
        engine.ok("rm", "-f", name)
        for root in Path("/sys/fs/cgroup").glob("**/dray/options-test"):
            root.rmdir()


@pytest.mark.parametrize("name", sorted(ULIMITS))
def test_ulimit(engine: Engine, name: str) -> None:
    row = {"cpu": "cpu time", "data": "data size", "fsize": "file size", "locks": "file locks", "core": "core file size",
           "memlock": "locked memory", "msgqueue": "msgqueue size", "nice": "nice priority", "nofile": "open files",
           "nproc": "processes", "rss": "resident set", "rtprio": "realtime priority", "rttime": "realtime timeout",
           "sigpending": "pending signals", "stack": "stack size"}[name]  # fmt: skip
    value = ULIMITS[name]
    shown = engine.ok("run", "--rm", "--ulimit", f"{name}={value}", "busybox", "cat", "/proc/self/limits")
    line = next(line for line in shown.splitlines() if line.lower().startswith(f"max {row}"))
    assert line[26:].split()[:2] == [str(value), str(value)]
