"""Every relative link of the documentation leads to a file, and every `#anchor` to a heading."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    """A page without what is set as code."""
    return _CODE.sub("", _FENCE.sub("", page.read_text()))


def links(page: Path) -> list[str]:
    """The targets of a page's links."""
    text = _FENCE.sub("", page.read_text())
    return _LINK.findall(text)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_linked_from_somewhere() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in links(page)
        if not re.match(r"[a-z]+:", link)
    }
    design = [page for page in PAGES if page.parent.name == "design"]
    assert not [
        page.name for page in PAGES if page not in linked and page not in design and page.name != "README.md"
    ]
    numbers = [page.name[:3] for page in design]
    assert numbers == sorted(set(numbers))  # each number once


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b, c!\n[x](nowhere.md) `[y](code.md)`\n```\n[z](fenced.md)\n```\n")
    assert "nowhere.md" in links(page)
    assert "fenced.md" not in links(page)
    assert anchors(page) == {"a-b-c"}
    assert "code.md" not in prose(page)
