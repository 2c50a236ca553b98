"""A blob on its way in from a registry (`model.BlobStream`)."""

from __future__ import annotations

import re
import time

from dray.base.errors import InvalidParameter, Unavailable
from dray.base.patterns import pattern
from dray.oci.image import Descriptor
from dray.registry.transport import BLOCK, FLOOR, WINDOW, Response

_CONTENT_RANGE = pattern(r"bytes (\d+)-(\d+)/(\d+|\*)", re.ASCII)


class RemoteBlob:
    """The body of one GET; lengths are checked, contents are not."""

    def __init__(self, response: Response, descriptor: Descriptor, start: int, end: int | None) -> None:
        """Check an answer of 200 or 206; InvalidParameter, and the connection dropped, if its lengths are wrong."""
        self._response = response
        try:
            self.start, self.size, self._left = _lengths(response, descriptor, start, end)
        except BaseException:
            response.close()
            raise
        self.ranged = response.status == 206 or "bytes" in response.header("Accept-Ranges")
        whole = response.header("Content-Length") and not response.header("Transfer-Encoding")
        direct = whole and response.url.startswith("https:")
        self._buffer = memoryview(bytearray(BLOCK)) if direct else None
        self._received = 0
        self._window = (time.monotonic(), 0)

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, b"" at the end; Unavailable if it stalls or breaks off."""
        if self._buffer is None:
            return self._gathered(size)
        count = self._response.read_into(self._buffer[:size])
        self._count(count)
        if not count:
            self._ended()
        return bytes(self._buffer[:count])

    def _gathered(self, size: int) -> bytes:
        """The same of any body; without TLS this is the faster way."""
        pieces: list[bytes] = []
        held, wanted = 0, min(size, BLOCK)
        while held < wanted:
            piece = self._response.read(wanted - held)
            if not piece:
                self._ended()
                break
            held += len(piece)
            self._count(len(piece))
            if not pieces and held == wanted:
                return piece
            pieces.append(piece)
        return b"".join(pieces)

    def _count(self, size: int) -> None:
        self._received += size
        if self._left is not None and self._received > self._left:
            self.close()
            raise InvalidParameter(f"{self._response.request}: the registry sends more than {self._left} bytes")
        now = time.monotonic()
        began, before = self._window
        if now - began > WINDOW:
            if self._received - before < FLOOR:
                self.close()
                raise Unavailable(
                    f"{self._response.request}: the registry stalls: {self._received - before} bytes in {WINDOW:.0f} s"
                )
            self._window = (now, self._received)

    def _ended(self) -> None:
        if self._left is not None and self._received < self._left:
            self.close()
            raise Unavailable(
                f"{self._response.request}: unexpected EOF: {self._received} of {self._left} bytes came"
            )
        self._response.release()

    def close(self) -> None:
        """Give the connection back, or drop it."""
        self._response.close()

    def __enter__(self) -> RemoteBlob:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lengths(
    response: Response, descriptor: Descriptor, start: int, end: int | None
) -> tuple[int, int | None, int | None]:
    """Return (offset of the first byte, size of the whole blob, bytes to come), as the answer tells them."""
    known = descriptor.size or None
    if encoding := response.header("Content-Encoding"):
        raise InvalidParameter(f"{response.request}: the registry encoded a blob as {encoding[:40]!r}, unasked")
    length = response.header("Content-Length")
    coming = int(length) if length.isascii() and length.isdigit() else None
    if response.status == 200:
        first, size, expected = 0, coming, known
    else:
        match = _CONTENT_RANGE.fullmatch(response.header("Content-Range"))
        if match is None:
            raise InvalidParameter(f"{response.request}: the registry sent a part without a valid Content-Range")
        first, last = int(match[1]), int(match[2])
        size = None if match[3] == "*" else int(match[3])
        if first != start or last < first or (end is not None and last >= end):
            raise InvalidParameter(
                f"{response.request}: the registry sent bytes {first} to {last}: not the part that was asked for"
            )
        expected = last - first + 1
    if known is not None and size is not None and size != known:
        raise InvalidParameter(
            f"{response.request}: the registry has {size} bytes of {descriptor.digest}, its descriptor says {known}"
        )
    if expected is not None and coming is not None and coming != expected:
        raise InvalidParameter(f"{response.request}: Content-Length is {coming} where {expected} bytes belong")
    return first, size if size is not None else known, coming if expected is None else expected
