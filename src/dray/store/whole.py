"""What the drivers share whose snapshots are whole file systems (`vfs`, `btrfs`).

    <root>/                       0700
        <folder>/dir/             the whole file system of a layer or a container
        trash/                    see `trash`

A layer is applied to a copy of the one below it, whiteouts delete, so layers are unpacked one after the other. How
the copy is made is the driver's: `_make` and `_copy`.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from dray.base.errors import NotFound
from dray.base.records import Records
from dray.linux.trees import tree_usage
from dray.runtime.model import Mount
from dray.store.layers.unpack import unpack_layer
from dray.store.layers.worker import LARGE, unpack_in_process
from dray.store.ledger import Ledger
from dray.store.snapshots import Change, Info, LayerRecord, LayerSource, Progress, SnapshotRecord, Usage, check_key
from dray.store.trash import Remover, remove_entry

_ROOT_MODE = 0o755


class WholeTrees(ABC):
    """`snapshots.Snapshots` over directories that hold whole file systems."""

    name = ""

    def __init__(self, root: str | os.PathLike[str], records: Records, *, remover: Remover = remove_entry) -> None:
        self._root = Path(root).absolute()
        self._ledger = Ledger(self._root, records, self.name, remover=remover)
        self._unpacking = threading.Lock()

    @abstractmethod
    def _make(self, target: Path) -> None:
        """Make the empty directory `target`."""

    @abstractmethod
    def _copy(self, source: Path, target: Path) -> None:
        """Make the directory `target` as a copy of `source`."""

    def _differences(self, new: Path, old: Path | None) -> builtins.list[Change]:
        """Return how a tree differs from the one that it is a copy of."""
        from dray.store.layers.diff import tree_changes

        return tree_changes(new, old)

    def close(self) -> None:
        """Stop background work."""
        self._ledger.close()

    def settle(self) -> None:
        """Make unpacked layers durable (see `ledger`)."""
        self._ledger.settle()

    def empty_trash(self) -> None:
        """Wait until what was removed is deleted."""
        self._ledger.trash.empty()

    def _place(self, folder: str, parent: str | None) -> Path:
        target = self._root / folder / "dir"
        os.mkdir(target.parent, 0o700)
        if parent is None:
            self._make(target)
            os.chmod(target, _ROOT_MODE)
        else:
            self._copy(self._root / self._ledger.layer(parent).folder / "dir", target)
        return target

    def _discard(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ledger.trash.throw(self._root / folder)

    def prepare(self, key: str, parent: str | None, *, read_only: bool = False) -> list[Mount]:
        """See `Snapshots`."""
        check_key(key)
        record = SnapshotRecord(self._ledger.folder(), parent, read_only)
        try:
            self._place(record.folder, parent)
            self._ledger.add_snapshot(key, record)
        except BaseException:
            self._discard(record.folder)
            raise
        return self.mounts(key)

    def mounts(self, key: str) -> list[Mount]:
        """See `Snapshots`."""
        record = self._ledger.snapshots.get(key)
        folder = record.folder if record else self._ledger.layer(key).folder
        writable = record is not None and not record.read_only
        if record and not (self._root / folder).exists():
            self._place(folder, record.parent)  # a power loss took it before it was on disk
        return [Mount("bind", str(self._root / folder / "dir"), ("rbind", "rw" if writable else "ro"))]

    def upper(self, key: str) -> Path:
        """See `Snapshots`."""
        record = self._ledger.snapshots.get(key) or self._ledger.layer(key)
        return self._root / record.folder / "dir"

    def unpack(self, layers: Sequence[LayerSource], progress: Progress | None = None) -> None:
        """See `Snapshots`."""
        with self._unpacking:
            for layer in layers:
                if layer.chain_id not in self._ledger.layers:
                    self._unpack(layer, progress)
        self._ledger.settle_later()

    def _unpack(self, layer: LayerSource, progress: Progress | None) -> None:
        folder = self._ledger.folder()

        def tell(done: int) -> None:
            if progress:
                progress(layer.chain_id, done, layer.size)

        try:
            target = self._place(folder, layer.parent)
            unpack = unpack_in_process if layer.size >= LARGE else unpack_layer
            applied = unpack(layer, target, overlay=False, tell=tell)
            record = LayerRecord(folder, layer.diff_id, layer.parent, applied.size, applied.inodes)
            if not self._ledger.add_layer(layer.chain_id, record):
                self._discard(folder)
        except BaseException:
            if layer.chain_id not in self._ledger.layers:
                self._discard(folder)
            raise

    def commit(self, key: str, chain_id: str, diff_id: str) -> None:
        """See `Snapshots`."""
        snapshot = self._ledger.snapshots.get(key)
        if snapshot is None:
            raise NotFound(f"snapshot {key} does not exist: not found")
        usage = self.usage(key)
        record = LayerRecord(snapshot.folder, diff_id, snapshot.parent, usage.size, usage.inodes)
        if not self._ledger.add_layer(chain_id, record, instead_of=key):
            self.remove(key)
        self._ledger.settle_later()

    def remove(self, key: str) -> None:
        """See `Snapshots`."""
        self._discard(self._ledger.drop(key))

    def exists(self, key: str) -> bool:
        """See `Snapshots`."""
        return key in self._ledger.snapshots or key in self._ledger.layers

    def usage(self, key: str) -> Usage:
        """See `Snapshots`. Only what differs from the parent counts, as with every driver."""
        layer = self._ledger.layers.get(key)
        if layer is not None:
            return Usage(layer.size, layer.inodes)
        if self._ledger.parent(key) is None:
            return Usage(*tree_usage(self.upper(key)))
        size = inodes = 0
        for change in self.changes(key):
            if change.kind == "D":
                continue
            inodes += 1
            status = os.lstat(f"{self.upper(key)}{change.path}")
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
        return Usage(size, inodes)

    def changes(self, key: str) -> builtins.list[Change]:
        """See `Snapshots`."""
        parent = self._ledger.parent(key)
        return self._differences(self.upper(key), self.upper(parent) if parent else None)

    def list(self) -> list[Info]:
        """See `Snapshots`."""
        return self._ledger.list()
