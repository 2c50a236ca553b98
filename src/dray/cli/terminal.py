"""The user's terminal: raw mode, size, and the keys that detach from a container.

Raw mode is a context manager: whatever ends the block, the terminal is as it was before.
"""

from __future__ import annotations

import os

from dray.base.errors import InvalidParameter
from dray.cli.app import is_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
_NAMED = {"ctrl-@": 0, "ctrl-[": 27, "ctrl-\\": 28, "ctrl-]": 29, "ctrl-^": 30, "ctrl-_": 31, "DEL": 127}


class RawMode:
    """Puts a terminal in raw mode for the time of a `with` block; does nothing to what is no terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
        if is_terminal(self._descriptor):
            import termios
            import tty

            self._saved = termios.tcgetattr(self._descriptor)
            tty.setraw(self._descriptor, termios.TCSANOW)
        return self

    def restore(self) -> None:
        """Give the terminal its old mode back; may be called more than once."""
        if self._saved is not None:
            import termios

            saved, self._saved = self._saved, None
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, saved)

    def __exit__(self, *_: object) -> None:
        self.restore()


def size(descriptor: int = 1) -> tuple[int, int]:
    """Return height and width in characters; zeros when it is no terminal."""
    try:
        columns, lines = os.get_terminal_size(descriptor)
    except OSError:
        return 0, 0
    return lines, columns


def parse_detach_keys(text: str) -> bytes:
    """Read `ctrl-p,ctrl-q` or `a,b`; InvalidParameter names the key that is none."""
    keys = bytearray()
    for key in text.split(","):
        low = key.lower()
        if len(key) == 1 and key.isascii():
            keys.append(ord(key))
        elif low.startswith("ctrl-") and len(low) == 6 and "a" <= low[5] <= "z":
            keys.append(ord(low[5]) - 96)
        elif key in _NAMED or low in _NAMED:
            keys.append(_NAMED.get(key, _NAMED.get(low, 0)))
        else:
            raise InvalidParameter(f"invalid detach keys ({text}): unknown character: '{key}'")
    return bytes(keys)


class DetachFilter:
    """Finds the detach sequence in what is typed, holding back its beginnings until they prove otherwise."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return what to send on, and whether the sequence was completed."""
        out = bytearray()
        for byte in data:
            if self._keys and byte == self._keys[self._held]:
                self._held += 1
                if self._held == len(self._keys):
                    return bytes(out), True
                continue
            if self._held:
                out += self._keys[: self._held]
                self._held = 0
                if self._keys and byte == self._keys[0]:
                    self._held = 1
                    continue
            out.append(byte)
        return bytes(out), False
