"""The comparison itself, and the page made from the list of differences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from parity.documents import ABSENT, Accepted, Difference, compare, shape

ROOT = Path(__file__).resolve().parents[2]


def test_compare() -> None:
    left = {"a": 1, "b": {"c": [1, 2]}, "gone": None, "n": 0}
    right = {"a": 1, "b": {"c": [1, 3]}, "new": [], "n": False}
    assert list(compare("s/d", left, right)) == [
        Difference("s/d", "b.c[1]", 2, 3),
        Difference("s/d", "gone", None, ABSENT),
        Difference("s/d", "n", 0, False),
        Difference("s/d", "new", ABSENT, []),
    ]
    assert list(compare("s/d", {"l": [1]}, {"l": [1, 2]})) != []
    assert list(compare("s/d", left, left)) == []


def test_shape() -> None:
    assert shape({"a": [{"b": 1}, {"b": 2}], "c": None}) == {"a": [{"b": "<int>"}], "c": "<NoneType>"}


def test_accepted() -> None:
    entry = Accepted("created/*", "Mounts[0].*", "", "", "", "")
    assert entry.covers(Difference("created/plain", "Mounts[0].Source", 1, 2))
    assert not entry.covers(Difference("created/plain", "Mounts[1].Source", 1, 2))
    assert not entry.covers(Difference("listed/plain", "Mounts[0].Source", 1, 2))


def test_page_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "compatibility.py"), "--check"], check=False)
    assert done.returncode == 0, "run: make compatibility"
