"""Caps for a process that fuzzes: memory, and time for each input."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from typing import Any

MEMORY = 2 << 30
SECONDS = 10.0


class TooSlow(BaseException):
    """An input took longer than it may; no handler of the code under test takes it for an error of its own."""


def limit_memory(size: int = MEMORY) -> None:
    """RLIMIT_AS: what wants more gets MemoryError, which is a finding."""
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


@contextlib.contextmanager
def in_time(seconds: float = SECONDS) -> Iterator[None]:
    """Raise TooSlow in a block that takes longer (main thread)."""

    def late(_number: int, _frame: Any) -> None:
        raise TooSlow(f"took longer than {seconds} s")

    # Processor time, since the machine may be busy with other work; and time, for what waits for something.
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 6 * seconds))
    before = {number: signal.signal(number, late) for number, _, _ in timers}
    for _, timer, span in timers:
        signal.setitimer(timer, span)
    try:
        yield
    finally:
        for number, timer, _ in timers:
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
