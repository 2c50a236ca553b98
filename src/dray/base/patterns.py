"""Regular expressions that are compiled when they are first used.

Compiling some forty of them would be a good part of the daemon's start, and most days most are not asked for.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False  # the client, which has patterns too, does without the typing module
if TYPE_CHECKING:
    from typing import Any, AnyStr


class _Pattern:
    """Stands for a compiled pattern until somebody wants one of its methods, and keeps each that was wanted."""

    def __init__(self, text: str | bytes, flags: int) -> None:
        self._text, self._flags = text, flags

    def __getattr__(self, name: str) -> Any:
        found = getattr(re.compile(self._text, self._flags), name)  # `re` keeps what it has compiled
        setattr(self, name, found)
        return found


def pattern(text: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """Return what re.compile(text, flags) would, for its methods and attributes; a malformed text fails at first use."""
    return _Pattern(text, flags)  # type: ignore[return-value]
