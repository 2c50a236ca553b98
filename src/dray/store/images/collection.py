"""Removal of layers that nothing refers to."""

from __future__ import annotations

import contextlib
from collections.abc import Set

from dray.base.errors import Conflict, NotFound
from dray.store.snapshots import Snapshots


def collect_layers(snapshots: Snapshots, wanted: Set[str]) -> int:
    """Remove the layers outside `wanted` that nothing stands on; return the bytes that they held.

    A child goes before its parent, so it is removed from the top until nothing more can go.
    """
    freed = 0
    loose = {info.key for info in snapshots.list() if info.kind == "committed" and info.key not in wanted}
    while True:
        under = {info.parent for info in snapshots.list()}
        removable = loose - under
        if not removable:
            return freed
        for key in removable:
            with contextlib.suppress(Conflict, NotFound):  # a container has come to stand on it, or it is gone
                size = snapshots.usage(key).size
                snapshots.remove(key)
                freed += size
        loose -= removable
