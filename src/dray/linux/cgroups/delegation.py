"""A cgroup handed to the root of a user namespace, who may divide it but not change its limits (cgroup-v2.rst).

v2 alone: hierarchies of v1 are not safe to give away.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_KNOWN = Path("/sys/kernel/cgroup/delegate")
_USUAL = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")


def delegate(directory: str, owner: tuple[int, int], known: Path = _KNOWN) -> None:
    """Give a cgroup's directory, and the files that the kernel names for that, to `owner` (uid, gid)."""
    try:
        names = tuple(known.read_text().split())
    except OSError:
        names = _USUAL
    os.chown(directory, *owner)
    for name in names:
        if "/" not in name:
            with contextlib.suppress(FileNotFoundError):  # a controller that is not switched on here
                os.chown(f"{directory}/{name}", *owner, follow_symlinks=False)
