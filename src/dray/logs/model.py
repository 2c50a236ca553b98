"""What a logging driver is: it checks options, writes a container's output, and reads it again.

A writer lives in the shim and is given whole chunks of output, as they were read, with one time for each; it cuts
them into lines at C speed and never works line by line. A reader lives in whatever process serves `logs` and
yields batches of lines that share stream and time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from msgspec import Struct, field

STREAMS = ("stdout", "stderr")

LINE_LIMIT = 16 << 10  # longer lines are split into partial records (moby daemon/logger/copier.go)


class LogWriter(Protocol):
    """Takes a container's output. A full disk loses log records, never the container: nothing here raises OSError."""

    def write(self, stream: str, data: bytes, now: int) -> None:
        """Log a chunk of `stream` ("stdout", "stderr") read at `now` (unix nanoseconds). The end of a line that
        has not ended waits for more."""

    def end(self, stream: str) -> None:
        """The stream is closed: log what waits of its last line."""

    def close(self) -> None:
        """Put everything into the file and close it. Closing twice is no error."""


class Batch(NamedTuple):
    """Log records that share stream and time.

    lines: raw bytes without the newline that each of them ends with, unless they are partial records
    """

    stream: str
    time: int
    lines: list[bytes]
    partial: bool
    attributes: Mapping[str, str]


class LogFormat(Protocol):
    """How a driver's file is read. Records are whole or not there; a torn one at the end is left alone."""

    def parse(self, data: bytes) -> tuple[list[Batch], int]:
        """Return the batches of the whole records in `data`, and how many bytes they took."""

    def tail(self, fd: int, size: int, count: int) -> tuple[int, int, int]:
        """Find the last `count` records of a file of `size` bytes: (offset to read from, records to skip there,
        records found)."""


class Selection(Struct, frozen=True):
    """Which records are wanted.

    tail: the last so many of all records (None: all), counted before the other conditions, as dockerd counts
    since, until: unix nanoseconds, both inclusive; 0 no bound
    """

    tail: int | None = None
    since: int = 0
    until: int = 0
    stdout: bool = True
    stderr: bool = True


class Splitter(Struct):
    """Cuts chunks into whole lines and partial records, per stream."""

    _waiting: dict[str, bytes] = field(default_factory=dict)

    def feed(self, stream: str, data: bytes) -> list[tuple[bytes, bool]]:
        """Return the records that `data` completes: (lines, each ending with a newline, False) or (up to
        LINE_LIMIT bytes of a longer line, True)."""
        waiting = self._waiting.get(stream)
        if waiting:
            data = waiting + data
        found: list[tuple[bytes, bool]] = []
        start = position = 0  # lines before `position` are known to be short
        end = len(data)
        while end - position >= LINE_LIMIT:
            # The last newline in reach: all lines up to it are short enough, and so it takes few steps.
            newline = data.rfind(b"\n", position, position + LINE_LIMIT)
            if newline >= 0:
                position = newline + 1
                continue
            if position > start:
                found.append((data[start:position], False))
            cut = position + _whole_characters(data, position)
            found.append((data[position:cut], True))
            start = position = cut
        last = data.rfind(b"\n", position) + 1 or position
        if last > start:
            found.append((data[start:last], False))
        self._waiting[stream] = data[last:]
        return found

    def end(self, stream: str) -> bytes:
        """Return what waits of the stream's last line."""
        return self._waiting.pop(stream, b"")


def _whole_characters(data: bytes, start: int) -> int:
    """Return how many of the LINE_LIMIT bytes from `start` make whole UTF-8 characters, so that none is torn (a
    torn one could not be written as JSON)."""
    for back in range(1, 4):
        byte = data[start + LINE_LIMIT - back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return LINE_LIMIT - back if size > back else LINE_LIMIT
    return LINE_LIMIT
