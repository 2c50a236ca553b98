"""Driver `local`: the output as it was, in blocks, rotated and compressed.

A file is a sequence of blocks, integers little endian:

    u32 length      of the payload
    u8  kind        1 stdout, 2 stderr; + 0x10: the payload is a partial record, else whole lines;
                    0x20: the payload is the JSON object of the container's attributes (the first block)
    u64 time        unix nanoseconds
    payload         the raw bytes
    u32 length      again, so that the file can be read backwards

Nothing is escaped, so nothing is lost and nothing costs much; the format is dray's own and may change.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping

import msgspec

from dray.logs.model import Batch, Splitter
from dray.logs.rotation import RotatingFile

_HEADER = struct.Struct("<IBQ")
_LENGTH = struct.Struct("<I")
_OVERHEAD = _HEADER.size + _LENGTH.size
_STREAMS = {"stdout": 1, "stderr": 2}
_NAMES = {1: "stdout", 2: "stderr"}
_PARTIAL, _ATTRIBUTES = 0x10, 0x20
_MAX_PAYLOAD = 64 << 20  # far above what is written: a longer one is damage


def _block(kind: int, now: int, payload: bytes) -> bytes:
    return b"".join((_HEADER.pack(len(payload), kind, now), payload, _LENGTH.pack(len(payload))))


class LocalFile:
    """A `LogWriter` (see logs.model)."""

    def __init__(
        self,
        path: str,
        *,
        max_size: int = 20 << 20,
        max_files: int = 5,
        compress: bool = True,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        head = _block(_ATTRIBUTES, 0, msgspec.json.encode(attributes)) if attributes else b""
        self._file = RotatingFile(
            path, max_size=max_size, max_files=max_files, compress=compress, head=head, whole=_whole
        )
        self._splitter = Splitter()

    def write(self, stream: str, data: bytes, now: int) -> None:
        """See LogWriter."""
        for payload, partial in self._splitter.feed(stream, data):
            self._file.write(_block(_STREAMS[stream] | (_PARTIAL if partial else 0), now, payload))

    def end(self, stream: str) -> None:
        """See LogWriter."""
        left = self._splitter.end(stream)
        if left:
            self._file.write(_block(_STREAMS[stream] | _PARTIAL, time.time_ns(), left))

    def close(self) -> None:
        """See LogWriter."""
        for stream in _STREAMS:
            self.end(stream)
        self._file.close()


def _whole(fd: int, size: int) -> int:
    """Return where the last whole block ends: usually at the end, as its length there says."""
    if size >= _OVERHEAD:
        [length] = _LENGTH.unpack(os.pread(fd, _LENGTH.size, size - _LENGTH.size))
        start = size - length - _OVERHEAD
        if start >= 0 and _HEADER.unpack(os.pread(fd, _HEADER.size, start))[0] == length:
            return size
    position = 0
    while position + _OVERHEAD <= size:
        length = _HEADER.unpack(os.pread(fd, _HEADER.size, position))[0]
        if position + length + _OVERHEAD > size:
            break
        position += length + _OVERHEAD
    return position


class LocalFormat:
    """`LogFormat` of one file of `local`."""

    def __init__(self, fd: int) -> None:
        self._attributes: Mapping[str, str] = {}
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) == _HEADER.size:
            length, kind, _ = _HEADER.unpack(header)
            if kind & _ATTRIBUTES and length < _MAX_PAYLOAD:
                payload = os.pread(fd, length, _HEADER.size)
                if len(payload) == length:
                    self._attributes = msgspec.json.decode(payload, type=dict[str, str])

    def parse(self, data: bytes) -> tuple[list[Batch], int]:
        """See LogFormat."""
        found: list[Batch] = []
        position, size = 0, len(data)
        while position + _OVERHEAD <= size:
            length, kind, now = _HEADER.unpack_from(data, position)
            end = position + length + _OVERHEAD
            if end > size:
                break
            payload = data[position + _HEADER.size : end - _LENGTH.size]
            position = end
            stream = _NAMES.get(kind & 0xF)
            if stream is None:
                continue
            partial = bool(kind & _PARTIAL)
            lines = [payload] if partial else payload[:-1].split(b"\n")
            found.append(Batch(stream, now, lines, partial, self._attributes))
        return found, position

    def tail(self, fd: int, size: int, count: int) -> tuple[int, int, int]:
        """See LogFormat."""
        end = _whole(fd, size)
        found = 0
        while end > 0:
            [length] = _LENGTH.unpack(os.pread(fd, _LENGTH.size, end - _LENGTH.size))
            start = end - length - _OVERHEAD
            if start < 0:
                break
            header = os.pread(fd, _HEADER.size, start)
            kind = header[4]
            if not kind & _ATTRIBUTES:
                records = 1 if kind & _PARTIAL else os.pread(fd, length, start + _HEADER.size).count(b"\n")
                found += records
                if found >= count:
                    return start, found - count, count
            end = start
        return 0, 0, found
