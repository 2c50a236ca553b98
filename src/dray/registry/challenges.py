"""The WWW-Authenticate header: what a server wants to see before it answers (RFC 9110, section 11.6.1).

    Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull", Basic realm="x"

One header may carry several challenges, and there may be several headers. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dray.base.patterns import pattern

_TOKEN = pattern(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PARAMETER = pattern(r"""([!#$%&'*+\-.^_`|~0-9A-Za-z]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))""")
_ESCAPE = pattern(r"\\(.)")
_LIMIT = 16 << 10


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate; scheme and parameters' names are in lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read challenges; what follows something malformed in a header is left out."""
    found: list[Challenge] = []
    for header in headers:
        found.extend(_parse(header[:_LIMIT]))
    return found


def _parse(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = 0
    while True:
        while position < len(text) and text[position] in ", \t":
            position += 1
        parameter = _PARAMETER.match(text, position)
        if parameter and found:
            name, quoted, plain = parameter.groups()
            value = _ESCAPE.sub(r"\1", quoted) if quoted is not None else plain
            found[-1].parameters.setdefault(name.lower(), value)
            position = parameter.end()
            continue
        scheme = _TOKEN.match(text, position)
        if not scheme:
            return found
        found.append(Challenge(scheme[0].lower()))
        position = scheme.end()
