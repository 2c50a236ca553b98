"""Text to tokens: what stands outside `{{ }}` is one `text` token, what stands inside is cut into words.

Token kinds: text, left, right, field (`.Name`), dot, variable (`$x`), identifier, string, char, number, space,
and the punctuation itself (`|`, `(`, `)`, `:=`, `=`, `,`).
"""

from __future__ import annotations

import re

from dray.cli.template.errors import ParseError


class Token:
    """One word of a template: its kind, its text, where it starts."""

    __slots__ = ("kind", "position", "text")

    def __init__(self, kind: str, text: str, position: int) -> None:
        self.kind = kind
        self.text = text
        self.position = position


_INSIDE = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
      | (?P<char>'(?:[^'\\\n]|\\.)+')
      | (?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?))
      | (?P<field>\.[A-Za-z_]\w*)
      | (?P<dot>\.)
      | (?P<variable>\$\w*)
      | (?P<declare>:=)
      | (?P<punctuation>[|(),=])
      | (?P<identifier>[A-Za-z_]\w*)
    """,
    re.VERBOSE,
)
_COMMENT = re.compile(r"\{\{(?:-[ \t\r\n]+)?/\*(?P<body>.*?)\*/(?P<trim>[ \t\r\n]+-)?\}\}", re.DOTALL)
_BLANK = " \t\r\n"


class Lexer:
    """Cuts a template; errors name the template and the line."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self.tokens: list[Token] = []
        self._outside()

    def fail(self, position: int, message: str) -> ParseError:
        """Return the error for something wrong at a position."""
        return ParseError(f"template: {self._name}:{1 + self._text.count(chr(10), 0, position)}: {message}")

    def _add(self, kind: str, text: str, position: int) -> None:
        self.tokens.append(Token(kind, text, position))

    def _outside(self) -> None:
        text, position, trim = self._text, 0, False
        while True:
            left = text.find("{{", position)
            piece = text[position:] if left < 0 else text[position:left]
            start = position
            if trim:
                start += len(piece) - len(piece.lstrip(_BLANK))
                piece = piece.lstrip(_BLANK)
            if left >= 0 and text[left + 2 : left + 3] == "-" and text[left + 3 : left + 4] in tuple(_BLANK):
                piece = piece.rstrip(_BLANK)
            if piece:
                self._add("text", piece, start)
            if left < 0:
                self._add("end", "", len(text))
                return
            position, trim = self._action(left)

    def _action(self, left: int) -> tuple[int, bool]:
        """Cut one action; return where the text goes on and whether its white space is trimmed."""
        text = self._text
        if comment := _COMMENT.match(text, left):
            return comment.end(), comment["trim"] is not None
        at = left + 2
        if text[at : at + 1] == "-" and text[at + 1 : at + 2] in tuple(_BLANK):
            at += 2
        if text.startswith("/*", at):
            raise self.fail(
                left, "comment ends before closing delimiter" if "*/" in text[at:] else "unclosed comment"
            )
        self._add("left", "{{", left)
        depth = 0
        while True:
            if text.startswith("}}", at):
                trim, end = False, at + 2
                break
            blank = len(text) - len(text[at:].lstrip(_BLANK)) - at if text[at : at + 1] in tuple(_BLANK) else 0
            if blank and text.startswith("-}}", at + blank):
                trim, end = True, at + blank + 3
                break
            if at >= len(text):
                raise self.fail(left, "unclosed action")
            at, depth = self._word(at, depth)
        if depth:
            raise self.fail(left, "unclosed left paren")
        self._add("right", "}}", at)
        return end, trim

    def _word(self, at: int, depth: int) -> tuple[int, int]:
        match = _INSIDE.match(self._text, at)
        if match is None:
            letter = self._text[at]
            if letter == '"':
                raise self.fail(at, "unterminated quoted string")
            if letter == "`":
                raise self.fail(at, "unterminated raw quoted string")
            if letter == "'":
                raise self.fail(at, "unterminated character constant")
            raise self.fail(at, f"unexpected {letter!r} in operand" if not letter.isspace() else "unclosed action")
        kind, word = str(match.lastgroup), match[0]
        if (
            kind == "number"
            and (follow := self._text[match.end() : match.end() + 1])
            and (follow.isalnum() or follow == "_")
        ):
            raise self.fail(at, f'bad number syntax: "{word}{follow}"')
        if kind == "punctuation":
            kind = word
            depth += {"(": 1, ")": -1}.get(word, 0)
            if depth < 0:
                raise self.fail(at, "unexpected right paren")
        self._add(kind, word, at)
        return match.end(), depth
