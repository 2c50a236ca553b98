"""A small epoll loop: descriptors with handlers, timers, child signals.

The shim's and nobody else's: asyncio costs 40 ms to import and megabytes of private memory. Level-triggered; a
handler does a bounded piece of work and returns. Not reentrant.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import signal
import time
from collections.abc import Callable

IN = select.EPOLLIN
OUT = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR  # always reported
_CROWD = 1024  # timers, from which on the cancelled ones are looked for

Handler = Callable[[int], object]


class Timer:
    """A call in the future; `cancel` makes it not happen."""

    __slots__ = ("callback", "due")

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the call (no error if it has happened)."""
        self.callback = None


class Loop:
    """Watches descriptors; does not own them (remove one before closing it)."""

    def __init__(self, failed: Callable[[], None] | None = None) -> None:
        """`failed` is called where an exception leaves a handler, which then loses its descriptor; without it the
        exception leaves `run`."""
        self._failed = failed
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._handlers: dict[int, tuple[int, Handler]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._crowd = _CROWD
        self._order = itertools.count()
        self._pipe: tuple[int, ...] = ()
        self.stopped = False

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call `handler(events)` when `fd` is ready; replaces what was said about `fd` before.

        With `events` 0 only hang-ups and errors are reported.
        """
        known = self._handlers.get(fd)
        if known is None:
            self._epoll.register(fd, events)
        elif known[0] != events:
            self._epoll.modify(fd, events)
        self._handlers[fd] = events, handler

    def forget(self, fd: int) -> None:
        """Stop watching `fd` (no error if it was not watched)."""
        if self._handlers.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once, `seconds` from now."""
        timer = Timer(time.monotonic() + seconds, callback)
        if len(self._timers) >= self._crowd:  # most were cancelled long before they were due
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._crowd = max(_CROWD, 2 * len(self._timers))
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    def watch_children(self, handler: Callable[[], None]) -> None:
        """Call `handler` after children have changed state (one call may stand for many).

        SIGCHLD must have a Python handler already (see shim.zygote): to install one costs a fresh process the
        pages of the signal module.
        """
        self._pipe = reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

        def ready(_events: int) -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 4096)
            handler()

        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.watch(reader, IN, ready)

    def close(self) -> None:
        """Close what the loop itself holds."""
        self._epoll.close()
        for fd in self._pipe:
            os.close(fd)
        self._pipe = ()

    def run(self) -> None:
        """Handle events until `stopped`."""
        while not self.stopped:
            self.turn()

    def turn(self) -> None:
        """Wait for the next events or timers and handle them."""
        for fd, events in self._epoll.poll(self._patience()):
            known = self._handlers.get(fd)  # an earlier handler of this turn may have removed it
            if known is not None:
                try:
                    known[1](events)
                except Exception:
                    if self._failed is None:
                        raise
                    self.forget(fd)  # or it would fail again and again
                    self._failed()
        while self._timers and self._timers[0][0] <= time.monotonic():
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                try:
                    callback()
                except Exception:
                    if self._failed is None:
                        raise
                    self._failed()

    def _patience(self) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1
