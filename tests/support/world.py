"""A private world for the daemons under test: namespaces and cgroups of the test process's own.

Engines change their machine: links, firewall rules, mounts, cgroups. `World.enter()` moves the calling (main)
thread, and so every process it starts from then on, into

- a child cgroup of its present one in each hierarchy, seen as the root by a new cgroup namespace;
- a new mount namespace (private propagation) with a fresh /sys, and the cgroup hierarchies mounted anew in it;
- a new network namespace with lo, forwarding switched on, and a link `host0` that stands for the machine's
  own address.

So nothing of the machine is touched, what other programs do there is no noise in the leak checks, and every
process an engine starts is found again by its cgroup, whoever its parent is. `leave()` kills what is left in
those cgroups, returns to the namespaces of before and removes the cgroups.

Only the network is cut off: the pid namespace, /proc, /tmp and the root file system stay the machine's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWNET = 0x40000000

MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

HOST_ADDRESS = "198.51.100.10"
HOST_ADDRESS_6 = "2001:db8::10"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = [ctypes.c_int]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _check(_libc.mount(*encoded, flags, None if data is None else data.encode()), f"mount {target}")


def inside(pid: int, action: Callable[[], T]) -> T:
    """Run `action` in the network namespace of a process, on a thread made for it."""

    def run() -> T:
        netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(netns, CLONE_NEWNET), "setns")
        finally:
            os.close(netns)
        return action()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup hierarchy: where, which kind (`cgroup` or `cgroup2`), and its mount options."""

    mountpoint: Path
    kind: str
    options: str
    own: str  # the path of this process in it, beginning with /


def hierarchies() -> list[Hierarchy]:
    """The cgroup hierarchies mounted below /sys/fs/cgroup, with this process's path in each."""
    paths: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ", 1)
        kind, _, options = after.split(" ", 2)
        mountpoint = before.split(" ")[4]
        if kind not in ("cgroup", "cgroup2") or not mountpoint.startswith("/sys/fs/cgroup"):
            continue
        wanted = [o for o in options.split(",") if o not in ("rw", "ro", "xattr", "clone_children")]
        wanted = [o for o in wanted if not o.startswith("release_agent=")]
        key = "" if kind == "cgroup2" else ",".join(wanted)
        if key in paths:
            found.append(
                Hierarchy(Path(mountpoint), kind, ",".join(wanted) if kind == "cgroup" else "", paths[key])
            )
    return found


@dataclass
class World:
    """The private world; made once a test session, entered by the main thread."""

    name: str = field(default_factory=lambda: f"engine-tests-{os.getpid()}")
    _before: dict[str, int] = field(default_factory=dict)
    _cgroups: list[Path] = field(default_factory=list)
    _root: int = -1

    def enter(self) -> None:
        """Make the world and move this thread into it."""
        for kind in ("net", "mnt", "cgroup"):
            self._before[kind] = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        seen = hierarchies()
        for one in seen:
            self._enter_cgroup(one)
        _check(_libc.unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWCGROUP), "unshare")
        _mount("none", "/", None, MS_REC | MS_PRIVATE)
        # Detached rather than covered: programs look for a controller's mount by the first line in mountinfo.
        _check(_libc.umount2(b"/sys", MNT_DETACH), "umount2 /sys")
        _mount("sysfs", "/sys", "sysfs")
        if any(one.mountpoint != Path("/sys/fs/cgroup") for one in seen):
            _mount("tmpfs", "/sys/fs/cgroup", "tmpfs", data="mode=755")
        for one in seen:
            one.mountpoint.mkdir(exist_ok=True, parents=True)
            _mount("cgroup", str(one.mountpoint), one.kind, data=one.options or None)
            if one.kind == "cgroup2":
                self._delegate(one.mountpoint)
        self._wire()

    def _enter_cgroup(self, one: Hierarchy) -> None:
        parent = Path(f"{one.mountpoint}{one.own}")
        mine = parent / self.name
        mine.mkdir()
        self._cgroups.append(mine)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if one.kind == "cgroup" and (mine / name).exists():
                (mine / name).write_text((parent / name).read_text())
        (mine / "cgroup.procs").write_text(str(os.getpid()))

    def _delegate(self, root: Path) -> None:
        """Make room for controllers on v2: a cgroup with controllers for its children may hold no process."""
        available = (root / "cgroup.controllers").read_text().split()
        if not available:
            return
        (root / "tests").mkdir(exist_ok=True)
        for pid in (root / "cgroup.procs").read_text().split():
            (root / "tests" / "cgroup.procs").write_text(pid)
        for controller in available:
            with contextlib.suppress(OSError):
                (root / "cgroup.subtree_control").write_text(f"+{controller}")

    def _wire(self) -> None:
        batch = (
            "link set lo up",
            "link add host0 type veth peer name wire0",
            f"addr add {HOST_ADDRESS}/24 dev host0",
            f"addr add {HOST_ADDRESS_6}/64 dev host0 nodad",
            "link set host0 up",
            "link set wire0 up",
            "route add default via 198.51.100.1",
        )
        subprocess.run(["ip", "-batch", "-"], input="\n".join(batch), text=True, check=True)
        # Set before dockerd starts: were it the one to switch forwarding on, it would also set the policy
        # of the FORWARD chain to DROP, and cut off any other engine here.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")

    def cgroup_root(self) -> Path:
        """A hierarchy that every engine process is in: its root here is the world's own cgroup."""
        for candidate in ("unified", "systemd", "pids", "freezer", ""):
            root = Path("/sys/fs/cgroup") / candidate
            if (root / "cgroup.procs").exists():
                return root
        raise RuntimeError("no cgroup hierarchy is mounted below /sys/fs/cgroup")

    def processes(self) -> set[int]:
        """The pids of all processes in this world but the one that made it and that one's plain children."""
        found: set[int] = set()
        for root in {
            self.cgroup_root(),
            *Path("/sys/fs/cgroup").glob("pids"),
            *Path("/sys/fs/cgroup").glob("freezer"),
        }:
            for folder, _, _ in os.walk(root):
                with contextlib.suppress(OSError):
                    found.update(int(pid) for pid in Path(folder, "cgroup.procs").read_text().split())
        found.discard(os.getpid())
        return found

    def kill_all(self) -> None:
        """SIGKILL to every other process of this world, until there is none."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            left = self.processes()
            if not left:
                return
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(OSError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)

    def leave(self) -> None:
        """Kill what is left, go back to the namespaces of before, remove the cgroups."""
        self.kill_all()
        for kind, flag in (("cgroup", CLONE_NEWCGROUP), ("net", CLONE_NEWNET), ("mnt", CLONE_NEWNS)):
            descriptor = self._before.pop(kind)
            _check(_libc.setns(descriptor, flag), f"setns {kind}")
            os.close(descriptor)
        for mine in self._cgroups:
            (mine.parent / "cgroup.procs").write_text(str(os.getpid()))
            deadline = time.monotonic() + 5
            while mine.exists() and time.monotonic() < deadline:
                for folder, _, _ in os.walk(mine, topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)
                time.sleep(0.01)
        self._cgroups.clear()
