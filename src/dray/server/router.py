"""Which handler answers a path. Names may contain slashes, so a path is matched by a few regular expressions.

Patterns are those of the API's documentation: ``/containers/{id}/json``. ``{name:.*}`` also matches slashes,
``{id:link}`` one of them. Within a first segment, exact paths win over patterns, and patterns are tried in the order
of their declaration.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from msgspec import Struct

from dray.api.versions import MINIMUM, Version
from dray.server.backends import Backends
from dray.server.call import Call
from dray.server.httpserver import StreamResponse

Handler = Callable[[Backends, Call], Awaitable[StreamResponse]]
H = TypeVar("H", bound=Handler)


class Route(Struct, frozen=True):
    """One method of one path, from one API version on."""

    method: str
    pattern: str
    handler: Handler
    since: Version = MINIMUM


class Table:
    """A group of routes, filled by its decorators."""

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def _add(self, method: str, pattern: str, since: Version) -> Callable[[H], H]:
        def register(handler: H) -> H:
            self.routes.append(Route(method, pattern, handler, since))
            return handler

        return register

    def get(self, pattern: str, since: Version = MINIMUM) -> Callable[[H], H]:
        """Register a GET handler."""
        return self._add("GET", pattern, since)

    def head(self, pattern: str, since: Version = MINIMUM) -> Callable[[H], H]:
        """Register a HEAD handler."""
        return self._add("HEAD", pattern, since)

    def post(self, pattern: str, since: Version = MINIMUM) -> Callable[[H], H]:
        """Register a POST handler."""
        return self._add("POST", pattern, since)

    def put(self, pattern: str, since: Version = MINIMUM) -> Callable[[H], H]:
        """Register a PUT handler."""
        return self._add("PUT", pattern, since)

    def delete(self, pattern: str, since: Version = MINIMUM) -> Callable[[H], H]:
        """Register a DELETE handler."""
        return self._add("DELETE", pattern, since)


# What a parameter takes in: a part of the path; anything; a container's name, which by a link is `parent/alias`.
_FORMS = {"": "[^/]+", ":.*": ".+", ":link": "[^/]+(?:/[^/]+)?"}


def _expression(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)(:\.\*|:link)?\}", pattern)
    text = re.escape(parts[0])
    for name, form, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        text += f"(?P<{name}>{_FORMS[form or '']})" + re.escape(literal)
    return re.compile(text, re.DOTALL)


class Router:
    """Finds routes."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: dict[str, list[tuple[re.Pattern[str], dict[str, Route]]]] = {}
        merged: dict[str, dict[str, Route]] = {}
        for table in tables:
            for route in table.routes:
                merged.setdefault(route.pattern, {})[route.method] = route
        for pattern, methods in merged.items():
            if "{" in pattern:
                self._patterns.setdefault(pattern.split("/")[1], []).append((_expression(pattern), methods))
            else:
                self._exact[pattern] = methods

    def find(self, method: str, path: str, version: Version) -> tuple[Route, dict[str, str]] | None:
        """Return the route of a path (without version prefix) and its parameters; None is a 404."""
        route = self._exact.get(path, {}).get(method)
        if route is not None:
            return (route, {}) if version >= route.since else None
        for expression, methods in self._patterns.get(path.split("/", 2)[1] if "/" in path else "", ()):
            route = methods.get(method)
            if route is None or version < route.since:
                continue
            match = expression.fullmatch(path)
            if match is not None:
                return route, match.groupdict()
        return None

    def knows(self, path: str) -> bool:
        """Tell whether any method of a path is served."""
        return any(self.find(method, path, (99, 99)) for method in ("GET", "POST", "HEAD", "PUT", "DELETE"))
