"""`docker top`: a container's processes, as ps(1) shows them (moby `daemon/top_unix.go`).

The default columns (`ps -ef`) are read from /proc by ourselves, so that no ps is needed; other arguments are given
to the host's ps, as dockerd does, and its lines are filtered by the container's pids.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from dray.api.models import ContainerTopResponse
from dray.base.errors import InvalidParameter, Unsupported

TITLES = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]


def processes(pids: Sequence[int], ps_args: str) -> ContainerTopResponse:
    """Return the processes of `pids` in the columns that `ps <ps_args>` has; blocking."""
    if ps_args in ("", "-ef"):
        rows = [row for pid in sorted(pids) if (row := _row(pid)) is not None]
        return ContainerTopResponse(titles=TITLES, processes=rows)
    return _by_ps(set(pids), ps_args)


def _row(pid: int) -> list[str] | None:
    """Return one line of `ps -ef`; None if the process is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        owner = os.stat(f"/proc/{pid}").st_uid
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    ticks = os.sysconf("SC_CLK_TCK")
    ran = (int(fields[11]) + int(fields[12])) // ticks
    started = _boot_time() + int(fields[19]) / ticks
    age = max(time.time() - started, 1)
    shown = command.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace") or f"[{name}]"
    return [
        _user(owner),
        str(pid),
        fields[1],
        str(min(99, int(ran * 100 / age))),
        time.strftime("%H:%M" if age < 86400 else "%b%d", time.localtime(started)),
        _terminal(int(fields[4])),
        f"{ran // 3600:02d}:{ran // 60 % 60:02d}:{ran % 60:02d}",
        shown,
    ]


def _boot_time() -> int:
    match = re.search(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)
    return int(match[1]) if match else 0


def _user(uid: int) -> str:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    return name if len(name) <= 8 else f"{name[:7]}+"


def _terminal(device: int) -> str:
    major, minor = os.major(device), os.minor(device)
    if 136 <= major <= 143:
        return f"pts/{(major - 136) * 256 + minor}"
    return "?" if device == 0 else f"tty{minor}"


def _ps(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ps", *words], capture_output=True, text=True, errors="replace", timeout=30, check=False
    )


def _by_ps(pids: set[int], ps_args: str) -> ContainerTopResponse:
    for match in re.finditer(r"\s+(\w*)\s*=\s*(PID[^\s]*)", f" {ps_args}"):
        if match[1].lower() != "pid":
            raise InvalidParameter(f'specifying "{match[1]}={match[2]}" is not allowed')
    if "\0" in ps_args:
        raise InvalidParameter("top: the arguments of ps hold a NUL")
    if shutil.which("ps") is None:
        raise Unsupported("top: the host has no ps program (package procps) for other than the default arguments")
    words = ps_args.split()
    result = _ps([*words, "-q", ",".join(map(str, sorted(pids)))])
    if result.returncode != 0:  # these arguments do not go with a choice of pids: filter all processes
        result = _ps(words)
    if result.returncode != 0:
        raise InvalidParameter(f"ps: {result.stderr.strip() or 'exit status ' + str(result.returncode)}")
    lines = result.stdout.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise InvalidParameter("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            rows.append(fields)
    return ContainerTopResponse(titles=titles, processes=rows)
