"""What the engine tells of the machine it runs on."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def go_architecture() -> str:
    """Return the machine's architecture in Go's words, as image platforms have it."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def os_release() -> dict[str, str]:
    """Return os-release(5) as a map."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            text = Path(path).read_text(errors="replace")
        except OSError:
            continue
        return {key: value.strip("\"'") for key, value in re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE)}
    return {}


def memory_total() -> int:
    """Return the bytes of the machine's memory."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def flag(path: str) -> bool:
    """Return whether a /proc/sys file reads 1."""
    try:
        return Path(path).read_text().strip() == "1"
    except OSError:
        return False


@functools.cache
def has_apparmor() -> bool:
    """Tell whether the kernel enforces AppArmor profiles."""
    try:
        return Path("/sys/module/apparmor/parameters/enabled").read_text().strip() == "Y"
    except OSError:
        return False
