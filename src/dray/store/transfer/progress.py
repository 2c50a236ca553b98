"""Progress in the Engine's JSON form (moby `pkg/jsonmessage`): one object a message.

{"stream": "Loaded image: busybox:latest\\n"}
{"status": "Loading layer", "id": "6c0ea40aef9d", "progressDetail": {"current": 32768, "total": 2592256},
 "progress": "[>     ]  32.77kB/2.592MB"}
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from dray.base.units import human_size

# Receives one message; called from worker threads.
Report = Callable[[dict[str, Any]], None]

_WIDTH = 50
_EVERY = 0.1  # seconds between two messages about one layer, as in moby's rate-limited progress output


def silent(message: dict[str, Any]) -> None:
    """Report nothing."""


def bar(current: int, total: int) -> str:
    """Draw the bar that the daemon sends ready-made to old clients (JSONProgress.String)."""
    percent = min(int(current / total * 100) // 2, _WIDTH) if total > 0 else 0
    if total <= 0:
        return f"{human_size(current, 4):>8}"
    blank = max(_WIDTH - percent, 0)
    arrow = "=" * percent + ">" + " " * blank
    return f"[{arrow[: _WIDTH + 1]}] {human_size(current, 4):>8}/{human_size(total, 4)}"


class LayerProgress:
    """Turns (layer, bytes so far, bytes in all) into messages, not too many of them. Thread-safe."""

    def __init__(self, report: Report, status: str) -> None:
        self._report = report
        self._status = status
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def __call__(self, digest: str, current: int, total: int) -> None:
        """Report, unless this layer was reported a moment ago."""
        now = time.monotonic()
        with self._lock:
            done = current >= total
            last = self._last.get(digest, 0.0)
            if last < 0 or (not done and now - last < _EVERY):
                return
            self._last[digest] = -1.0 if done else now
        self._report(
            {
                "status": self._status,
                "id": digest.removeprefix("sha256:")[:12],
                "progressDetail": {"current": current, "total": total},
                "progress": bar(current, total),
            }
        )


class LayerBars:
    """The lines that a client draws for the layers of one transfer, each when it changes, not too often. Thread-safe."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._said: dict[str, str] = {}
        self._last: dict[str, float] = {}

    def watch(self, digest: str) -> Callable[[str, int, int], None]:
        """Return what hears of a layer's transfer: (status, bytes so far, bytes in all)."""

        def tell(status: str, current: int, total: int) -> None:
            if status in ("Downloading", "Pushing"):
                self.count(digest, status, current, total)
            else:
                self.say(digest, status)

        return tell

    def say(self, digest: str, status: str) -> None:
        """Report a status, unless it is the last one already."""
        with self._lock:
            if self._said.get(digest) == status:
                return
            self._said[digest] = status
            self._last.pop(digest, None)
        self._report({"status": status, "progressDetail": {}, "id": short(digest)})

    def count(self, digest: str, status: str, current: int, total: int) -> None:
        """Report how far it has come, unless that was done a moment ago."""
        now = time.monotonic()
        with self._lock:
            if self._said.get(digest) == status and now - self._last.get(digest, 0.0) < _EVERY:
                return
            self._said[digest] = status
            self._last[digest] = now
        self._report(
            {
                "status": status,
                "id": short(digest),
                "progressDetail": {"current": current, "total": total},
                "progress": bar(current, total),
            }
        )


def short(digest: str) -> str:
    """Return how a layer is called in progress: the first twelve digits of its digest."""
    return digest.partition(":")[2][:12]
