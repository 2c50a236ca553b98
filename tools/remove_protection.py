"""Show that the security tests can fail: take each protection away in a copy of the tree and run its tests there.

    python tools/remove_protection.py            run all, write tests/security/seen.json and the table in docs/security.md
    python tools/remove_protection.py --only TEXT     those whose name contains TEXT
    python tools/remove_protection.py --table         write only the table

What is taken away is listed in tests/security/protections.toml. A test counts as seen failing when pytest reports a
failure, or when it does not come to its end in time (some protections are against waiting for ever). The tests pass
with the protections in place: that is what `make test` shows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LISTED = ROOT / "tests/security/protections.toml"
SEEN = ROOT / "tests/security/seen.json"
TABLE = ROOT / "docs/security.md"
BEGIN, END = "<!-- removed protections: begin -->", "<!-- removed protections: end -->"
TIMEOUT = 180


def copy(target: Path) -> None:
    """Copy what the tests need."""
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "corpus"))
    shutil.copy(ROOT / "pyproject.toml", target)


def without(protection: dict[str, Any], tree: Path) -> None:
    """Take it away; SystemExit if the text is not there exactly once."""
    path = tree / "src/dray" / protection["file"]
    text = path.read_text()
    if text.count(protection["old"]) != 1:
        raise SystemExit(
            f"{protection['name']}: {protection['file']} has the text {text.count(protection['old'])} times"
        )
    path.write_text(text.replace(protection["old"], protection["new"]))


def run(test: str, tree: Path) -> str:
    """`failed`, `hung`, or what happened instead."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "75", test]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # lets it take its engine down
            process.communicate(timeout=60)
            return "hung"
    if process.returncode == 1 and "Timeout (>" in output:
        return "hung"
    if process.returncode == 1:
        return "failed"
    return "passed" if process.returncode == 0 else f"not run (pytest ended with {process.returncode})"


def table(protections: list[dict[str, Any]], seen: dict[str, dict[str, str]]) -> str:
    """The table's text."""
    lines = ["| class | what was taken away | test | seen failing without it |", "|---|---|---|---|"]
    for one in protections:
        tests = seen.get(one["name"], {})
        words = {"failed": "yes", "hung": "yes, it waits for ever"}
        told = ", ".join(dict.fromkeys(words.get(tests.get(test, ""), "no") for test in one["tests"]))
        listed = ", ".join(f"`{test}`" for test in one["tests"])
        lines.append(f"| {one['class']} | {one['name']} | {listed} | {told} |")
    return "\n".join(lines)


def write_table(protections: list[dict[str, Any]], seen: dict[str, dict[str, str]]) -> None:
    """Put the table between its marks."""
    before, _, rest = TABLE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    TABLE.write_text(f"{before}{BEGIN}\n{table(protections, seen)}\n{END}{after}")


def main(argv: list[str] | None = None) -> int:
    """Be the command."""
    parser = argparse.ArgumentParser(prog="remove_protection", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only protections whose name contains TEXT")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table from what was seen")
    options = parser.parse_args(argv)
    protections = tomllib.loads(LISTED.read_text())["protection"]
    seen: dict[str, dict[str, str]] = json.loads(SEEN.read_text()) if SEEN.exists() else {}
    missed = []
    for one in [] if options.table else protections:
        if options.only not in one["name"]:
            continue
        with tempfile.TemporaryDirectory(prefix="dray-unprotected-", dir="/var/tmp") as folder:
            copy(Path(folder))
            without(one, Path(folder))
            seen[one["name"]] = {test: run(test, Path(folder)) for test in one["tests"]}
        print(f"{one['class']:<14} {one['name']}: {', '.join(seen[one['name']].values())}", flush=True)
        if not set(seen[one["name"]].values()) <= {"failed", "hung"}:
            missed.append(one["name"])
        SEEN.write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n")
    write_table(protections, seen)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
