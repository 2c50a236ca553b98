"""From log records to what a client of `logs` reads.

Each record is a line of its own: time stamp and details in front if wanted, in a stdcopy frame of its own if the
container has no terminal (clients iterate over frames as lines). The work is done by C loops over a whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, repeat
from urllib.parse import quote_plus

from dray.logs.jsonfile import Clock
from dray.logs.model import Batch
from dray.wire import stdcopy


class _Headers(dict[int, bytes]):
    """Frame headers by the length of the line in them, made once each."""

    def __init__(self, stream: int, extra: int) -> None:
        super().__init__()
        self._stream = stream
        self._extra = extra

    def __missing__(self, length: int) -> bytes:
        header = self[length] = stdcopy.HEADER.pack(self._stream, length + self._extra)
        return header


class Renderer:
    """Makes bytes of batches."""

    def __init__(self, *, framed: bool, timestamps: bool = False, details: bool = False) -> None:
        self._framed = framed
        self._timestamps = timestamps
        self._details = details
        self._clock = Clock()
        self._headers: dict[tuple[str, int], _Headers] = {}

    def render(self, batch: Batch) -> bytes:
        """Return the batch as the client gets it."""
        prefix = self._prefix(batch)
        end = b"" if batch.partial else b"\n"
        lines = batch.lines
        if not self._framed:
            joint = end + prefix
            return prefix + joint.join(lines) + end
        extra = len(prefix) + len(end)
        headers = self._headers.get((batch.stream, extra))
        if headers is None:
            stream = stdcopy.STDOUT if batch.stream == "stdout" else stdcopy.STDERR
            headers = self._headers[batch.stream, extra] = _Headers(stream, extra)
        heads = map(headers.__getitem__, map(len, lines))
        if not prefix:
            return b"".join(chain.from_iterable(zip(heads, lines, repeat(end))))
        return b"".join(chain.from_iterable(zip(heads, repeat(prefix), lines, repeat(end))))

    def _prefix(self, batch: Batch) -> bytes:
        prefix = b""
        if self._timestamps:
            prefix = self._clock.fixed(batch.time).encode() + b" "
        if self._details:
            prefix += details(batch.attributes).encode() + b" "
        return prefix


def details(attributes: Mapping[str, str]) -> str:
    """Return attributes as `logs --details` shows them (moby httputils/write_log_stream.go)."""
    return ",".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in sorted(attributes.items()))
