"""The seam between images and storage drivers: layers, and the writable directories on top of them.

Two kinds of snapshot, both addressed by a key:

* a *committed* one is a layer, read-only; its key is its chain id (image-spec config.md), its parent the chain id
  below it;
* an *active* one belongs to a container (or a build step); its key is any other text, and it is written to. A *view*
  is an active one that is read-only.

Implementations: see `drivers`; `tests/contract/test_snapshots.py` runs on all of them. All methods are
synchronous and thread-safe.

What is committed is known by the records (kind `layer`), and the records are written after the directories are
whole. A directory that no record knows is the leftover of a crash and goes at next start. A layer is not synced to
disk when it is unpacked, since it can always be unpacked again from its blob: its record bears the boot in which it
was written until a later syncfs(2) has made it durable, and after a power loss such layers are unpacked anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern
from dray.runtime.model import Mount

_KEY = pattern(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}", re.ASCII)


class LayerSource(Struct, frozen=True):
    """A layer to unpack.

    open: gives the layer's blob, compressed or not, from its beginning; the snapshotter closes it
    diff_id: the digest that the uncompressed tar must have
    verified: the blob is itself uncompressed and was checked against `diff_id` already
    size: the blob's size, for progress
    """

    chain_id: str
    parent: str | None
    diff_id: str
    open: Callable[[], BinaryIO]
    verified: bool = False
    size: int = 0


class Usage(Struct, frozen=True):
    """What a snapshot itself holds, without its parents: apparent bytes of files, and inodes."""

    size: int
    inodes: int


class Info(Struct, frozen=True):
    """A snapshot: `kind` is "committed", "active" or "view"."""

    key: str
    parent: str | None
    kind: str


class Change(Struct, frozen=True):
    """A path that differs from the parent, relative, with a leading slash; kind "A" added, "C" changed, "D" deleted
    (the numbers of the Engine API are 1, 0 and 2)."""

    path: str
    kind: str


class LayerRecord(msgspec.Struct, omit_defaults=True, frozen=True):
    """A committed snapshot as it is remembered (kind `layer`, key chain id).

    folder: its directory's name; boot: the boot in which it was written, "" once it is surely on disk; cut: nothing
    below this layer is to be seen (its root is opaque)
    """

    folder: str
    diff_id: str
    parent: str | None = None
    size: int = 0
    inodes: int = 0
    boot: str = ""
    cut: bool = False


class SnapshotRecord(msgspec.Struct, omit_defaults=True, frozen=True):
    """An active snapshot as it is remembered (kind `snapshot`)."""

    folder: str
    parent: str | None = None
    read_only: bool = False


# Called while layers are unpacked with (chain id, bytes of its blob read so far, its size).
Progress = Callable[[str, int, int], None]


class Snapshots(Protocol):
    """A storage driver. `name` is what `--storage-driver` calls it.

    Errors: NotFound for a key that is not there, Conflict for one that is there already.
    """

    name: str

    def prepare(self, key: str, parent: str | None, *, read_only: bool = False) -> list[Mount]:
        """Make an active snapshot on the committed `parent` (None: on nothing); return what mounts it."""

    def mounts(self, key: str) -> list[Mount]:
        """Return what mounts an active snapshot (writable) or a layer (read-only)."""

    def upper(self, key: str) -> Path:
        """Return the directory that takes the writes of an active snapshot; for a layer, the layer's own."""

    def unpack(self, layers: Sequence[LayerSource], progress: Progress | None = None) -> None:
        """Commit layers from their tars, lowest first; those that are there already are passed over."""

    def commit(self, key: str, chain_id: str, diff_id: str) -> None:
        """Turn an active snapshot into a layer; its key is free afterwards."""

    def remove(self, key: str) -> None:
        """Remove a snapshot, in no time; Conflict while another one stands on it."""

    def exists(self, key: str) -> bool:
        """Tell whether there is a snapshot of that key."""

    def usage(self, key: str) -> Usage:
        """Return what a snapshot itself holds."""

    def changes(self, key: str) -> list[Change]:
        """Return how an active snapshot or a layer differs from its parent, sorted by path."""

    def list(self) -> list[Info]:
        """Return all snapshots."""


@runtime_checkable
class SizedSnapshots(Protocol):
    """A storage driver that can limit what an active snapshot takes."""

    def limit(self, key: str, size: int) -> None:
        """Let a new active snapshot hold `size` bytes; Unsupported where the file system cannot."""

    def resize(self, key: str, size: int) -> None:
        """Change that: what is there stays, whatever it takes."""


@runtime_checkable
class TarSnapshots(Protocol):
    """A storage driver that keeps layers as their tars."""

    def tar(self, key: str) -> tuple[Path, int] | None:
        """Return the file that holds a layer's plain tar, and where in it that begins; None if it is a directory."""


def directory_of(snapshots: Snapshots, chain_id: str) -> Path:
    """Return the directory that a layer is kept in: of its files, or of its tar."""
    tar = snapshots.tar(chain_id) if isinstance(snapshots, TarSnapshots) else None
    return tar[0].parent if tar else snapshots.upper(chain_id)


def check_key(key: str) -> None:
    """Refuse a key that could not name a directory."""
    if not _KEY.fullmatch(key):
        raise InvalidParameter(f"invalid snapshot key {key!r}")
