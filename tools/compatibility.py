"""Write docs/compatibility.md from tests/parity/differences.toml; `--check` only tells whether it is up to date."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests" / "parity" / "differences.toml"
TARGET = ROOT / "docs" / "compatibility.md"

HEAD = """# Compatibility

The parity tests play the same scenarios on Debian's dockerd 20.10 and on drayd, at the same API version, and compare
every field of what both answer: inspect, lists, images, events, version, info, errors. This page lists every field
that differs, with the reason; it is made from `tests/parity/differences.toml`, and a difference that is not listed
fails the tests. Identifiers, times, addresses and folders are left out of the comparison.
"""


def cell(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def page(source: Path = SOURCE) -> str:
    """The page's text: a table for each area, in the order in which the areas first appear."""
    entries = tomllib.loads(source.read_text()).get("difference", [])
    parts = [HEAD]
    for area in dict.fromkeys(entry["area"] for entry in entries):
        parts.append(f"\n## {area}\n\n| where | field | dockerd | dray | reason |\n|---|---|---|---|---|\n")
        for entry in entries:
            if entry["area"] == area:
                words = [
                    f"`{entry['where']}`",
                    f"`{entry['path']}`",
                    entry["dockerd"],
                    entry["dray"],
                    entry["reason"],
                ]
                parts.append("| " + " | ".join(cell(word) for word in words) + " |\n")
    return "".join(parts)


def main(arguments: list[str]) -> int:
    """Write the page, or with --check compare it; the exit status."""
    text = page()
    if arguments == ["--check"]:
        return 0 if TARGET.exists() and TARGET.read_text() == text else 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
