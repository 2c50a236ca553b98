"""Write docs/compatibility.md from tests/parity/differences.toml and options.toml; `--check` only tells whether it is
up to date."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests" / "parity" / "differences.toml"
OPTIONS = ROOT / "tests" / "parity" / "options.toml"
TARGET = ROOT / "docs" / "compatibility.md"
CASE = "tests/e2e/test_e2e_options.py::test_flag[{}]"
STATES = {
    "obeyed": "obeyed",
    "refused": "refused by name",
    "discarded": "discarded, with a warning",
    "nothing": "nothing to obey",
}

HEAD = """# Compatibility

The parity tests play the same scenarios on Debian's dockerd 20.10 and on drayd, at the same API version, and compare
every field of what both answer: inspect, lists, images, events, version, info, errors. This page lists every field
that differs, with the reason; it is made from `tests/parity/differences.toml`, and a difference that is not listed
fails the tests. Identifiers, times, addresses and folders are left out of the comparison.

Below that, [every option of a container](#options-of-a-container) with the test that shows what becomes of it.
"""
OPTIONS_HEAD = """
## Options of a container

Every flag of `docker container run`, and every field of the API's `HostConfig` and `ContainerConfig` (1.55, and what
older versions had besides). Made from `tests/parity/options.toml`: no row without a test. Where a test is one case of
`test_flag` in `tests/e2e/test_e2e_options.py`, only the case is named.
"""
GROUPS = {
    "flags": "Flags of `container run`",
    "HostConfig": "`HostConfig`",
    "ContainerConfig": "`ContainerConfig`",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One option: its group and name, what becomes of it, the test's node, a remark, and the flag it is the field of."""

    group: str
    name: str
    state: str
    test: str
    note: str
    flag: str = ""


def rows(source: Path = OPTIONS) -> Iterator[Row]:
    """Yield every row of the options' table; KeyError for a field of a flag that is not in it."""
    document = tomllib.loads(source.read_text())
    flags = document["flags"]
    for group in GROUPS:
        for name, entry in document[group].items():
            flag = entry if isinstance(entry, str) else ""
            told = flags[flag] if flag else entry
            test = told.get("test") or CASE.format(flag or name)
            yield Row(group, name, told.get("state", "obeyed"), test, told.get("note", ""), flag)


def cell(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _options() -> Iterator[str]:
    yield OPTIONS_HEAD
    group = ""
    for row in rows():
        if row.group != group:
            group = row.group
            yield f"\n### {GROUPS[group]}\n\n| option | state | shown by | remark |\n|---|---|---|---|\n"
        prefix = CASE.partition("[")[0] + "["
        shown = row.test.removeprefix(prefix).removesuffix("]") if row.test.startswith(prefix) else row.test
        shown = shown.removeprefix("tests/e2e/")
        yield f"| `{row.name}` | {STATES[row.state]} | `{shown}` | {cell(row.note)} |\n"


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
    return "".join([*parts, *_options()])


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
