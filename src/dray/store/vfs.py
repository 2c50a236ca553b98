"""The vfs storage driver: every snapshot is a whole copy. Slow and large, and it works on any file system."""

from __future__ import annotations

import os
from pathlib import Path

from dray.linux.trees import copy_tree
from dray.store.whole import WholeTrees


class Vfs(WholeTrees):
    """`snapshots.Snapshots` over plain copies (layout: `whole`)."""

    name = "vfs"

    def _make(self, target: Path) -> None:
        os.mkdir(target)

    def _copy(self, source: Path, target: Path) -> None:
        os.mkdir(target)
        copy_tree(source, target)
