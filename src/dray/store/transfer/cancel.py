"""Giving up a transfer when the client that wanted it has gone."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Cancelled(Exception):
    """The client went away: nobody is there to be told."""


class Cancellation:
    """Set from any thread; looked at by the threads that work."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._break_off: Callable[[], None] | None = None

    def breaks(self, call: Callable[[], None]) -> None:
        """Have `call` break off what a thread may be stuck in, when the end is asked for; it must be quick."""
        self._break_off = call
        if self._event.is_set():
            call()

    def cancel(self) -> None:
        """Ask for the end."""
        self._event.set()
        if self._break_off is not None:
            self._break_off()

    @property
    def cancelled(self) -> bool:
        """Whether it was asked for."""
        return self._event.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the end is asked for."""
        self._event.wait(seconds)

    def check(self) -> None:
        """Raise Cancelled if it was asked for."""
        if self._event.is_set():
            raise Cancelled

    def sleep(self, seconds: float) -> None:
        """Wait as `pause` does; raise Cancelled if the end was asked for."""
        self.pause(seconds)
        self.check()
