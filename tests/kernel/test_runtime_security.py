"""What a hostile image, volume or neighbour must not get; each test fails when its protection is taken away."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.base.errors import DrayError, StartError
from dray.linux import cgroups, libc, privileges
from dray.runtime import init, lookup
from dray.runtime.model import Mount
from kernel.runtime_bundle import CGROUP, Box, docker_spec, make_root, mount_entry, reap

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A bundle whose image the test may spoil."""
    (tmp_path / "bundle").mkdir()
    box = Box(make_root(tmp_path / "image"), tmp_path / "bundle")
    yield box
    box.close()
    cgroups.prune(CGROUP)


def test_no_process_of_the_container_can_open_the_interpreter(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2019-5736: while an exec is still Python, its /proc/<pid>/exe is closed to the container."""
    watcher = """
    while :; do for p in /proc/[0-9]*; do
      case $(cat $p/comm 2>/dev/null) in dray:*)
        for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
          if head -c4 $p/exe >/dev/null 2>&1; then echo open > /seen; exec sleep 100; fi; sleep 0.01
        done
        echo closed > /seen; exec sleep 100;;
      esac
    done; done"""
    spec = docker_spec("sh", "-c", watcher)
    id, _ = box.create(spec)
    box.runtime.start(id)
    seen = box.bundle / "upper/seen"
    find = lookup.find

    def slow(name: str, path: str) -> str:  # by now the exec has the very rights of the container's processes
        deadline = time.monotonic() + 10
        while not os.path.exists("/seen") and time.monotonic() < deadline:
            time.sleep(0.01)
        return find(name, path)

    monkeypatch.setattr(lookup, "find", slow)
    box.exec(id, {**spec["process"], "args": ["true"]})
    assert seen.read_text() == "closed\n"
    box.end(id)


@pytest.mark.parametrize("how", ["path", "link", "shebang"])
def test_the_interpreter_is_not_run_as_the_containers_program(box: Box, how: str) -> None:
    name = "/proc/self/exe"
    if how == "link":
        (box.lower / "entry").symlink_to("/proc/self/exe")
        name = "/entry"
    elif how == "shebang":
        (box.lower / "entry").write_text("#!/proc/self/exe -c\nprint('python')\n")
        (box.lower / "entry").chmod(0o755)
        name = "/entry"
    with pytest.raises(StartError) as caught:
        box.run(docker_spec(name, "-c", "print('python')"))
    assert caught.value.exit_code == 126


def test_only_three_descriptors_are_open(box: Box) -> None:
    """CVE-2024-21626: an inheritable descriptor of the caller does not reach the program, nor does its directory."""
    leak = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(leak, True)
    try:
        # `ls` itself opens the directory it lists: descriptor 3.
        assert box.run(docker_spec("ls", "/proc/self/fd")).output.split()[:4] == ["0", "1", "2", "3"]
        for number in range(3, 40):
            spec = docker_spec("ls")
            spec["process"]["cwd"] = f"/proc/self/fd/{number}"
            try:
                output = box.run(spec).output
            except StartError:
                continue
            assert "boot" not in output
    finally:
        os.close(leak)


def test_a_directory_outside_the_root_is_refused(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    settle = init.settle

    def keep_open(keep: set[int], **flags: object) -> None:
        settle(keep | {outside}, **flags)  # type: ignore[arg-type]

    monkeypatch.setattr(init, "settle", keep_open)
    spec = docker_spec("ls")
    spec["process"]["cwd"] = f"/proc/self/fd/{outside}"
    with pytest.raises(StartError, match="outside of container"):
        box.run(spec)
    os.close(outside)


def test_masks_are_made_of_a_real_null_device(box: Box, tmp_path: Path) -> None:
    """CVE-2025-31133: a /dev whose `null` is a link must not end up over /proc/interrupts."""
    device_directory = tmp_path / "dev"
    (device_directory / "pts").mkdir(parents=True)
    (device_directory / "null").symlink_to("/etc/passwd")
    spec = docker_spec("cat", "/proc/interrupts")
    spec["mounts"] = [entry for entry in spec["mounts"] if not entry["destination"].startswith("/dev")]
    spec["mounts"].append(mount_entry("/dev", "bind", str(device_directory), "rbind"))
    with pytest.raises(Exception, match="cannot mask"):
        box.run(spec)


def test_an_images_own_null_is_replaced(box: Box) -> None:
    (box.lower / "dev/null").symlink_to("/etc/passwd")
    spec = docker_spec("sh", "-c", "echo x > /dev/null; stat -c %t:%T /dev/null; head -n1 /etc/passwd")
    spec["mounts"] = [entry for entry in spec["mounts"] if not entry["destination"].startswith("/dev")]
    assert box.run(spec).output.split()[:2] == ["1:3", "root:x:0:0:root:/root:/bin/sh"]


def test_console_is_a_terminal_of_the_containers_devpts(box: Box, tmp_path: Path) -> None:
    """CVE-2025-52565: a multiplexer that is not on devpts is not opened."""
    decoy = tmp_path / "decoy"
    decoy.mkdir()
    (decoy / "ptmx").write_text("")
    spec = docker_spec("tty")
    spec["process"]["terminal"] = True
    for entry in spec["mounts"]:
        if entry["destination"] == "/dev/pts":
            entry.update(type="bind", source=str(decoy), options=["bind"])
    with pytest.raises(Exception, match="not on the file system expected"):
        box.create(spec)


@pytest.mark.parametrize("target", ["/link/x", "/up/x", "/dangling"])
def test_mount_targets_stay_in_the_root(box: Box, tmp_path: Path, target: str) -> None:
    """CVE-2024-45310: links of the image lead nowhere outside, and nothing is created on the host."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (box.lower / "link").symlink_to(outside)
    (box.lower / "up").symlink_to(f"../../../../../../../../..{outside}")
    (box.lower / "dangling").symlink_to(outside / "new")
    source = tmp_path / "source"
    source.write_text("mounted\n")
    spec = docker_spec("cat", target)
    spec["mounts"].append(mount_entry(target, "bind", str(source), "bind"))
    assert box.run(spec).output == "mounted\n"
    assert list(outside.iterdir()) == []


