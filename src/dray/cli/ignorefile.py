"""`.dockerignore`: which files of a build context stay at home.

A pattern is a path with `*`, `?`, `[…]` (none crosses a slash) and `**` (any number of directories); `!` takes files
back in. The last pattern that matches a file, or a directory above it, decides. Source: the Dockerfile reference.
"""

from __future__ import annotations

import posixpath
import re

from dray.base.errors import InvalidParameter


def read_patterns(text: str) -> list[str]:
    """Return a file's patterns, cleaned; comments and empty lines go."""
    patterns = []
    for raw in text.removeprefix("\ufeff").splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        negated = line.startswith("!")
        body = line[1:].strip() if negated else line
        if body:
            body = posixpath.normpath(body)
            if len(body) > 1 and body.startswith("/"):
                body = body.lstrip("/")
        patterns.append(("!" if negated else "") + body)
    return patterns


def _translate(pattern: str) -> str:
    out, at = [], 0
    while at < len(pattern):
        letter = pattern[at]
        if pattern.startswith("**", at):
            at += 2
            if pattern.startswith("/", at):
                at += 1
                out.append("(?:.*/)?")
            else:
                out.append(".*")
            continue
        if letter == "*":
            out.append("[^/]*")
        elif letter == "?":
            out.append("[^/]")
        elif letter == "[":
            end = pattern.find("]", at + 2)
            if end < 0:
                raise InvalidParameter(f"invalid pattern in .dockerignore: {pattern}: syntax error in pattern")
            body = pattern[at + 1 : end].replace("\\", "\\\\")
            out.append(f"[{body}]")
            at = end
        elif letter == "\\" and at + 1 < len(pattern):
            at += 1
            out.append(re.escape(pattern[at]))
        else:
            out.append(re.escape(letter))
        at += 1
    return "".join(out)


class Matcher:
    """The patterns of one file."""

    def __init__(self, patterns: list[str]) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        for pattern in patterns:
            negated = pattern.startswith("!")
            body = pattern[1:] if negated else pattern
            if not body:
                raise InvalidParameter('illegal exclusion pattern: "!"')
            self._rules.append((negated, re.compile(_translate(body), re.DOTALL)))
        self.has_exceptions = any(negated for negated, _ in self._rules)

    def ignores(self, path: str) -> bool:
        """Whether a path (relative, with slashes) is left out."""
        ignored = False
        parts = path.split("/")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        for negated, rule in self._rules:
            if negated == ignored and any(rule.fullmatch(one) for one in above):
                ignored = not negated
        return ignored
