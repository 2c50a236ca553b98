"""The btrfs storage driver: a layer is a subvolume, a container a snapshot of one. Layout: `whole`.

Making a snapshot and removing one cost the same whatever is in them, and what is not changed is shared on the disk.
A container can make subvolumes inside its own: they go with it, and a layer made of it has directories in their
place, since a snapshot does not reach into them.
"""

from __future__ import annotations

import builtins
import os
from pathlib import Path

from dray.base.errors import Unsupported
from dray.base.records import Records
from dray.linux import btrfs
from dray.linux.trees import copy_tree
from dray.store.snapshots import Change
from dray.store.trash import remove_entry
from dray.store.whole import WholeTrees


def _remove(trash: int, name: bytes) -> None:
    btrfs.destroy(trash, name + b"/dir")
    remove_entry(trash, name)


class Btrfs(WholeTrees):
    """`snapshots.Snapshots` over subvolumes; Unsupported where the root is not on btrfs."""

    name = "btrfs"

    def __init__(self, root: str | os.PathLike[str], records: Records) -> None:
        os.makedirs(root, mode=0o700, exist_ok=True)
        if not btrfs.is_btrfs(root):
            raise Unsupported(
                f"storage driver btrfs: {root} is not on btrfs: give --data-root a directory that is, or use overlay2"
            )
        super().__init__(root, records, remover=_remove)

    def _make(self, target: Path) -> None:
        btrfs.create(target)

    def _copy(self, source: Path, target: Path) -> None:
        btrfs.snapshot(source, target)

    def _differences(self, new: Path, old: Path | None) -> builtins.list[Change]:
        from dray.store.layers.diff import tree_changes

        return tree_changes(new, old, same_inodes=True)

    def commit(self, key: str, chain_id: str, diff_id: str) -> None:
        """See `Snapshots`."""
        if self.exists(key):
            _flatten(self.upper(key))
        super().commit(key, chain_id, diff_id)


def _flatten(root: Path) -> None:
    """Make plain directories of the subvolumes nested in a tree, the innermost first (extents stay shared)."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not btrfs.nested(fd, btrfs.subvolume_id(fd)):
            return
    finally:
        os.close(fd)
    found = []
    for directory, folders, _, parent in os.fwalk(root):
        for name in folders:
            status = os.lstat(name, dir_fd=parent)
            if status.st_dev != os.fstat(parent).st_dev and btrfs.is_subvolume(status):
                found.append((directory, name))
    for directory, name in reversed(found):
        above = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _flatten_one(above, name)
        finally:
            os.close(above)


def _flatten_one(above: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    copy = f".wh..wh.flat.{os.getpid()}"
    os.mkdir(copy, 0o700, dir_fd=above)
    old, new = os.open(name, flags, dir_fd=above), os.open(copy, flags, dir_fd=above)
    try:
        copy_tree(old, new)
    finally:
        os.close(old)
        os.close(new)
    btrfs.destroy(above, os.fsencode(name))
    os.rename(copy, name, src_dir_fd=above, dst_dir_fd=above)