def test_mount_target_race_creates_nothing_on_the_host(box: Box, tmp_path: Path) -> None:
    outside, volume, source = tmp_path / "outside", tmp_path / "volume", tmp_path / "source"
    outside.mkdir()
    (volume / "a").mkdir(parents=True)
    (volume / "b").symlink_to(outside)
    source.write_text("")
    swapper = os.fork()
    if swapper == 0:
        while True:
            libc.renameat2(volume / "a", volume / "b", 2)
    try:
        for number in range(12):
            spec = docker_spec("true")
            spec["mounts"].append(mount_entry("/v", "bind", str(volume), "bind"))
            spec["mounts"].append(mount_entry(f"/v/a/file{number}", "bind", str(source), "bind"))
            with contextlib.suppress(DrayError):  # the swapper may win so far that the mount fails
                box.run(spec)
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_proc_and_sys_may_not_be_links(box: Box, name: str) -> None:
    """CVE-2019-19921: else they are mounted elsewhere and the masks miss them."""
    (box.lower / name).rmdir()
    (box.lower / "elsewhere").mkdir()
    (box.lower / name).symlink_to("/elsewhere")
    with pytest.raises(Exception, match="ordinary directory"):
        box.run(docker_spec("true"))


def test_writes_to_proc_are_not_redirected() -> None:
    """CVE-2019-16884, CVE-2025-52881: a file mounted over a part of /proc is not written."""
    pid, pidfd = libc.clone3(libc.CLONE_NEWNS)
    if pid == 0:
        try:
            libc.mount("", "/", "", libc.MS_PRIVATE | libc.MS_REC)
            libc.mount("tmpfs", "/proc/sys/net", "tmpfs")
            Path("/proc/sys/net/decoy").write_text("")
            try:
                privileges.write_proc("/proc/sys/net/decoy", "1")
            except OSError:
                os._exit(0 if Path("/proc/sys/net/decoy").read_text() == "" else 3)
            os._exit(2)
        except BaseException:
            os._exit(4)
    os.close(pidfd)
    assert reap(pid) == 0


def test_a_hostile_passwd_neither_blocks_nor_is_believed(box: Box) -> None:
    """CVE-2024-9676: a FIFO in place of /etc/passwd, or one endless line, is no reason to wait or to grow."""
    (box.lower / "etc/passwd").unlink()
    os.mkfifo(box.lower / "etc/passwd")
    assert box.run(docker_spec("sh", "-c", "echo $HOME")).output == "/\n"


def test_cgroup_hierarchies_are_readonly_and_cannot_be_remounted(box: Box) -> None:
    """CVE-2022-0492: no release_agent from inside."""
    script = (
        "mkdir /c; mount -t cgroup -o memory c /c && echo mounted; mount -o remount,rw /sys/fs/cgroup && echo rw; "
        "for d in /sys/fs/cgroup/*; do mkdir $d/x && echo made; done; "
    )
    output = box.run(docker_spec("sh", "-c", script + "grep CapInh /proc/self/status")).output
    assert "mounted" not in output
    assert "rw\n" not in output
    assert "made" not in output
    assert output.splitlines()[-1].split()[1] == "0" * 16


def test_mounts_do_not_reach_the_host(box: Box) -> None:
    """Also where the host's mounts are shared, as systemd makes them."""
    subprocess.run(["mount", "--bind", str(box.bundle), str(box.bundle)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(box.bundle)], check=True)
        id, _ = box.create(docker_spec("sleep", "100"))
        assert f"{box.bundle}/rootfs" not in Path("/proc/self/mountinfo").read_text()
        box.end(id)
    finally:
        subprocess.run(["umount", "-R", str(box.bundle)], check=True)


