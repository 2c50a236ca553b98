"""What the engine itself puts into a container's root: mount points, and the file that tells programs where they are.

dockerd keeps these in a layer of their own between image and container; here they lie in the writable layer and are
left out of what `docker diff` shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dray.store.snapshots import Change

MARK = ".dockerenv"
_OURS = frozenset(
    f"/{path}"
    for path in (
        MARK, "dev", "dev/console", "dev/pts", "dev/shm", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf",
        "etc", "proc", "sys",
    )
)  # fmt: skip


def mark(upper: Path) -> None:
    """Leave the file by which programs tell that they are in a container."""
    os.close(os.open(upper / MARK, os.O_CREAT | os.O_CLOEXEC, 0o755))


def without(changes: Sequence[Change]) -> list[Change]:
    """Return the changes that are the container's own doing.

    A directory of ours stays if the container put something into it; one that changed only because something of
    ours was put into it did not change.
    """
    ours = {change.path for change in changes if change.kind == "A" and change.path in _OURS}
    above_own = _above(change.path for change in changes if change.path not in ours and change.kind != "C")
    above_ours = _above(ours)

    def visible(change: Change) -> bool:
        if change.path in above_own:
            return True
        return change.path not in ours and not (change.kind == "C" and change.path in above_ours)

    return [change for change in changes if visible(change)]


def _above(paths: Iterable[str]) -> set[str]:
    """Return all directories on the way to these paths."""
    found: set[str] = set()
    for path in paths:
        while (path := path.rpartition("/")[0]) and path not in found:
            found.add(path)
    return found
