r"""Driver `json-file`: Docker's own log format, one JSON object a line.

    {"log":"a line\n","stream":"stdout","attrs":{"k":"v"},"time":"2024-05-01T12:00:00.123456789Z"}

`attrs` only with labels, env or tag options. A line longer than 16 KiB makes several records, of which only the
last has the `\n`. Strings are escaped as dockerd does (moby jsonlog/jsonlogbytes.go): quote, backslash, `\n`,
`\r`, every other control character and `<`, `>`, `&` and U+2028/9 as `\u....`; bytes that are no UTF-8 become
`\ufffd`, one for each.

The write path works on chunks: what needs escaping is found by one `bytes.translate` and replaced kind by kind,
record ends by one `bytes.replace`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import msgspec

from dray.logs.model import Splitter
from dray.logs.rotation import RotatingFile

_SPECIAL = bytes(range(0x20)).replace(b"\n", b"") + b'"\\<>&'
_PLAIN = bytes(byte for byte in range(0x80) if byte not in _SPECIAL)
_HIGH = bytes(range(0x80, 0x100))
_ESCAPES = {bytes((byte,)): b"\\u%04x" % byte for byte in _SPECIAL}
_ESCAPES |= {b'"': b'\\"', b"\\": b"\\\\", b"\r": b"\\r"}
_MANY = 4096  # characters to escape in a chunk that make a look for runs of equal ones worth its while

_STEP = 64 << 10  # bytes of output made into records at a time

_LONE_BYTE = re.compile("[\udc80-\udcff]")


def escape(data: bytes) -> bytes:
    """Escape everything but newlines."""
    special = data.translate(None, _PLAIN)
    if not special:
        return data
    ascii_only = special.isascii()
    if not ascii_only:
        special = special.translate(None, _HIGH)
    if b"\\" in special:
        data = data.replace(b"\\", b"\\\\")
        special = special.replace(b"\\", b"")
    while special:
        kind = special[:1]
        escaped = _ESCAPES[kind]
        if len(special) > _MANY:
            data = _escape_runs(data, kind, escaped)
        data = data.replace(kind, escaped)
        special = special.translate(None, kind)
    return data if ascii_only else _only_unicode(data)


def _escape_runs(data: bytes, kind: bytes, escaped: bytes) -> bytes:
    """Escape long runs of one character (the zeros of a device) in one step each."""
    return re.sub(re.escape(kind) + b"{64,}", lambda run: escaped * (run.end() - run.start()), data)


def _only_unicode(data: bytes) -> bytes:
    try:
        data.decode()
    except UnicodeDecodeError:
        data = _LONE_BYTE.sub("\ufffd", data.decode(errors="surrogateescape")).encode()
        data = data.replace(b"\xef\xbf\xbd", b"\\ufffd")
    if b"\xe2\x80" in data:
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return data


class Clock:
    """Formats times, remembering the second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def fixed(self, now: int) -> str:
        """Return unix nanoseconds as RFC 3339 in UTC with nine digits behind the point."""
        second, nanoseconds = divmod(now, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{nanoseconds:09}Z"

    def text(self, now: int) -> str:
        """Return the same without trailing zeros (Go's RFC3339Nano)."""
        return self.fixed(now)[:-1].rstrip("0").rstrip(".") + "Z"


class JsonFile:
    """A `LogWriter` (see logs.model)."""

    def __init__(
        self,
        path: str,
        *,
        max_size: int = 20 << 20,
        max_files: int = 5,
        compress: bool = False,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        self._file = RotatingFile(path, max_size=max_size, max_files=max_files, compress=compress, ends=b"\n")
        self._attributes = b""
        if attributes:
            self._attributes = b',"attrs":' + _attributes(attributes)
        self._splitter = Splitter()
        self._clock = Clock()

    def write(self, stream: str, data: bytes, now: int) -> None:
        """See LogWriter."""
        tail = self._tail(stream, now)
        if len(data) <= _STEP:
            self._write(stream, data, tail)
            return
        for start in range(0, len(data), _STEP):  # short lines grow to forty times their length
            self._write(stream, data[start : start + _STEP], tail)

    def _write(self, stream: str, data: bytes, tail: bytes) -> None:
        records = self._splitter.feed(stream, data)
        if not records:
            return
        if len(records) == 1 and not records[0][1]:
            self._file.write(_lines(records[0][0], tail))
            return
        self._file.write(
            b"".join(
                b'{"log":"' + escape(lines) + b'"' + tail if partial else _lines(lines, tail)
                for lines, partial in records
            )
        )

    def _tail(self, stream: str, now: int) -> bytes:
        return b',"stream":"%b"%b,"time":"%b"}\n' % (
            stream.encode(),
            self._attributes,
            self._clock.text(now).encode(),
        )

    def end(self, stream: str) -> None:
        """See LogWriter."""
        left = self._splitter.end(stream)
        if left:
            self._file.write(b'{"log":"' + escape(left) + b'"' + self._tail(stream, time.time_ns()))

    def close(self) -> None:
        """See LogWriter."""
        for stream in ("stdout", "stderr"):
            self.end(stream)
        self._file.close()


def _lines(lines: bytes, tail: bytes) -> bytes:
    """Return the records of whole lines."""
    records = escape(lines).replace(b"\n", b'\\n"' + tail + b'{"log":"')
    return b'{"log":"' + records[:-8]


def _attributes(attributes: Mapping[str, str]) -> bytes:
    """Return a JSON object, keys sorted, escaped as Go's encoder does."""
    data = msgspec.json.encode(dict(sorted(attributes.items())))
    for char, code in ((b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026")):
        data = data.replace(char, code)
    return data