def test_a_bind_keeps_the_sources_protection(box: Box, tmp_path: Path) -> None:
    """Asking for `ro` must not take away the source's nosuid and noexec."""
    pid, pidfd = libc.clone3(libc.CLONE_NEWNS)
    if pid == 0:
        try:
            libc.mount("", "/", "", libc.MS_PRIVATE | libc.MS_REC)
            (tmp_path / "t").mkdir()
            libc.mount("tmpfs", tmp_path / "t", "tmpfs", libc.MS_NOSUID | libc.MS_NOEXEC)
            spec = docker_spec("grep", " /v ", "/proc/mounts")
            spec["mounts"].append(mount_entry("/v", "bind", str(tmp_path / "t"), "bind", "ro"))
            words = box.run(spec).output.split()[3].split(",")
            os._exit(0 if {"ro", "nosuid", "noexec"} <= set(words) else 3)
        except BaseException:
            os._exit(4)
    os.close(pidfd)
    assert reap(pid) == 0


def test_long_overlay_options(box: Box, tmp_path: Path) -> None:
    """More than a page of lower directories goes through fsconfig, one layer at a time."""
    layers = []
    for number in range(60):
        layer = tmp_path / f"layer-{'x' * 80}-{number}"
        layer.mkdir()
        (layer / f"from{number}").write_text("")
        layers.append(str(layer))
    lower = ":".join([*layers, str(box.lower)])
    assert len(lower) > 4096
    options = (f"lowerdir={lower}", *box.rootfs()[0].options[1:])
    box.rootfs = lambda: (Mount("overlay", "overlay", options),)  # type: ignore[method-assign]
    output = box.run(docker_spec("ls", "/")).output.split()
    assert {"from0", "from59", "bin"} <= set(output)


_SWAPPER = """
import os, sys
null, other, place = sys.argv[1:]
while True:
    for source in (null, other):
        os.symlink(source, place + ".new") if source == other else os.link(source, place + ".new")
        os.rename(place + ".new", place)
"""


def test_a_racing_null_on_a_shared_volume_masks_with_nothing_else(box: Box, tmp_path: Path) -> None:
    """CVE-2025-31133: while masks are made, somebody swaps the null device for a link to another file."""
    shared = tmp_path / "shared"
    shared.mkdir()
    os.mknod(shared / "real", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (shared / "null").symlink_to("/secret")
    (box.lower / "secret").write_text("secret\n")
    (box.lower / "masked").write_text("masked\n")
    swapper = subprocess.Popen(
        [sys.executable, "-c", _SWAPPER, str(shared / "real"), "/secret", str(shared / "null")]
    )  # fmt: skip
    outcomes = set()
    try:
        for number in range(200):
            spec = docker_spec("cat", "/masked")
            spec["mounts"] = [mount_entry("/dev", "bind", str(shared), "rbind"), *spec["mounts"][:1]]
            spec["linux"]["maskedPaths"] = ["/masked"]
            try:
                outcomes.add(box.run(spec).output)
            except DrayError:
                outcomes.add("refused")
            if {"", "refused"} <= outcomes and len(outcomes) + number > 25:
                break
    finally:
        swapper.kill()
        swapper.wait()
    assert outcomes == {"", "refused"}, "neither may be missing: else nothing has raced"


def test_a_passwd_that_is_a_pipe_or_a_device(box: Box) -> None:
    """CVE-2024-9676 and its kin: what the image has in place of /etc/passwd neither blocks the start nor is read."""
    (box.lower / "etc/passwd").unlink()
    os.mkfifo(box.lower / "etc/passwd")
    assert box.run(docker_spec("sh", "-c", "echo $HOME")).output == "/\n"
    (box.lower / "etc/passwd").unlink()
    os.mknod(box.lower / "etc/passwd", 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # zeros for ever
    assert box.run(docker_spec("sh", "-c", "echo $HOME")).output == "/\n"


@pytest.mark.parametrize("planted", ["link", "directory"])
def test_the_devpts_of_a_terminal_is_not_the_images(box: Box, planted: str, tmp_path: Path) -> None:
    """CVE-2025-52565: /dev/pts/ptmx from a tree that the container's image or a volume has brought along."""
    fake = tmp_path / "dev"
    (fake / "pts").mkdir(parents=True)
    if planted == "link":
        (fake / "pts/ptmx").symlink_to("/etc/passwd")
    else:
        (fake / "pts/ptmx").touch()
    spec = docker_spec("true")
    spec["process"]["terminal"] = True
    spec["mounts"] = [mount_entry("/dev", "bind", str(fake), "rbind"), *spec["mounts"][:1]]
    with pytest.raises(DrayError, match="file system expected"):
        box.run(spec)
