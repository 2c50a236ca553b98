"""Bundles for the runtime's kernel tests: a busybox root, Docker's default spec, a container driven to its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dray.runtime.lifecycle import BuiltinRuntime
from dray.runtime.model import CreateRequest, ExecRequest, Mount, Started, Stdio

CGROUP = f"/dray-runtime-test-{os.getpid()}"  # of the test session, also in what it forks
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CAPABILITIES = [
    f"CAP_{name}"
    for name in ("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP")
] + ["CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"]
MASKED = ["/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def make_root(directory: Path) -> Path:
    """Make a root file system around a static busybox."""
    for name in ("bin", "etc", "tmp", "proc", "dev", "sys", "root"):
        (directory / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None, "these tests need busybox-static"
    shutil.copy(busybox, directory / "bin/busybox")
    for applet in [
        "sh",
        "ls",
        "cat",
        "id",
        "env",
        "mount",
        "grep",
        "hostname",
        "sleep",
        "true",
        "tty",
        "stty",
        "readlink",
        "head",
        "touch",
        "ps",
        "ulimit",
        "wc",
        "stat",
        "mkdir",
    ]:
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n")
    return directory


def mount_entry(destination: str, type: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": type, "source": source, "options": list(options)}


def docker_spec(*args: str) -> dict[str, Any]:
    """Return a spec as Docker makes it by default."""
    quiet = ("nosuid", "noexec", "nodev")
    return {
        "ociVersion": "1.2.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": [PATH],
            "cwd": "/",
            "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            mount_entry("/proc", "proc", "proc", *quiet),
            mount_entry("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount_entry(
                "/dev/pts",
                "devpts",
                "devpts",
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ),
            mount_entry("/sys", "sysfs", "sysfs", *quiet, "ro"),
            mount_entry("/sys/fs/cgroup", "cgroup", "cgroup", "ro", *quiet),
            mount_entry("/dev/mqueue", "mqueue", "mqueue", *quiet),
            mount_entry("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777"),
        ],
        "linux": {
            "cgroupsPath": "",
            "resources": {},
            "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc")],
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READONLY),
        },
    }


@dataclass
class Ended:
    output: str
    code: int


@dataclass
class Box:
    """A bundle of its own, and the container in it."""

    lower: Path
    bundle: Path
    runtime: Any = field(default_factory=BuiltinRuntime)
    live: dict[str, int] = field(default_factory=dict)
    count: int = 0

    def rootfs(self) -> tuple[Mount, ...]:
        for name in ("rootfs", "upper", "work"):
            (self.bundle / name).mkdir(exist_ok=True)
        options = (f"lowerdir={self.lower}", f"upperdir={self.bundle}/upper", f"workdir={self.bundle}/work")
        return (Mount("overlay", "overlay", options),)

    def create(self, spec: dict[str, Any], **extra: Any) -> tuple[str, Started]:
        self.count += 1
        id = f"dray-test-{os.getpid()}-{self.bundle.name}-{self.count}"
        spec["linux"]["cgroupsPath"] = f"{CGROUP}/{id}"
        started = self.runtime.create(CreateRequest(id, self.bundle, spec, self.rootfs(), **extra))
        self.live[id] = started.pid
        return id, started

    def run(self, spec: dict[str, Any], **extra: Any) -> Ended:
        """Run a container to its end, its output and error on one pipe."""
        with pipe() as (read, write):
            id, started = self.create(spec, stdio=Stdio(-1, write.fd, write.fd), **extra)
            try:
                self.runtime.start(id)
                write.close()
                output = drain(read.fd)
                code = reap(started.pid)
            except BaseException:
                self.runtime.delete(id, force=True)
                with contextlib.suppress(ChildProcessError):
                    reap(started.pid)
                del self.live[id]
                raise
            self.runtime.delete(id)
            del self.live[id]
        return Ended(output, code)

    def exec(self, id: str, process: dict[str, Any], **extra: Any) -> Ended:
        with pipe() as (read, write):
            started = self.runtime.exec(ExecRequest(id, process, None, Stdio(-1, write.fd, write.fd), **extra))
            write.close()
            output = drain(read.fd)
        return Ended(output, reap(started.pid))

    def end(self, id: str) -> int:
        self.runtime.kill(id, signal.SIGKILL, all_processes=True)
        code = reap(self.live.pop(id))
        self.runtime.delete(id)
        return code

    def close(self) -> None:
        for id in list(self.live):
            with contextlib.suppress(Exception):
                self.runtime.delete(id, force=True)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.live.pop(id), 0)


@dataclass
class End:
    fd: int

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextlib.contextmanager
def pipe() -> Iterator[tuple[End, End]]:
    read, write = (End(fd) for fd in os.pipe())
    try:
        yield read, write
    finally:
        read.close()
        write.close()


def drain(fd: int) -> str:
    """Read to the end (of a pty: EIO)."""
    parts = []
    with contextlib.suppress(OSError):
        while part := os.read(fd, 65536):
            parts.append(part)
    return b"".join(parts).decode()


def reap(pid: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code
