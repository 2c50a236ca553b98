"""`docker run` with every flag: the effect inside the container, or the refusal's words."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import House
from dray.linux.cgroups import capabilities
from dray.runtime import checkpoint
from images import cache
from support.engines import Drayd, Engine, until
from support.option_cases import CASES, ULIMITS, V1, Case

PARTITION = next(
    (f"/dev/{name}" for name in sorted(os.listdir("/sys/block")) if not name.startswith(("loop", "ram", "zram"))),
    "",
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


@pytest.fixture
def bfq(tmp_path: Path) -> Iterator[str]:
    """A block device that the scheduler bfq serves; "" where there is none to be had."""
    image = tmp_path / "disk"
    subprocess.run(["truncate", "-s", "16M", image], check=True)
    made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        yield ""
        return
    device = made.stdout.strip()
    try:
        scheduler = Path("/sys/block", Path(device).name, "queue/scheduler")
        try:
            scheduler.write_text("bfq")
        except OSError:
            yield ""
        else:
            yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_flag(engine: Engine, case: Case, folder: Path, request: pytest.FixtureRequest) -> None:
    options = [option.replace("{folder}", str(folder)).replace("{device}", PARTITION) for option in case.options]
    if any("{device}" in option for option in case.options) and not PARTITION:
        pytest.skip("this machine has no block device")
    if any("{bfq}" in option for option in options):
        device = request.getfixturevalue("bfq")
        if not device:
            pytest.skip("this kernel has no loop device that bfq schedules")
        options = [option.replace("{bfq}", device) for option in options]
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
        assert (done.returncode, case.refused in done.stderr) == (case.status, True), done.stderr
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


def test_cdi(engine: Engine, folder: Path) -> None:
    """A device by its CDI name: node, variable, mount, hook and group; `--gpus` stands for a name."""
    specs = folder / "cdi"
    specs.mkdir()
    edits = {
        "env": ["FROM_CDI=yes"],
        "deviceNodes": [{"path": "/dev/by-name", "hostPath": "/dev/net/tun", "permissions": "r"}],
        "mounts": [{"hostPath": str(folder / "env"), "containerPath": "/mnt/env", "options": ["ro", "bind"]}],
        "hooks": [{"hookName": "createRuntime", "path": "/bin/touch", "args": ["touch", str(folder / "hooked")]}],
        "additionalGids": [4712],
    }
    gpu = {"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": [{"name": "all", "containerEdits": edits}]}
    (specs / "gpu.json").write_text(json.dumps(gpu))
    script = "echo $FROM_CDI; : </dev/by-name && echo 1; (: >/dev/by-name); head -n 1 /mnt/env; id -G"
    engine.restart(extra=["--cdi-spec-dir", str(specs)])
    try:
        for options in (["--gpus", "all"], ["--device", "nvidia.com/gpu=all"]):
            done = engine.docker("run", "--rm", *options, "busybox", "sh", "-c", script)
            assert done.stdout.split("\n") == ["yes", "1", "# a comment", "0 4712", ""], done.stderr
            assert "not permitted" in done.stderr
            assert (folder / "hooked").exists()
            (folder / "hooked").unlink()
        words = engine.fails("run", "--rm", "--device", "nvidia.com/gpu=7", "busybox", "true", status=125)
        assert "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7" in words
        info = engine.get("/info")
        assert info["CDISpecDirs"] == [str(specs)]
        assert info["DiscoveredDevices"] == [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}]
    finally:
        engine.restart()


def privileged() -> bool:
    """Whether this process has CAP_SYS_RESOURCE."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> 24 & 1)


def test_size_of_what_a_container_writes(house: House) -> None:
    """`--storage-opt size=` on a file system with project quotas; the quota goes with the container."""
    house.up()
    base = Path(tempfile.mkdtemp(prefix="drayd-quota-", dir="/var/tmp"))
    image, place = base / "image", base / "place"
    place.mkdir()
    subprocess.run(["truncate", "-s", "400M", image], check=True)
    kinds = ([], ["mkfs.ext4", "-O", "project,quota", "-E", "quotatype=prjquota"], ["mkfs.xfs", "-f"])
    # ext4's quotas bind nobody who has CAP_SYS_RESOURCE, and then the engine refuses them.
    for make in kinds[2:] if privileged() else kinds[1:]:
        subprocess.run([*make, "-q", image], check=True)
        if not subprocess.run(
            ["mount", "-o", "loop,prjquota", image, place], capture_output=True, check=False
        ).returncode:
            break
    else:
        shutil.rmtree(base)
        pytest.skip("this kernel has no project quotas that bind root")
    engine = Drayd(place / "engine", flags=["--bridge", "none"])
    try:
        engine.start()
        engine.load(cache.busybox_archive())
        script = "dd if=/dev/zero of=/file bs=1M count=8 2>&1 | tail -n 1; mv /file /renamed; ls /renamed"
        done = engine.docker("run", "--name", "box", "--storage-opt", "size=4m", "busybox", "sh", "-c", script)
        assert "No space left" in done.stdout + done.stderr or "quota exceeded" in done.stdout + done.stderr
        assert "/renamed" in done.stdout
        engine.ok("start", "-a", "box")  # the limit is still there, and what was written too
        engine.ok("rm", "-f", "box")
        engine.ok("run", "--rm", "busybox", "sh", "-c", "dd if=/dev/zero of=/file bs=1M count=8")
    finally:
        engine.remove_everything()
        engine.destroy()
        subprocess.run(["umount", place], check=True)
        shutil.rmtree(base)


