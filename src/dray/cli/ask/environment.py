"""Environment variables and labels, from flags and from files."""

from __future__ import annotations

import os

from dray.base.errors import InvalidParameter


def check_env(text: str) -> str:
    """Check one variable; a name alone takes the value it has here, and stays a name when it has none."""
    name, equals, _ = text.partition("=")
    if not name:
        raise InvalidParameter(f"invalid environment variable: {text}")
    if equals or name not in os.environ:
        return text
    return f"{name}={os.environ[name]}"


def check_label(text: str) -> str:
    """Check one label."""
    if not text.partition("=")[0].strip():
        raise InvalidParameter(f"invalid label '{text}': empty name")
    return text


def read_file(path: str, *, environment: bool) -> list[str]:
    """Read `name=value` lines; `#` begins a comment line, and of an environment file a bare name takes our value."""
    kind = "environment variable" if environment else "label"
    lines = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = file.read()
    except UnicodeDecodeError:
        raise InvalidParameter(f"invalid utf8 bytes in {kind} file: {path}") from None
    except OSError as error:
        raise InvalidParameter(f"open {path}: {(error.strerror or str(error)).lower()}") from error
    for raw in content.split("\n"):
        line = raw.rstrip("\r").lstrip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if any(letter.isspace() for letter in name):
            raise InvalidParameter(f"invalid {kind} file ({path}): variable '{name}' contains whitespaces")
        if not name:
            raise InvalidParameter(f"invalid {kind} file ({path}): no variable name on line '{line}'")
        if equals:
            lines.append(f"{name}={value}")
        elif not environment:
            lines.append(name)
        elif name in os.environ:
            lines.append(f"{name}={os.environ[name]}")
    return lines


def collect(files: list[str], given: list[str], *, environment: bool) -> list[str]:
    """Return the files' lines, then the flags'."""
    lines: list[str] = []
    for path in files:
        lines += read_file(path, environment=environment)
    return lines + given


def to_map(lines: list[str]) -> dict[str, str]:
    """Return `name=value` lines as a mapping; a name alone has an empty value."""
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines}
