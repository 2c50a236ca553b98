"""Every command in the documentation's console blocks exists: verbs, flags, make targets, modules, drayd's options."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from dray.base.errors import DrayError
from dray.cli.catalog import find
from dray.cli.command import count_problem
from dray.cli.flags import FlagError, parse
from dray.cli.main import GLOBAL_FLAGS, load_command
from dray.daemon import config
from dray.daemon.options import BY_KEY

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`((?:drayd|dray|docker|make)(?: [^`\n]*)?)`")
_TARGET = re.compile(r"^([a-z][a-z -]*):", re.MULTILINE)
_SEPARATORS = frozenset([";", "|", "&", "&&", ">", ">>", "<"])


def commands(text: str) -> list[list[str]]:
    """The simple commands of a line as the shell would see them; redirections and what follows them are left out."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if word in _SEPARATORS:
            skip = word in (">", ">>", "<")
            if not skip:
                found.append([])
        elif not skip:
            found[-1].append(word)
    return [words for words in found if words]


def lines(page: Path) -> list[str]:
    """The command lines of a page: what follows the prompt in its console blocks."""
    return [
        line[2:].replace("$(cat /run/dray.pid)", "PID")
        for block in _BLOCK.findall(page.read_text())
        for line in block.splitlines()
        if line.startswith(("# ", "$ "))
    ]


def targets() -> set[str]:
    return {name for names in _TARGET.findall((ROOT / "Makefile").read_text()) for name in names.split()}


def check_client(words: list[str]) -> None:
    """The command line is one that dray takes (and, as its flags are docker's, docker)."""
    _, rest = parse(GLOBAL_FLAGS, words, interspersed=False)
    verb, _, taken = find(rest)
    assert verb is not None, words
    command = load_command(verb)
    _, arguments = parse(command.flags, rest[taken:], interspersed=command.interspersed)
    assert count_problem(command, len(arguments)) is None, words


def check(words: list[str]) -> None:
    """Fail if a command of ours is none."""
    match words:
        case ["make", *rest]:
            assert {word for word in rest if "=" not in word} <= targets(), words
        case ["drayd", *rest]:
            parsed = vars(config.parser().parse_args(rest))
            refused = [key for key in parsed if key in BY_KEY and BY_KEY[key].refused]
            assert not refused, words
        case ["dray" | "docker", *rest]:
            check_client(rest)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    for line in lines(page):
        for words in commands(line):
            check(words)


def test_the_readme_has_commands_of_every_kind() -> None:
    found = {words[0] for line in lines(ROOT / "README.md") for words in commands(line)}
    assert {"make", "drayd", "dray", "docker", "python", "pip"} <= found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_and_drayd_flags_in_prose(page: Path) -> None:
    for span in _SPAN.findall(page.read_text()):
        program, *rest = span.split()
        if program == "make" and rest:
            assert rest[0] in targets(), span
        if program == "drayd" and rest and rest != ["--help"]:
            check(span.split())


@pytest.mark.parametrize(
    "line",
    [
        "make nonsense",
        "dray nonsense",
        "docker run --nonsense busybox",
        "docker run",
        "docker run -d busybox | dray rmm x",
        "drayd --nonsense",
        "drayd --selinux-enabled",
        "python -m dray.nonsense",
    ],
)
def test_a_wrong_command_would_be_found(line: str) -> None:
    with pytest.raises((AssertionError, FlagError, DrayError, SystemExit)):
        check(commands(line)[-1])
