"""What a container sees, and what it does not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from support.engines import Engine


def test_first_process(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    pid = engine.state("box")["Pid"]
    assert pid > 1
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x00600\x00"
    inside = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid")]
    assert inside[0].split()[-1] == "1"
    # The host's processes are not there: only pid 1 and the exec itself.
    names = engine.ok("exec", "box", "sh", "-c", "cd /proc; echo [0-9]*").split()
    assert "1" in names
    assert len(names) == 2


def test_namespaces_differ(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    pid = engine.state("box")["Pid"]
    for kind in ("ipc", "mnt", "net", "pid", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind


def test_namespaces_of_the_host_when_asked(engine: Engine) -> None:
    engine.ok(
        *("run", "-d", "--name", "box", "--pid", "host", "--ipc", "host", "--uts", "host", "--network", "host"),
        *("busybox", "sleep", "600"),
    )
    pid = engine.state("box")["Pid"]
    for kind in ("ipc", "net", "pid", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}"), kind
    assert engine.ok("exec", "box", "hostname") == socket.gethostname()


def test_namespaces_of_another_container(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "one", "--ipc", "shareable", "busybox", "sleep", "600")
    engine.ok(
        *("run", "-d", "--name", "two", "--pid", "container:one", "--ipc", "container:one"),
        *("--network", "container:one", "busybox", "sleep", "601"),
    )
    pids = [engine.state(name)["Pid"] for name in ("one", "two")]
    for kind in ("ipc", "net", "pid"):
        assert len({os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids}) == 1, kind
    for kind in ("mnt", "uts"):
        assert len({os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids}) == 2, kind
    assert "sleep 601" in engine.ok("exec", "one", "ps", "-o", "args")


def test_only_standard_descriptors_are_open(engine: Engine) -> None:
    engine.ok("run", "-d", "--name", "box", "busybox", "sleep", "600")
    pid = engine.state("box")["Pid"]
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
    # 3 is the listing's own.
    assert engine.ok("exec", "box", "ls", "/proc/self/fd").split() == ["0", "1", "2", "3"]


def test_mounts(engine: Engine) -> None:
    lines = engine.ok("run", "--rm", "busybox", "cat", "/proc/mounts").splitlines()
    mounts = {line.split()[1]: line.split() for line in lines}
    assert mounts["/"][0] == "overlay"
    assert mounts["/proc"][2] == "proc"
    assert mounts["/sys"][3].split(",")[0] == "ro"
    assert mounts["/dev"][2] == "tmpfs"
    for path in ("/dev/pts", "/dev/shm", "/dev/mqueue", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"):
        assert path in mounts
    for path in ("/proc/keys", "/proc/timer_list", "/sys/firmware"):
        assert path in mounts, "masked"
    for path in ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"):
        assert mounts[path][3].split(",")[0] == "ro"
    allowed = ("/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    assert not [path for path in mounts if path != "/" and not path.startswith(allowed)]


def test_no_writing_to_the_kernel(engine: Engine) -> None:
    for path in ("/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper"):
        done = engine.docker("run", "--rm", "busybox", "sh", "-c", f"echo x > {path}")
        assert done.returncode != 0, path


def test_no_network_of_the_host(engine: Engine) -> None:
    links = engine.ok("run", "--rm", "--network", "none", "busybox", "ls", "/sys/class/net").split()
    assert "lo" in links
    assert "host0" not in links
    out = engine.ok("run", "--rm", "busybox", "ip", "-o", "link")
    assert "host0" not in out
    assert "eth0" in out


def test_devices_are_refused(engine: Engine) -> None:
    """mknod is allowed, opening the device is not."""
    done = engine.docker("run", "--rm", "busybox", "sh", "-c", "mknod /disk b 254 0 && head -c 1 /disk")
    assert done.returncode != 0
    assert "Operation not permitted" in done.stderr


def test_dangerous_calls_are_refused(engine: Engine) -> None:
    for command in ("mount -t tmpfs none /mnt", "unshare -m true", "reboot -f", "hostname other", "swapon /x"):
        done = engine.docker("run", "--rm", "busybox", "sh", "-c", command)
        assert done.returncode != 0, command


def test_root_is_not_the_hosts(engine: Engine) -> None:
    out = engine.ok("run", "--rm", "busybox", "sh", "-c", "ls /; ls /proc/1/root/; touch /made-inside")
    assert "made-inside" not in os.listdir("/")
    assert set(out.split()) >= {"bin", "etc", "proc"}
    assert ".dockerenv" in engine.ok("run", "--rm", "busybox", "ls", "-a", "/")


def test_nothing_is_mounted_over_a_part_of_proc(engine: Engine, tmp_path: Path) -> None:
    """A volume there would hide what is masked, or take writes that the kernel was to get (CVE-2019-16884)."""
    for flags in (
        ["-v", "/proc/sys"],
        ["-v", "named:/proc/self/attr"],
        ["--tmpfs", "/proc/sys"],
        ["--privileged", "-v", "/proc/sys"],
    ):
        message = engine.fails("run", "--rm", *flags, "busybox", "true", status=125)
        assert "cannot be mounted because it is inside /proc" in message, flags
    message = engine.fails("run", "--rm", "-v", f"{tmp_path}:/proc", "busybox", "true", status=125)
    assert "cannot be mounted because it is inside /proc" in message
    # Nor by a link that the image has.
    engine.ok("run", "--name", "maker", "busybox", "ln", "-s", "/proc/sys", "/data")
    engine.ok("commit", "maker", "linked")
    message = engine.fails("run", "--rm", "-v", "named:/data", "linked", "true", status=125)
    engine.ok("rmi", "linked")
    assert "cannot be mounted because it is inside /proc" in message
    # What lxcfs and the like replace may be, and procfs itself.
    (tmp_path / "uptime").write_text("1 2\n")
    bind = f"{tmp_path}/uptime:/proc/uptime"
    assert engine.ok("run", "--rm", "-v", bind, "busybox", "cat", "/proc/uptime") == "1 2"
    assert engine.ok("run", "--rm", "--pid", "host", "-v", "/proc:/proc", "busybox", "cat", "/proc/1/comm")
