"""What `--help` prints, at the top, for a group of verbs, and for one verb."""

from __future__ import annotations

import os
import sys
import textwrap

from dray.cli.app import NAME
from dray.cli.catalog import COMMON, GROUPS, HIDDEN, VERBS, Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from dray.cli.command import Command
    from dray.cli.flags import Flag


def _width() -> int:
    try:
        return max(os.get_terminal_size(sys.stdin.fileno()).columns, 40)
    except (OSError, ValueError):
        return 80


def _default(flag: Flag) -> str:
    if flag.kind in ("bool", "list", "strings", "map", "filter"):
        return " (default true)" if flag.default is True else ""
    if not flag.default:
        return ""
    return f' (default "{flag.default}")' if flag.kind == "string" else f" (default {flag.default})"


def flag_lines(flags: Sequence[Flag]) -> str:
    """Return the options as an indented, wrapped table sorted by name."""
    rows = []
    for flag in sorted((one for one in flags if not one.hidden), key=lambda one: one.name):
        left = f"  -{flag.short}, " if flag.short else "      "
        left += f"--{flag.name}" + (f" {flag.label}" if flag.label else "")
        rows.append((left, flag.text + _default(flag)))
    if not rows:
        return ""
    indent = max(len(left) for left, _ in rows) + 3
    room = _width() - 1 - indent
    lines = []
    for left, text in rows:
        if room < 24:
            lines.append(left)
            wrapped = textwrap.wrap(text, max(_width() - 17, 20))
            lines.extend(" " * 16 + part for part in wrapped)
            continue
        first, *more = textwrap.wrap(text, room) or [""]
        lines.append(f"{left:<{indent}}{first}")
        lines.extend(" " * indent + part for part in more)
    return "\n".join(lines)


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{max(width, 11)}} {short}" for name, short in rows)


def usage_of(path: str, command: Command) -> str:
    """Return a verb's usage line without its heading."""
    return f"{NAME} {path} {command.usage}".rstrip()


def _names(verb: Verb) -> list[str]:
    group = verb.path.partition(" ")[0] if " " in verb.path else ""
    names = [f"{NAME} {verb.path}"] + [f"{NAME} {group} {alias}" for alias in verb.aliases]
    if verb.top and group:
        names.append(f"{NAME} {verb.top}")
    return names


def for_verb(verb: Verb, path: str, command: Command) -> str:
    """Return the help of one verb."""
    parts = [f"Usage:  {usage_of(path, command)}", verb.short]
    names = _names(verb)
    if len(names) > 1:
        parts.append("Aliases:\n  " + ", ".join(names))
    if table := flag_lines(command.flags):
        parts.append(f"Options:\n{table}")
    return "\n\n".join(parts) + "\n"


def for_group(group: str) -> str:
    """Return the help of a group of verbs."""
    rows = [
        (verb.path.partition(" ")[2], verb.short)
        for verb in VERBS
        if verb.path.startswith(group + " ") and verb.path not in HIDDEN
    ]
    return (
        f"Usage:  {NAME} {group} COMMAND\n\n{GROUPS[group]}\n\nCommands:\n{_table(rows)}\n\n"
        f"Run '{NAME} {group} COMMAND --help' for more information on a command.\n"
    )


def for_top(flags: Sequence[Flag]) -> str:
    """Return the help of the whole."""
    tops = {verb.top: verb.short for verb in VERBS if verb.top}
    common = [(name, tops[name]) for name in COMMON]
    others = [(name, short) for name, short in sorted(tops.items()) if name not in COMMON]
    return (
        f"Usage:  {NAME} [OPTIONS] COMMAND\n\nRun and manage containers on a dray daemon (or any Docker Engine).\n\n"
        f"Common Commands:\n{_table(common)}\n\n"
        f"Management Commands:\n{_table(sorted(GROUPS.items()))}\n\n"
        f"Commands:\n{_table(others)}\n\n"
        f"Global Options:\n{flag_lines(flags)}\n\n"
        f"Run '{NAME} COMMAND --help' for more information on a command.\n"
        f"Run '{NAME} daemon status' to see which daemon is used and how to start one.\n"
    )
