"""Signals by Docker's names: `KILL`, `SIGKILL`, `9`, `RTMIN+3`."""

from __future__ import annotations

import re
import signal

from dray.base.errors import InvalidParameter

_REAL_TIME = re.compile(r"RTMIN\+(\d+)|RTMAX-(\d+)", re.ASCII)


def parse(text: str) -> int:
    """Return a signal's number; InvalidParameter in Docker's words if there is none of that name."""
    name = text.upper().removeprefix("SIG")
    if name.isascii() and name.isdigit():
        number = int(name)
    elif match := _REAL_TIME.fullmatch(name):
        number = signal.SIGRTMIN + int(match[1]) if match[1] else signal.SIGRTMAX - int(match[2])
    else:
        known = getattr(signal, f"SIG{name}", None) if name.isalnum() else None
        number = int(known) if isinstance(known, signal.Signals) else 0
    if not 1 <= number <= 64:
        raise InvalidParameter(f"invalid signal: {text}")
    return number
