r"""Reading json-file logs at C speed.

Records that were written in one go share everything behind the text: `\n","stream":"stdout","time":"…"}`. Where
such a tail repeats, one `bytes.split` by it yields all the lines; elsewhere one regular expression takes records
apart, and what neither understands (other writers, other key orders) is decoded as JSON, one by one. A record that
is no JSON is skipped.
"""

from __future__ import annotations

import calendar
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from dray.logs.model import Batch

_BLOCK = 256 << 10
_WINDOW = 4096
_REPEATS = 8  # so many records with one tail in a window make the split worth its while

_TAIL = re.compile(rb'","stream":"(stdout|stderr)"(?:,"attrs":(\{[^\n]*\}))?,"time":"([^"\n]+)"\}\n')
_RECORD = re.compile(
    rb'\{"log":"([^"\\\n]*(?:\\.[^"\\\n]*)*)","stream":"(stdout|stderr)"'
    rb'(?:,"attrs":(\{[^\n]*?\}))?,"time":"([^"\n]+)"\}\n'
)
_NONE: Mapping[str, str] = {}
_strings = msgspec.json.Decoder(list[str])


@lru_cache(maxsize=64)
def nanoseconds(text: bytes) -> int:
    """Return an RFC 3339 time as unix nanoseconds; ValueError if it is none."""
    match = re.fullmatch(
        rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))", text
    )
    if match is None:
        raise ValueError(f"no RFC 3339 time: {text!r}")
    seconds = calendar.timegm(tuple(int(part) for part in match.groups()[:6]))
    if match[8]:
        offset = int(match[9]) * 3600 + int(match[10]) * 60
        seconds += offset if match[8] == b"-" else -offset
    return seconds * 1_000_000_000 + int((match[7] or b"0").ljust(9, b"0"))


@lru_cache(maxsize=16)
def _attributes(text: bytes) -> Mapping[str, str]:
    return msgspec.json.decode(text, type=dict[str, str])


class JsonFormat:
    """`LogFormat` of json-file."""

    def __init__(self, _fd: int) -> None:
        """The file says nothing about itself."""

    def parse(self, data: bytes) -> tuple[list[Batch], int]:
        """See LogFormat."""
        end = data.rfind(b"\n") + 1
        found: list[Batch] = []
        position = 0
        while position < end:
            step = self._repeated(data, position, end, found)
            if not step:
                step = self._mixed(data, position, end, found)
            position = step
        return found, end

    def _repeated(self, data: bytes, position: int, end: int, found: list[Batch]) -> int:
        """Take records with one tail; return where they end, 0 if there are not enough of them."""
        start = data.find(b'","stream":"', position, end)
        if start < 0 or not data.startswith(b'{"log":"', position):
            return 0
        match = _TAIL.match(data, start, end)
        if match is None or data[start - 2 : start] != b"\\n":
            return 0
        tail = b"\\n" + match[0]
        if data.count(tail, position, min(position + _WINDOW, end)) < _REPEATS:
            return 0
        last, window = match.end(), _WINDOW
        while (next_ := data.rfind(tail, last, min(last + window, end))) >= 0:
            last = next_ + len(tail)
            window *= 2
        lines = data[position + 8 : last - len(tail)].split(tail + b'{"log":"')
        text = b'","'.join(lines)
        if b"\n" in text:
            return 0
        if b"\\" in text:
            # An odd backslash at the end of a line belongs to the `n` behind it: a partial record's own text.
            if b'\\","' in text or text.endswith(b"\\"):
                return 0
            try:
                lines = [line.encode() for line in _strings.decode(b'["' + text + b'"]')]
            except (msgspec.DecodeError, UnicodeEncodeError):
                return 0
        try:
            found.append(self._batch(match[1], match[3], lines, match[2], partial=False))
        except (ValueError, msgspec.DecodeError):
            return 0
        return last

    def _mixed(self, data: bytes, position: int, end: int, found: list[Batch]) -> int:
        """Take some records of any kind; return where they end."""
        stop = end
        if end - position > _WINDOW:
            stop = data.find(b"\n", position + _WINDOW, end) + 1 or end
        records = _RECORD.findall(data, position, stop)
        if len(records) == data.count(b"\n", position, stop):
            for raw, stream, attributes, time in records:
                try:
                    line, partial = _unescaped(raw)
                    self._add(found, self._batch(stream, time, [line], attributes, partial=partial))
                except (ValueError, msgspec.DecodeError):
                    continue
            return stop
        for record in data[position:stop].splitlines():
            batch = self._any(record)
            if batch is not None:
                self._add(found, batch)
        return stop

    @staticmethod
    def _add(found: list[Batch], batch: Batch) -> None:
        if found:
            last = found[-1]
            if last[:2] == batch[:2] and last.partial == batch.partial and last.attributes == batch.attributes:
                last.lines.extend(batch.lines)
                return
        found.append(batch)

    @staticmethod
    def _batch(
        stream: bytes, time: bytes, lines: list[bytes], attributes: bytes | None, *, partial: bool
    ) -> Batch:
        return Batch(
            "stdout" if stream == b"stdout" else "stderr",
            nanoseconds(time),
            lines,
            partial,
            _attributes(attributes) if attributes else _NONE,
        )

    def _any(self, record: bytes) -> Batch | None:
        try:
            fields: dict[str, Any] = msgspec.json.decode(record)
            text = str(fields.get("log", "")).encode(errors="replace")
            partial = not text.endswith(b"\n")
            return Batch(
                "stderr" if fields.get("stream") == "stderr" else "stdout",
                nanoseconds(str(fields["time"]).encode()),
                [text if partial else text[:-1]],
                partial,
                {str(key): str(value) for key, value in (fields.get("attrs") or {}).items()},
            )
        except (msgspec.DecodeError, ValueError, KeyError, AttributeError):
            return None

    def tail(self, fd: int, size: int, count: int) -> tuple[int, int, int]:
        """See LogFormat."""
        end = size
        found = 0
        wanted = count + 1  # newlines: that of each record, and the one before the first of them
        while end > 0 and wanted > 0:
            start = max(0, end - _BLOCK)
            block = os.pread(fd, end - start, start)
            newlines = block.count(b"\n")
            if found + newlines >= wanted:
                position = len(block)
                for _ in range(wanted - found):
                    position = block.rfind(b"\n", 0, position)
                return start + position + 1, 0, count
            found += newlines
            end = start
        return 0, 0, found


def _unescaped(raw: bytes) -> tuple[bytes, bool]:
    """Return a record's text without its newline, and whether it had none."""
    if b"\\" in raw:
        if raw.endswith(b"\\n") and raw.find(b"\\") == len(raw) - 2:
            return raw[:-2], False
        text: bytes = msgspec.json.decode(b'"' + raw + b'"', type=str).encode()
        return (text[:-1], False) if text.endswith(b"\n") else (text, True)
    return raw, True
