"""Patterns of filters: Go's `path.Match`."""

from __future__ import annotations

import pytest

from dray.api.filters import Filters, path_pattern
from dray.base.errors import InvalidParameter


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("*", "box", True),
        ("*", "mine/box", False),
        ("m*/b?x", "mine/box", True),
        ("?", "/", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[^a]b", "/b", False),
        ("a\\*", "a*", True),
        ("a\\*", "ab", False),
        ("[\\]]", "]", True),
        ("box:*", "box:1.2", True),
        ("a.c", "abc", False),
        ("", "", True),
        ("*a*b*", "xaxbx", True),
        ("*ab*ab", "abab", True),
        ("*ab*ab", "ab", False),
        ("**", "any", True),
        ("*/*", "a/b", True),
        ("*a*/b", "a/a/b", False),
    ],
)
def test_matches(pattern: str, text: str, expected: bool) -> None:
    assert bool(path_pattern(pattern).fullmatch(text)) is expected


@pytest.mark.parametrize("pattern", ["[", "a[b-", "[]a]", "[z-a]", "a\\"])
def test_malformed(pattern: str) -> None:
    with pytest.raises(InvalidParameter, match="syntax error in pattern"):
        path_pattern(pattern)


def test_many_stars_take_no_time() -> None:
    assert not path_pattern("a*" * 40 + "b").fullmatch("a" * 250)


def test_a_filter_without_values_lets_everything_through() -> None:
    assert Filters().matches_pattern("reference", [])
    assert not Filters(reference=["x"]).matches_pattern("reference", [])
    assert Filters(reference=["x", "y*"]).matches_pattern("reference", ["z", "yz"])
