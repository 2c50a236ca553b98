"""The private interpreter: read-only and noexec through /proc/self/exe, alive otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PROGRAM = """
import errno, os, sys
from dray.linux import interpreter
interpreter.reexec()
assert "DRAY_PRIVATE_INTERPRETER" not in os.environ
# Opening for writing is ETXTBSY as long as anybody runs it; what matters is the mount when nobody does.
print("read-only", bool(os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY))
try:
    os.execv("/proc/self/exe", ["python", "-c", "print('executed')"])
except OSError as error:
    print("execute", errno.errorcode[error.errno])
print(sys.prefix, sys.argv[1:])
"""


def test_the_interpreter_can_neither_be_written_nor_executed(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    argv = [sys.executable, str(script), "an argument"]
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.splitlines() == ["read-only True", "execute EACCES", f"{sys.prefix} ['an argument']"]
