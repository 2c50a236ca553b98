"""What a logging driver is: it checks options, writes a container's output, and reads it again.

A writer lives in the shim and is given whole chunks of output, as they were read, with one time for each; it cuts
them into lines at C speed and never works line by line. A reader lives in whatever process serves `logs` and
yields batches of lines that share stream and time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

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

    lines: raw bytes; each ends with a newline unless it is a partial record
    """

    stream: str
    time: int
    lines: list[bytes]
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records are wanted.

    tail: the last so many of all records (-1: all), counted before the other conditions, as dockerd counts
    since, until: unix nanoseconds, both inclusive; 0 no bound
    """

    tail: int = -1
    since: int = 0
    until: int = 0
    stdout: bool = True
    stderr: bool = True


class Driver(NamedTuple):
    """A logging driver as the registry names it. `read` is None for a driver that cannot read."""

    name: str
    options: frozenset[str]
    validate: Callable[[Mapping[str, str]], None]
    open: Callable[[str, Mapping[str, str], Mapping[str, str]], LogWriter]
    read: Callable[[str, int], Iterator[list[Batch]]] | None = None


@dataclass(slots=True)
class Splitter:
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
