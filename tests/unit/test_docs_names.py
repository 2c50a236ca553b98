"""What the documentation names is there: modules, packages, tests; and the glossary's words are used."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "dray"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROSE = [page for page in PAGES if page.name != "compatibility.md"]
FLOORS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
_SPAN = re.compile(r"`([^`\n]+)`")
_MODULE = re.compile(rf"(?:{'|'.join(FLOORS)})(?:/[a-z_0-9]+)*/[a-z_0-9]+\.(?:py|tsv|json)")
_PACKAGE = re.compile(rf"(?:{'|'.join(FLOORS)})(?:/[a-z_0-9]+)*/?")
_TEST = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")


def spans(page: Path) -> list[str]:
    return _SPAN.findall(page.read_text())


@cache
def functions(path: Path) -> frozenset[str]:
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def packages() -> set[str]:
    return {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*")
        if path.is_dir() and path.name != "__pycache__" and any(path.glob("*.*"))
    }


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_exist(page: Path) -> None:
    for span in spans(page):
        if _MODULE.fullmatch(span) or (_PACKAGE.fullmatch(span) and "/" in span):
            assert (SOURCE / span).exists(), span


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_exist(page: Path) -> None:
    for span in spans(page):
        if match := _TEST.fullmatch(span):
            path = ROOT / match[1]
            assert path.is_file(), span
            assert match[2] is None or match[2] in functions(path), span


def test_the_module_map_has_every_package() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = text.partition("## Module map")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([^`]+)` \|", rows, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == packages()


def test_the_floors_are_those_of_the_contract() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    drawn = text.partition("## Floors")[2].partition("```\n")[2].partition("```")[0]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    # In brackets: floors that are planned, and not drawn while they are not there.
    present = [
        {name.removeprefix("dray.") for name in re.findall(r"dray\.\w+", line)} & set(FLOORS) for line in layers
    ]
    assert [set(line.replace("|", " ").split()) for line in drawn.splitlines()] == [one for one in present if one]


def test_every_kind_of_row_in_security_names_a_test() -> None:
    text = (ROOT / "docs" / "security.md").read_text().partition("## Not covered yet")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| class")]
    without = [row for row in rows if not _TEST.search(row)]
    assert len(rows) > 25
    assert all("no test of its own" in row for row in without), without


def test_the_glossarys_words_are_used_and_sorted() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)[1:]
    words = [word for row in rows for word in row.strip().split(", ")]
    assert [row.lower() for row in rows] == sorted(row.lower() for row in rows)
    texts = [page.read_text().lower() for page in PROSE if page.name != "glossary.md"]
    texts += [path.read_text().lower() for path in SOURCE.rglob("*.py")]
    for word in words:
        pattern = re.compile(rf"\b{re.escape(word.lower())}s?\b")
        assert any(pattern.search(text) for text in texts), word
