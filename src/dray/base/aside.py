"""Work on a thread of its own, for what changes the thread that does it (a namespace, file system ids)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def aside(action: Callable[[], T], name: str) -> T:
    """Run `action` on a new thread, which ends with it; return what it returns, raise what it raises."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(action())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
