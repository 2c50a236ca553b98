"""What an engine costs beside time: processor seconds, memory at its height, disk.

A subject's processes live in control groups of their own (`Account`), so that whatever it forks is counted,
long gone or not. Memory is anonymous memory, its own and its workers': the page cache that a pull fills is the kernel's.
Containers have their own control groups elsewhere and are not counted; their shims are.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PACE = 0.02  # seconds between two looks at the memory
_SHARES = ("cpuset.cpus", "cpuset.mems")


def _hierarchies() -> list[Path]:
    """The roots of the hierarchies that count: one with v2, two with v1."""
    if (_ROOT / "cgroup.controllers").exists():
        return [_ROOT]
    cpu = next(path for path in (_ROOT / "cpuacct", _ROOT / "cpu,cpuacct") if path.exists())
    return [cpu.resolve(), _ROOT / "memory"]


class Account:
    """The control groups of one subject; `close` removes them when its processes are gone."""

    def __init__(self, name: str) -> None:
        self._homes = _hierarchies()
        self._groups = [home / f"bench-{name}" for home in self._homes]
        for group in self._groups:
            group.mkdir()
            for share in _SHARES:
                if (group / share).exists() and not (group / share).read_text().strip():
                    (group / share).write_text((group.parent / share).read_text())
        self._v2 = len(self._homes) == 1

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What is started in this block, and all that it starts, is counted."""
        before = self._where()
        self._move(self._groups)
        try:
            yield
        finally:
            self._move(before)

    def _where(self) -> list[Path]:
        found = {}
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for one in controllers.split(","):
                found[one] = path.lstrip("/")
        names = [""] if self._v2 else ["cpuacct", "memory"]
        return [home / found[name] for home, name in zip(self._homes, names, strict=True)]

    def _move(self, groups: list[Path]) -> None:
        for group in groups:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def processor(self) -> float:
        """Seconds of all processors so far."""
        if self._v2:
            return _fields(self._groups[0] / "cpu.stat")["usage_usec"] / 1e6
        return int((self._groups[0] / "cpuacct.usage").read_text()) / 1e9

    def memory(self) -> float:
        """Anonymous memory now, in MB."""
        name = "anon" if self._v2 else "total_rss"
        return _fields(self._groups[-1] / "memory.stat")[name] / 1e6

    @contextlib.contextmanager
    def watched(self) -> Iterator[dict[str, float]]:
        """Yield a dict that has, after the block, `cpu` (seconds) and `memory` (MB at the height)."""
        told: dict[str, float] = {}
        done = threading.Event()
        heights = [self.memory()]

        def look() -> None:
            while not done.wait(_PACE):
                heights.append(self.memory())

        watcher = threading.Thread(target=look)
        begin = self.processor()
        watcher.start()
        try:
            yield told
        finally:
            told["cpu"] = self.processor() - begin
            done.set()
            watcher.join()
            told["memory"] = max(heights)

    def close(self) -> None:
        """Remove the groups; nothing may live in them any more."""
        for group in self._groups:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def _fields(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}


def disk(folder: Path) -> float:
    """MB that a folder takes on its disk, a file of several names counted once."""
    seen: set[tuple[int, int]] = set()
    blocks = 0
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(place, name))
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    blocks += status.st_blocks
    return blocks * 512 / 1e6
