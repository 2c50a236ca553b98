"""`dray-runtime` below other engines: Debian's podman (with conmon) and containerd (with its runc shim and ctr)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.leaks import settled, take
from support.world import World

pytestmark = pytest.mark.drayd_only("the subject is dray-runtime, without a daemon")

SOURCE = Path(__file__).parents[2] / "src"
APPLETS = ("sh", "cat", "id", "ls", "sleep", "true", "env", "tty", "readlink", "grep", "mount")


@dataclass
class Foreign:
    """An engine's command line with folders of its own, and a root file system to run."""

    command: list[str]
    place: Path

    def __call__(self, *arguments: str, **extra: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments], capture_output=True, text=True, timeout=60, check=False, **extra
        )  # type: ignore[call-overload,no-any-return]

    def ok(self, *arguments: str) -> str:
        done = self(*arguments)
        assert done.returncode == 0, done.stderr
        return str(done.stdout).strip()

    @property
    def rootfs(self) -> str:
        return str(self.place / "rootfs")

    @property
    def runtime(self) -> str:
        return str(self.place / "dray-runtime")


def furnish(place: Path) -> None:
    """Make a root file system around busybox, and a launcher of the runtime under test."""
    for name in ("bin", "etc", "proc", "dev", "sys", "tmp", "run"):
        (place / "rootfs" / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, place / "rootfs/bin/busybox")
    for applet in APPLETS:
        (place / "rootfs/bin" / applet).symlink_to("busybox")
    launcher = place / "dray-runtime"
    launcher.write_text(f'#!/bin/sh\nPYTHONPATH={SOURCE} exec {sys.executable} -m dray.runtime.main "$@"\n')
    launcher.chmod(0o755)


@pytest.fixture(scope="module")
def podman(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    place = tmp_path_factory.mktemp("podman")
    furnish(place)
    folders = [f"--root={place}/root", f"--runroot={place}/run", f"--tmpdir={place}/tmp"]
    choices = ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"]
    engine = Foreign(["podman", *folders, *choices, f"--runtime={place}/dray-runtime"], place)
    before = take(world)
    yield engine
    engine("rm", "-af", "-t", "0")
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):  # podman keeps its store mounted
        if str(place) in line.split()[4]:
            subprocess.run(["umount", line.split()[4]], check=False)
    shutil.rmtree(place)
    remove_parents("libpod_parent")
    assert settled(lambda: take(world), before) == {}


def remove_parents(name: str) -> None:
    """Remove the empty cgroups that an engine makes once, for all its containers, and keeps."""
    for parent in Path("/sys/fs/cgroup").glob(f"*/{name}"):
        for place in (*parent.glob("*/"), parent):
            place.rmdir()


# podman raises these limits by default, which takes CAP_SYS_RESOURCE.
RUN = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--network=none")


