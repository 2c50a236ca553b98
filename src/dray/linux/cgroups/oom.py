"""Being woken when a cgroup runs out of memory; both are `cgroups.OomWatch`."""

from __future__ import annotations

import contextlib
import os

from dray.linux.cgroups.layout import write

_EPOLLIN, _EPOLLPRI = 1, 2


class EventfdWatch:
    """An eventfd registered with memory.oom_control (cgroup-v1/memory.rst, 10. OOM Control)."""

    __slots__ = ("events", "fd")

    def __init__(self, directory: str) -> None:
        self.events = _EPOLLIN
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                write(directory, "cgroup.event_control", f"{self.fd} {control}")
            finally:
                os.close(control)
        except BaseException:
            os.close(self.fd)
            raise

    def drain(self) -> None:
        """See `cgroups.OomWatch`. The event also comes when the cgroup is removed."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        """See `cgroups.OomWatch`."""
        os.close(self.fd)


class EventsFileWatch:
    """memory.events itself: the kernel reports a change of it as a priority event until it is read again."""

    __slots__ = ("events", "fd")

    def __init__(self, directory: str) -> None:
        self.events = _EPOLLPRI
        self.fd = os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        self.drain()

    def drain(self) -> None:
        """See `cgroups.OomWatch`. Other counters of the file wake too; ask `oom_kills` what happened."""
        with contextlib.suppress(OSError):  # ENODEV: the cgroup is gone
            os.pread(self.fd, 4096, 0)

    def close(self) -> None:
        """See `cgroups.OomWatch`."""
        os.close(self.fd)
