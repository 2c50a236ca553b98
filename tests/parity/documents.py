"""Documents of an engine made comparable: what must differ is replaced by names, the rest is left as it is.

A scenario returns named documents (JSON values). `normalise` replaces identifiers, times, paths, addresses and
process numbers by words in angle brackets; `shape` replaces every leaf by its type, for documents whose values
belong to the machine or the moment. `compare` lists the fields that differ, as paths: `State.Health.Log[0].Output`.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.engines import Engine

ABSENT = "<absent>"

PATTERNS = [
    (re.compile(r"sha256:[0-9a-f]{64}"), "<digest>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "<short id>"),
    (re.compile(r"\b(?!0001-)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"), "<time>"),
    (re.compile(r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b"), "<mac>"),
]

MOMENTARY = {"Pid", "Created", "time", "timeNano", "OomScoreAdjUsed", "SharedSize"}


def normalise(value: Any, engine: Engine, key: str = "") -> Any:
    """The document with everything that names this engine, run or moment taken out."""
    if isinstance(value, dict):
        return {_text(k, engine): normalise(v, engine, k) for k, v in value.items()}
    if isinstance(value, list):
        return [normalise(one, engine, key) for one in value]
    if isinstance(value, str):
        return _text(value, engine)
    if key in MOMENTARY and isinstance(value, int) and value:
        return f"<{key}>"
    return value


def _text(text: str, engine: Engine) -> str:
    text = text.replace(str(engine.base), "<base>").replace(engine.subnet, "<net>.")
    for pattern, word in PATTERNS:
        text = pattern.sub(word, text)
    return text


def shape(value: Any) -> Any:
    """The document with every leaf replaced by the name of its type; of a list only the first element."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shape(one) for one in value[:1]]
    return f"<{type(value).__name__}>"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not the same."""

    where: str  # SCENARIO/DOCUMENT
    path: str
    dockerd: Any
    dray: Any

    def __str__(self) -> str:
        return f"{self.where}: {self.path}: dockerd {self.dockerd!r}, dray {self.dray!r}"


def compare(where: str, dockerd: Any, dray: Any, path: str = "") -> Iterator[Difference]:
    """The differences between two documents, depth first."""
    if isinstance(dockerd, dict) and isinstance(dray, dict):
        for key in sorted(dockerd.keys() | dray.keys()):
            below = f"{path}.{key}" if path else key
            yield from compare(where, dockerd.get(key, ABSENT), dray.get(key, ABSENT), below)
    elif isinstance(dockerd, list) and isinstance(dray, list) and len(dockerd) == len(dray):
        for number, (left, right) in enumerate(zip(dockerd, dray, strict=True)):
            yield from compare(where, left, right, f"{path}[{number}]")
    elif type(dockerd) is not type(dray) or dockerd != dray:
        yield Difference(where, path, dockerd, dray)


@dataclass
class Accepted:
    """One entry of differences.toml: which fields may differ, and why.

    `where` and `path` are patterns as of fnmatch, with [0] written as is.
    """

    where: str
    path: str
    area: str
    dockerd: str
    dray: str
    reason: str
    used: int = field(default=0, compare=False)

    def covers(self, difference: Difference) -> bool:
        return _matches(difference.where, self.where) and _matches(difference.path, self.path)


def _matches(text: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))


def accepted(path: Path | None = None) -> list[Accepted]:
    """The entries of differences.toml, in its order."""
    source = Path(__file__).with_name("differences.toml") if path is None else path
    data = tomllib.loads(source.read_text())
    return [Accepted(**entry) for entry in data.get("difference", [])]
