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

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
