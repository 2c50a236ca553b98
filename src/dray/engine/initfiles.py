"""What the engine itself puts into a container's root: mount points, and the file that tells programs where they are.

dockerd keeps these in a layer of their own between image and container; here they lie in the writable layer and are
left out of what `docker diff` shows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
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
    own = [change.path for change in changes if change.path not in ours and change.kind != "C"]

    def visible(change: Change) -> bool:
        below = f"{change.path}/"
        if any(path.startswith(below) for path in own):
            return True
        return change.path not in ours and not (
            change.kind == "C" and any(path.startswith(below) for path in ours)
        )

    return [change for change in changes if visible(change)]
