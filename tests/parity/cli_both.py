"""Runs one command line with the official client and with dray, and says how what they did differs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"
DRAY = [sys.executable, "-m", "dray.cli"]
_AGO = re.compile(r"About an? (?:minute|hour)|Less than a second|\d+ (?:seconds?|minutes?|hours?|days?)")


class Outcome:
    """What a client did: status and streams, made comparable."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = _comparable(out)
        self.err = _comparable(err)

    def sort(self) -> None:
        """Forget the order of the lines."""
        self.out = "\n".join(sorted(self.out.split("\n")))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"exit status {self.status}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def _comparable(text: str) -> str:
    # The name of the program is the one difference that is meant; ages may turn between the two runs.
    text = re.sub(r"\bdocker(?= |:|')", "dray", text)
    lines = [re.sub(r" {2,}", "  ", _AGO.sub("AGO", line)) for line in text.split("\n")]
    return "\n".join(lines)


def environment(host: str, config: Path) -> dict[str, str]:
    """What both clients get: no settings of the machine's user."""
    env = {
        key: value for key, value in os.environ.items() if not key.startswith(("DOCKER_", "HTTP", "http", "NO_"))
    }
    return env | {
        "DOCKER_HOST": host,
        "DOCKER_CONFIG": str(config),
        "PYTHONPATH": str(SOURCE),
        "LC_ALL": "C.UTF-8",
        "FOO": "bar",
    }


def run(
    argv: Sequence[str], env: Mapping[str, str], *, stdin: str | None = None, cwd: Path | None = None
) -> Outcome:
    """Run a client to its end."""
    data = stdin.encode() if stdin is not None else None
    done = subprocess.run(
        argv,
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        env=env,
        cwd=cwd,
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def both(
    words: Sequence[str], env: Mapping[str, str], *, stdin: str | None = None, cwd: Path | None = None
) -> tuple[Outcome, Outcome]:
    """Return what docker and dray did with the same words."""
    return run(["docker", *words], env, stdin=stdin, cwd=cwd), run([*DRAY, *words], env, stdin=stdin, cwd=cwd)
