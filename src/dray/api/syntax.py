"""Where a JSON text breaks off, in the words of Go's encoding/json, which dockerd passes on and clients match.

Only for texts that a decoder has refused: it says why, it does not decide whether.
"""

from __future__ import annotations

import re
from typing import NoReturn

_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_ESCAPE = re.compile(rb"\\u[0-9a-fA-F]{0,3}")
_WORDS = {b"t": b"true", b"f": b"false", b"n": b"null"}
_EOF = "unexpected EOF"


class _Broken(Exception):
    pass


def complaint(text: bytes) -> str:
    """Return what Go's decoder says of the first value of `text`; empty if it finds no fault with its form."""
    try:
        _Scanner(text).value()
    except _Broken as error:
        return str(error)
    return ""


class _Scanner:
    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0

    def value(self) -> None:
        """Pass one value. What is open is kept in a list: a request must not decide how deep Python recurses."""
        open_: list[bytes] = []
        while True:
            mark = self._peek()
            if mark in (b"{", b"["):
                self._at += 1
                if self._peek() == (b"}" if mark == b"{" else b"]"):
                    self._at += 1
                else:
                    open_.append(mark)
                    if mark == b"{":
                        self._key()
                    continue
            else:
                self._scalar(mark)
            while open_ and self._closes(open_[-1]):
                open_.pop()
            if not open_:
                return

    def _closes(self, opened: bytes) -> bool:
        """Tell whether what is open ends here; if not, what stands before its next value is passed."""
        after = "after object key:value pair" if opened == b"{" else "after array element"
        mark = self._peek()
        if mark == (b"}" if opened == b"{" else b"]"):
            self._at += 1
            return True
        if mark != b",":
            self._break(after)
        self._at += 1
        if opened == b"{":
            self._key()
        return False

    def _key(self) -> None:
        looking = "looking for beginning of object key string"
        if self._peek() != b'"':
            self._break(looking)
        self._string()
        if self._peek() != b":":
            self._break("after object key")
        self._at += 1

    def _scalar(self, mark: bytes) -> None:
        if mark == b'"':
            self._string()
        elif mark in _WORDS:
            for expected in _WORDS[mark].decode():
                if self._byte() != expected.encode():
                    self._break(f"in literal {_WORDS[mark].decode()} (expecting {expected!r})")
                self._at += 1
        elif mark == b"-" or mark.isdigit():
            self._number()
        else:
            self._break("looking for beginning of value")

    def _string(self) -> None:
        found = _STRING.match(self._text, self._at)
        assert found is not None
        self._at = found.end()
        mark = self._byte()
        if mark == b"\\":
            partial = _ESCAPE.match(self._text, self._at)
            self._at = partial.end() if partial else self._at + 1
            self._byte()
            self._break(r"in \u hexadecimal character escape" if partial else "in string escape code")
        if mark != b'"':
            self._break("in string literal")
        self._at += 1

    def _number(self) -> None:
        found = _NUMBER.match(self._text, self._at)
        if found is None:  # a minus sign alone
            self._at += 1
            self._byte()
            self._break("in numeric literal")
        self._at = found.end()
        rest = self._text[self._at : self._at + 1]
        if rest == b"." and b"." not in found[0] and b"e" not in found[0].lower():
            self._at += 1
            self._byte()
            self._break("after decimal point in numeric literal")
        if rest in (b"e", b"E") and b"e" not in found[0].lower():
            self._at += 1
            self._byte()
            if self._byte() in (b"+", b"-"):
                self._at += 1
                self._byte()
            self._break("in exponent of numeric literal")

    def _peek(self) -> bytes:
        """Pass spaces and return what follows."""
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        self._at = found.end()
        return self._byte()

    def _byte(self) -> bytes:
        if self._at >= len(self._text):
            raise _Broken(_EOF)
        return self._text[self._at : self._at + 1]

    def _break(self, where: str) -> NoReturn:
        raise _Broken(f"invalid character {_quoted(self._text[self._at])} {where}")


def _quoted(number: int) -> str:
    """Return a byte as Go's `quoteChar` does."""
    if number == ord("'"):
        return r"'\''"
    if number == ord('"'):
        return "'\"'"
    named = {7: r"\a", 8: r"\b", 9: r"\t", 10: r"\n", 11: r"\v", 12: r"\f", 13: r"\r", 92: r"\\"}
    if number in named:
        return f"'{named[number]}'"
    if number < 0x20 or number == 0x7F:
        return rf"'\x{number:02x}'"
    return f"'{chr(number)}'"
