"""A lock for many who add at the same time, and one who takes away alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """Shared by several threads, or held by one alone. Who waits to have it alone lets nobody new in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._alone = False
        self._waiting = 0  # for having it alone

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Have it beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have it when nobody else has."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._alone and not self._sharing)
                self._alone = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
