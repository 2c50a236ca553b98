"""Detach key sequences: `ctrl-p,ctrl-q` (Docker's default), `ctrl-x,x`, `q` (moby `pkg/term` ASCII names)."""

from __future__ import annotations

from dray.base.errors import InvalidParameter

DEFAULT = "ctrl-p,ctrl-q"
_SPECIAL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse(text: str) -> bytes:
    """Return the bytes that a client types to detach; empty text is the default sequence."""
    keys = bytearray()
    for key in (text or DEFAULT).split(","):
        if len(key) == 1 and key.isascii():
            keys.append(ord(key))
            continue
        letter = key.removeprefix("ctrl-")
        if key == "DEL":
            keys.append(127)
            continue
        if not key.startswith("ctrl-") or len(letter) != 1:
            raise InvalidParameter(f"Invalid detach keys ({text}) provided: Unknown character: '{key}'")
        if "a" <= letter <= "z":
            keys.append(ord(letter) - ord("a") + 1)
        elif letter in _SPECIAL:
            keys.append(_SPECIAL[letter])
        else:
            raise InvalidParameter(f"Invalid detach keys ({text}) provided: Unknown character: '{key}'")
    return bytes(keys)
