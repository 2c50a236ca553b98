"""Patterns that are compiled at their first use."""

from __future__ import annotations

import re

import pytest

from dray.base.patterns import pattern


def test_it_does_what_the_compiled_pattern_does() -> None:
    text, octets = pattern(r"(a+)(b)?", re.IGNORECASE), pattern(rb"x*")
    for _ in range(2):  # the second time without the first one's detour
        found = text.fullmatch("AAb")
        assert found is not None
        assert found.groups() == ("AA", "b")
        assert text.sub("-", "xaay") == "x-y"
        assert octets.match(b"xx") is not None
    assert text.pattern == r"(a+)(b)?"
    assert text.flags & re.IGNORECASE


def test_a_malformed_one_fails_when_it_is_used() -> None:
    broken = pattern("(")
    with pytest.raises(re.error):
        broken.match("")
