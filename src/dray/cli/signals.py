"""Signals while a container is attached: passed on to it, and the terminal's size kept in step."""

from __future__ import annotations

import signal
import sys

from dray.base.errors import DrayError
from dray.cli import terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, Self

_PATIENCE = 3
_FORWARDED = (
    "HUP",
    "INT",
    "QUIT",
    "TERM",
    "USR1",
    "USR2",
    "ALRM",
    "CONT",
    "TSTP",
    "TTIN",
    "TTOU",
    "VTALRM",
    "IO",
    "PWR",
)


class SignalHandlers:
    """Handlers installed for the time of a `with` block, the old ones put back after it."""

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}

    def on(self, number: int, action: Callable[[int], None]) -> None:
        """Call `action` with the signal's number whenever it comes."""

        def handler(received: int, _: FrameType | None) -> None:
            action(received)

        old = signal.signal(number, handler)
        self._old.setdefault(number, old)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)


def forward(handlers: SignalHandlers, kill: Callable[[str], None]) -> None:
    """Pass the signals that a program may catch on to the container, by name. The third SIGINT or SIGTERM ends the
    client as well, as docker's: SystemExit."""
    left = _PATIENCE

    def send(number: int) -> None:
        nonlocal left
        left -= number in (signal.SIGINT, signal.SIGTERM)
        if left <= 0:
            print(f"\ngot {_PATIENCE} SIGTERM/SIGINTs, forcefully exiting", file=sys.stderr)
            raise SystemExit(1)
        try:
            kill(signal.Signals(number).name.removeprefix("SIG"))
        except (DrayError, OSError):
            # A container that is not running yet, or no longer, gets no signal; the user's wait goes on.
            return

    for name in _FORWARDED:
        handlers.on(getattr(signal, f"SIG{name}"), send)


def follow_size(handlers: SignalHandlers, resize: Callable[[int, int], None]) -> None:
    """Tell the daemon the terminal's size now and whenever it changes."""

    def tell(_: int = 0) -> None:
        height, width = terminal.size()
        if not height and not width:
            return
        try:
            resize(height, width)
        except (DrayError, OSError):
            # The program may not have its terminal yet or any more; the next change tells it again.
            return

    handlers.on(signal.SIGWINCH, tell)
    tell()