def _health(engine: Engine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = engine.state(name)["Health"]
    return found


def test_health_becomes_bad_after_retries(engine: Engine) -> None:
    engine.ok(
        *("run", "-d", "--name", "box", "--health-cmd", "echo x >>/log; false", "--health-interval", "100ms"),
        *("--health-retries", "3", "busybox", "sleep", "600"),
    )
    until(lambda: _health(engine, "box")["Status"] == "unhealthy", what="unhealthy")
    assert len(engine.ok("exec", "box", "cat", "/log").split()) >= 3
    assert _health(engine, "box")["FailingStreak"] >= 3


def test_health_while_it_starts(engine: Engine) -> None:
    """Failures do not count in the start period, and probes come at its own, shorter interval."""
    engine.ok(
        *("run", "-d", "--name", "box", "--health-cmd", "echo x >>/log; test -e /ok", "--health-interval", "1h"),
        *("--health-start-period", "1h", "--health-start-interval", "100ms", "--health-retries", "1"),
        *("busybox", "sleep", "600"),
    )
    until(lambda: len(_health(engine, "box")["Log"] or []) >= 2, what="two probes")
    assert _health(engine, "box")["Status"] == "starting"
    engine.ok("exec", "box", "touch", "/ok")
    until(lambda: _health(engine, "box")["Status"] == "healthy", what="healthy")


def test_health_that_takes_too_long(engine: Engine) -> None:
    engine.ok(
        *("run", "-d", "--name", "box", "--health-cmd", "sleep 600", "--health-interval", "100ms"),
        *("--health-timeout", "100ms", "--health-retries", "1", "busybox", "sleep", "600"),
    )
    until(lambda: _health(engine, "box")["Status"] == "unhealthy", what="unhealthy")
    assert "Health check exceeded timeout (100ms)" in _health(engine, "box")["Log"][0]["Output"]


def test_addresses(engine: Engine) -> None:
    engine.ok("network", "create", "--ipv6", "--subnet", "172.29.5.0/24", "--subnet", "fd00:5::/64", "own")
    try:
        shown = engine.ok(
            *("run", "--rm", "--network", "own", "--ip", "172.29.5.77", "--ip6", "fd00:5::77"),
            *("--link-local-ip", "169.254.7.7", "busybox", "ip", "address", "show", "eth0"),
        )
        for address in ("172.29.5.77/24", "fd00:5::77/64", "169.254.7.7/16"):
            assert address in shown
    finally:
        engine.ok("network", "rm", "own")


def test_stop_timeout(engine: Engine) -> None:
    """A program that ignores SIGTERM is killed after its own time, long before the default of ten seconds."""
    engine.ok(
        "run", "-d", "--name", "box", "--stop-timeout", "0", "busybox", "sh", "-c", "trap '' TERM; sleep 600"
    )
    begin = time.monotonic()
    engine.ok("stop", "box")
    assert engine.state("box")["ExitCode"] == 137
    assert time.monotonic() - begin < 9


FIELDS: dict[str, tuple[dict[str, Any], list[str], str, str]] = {
    # field: (body besides the image, command, what it prints as a regular expression, warning or error)
    "CpuCount": ({"HostConfig": {"CpuCount": 2}}, ["echo", "ran"], "ran\n", "linux does not support CPU count"),
    "CpuPercent": ({"HostConfig": {"CpuPercent": 2}}, ["echo", "ran"], "ran\n", "linux does not support CPU percent"),
    "IOMaximumIOps": ({"HostConfig": {"IOMaximumIOps": 2}}, [], "", "linux does not support configuration of maximum IOPs"),
    "IOMaximumBandwidth": ({"HostConfig": {"IOMaximumBandwidth": 2}}, [], "", "configuration of maximum bandwidth"),
    "ConsoleSize": ({"Tty": True, "HostConfig": {"ConsoleSize": [17, 71]}}, ["stty", "size"], "17 71\r\n", ""),
    "Cgroup": ({"HostConfig": {"Cgroup": "container:x"}}, [], "", "sharing another container's cgroup"),
    "MaskedPaths": ({"HostConfig": {"MaskedPaths": ["/proc/uptime"]}}, ["wc", "-c", "/proc/uptime"], "0 /proc/uptime\n", ""),
    "ReadonlyPaths": (
        {"HostConfig": {"ReadonlyPaths": ["/tmp"]}}, ["sh", "-c", "touch /tmp/x 2>&1 || true"], ".*Read-only file system\n", ""
    ),
    "KernelMemory": ({"HostConfig": {"KernelMemory": 64 << 20}}, ["echo", "ran"], "ran\n", "kernel memory"),
    "KernelMemoryTCP": (
        {"HostConfig": {"KernelMemoryTCP": 64 << 20}},
        ["sh", "-c", "cat /sys/fs/cgroup/memory/memory.kmem.tcp.limit_in_bytes 2>/dev/null || echo none"],
        f"{64 << 20}\n" if V1 else "none\n", "" if V1 else "kernel memory TCP",
    ),
    "ArgsEscaped": ({"ArgsEscaped": True}, ["echo", "a b"], "a b\n", ""),
    "NetworkDisabled": ({"NetworkDisabled": True}, ["ls", "/sys/class/net"], "lo\n", ""),
    "OnBuild": ({"OnBuild": ["RUN false"]}, ["echo", "ran"], "ran\n", ""),
    "Shell": (
        {"Shell": ["/bin/echo", "through"], "Healthcheck": {"Test": ["CMD-SHELL", "me"], "Interval": 10**8}},
        ["sleep", "600"], "through me\n", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_field(engine: Engine, field: str) -> None:
    """What no flag asks for: by the API, of a version that still has it."""
    body, command, expected, words = FIELDS[field]
    version = "v1.41" if field == "KernelMemory" else "v1.50"
    ask = {"Image": "busybox", "Cmd": command, **body}
    status, _, answer = engine.api("POST", f"/{version}/containers/create?name=box", ask)
    if not command:
        assert status == 400
        assert words in json.loads(answer)["message"]
        return
    assert status == 201, answer
    warnings = json.loads(answer)["Warnings"]
    assert [words in warning for warning in warnings] == ([True] if words else [])
    if field == "Shell":
        engine.ok("start", "box")
        until(lambda: _health(engine, "box")["Log"], what="a probe")
        assert _health(engine, "box")["Log"][0]["Output"] == expected
        return
    engine.ok("start", "box")
    engine.ok("wait", "box")
    assert re.fullmatch(expected, engine.docker("logs", "box").stdout)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/containers/box/start?checkpoint=one", None),
        ("POST", "/containers/box/checkpoints", {"CheckpointID": "one"}),
        ("GET", "/containers/box/checkpoints", None),
        ("DELETE", "/containers/box/checkpoints/one", None),
    ],
)
def test_checkpoints_are_refused_by_name(engine: Engine, method: str, path: str, body: Any) -> None:
    """They are experimental, as in dockerd; tests/vm shows them."""
    engine.ok("create", "--name", "box", "busybox", "true")
    status, _, answer = engine.api(method, path, body)
    assert (status, "--experimental" in json.loads(answer)["message"]) == (501, True)
    assert engine.state("box")["Status"] == "created"


def test_checkpoints_where_criu_cannot(engine: Engine) -> None:
    """What is wrong is told in criu's words, and the container runs on."""
    if not checkpoint.check({}, []):
        pytest.skip("criu can work on this host: tests/vm shows what it does")
    engine.restart(extra=["--experimental"])
    try:
        engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
        pid = engine.state("box")["Pid"]
        done = engine.docker("checkpoint", "create", "box", "one")
        assert (done.returncode, "checkpoints are not possible on this host: " in done.stderr) == (1, True)
        assert (
            "checkpoint one does not exist for container box"
            in engine.docker("start", "--checkpoint", "one", "box").stderr
        )
        assert engine.ok("checkpoint", "ls", "box") == "CHECKPOINT NAME"
        assert engine.state("box")["Pid"] == pid
        for name in ("../../x", "a/b", ""):
            status, _, answer = engine.api(
                "POST", "/containers/box/checkpoints", {"CheckpointID": name, "Exit": True}
            )
            assert (status, "Invalid checkpoint ID" in json.loads(answer)["message"]) == (400, True)
    finally:
        engine.restart()
