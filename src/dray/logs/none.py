"""Driver `none`: the output goes to attached clients only."""

from __future__ import annotations


class NoLog:
    """A `LogWriter` that keeps nothing."""

    def write(self, stream: str, data: bytes, now: int) -> None:
        """See LogWriter."""

    def end(self, stream: str) -> None:
        """See LogWriter."""

    def close(self) -> None:
        """See LogWriter."""
