"""The `filters` query parameter: both encodings, the keys each endpoint knows, and matching.

Clients send ``{"label": {"a=b": true}}`` (API < 1.22 and the Go client) or ``{"label": ["a=b"]}``. An unknown key,
or a value of the wrong form, is InvalidParameter before anything happens, so that no prune goes further than asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from dray.api import decoding
from dray.base.errors import InvalidParameter

CONTAINERS = frozenset(
    {
        "ancestor",
        "before",
        "exited",
        "expose",
        "health",
        "id",
        "is-task",
        "isolation",
        "label",
        "label!",
        "name",
        "network",
        "publish",
        "since",
        "status",
        "volume",
    }
)
CONTAINERS_PRUNE = frozenset({"label", "label!", "until"})
IMAGES = frozenset({"before", "dangling", "label", "label!", "reference", "since", "until", "containers"})
IMAGES_PRUNE = frozenset({"dangling", "label", "label!", "until"})
IMAGES_SEARCH = frozenset({"is-automated", "is-official", "stars"})
BUILD_PRUNE = frozenset({"description", "id", "inuse", "parent", "private", "shared", "type", "until"})
EVENTS = frozenset(
    {
        "config",
        "container",
        "daemon",
        "event",
        "image",
        "label",
        "network",
        "node",
        "plugin",
        "scope",
        "secret",
        "service",
        "type",
        "volume",
        "builder",
    }
)
VOLUMES = frozenset({"dangling", "driver", "label", "label!", "name"})
VOLUMES_PRUNE = frozenset({"all", "label", "label!"})
NETWORKS = frozenset({"dangling", "driver", "id", "label", "label!", "name", "scope", "type"})
NETWORKS_PRUNE = frozenset({"label", "label!", "until"})
PLUGINS = frozenset({"capability", "enable", "enabled"})

_CLASS = re.compile(r"\[(\^?)((?:[^\]\\]|\\.)+)\]", re.DOTALL)
_TRUE = frozenset({"1", "t", "true"})
_FALSE = frozenset({"0", "f", "false"})


class Filters(dict[str, list[str]]):
    """Filter values by key; a key that was not given has no values and restricts nothing."""

    def values_of(self, key: str) -> list[str]:
        """Return the values of a key."""
        return self.get(key, [])

    def boolean(self, key: str, default: bool) -> bool:
        """Read a boolean filter; InvalidParameter unless it is one of 1, 0, true, false."""
        values = {value.lower() for value in self.values_of(key)}
        if not values:
            return default
        if values <= _TRUE:
            return True
        if values <= _FALSE:
            return False
        raise invalid_value(key, self[key])

    def matches_exactly(self, key: str, candidates: str | Iterable[str]) -> bool:
        """Tell whether one of the values is one of the candidates."""
        wanted = self.get(key)
        if not wanted:
            return True
        found = {candidates} if isinstance(candidates, str) else set(candidates)
        return not found.isdisjoint(wanted)

    def matches_text(self, key: str, text: str) -> bool:
        """Tell whether a value is contained in the text, exactly or as a regular expression (Docker's `Match`)."""
        return not self.get(key) or any(value in text or _search(value, text) for value in self[key])

    def matches_prefix(self, key: str, text: str) -> bool:
        """Tell whether a value is a prefix of the text (Docker's `FuzzyMatch`)."""
        return not self.get(key) or any(text.startswith(value) for value in self[key])

    def matches_pattern(self, key: str, candidates: Iterable[str]) -> bool:
        """Tell whether a pattern among the values (Go's `path.Match`) matches one of the candidates;
        InvalidParameter for a malformed one."""
        patterns = [path_pattern(value) for value in self.values_of(key)]
        return not patterns or any(
            pattern.fullmatch(candidate) for candidate in candidates for pattern in patterns
        )

    def matches_labels(self, labels: Mapping[str, str] | None, key: str = "label") -> bool:
        """Tell whether every `label` value (`name` or `name=value`) holds, and none of `label!` does."""
        present = labels or {}
        return all(_has_label(present, value) for value in self.values_of(key)) and not any(
            _has_label(present, value) for value in self.values_of(key + "!")
        )


def path_pattern(text: str) -> re.Pattern[str]:
    """Translate a pattern of Go's `path.Match`: `*` and `?` do not match a slash, `[^a-c]`, and a backslash takes a
    character's meaning away. InvalidParameter if it is malformed.

    What stands between two stars is taken where it comes first and never looked for again, so that no pattern takes
    long.
    """
    first, *rest = _chunks(text)
    middle = "".join(f"(?>[^/]*?{chunk})" for chunk in rest[:-1])
    last = f"[^/]*{rest[-1]}" if rest else ""
    try:
        return re.compile(first + middle + last, re.DOTALL)
    except re.error:
        raise _malformed(text) from None


def _chunks(text: str) -> list[str]:
    """Return the expressions for what stands between a pattern's stars."""
    chunks, at = [""], 0
    while at < len(text):
        char = text[at]
        if char == "*":
            chunks.append("")
        elif char == "?":
            chunks[-1] += "[^/]"
        elif char == "[":
            found = _CLASS.match(text, at)
            if found is None:
                raise _malformed(text)
            inside = re.sub(r"\\(.)", r"\1", found[2])
            body = "".join(char if char == "-" else re.escape(char) for char in inside)
            chunks[-1] += f"(?!/)[{found[1]}{body}]"
            at = found.end() - 1
        elif char == "\\":
            at += 1
            if at == len(text):
                raise _malformed(text)
            chunks[-1] += re.escape(text[at])
        else:
            chunks[-1] += re.escape(char)
        at += 1
    return chunks


def _malformed(pattern: str) -> InvalidParameter:
    return InvalidParameter(f"invalid filter: syntax error in pattern {pattern!r}")


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


def _search(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False


def invalid_value(key: str, values: Iterable[str]) -> InvalidParameter:
    """Return the error for values that a filter cannot take, in Docker's words."""
    listed = " ".join(values)
    return InvalidParameter(f"invalid filter '{key}=[{listed}]'")


def parse(text: str, known: frozenset[str]) -> Filters:
    """Read the query parameter; keys outside `known` are InvalidParameter."""
    if not text:
        return Filters()
    try:
        document = decoding.parse(text.encode("utf-8", "replace"))
    except InvalidParameter as error:
        raise InvalidParameter(f"invalid filter: {error}") from error
    if document is None:
        return Filters()
    if not isinstance(document, dict):
        raise InvalidParameter("invalid filter: expected a JSON object")
    found = Filters()
    for key, given in document.items():
        if isinstance(given, dict):
            found[key] = [value for value, used in given.items() if used]
        elif isinstance(given, list) and all(isinstance(value, str) for value in given):
            found[key] = given
        elif isinstance(given, str):
            found[key] = [given]
        else:
            raise InvalidParameter(f"invalid filter '{key}': expected a list of strings")
    for key in found:
        if key not in known:
            raise InvalidParameter(f"invalid filter '{key}'")
    return found
