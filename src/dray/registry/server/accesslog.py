"""One line per request, in the combined log format, with the Range asked for and the time taken:

    127.0.0.1 - alice [21/Nov/2026:11:00:00 +0000] "GET /v2/a/blobs/sha256:… HTTP/1.1" 206 100 "-" "agent" "bytes=0-99" 0.004

Sizes are bytes of the body sent, also of an answer that was broken off. Status 499: the client left before any answer.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

from dray.registry.server.call import Call


def _quoted(text: str) -> str:
    """Make text safe between quotes on one line."""
    return "".join(
        c if " " <= c != "\x7f" and c not in '"\\' and c.isprintable() else f"\\x{ord(c):02x}" for c in text
    )


class AccessLog:
    """Writes the lines to a file (opened to append), or to standard output."""

    def __init__(self, path: str = "") -> None:
        self._file: TextIO = open(path, "a", buffering=1) if path else sys.stdout  # noqa: SIM115
        self._owned = bool(path)

    @staticmethod
    def now() -> float:
        """The moment a request began."""
        return time.monotonic()

    def write(self, call: Call, status: int, began: float) -> None:
        """Write the line of a request that was answered."""
        request = call.request
        moment = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime())
        line = (
            f"{request.remote or '-'} - {_quoted(call.identity.user) or '-'} [{moment}] "
            f'"{request.method} {_quoted(request.raw_path)} HTTP/{request.version.major}.{request.version.minor}" '
            f"{status} {call.sent} "
            f'"-" "{_quoted(request.headers.get("User-Agent", "-"))}" "{_quoted(request.headers.get("Range", "-"))}" '
            f"{time.monotonic() - began:.3f}\n"
        )
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._owned:
            self._file.close()
