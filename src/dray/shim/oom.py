"""Telling that the kernel's OOM killer struck in a container."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from dray.base.errors import DrayError
from dray.linux import cgroups
from dray.shim.loop import Loop


class OomMonitor:
    """Watches a container's cgroup; owns the watch's descriptor.

    A notification may have other reasons (limits changed, the cgroup removed): what counts is the runtime's count.
    """

    def __init__(self, loop: Loop, count: Callable[[], int], tell: Callable[[], None]) -> None:
        self._loop = loop
        self._count = count
        self._tell = tell
        self._watch: cgroups.OomWatch | None = None
        self._told = 0

    def start(self, cgroups_path: str, container_id: str) -> None:
        """Begin to watch; without a memory controller nothing is ever told."""
        with contextlib.suppress(DrayError, OSError):
            self._watch = cgroups.load(cgroups_path, container_id).watch_oom()
        if self._watch is not None:
            self._loop.watch(self._watch.fd, self._watch.events, self._ready)

    def _ready(self, _events: int) -> None:
        assert self._watch is not None
        self._watch.drain()
        self.kills()

    def kills(self) -> int:
        """Return how often it struck; what is new of it is told."""
        count = 0
        with contextlib.suppress(DrayError, OSError):
            count = self._count()
        while self._told < count:
            self._told += 1
            self._tell()
        return count

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._loop.forget(self._watch.fd)
            self._watch.close()
            self._watch = None