def test_podman_runs_to_the_end(podman: Foreign) -> None:
    done = podman("run", "--rm", *RUN, "--rootfs", podman.rootfs, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    missing = podman("run", "--rm", *RUN, "--rootfs", podman.rootfs, "nosuch")
    assert (missing.returncode, "not found in $PATH" in missing.stderr) == (127, True)
    assert podman("run", "--rm", *RUN, "--rootfs", podman.rootfs, "/etc").returncode == 126


def test_podman_lives_through_every_verb(podman: Foreign) -> None:
    script = 'echo started; trap "exit 9" TERM; while :; do sleep 0.1; done'
    podman.ok("run", "-d", "--name=box", *RUN, "--rootfs", podman.rootfs, "sh", "-c", script)
    assert podman("exec", "box", "sh", "-c", "echo inside; exit 4").returncode == 4
    assert podman("exec", "box", "nosuch").returncode == 127
    terminal = subprocess.run(
        ["script", "-qec", f"{' '.join(podman.command)} exec -it box tty", "/dev/null"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (terminal.returncode, "/dev/pts/" in terminal.stdout) == (0, True)
    assert podman.ok("logs", "box") == "started"
    assert "sleep" in podman.ok("top", "box")
    podman.ok("pause", "box")
    assert podman.ok("inspect", "--format={{.State.Status}}", "box") == "paused"
    podman.ok("unpause", "box")
    podman.ok("stop", "-t", "10", "box")
    assert podman.ok("wait", "box") == "9"
    podman.ok("rm", "box")


def test_podman_options(podman: Foreign) -> None:
    options = (
        "--user=1000:1000",
        "--cap-drop=all",
        "--memory=50m",
        "--pids-limit=20",
        "--tmpfs=/t",
        "--read-only",
    )
    script = "id -u; ulimit -n; grep CapEff /proc/self/status; touch /x 2>/dev/null || echo readonly"
    output = podman.ok("run", "--rm", *options, *RUN, "--rootfs", podman.rootfs, "sh", "-c", script).split()
    assert output == ["1000", "1024", "CapEff:", "0" * 16, "readonly"]


def test_podman_passes_descriptors_on(podman: Foreign) -> None:
    """`--preserve-fds`: the fourth descriptor and no other."""
    read, write = os.pipe()
    os.write(write, b"kept")
    os.close(write)
    command = [*podman.command, "run", "--rm", *RUN, "--preserve-fds=1", "--rootfs", podman.rootfs]
    script = "cat <&3; ls /proc/self/fd"

    def place() -> None:
        os.dup2(read, 3)

    done = subprocess.run(
        [*command, "sh", "-c", script],
        capture_output=True, text=True, timeout=60, check=False, pass_fds=(3,), preexec_fn=place,
    )  # fmt: skip
    os.close(read)
    assert done.stdout.split() == ["kept0", "1", "2", "3", "4"], done.stderr  # 4 is the listing itself


@pytest.fixture(scope="module")
def ctr(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    if shutil.which("containerd") is None or shutil.which("ctr") is None:
        pytest.skip("containerd is not installed")
    place = tmp_path_factory.mktemp("ctd")
    furnish(place)
    unused = ("grpc.v1.cri", "snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.devmapper")
    disabled = ", ".join(f'"io.containerd.{name}"' for name in (*unused, "snapshotter.v1.aufs"))
    (place / "config.toml").write_text(
        f'version = 2\nroot = "{place}/root"\nstate = "{place}/state"\ndisabled_plugins = [{disabled}]\n'
        f'[grpc]\naddress = "{place}/s"\n[ttrpc]\naddress = "{place}/t"\n'
    )
    with open(place / "log", "wb") as log:
        daemon = subprocess.Popen(["containerd", "-c", str(place / "config.toml")], stdout=log, stderr=log)
    engine = Foreign(["ctr", "-a", f"{place}/s"], place)
    before = take(world)
    try:
        for _ in range(100):
            if (place / "s").exists() and engine("version").returncode == 0:
                break
            time.sleep(0.1)
        yield engine
        remove_parents("default")
        assert settled(lambda: take(world), before) == {}
    finally:
        daemon.terminate()
        daemon.wait(20)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if str(place) in line.split()[4]:
                subprocess.run(["umount", line.split()[4]], check=False)
        shutil.rmtree(place, ignore_errors=True)


def under_ctr(ctr: Foreign, *options: str) -> list[str]:
    return ["run", "--runc-binary", ctr.runtime, "--env", "PATH=/bin", *options, "--rootfs", ctr.rootfs]


def test_ctr_runs_to_the_end(ctr: Foreign) -> None:
    done = ctr(*under_ctr(ctr, "--rm"), "one", "sh", "-c", "echo out; exit 3")
    assert (done.returncode, done.stdout) == (3, "out\n")
    missing = ctr(*under_ctr(ctr, "--rm"), "none", "nosuch")
    assert missing.returncode == 1
    assert 'exec: "nosuch": executable file not found in $PATH' in missing.stderr


def test_ctr_lives_through_every_verb(ctr: Foreign) -> None:
    ctr.ok(*under_ctr(ctr, "-d"), "two", "sh", "-c", 'trap "exit 9" TERM; while :; do sleep 0.1; done')
    done = ctr("task", "exec", "--exec-id", "e1", "two", "sh", "-c", "echo inside; exit 4")
    assert (done.returncode, done.stdout) == (4, "inside\n")
    assert "not found in $PATH" in ctr("task", "exec", "--exec-id", "e2", "two", "nosuch").stderr
    assert "memory.usage_in_bytes" in ctr.ok("task", "metrics", "two") or "memory" in ctr.ok(
        "task", "metrics", "two"
    )
    ctr.ok("task", "pause", "two")
    assert "PAUSED" in ctr.ok("task", "ls")
    ctr.ok("task", "resume", "two")
    ctr.ok("task", "kill", "-s", "TERM", "two")
    for _ in range(100):
        if "STOPPED" in ctr.ok("task", "ls"):
            break
        time.sleep(0.05)
    assert "exit code 9" in ctr("task", "rm", "two").stderr
    ctr.ok("containers", "rm", "two")


def test_ctr_limits_and_filter(ctr: Foreign) -> None:
    options = ("--rm", "--memory-limit", "50000000", "--cpus", "0.5", "--read-only", "--seccomp")
    script = "touch /x 2>/dev/null || echo readonly; grep Seccomp: /proc/self/status"
    assert ctr.ok(*under_ctr(ctr, *options), "three", "sh", "-c", script).split() == ["readonly", "Seccomp:", "2"]
