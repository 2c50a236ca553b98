"""Progress streams (pull, push, load, build): bars that move at a terminal, plain lines elsewhere.

Each record is a JSON object: `status` with `id` and `progressDetail` {current, total}, or `stream` text, or `aux`
data for the caller, or an error, which ends it.
"""

from __future__ import annotations

import os
import sys
import time

from dray.base.units import human_size
from dray.client.errors import ProtocolError, StreamError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TextIO

    from dray.client.http1 import Response


def _bar(detail: dict[str, Any], width: int, started: float) -> str:
    current, total = detail.get("current") or 0, detail.get("total") or 0
    if not current and not total:
        return ""
    units = detail.get("units") or ""
    if not total:
        return f"{current} {units}" if units else f"{human_size(current):>8}"
    bar = ""
    if width > 110 and current <= total:
        filled = min(int(current / total * 100) // 2, 50)
        bar = "[" + "=" * filled + (">" if filled < 50 else "") + " " * (50 - filled - (filled < 50)) + "] "
    if detail.get("hidecounts"):
        return bar.rstrip()
    shown = f"{human_size(current):>8}/{human_size(total)}" if not units else f"{current}/{total} {units}"
    if current > total:
        return f"{human_size(current):>8}" if not units else f"{current} {units}"
    left = ""
    if detail.get("start") and current:
        spent = time.time() - detail["start"]
        left = f" {int(spent / current * (total - current))}s" if width > 50 else ""
    return bar + shown + left


class Display:
    """Shows the records of a progress stream on one output."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty() and os.environ.get("TERM", "") != "dumb"
        self._lines: dict[str, int] = {}
        self._width = 200
        if self._live:
            try:
                self._width = os.get_terminal_size(out.fileno()).columns
            except OSError:
                self._live = False

    def show(self, record: dict[str, Any]) -> None:
        """Show one record; StreamError when it carries an error."""
        error = record.get("errorDetail") or ({"message": record["error"]} if record.get("error") else None)
        if error:
            raise StreamError(str(error.get("message") or record.get("error")), int(error.get("code") or 0))
        if "aux" in record:
            return
        identifier, detail = record.get("id") or "", record.get("progressDetail") or {}
        if not self._live:
            # Bars are for eyes: elsewhere, only the records that say something once.
            if not detail and not record.get("progress"):
                self._write_plain(record, identifier)
            return
        if identifier and ("progressDetail" in record or record.get("progress")):
            self._write_live(record, identifier, detail)
        else:
            self._lines.clear()
            self._write_plain(record, identifier)

    def _write_plain(self, record: dict[str, Any], identifier: str) -> None:
        if "stream" in record:
            self._out.write(record["stream"])
            return
        prefix = f"{identifier}: " if identifier else ""
        self._out.write(f"{prefix}{record.get('status', '')}\n")

    def _write_live(self, record: dict[str, Any], identifier: str, detail: dict[str, Any]) -> None:
        text = f"{identifier}: {record.get('status', '')} {_bar(detail, self._width, 0)}"
        if identifier not in self._lines:
            self._lines[identifier] = len(self._lines)
            self._out.write("\n")
        up = len(self._lines) - self._lines[identifier]
        self._out.write(f"\x1b[{up}A\x1b[2K\r{text[: self._width]}\r\x1b[{up}B")
        self._out.flush()


def follow(
    response: Response, out: TextIO | None = None, *, on_aux: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Show a progress stream to its end; StreamError when it ends in an error."""
    target = out or sys.stdout
    display = Display(target)
    try:
        for record in response.documents():
            if on_aux is not None and "aux" in record:
                on_aux(record)
            display.show(record)
    except ValueError as error:
        raise ProtocolError(f"the daemon's progress stream is not JSON: {error}") from error
    finally:
        target.flush()
        response.close()
