"""What every storage driver remembers in the same way: layers and active snapshots, in memory and in the records.

    <root>/<folder>/     one snapshot; the driver knows what is in it
    <root>/trash/        see `trash`

At opening, layers of another boot that were not yet durable are forgotten, and every folder that no record names
goes to the trash. Folders are spread over the disk: ext4 puts inodes into the block group of their parent, and there
looks one by one past those deleted in the last minutes, which a large layer feels after an `rmi`; layers unpacked
side by side would moreover wait for each other's group. `settle` makes the layers written since durable (one syncfs
for all), in a thread started after each unpacking.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from dray.base.errors import Conflict, NotFound
from dray.base.records import Change as Row
from dray.base.records import Records
from dray.linux import libc
from dray.linux.inodeflags import spread_directories
from dray.store.snapshots import Info, LayerRecord, SnapshotRecord
from dray.store.trash import Remover, Trash, remove_entry

_encode = msgspec.json.Encoder().encode
_layer = msgspec.json.Decoder(LayerRecord)
_snapshot = msgspec.json.Decoder(SnapshotRecord)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def boot_id() -> str:
    """Return what tells this boot of the machine from every other (random(4), boot_id)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _short(value: int) -> str:
    text = ""
    while value or not text:
        value, digit = divmod(value, 36)
        text = _DIGITS[digit] + text
    return text


def kinds(driver: str) -> tuple[str, str]:
    """Return the kinds of a driver's records: of its layers, and of its active snapshots."""
    return f"layer.{driver}", f"snapshot.{driver}"


class Ledger:
    """The snapshots of one driver below `root`; `own` are the names beside them that belong to the driver itself.
    Thread-safe."""

    def __init__(
        self,
        root: Path,
        records: Records,
        driver: str,
        own: Iterable[str] = (),
        *,
        remover: Remover = remove_entry,
    ) -> None:
        self.root = root
        self._reserved = {"trash", *own}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(root, 0o700)
        spread_directories(root)
        self._records = records
        self._kinds = kinds(driver)
        self._lock = threading.Lock()
        self._settling: threading.Thread | None = None
        self._boot = boot_id()
        self.layers = {key: _layer.decode(value) for key, value in records.scan(self._kinds[0])}
        self.snapshots = {key: _snapshot.decode(value) for key, value in records.scan(self._kinds[1])}
        self._forget_unsettled()
        self.trash = Trash(root / "trash", remover=remover)
        known = self.folders()
        present = {entry.name for entry in os.scandir(root)} - self._reserved
        for folder in present - known:
            self.trash.throw(root / folder)
        numbers = (int(name, 36) for name in known if name.isalnum())
        self._next = itertools.count(max(numbers, default=-1) + 1)

    def _forget_unsettled(self) -> None:
        """Drop layers that a power loss may have torn, with all that stand on them."""
        lost = {key for key, layer in self.layers.items() if layer.boot not in ("", self._boot)}
        lost |= {key for key, layer in self.layers.items() if not (self.root / layer.folder).is_dir()}
        grown = True
        while grown:
            above = {key for key, layer in self.layers.items() if layer.parent in lost} - lost
            lost |= above
            grown = bool(above)
        if lost:
            self._records.write([Row(self._kinds[0], key, None) for key in lost])
            for key in lost:
                del self.layers[key]

    def folders(self) -> set[str]:
        """Return the folders that records name."""
        return {layer.folder for layer in self.layers.values()} | {s.folder for s in self.snapshots.values()}

    def folder(self) -> str:
        """Return a fresh, short name for a folder (mount options hold many of them)."""
        while (name := _short(next(self._next))) in self._reserved:
            pass
        return name

    def layer(self, key: str) -> LayerRecord:
        """Return a layer; NotFound if there is none."""
        try:
            return self.layers[key]
        except KeyError:
            raise NotFound(f"snapshot {key} does not exist: not found") from None

    def chain(self, key: str | None) -> list[LayerRecord]:
        """Return a layer and all below it that are to be seen, highest first."""
        chain = []
        while key is not None:
            chain.append(layer := self.layer(key))
            key = None if layer.cut else layer.parent
        return chain

    def parent(self, key: str) -> str | None:
        """Return what a snapshot stands on; NotFound if it does not exist."""
        snapshot = self.snapshots.get(key)
        return snapshot.parent if snapshot else self.layer(key).parent

    def add_snapshot(self, key: str, record: SnapshotRecord) -> None:
        """Remember an active snapshot; Conflict if its key is taken."""
        with self._lock:
            if key in self.snapshots:
                raise Conflict(f"snapshot {key} already exists")
            if record.parent is not None and record.parent not in self.layers:
                raise NotFound(f"snapshot {record.parent} does not exist: not found")
            self._records.write([Row(self._kinds[1], key, _encode(record))])
            self.snapshots[key] = record

    def add_layer(self, key: str, record: LayerRecord, *, instead_of: str | None = None) -> bool:
        """Remember a layer, durable later; False if another thread was first. `instead_of` is the key of the active
        snapshot that it was."""
        record = msgspec.structs.replace(record, boot=self._boot)
        rows = [Row(self._kinds[0], key, _encode(record))]
        with self._lock:
            if key in self.layers:
                return False
            if record.parent is not None and record.parent not in self.layers:
                raise NotFound(f"snapshot {record.parent} does not exist: not found")
            if instead_of is not None:
                rows.append(Row(self._kinds[1], instead_of, None))
            self._records.write(rows)
            self.layers[key] = record
            if instead_of is not None:
                del self.snapshots[instead_of]
        return True

    def drop(self, key: str) -> str:
        """Forget a snapshot and return its folder; Conflict while another one stands on it."""
        with self._lock:
            if key in self.snapshots:
                self._records.write([Row(self._kinds[1], key, None)])
                return self.snapshots.pop(key).folder
            folder = self.layer(key).folder
            parents = (
                *(layer.parent for layer in self.layers.values()),
                *(s.parent for s in self.snapshots.values()),
            )
            if key in parents:
                raise Conflict(f"cannot remove snapshot {key}: another snapshot stands on it")
            self._records.write([Row(self._kinds[0], key, None)])
            del self.layers[key]
            return folder

    def list(self) -> list[Info]:
        """Return all snapshots."""
        with self._lock:
            layers = [Info(key, layer.parent, "committed") for key, layer in self.layers.items()]
            active = [Info(k, s.parent, "view" if s.read_only else "active") for k, s in self.snapshots.items()]
        return layers + active

    def settle_later(self) -> None:
        """Call `settle` in a thread of its own: writing back a large image takes seconds."""
        with self._lock:
            if self._settling is not None and self._settling.is_alive():
                return  # what it misses is settled by the next one, or unpacked again after a power loss
            self._settling = threading.Thread(target=self.settle, name="settle", daemon=True)
            self._settling.start()

    def settle(self) -> None:
        """Put all layers on disk and remember that they are (tens of milliseconds to seconds)."""
        with self._lock:
            waiting = [key for key, layer in self.layers.items() if layer.boot]
        if not waiting:
            return
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            libc.syncfs(fd)
        finally:
            os.close(fd)
        with self._lock:
            rows = []
            for key in waiting:
                if key in self.layers:
                    self.layers[key] = msgspec.structs.replace(self.layers[key], boot="")
                    rows.append(Row(self._kinds[0], key, _encode(self.layers[key])))
            self._records.write(rows)

    def close(self) -> None:
        """Stop background work."""
        if self._settling is not None:
            self._settling.join()
        self.trash.close()
