"""Where the milliseconds of one start go, told in the daemon's log at debug level."""

from __future__ import annotations

import time


class Laps:
    """A stopwatch with named laps, in milliseconds."""

    __slots__ = ("_laps", "_last")

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._laps: list[tuple[str, float]] = []

    def lap(self, name: str) -> None:
        """Note the time since the last lap under `name`."""
        now = time.perf_counter()
        self._laps.append((name, (now - self._last) * 1e3))
        self._last = now

    def __str__(self) -> str:
        total = sum(taken for _, taken in self._laps)
        return ", ".join(f"{name} {taken:.1f}" for name, taken in self._laps) + f": {total:.1f} ms"
