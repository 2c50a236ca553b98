"""The frames in which one stream carries stdout and stderr (Engine API, "attach", stream format).

On the wire, a frame is an 8-byte header and its payload:

    byte 0      stream: 0 stdin, 1 stdout, 2 stderr, 3 an error of the engine (text)
    bytes 1-3   zero
    bytes 4-7   length of the payload, big endian
"""

from __future__ import annotations

import struct

STDIN, STDOUT, STDERR, SYSTEM_ERROR = range(4)

HEADER = struct.Struct(">BxxxI")


def frame(stream: int, payload: bytes) -> bytes:
    """Return one whole frame."""
    return HEADER.pack(stream, len(payload)) + payload


class Decoder:
    """Take frames apart, however the bytes were cut on their way.

    Payloads are handed out as they arrive, not when their frame is complete: a frame may be of any length.
    """

    __slots__ = ("_header", "_left", "_stream")

    def __init__(self) -> None:
        self._header = b""
        self._stream = STDOUT
        self._left = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the (stream, bytes) that `data` completes; ValueError for what is no frame."""
        found: list[tuple[int, bytes]] = []
        position, end = 0, len(data)
        while position < end:
            if self._left:
                piece = data[position : position + self._left]
                found.append((self._stream, piece))
                position += len(piece)
                self._left -= len(piece)
                continue
            take = HEADER.size - len(self._header)
            self._header += data[position : position + take]
            position += take
            if len(self._header) == HEADER.size:
                self._stream, self._left = HEADER.unpack(self._header)
                self._header = b""
                if self._stream > SYSTEM_ERROR:
                    raise ValueError(f"unrecognized stream: {self._stream}")
        return found

    @property
    def clean(self) -> bool:
        """Whether everything fed so far ended on a frame's edge."""
        return not self._left and not self._header
