"""Where a registry keeps its bytes: objects by key, and uploads that grow.

A key is a path of components joined by `/`; no component is empty, `.` or `..`. Implementations are blocking,
thread-safe, and durable: what `put` and `commit` have returned survives a power loss; an object is there whole or not
at all. What the keys mean is `layout`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO, Protocol

NOTHING: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Stat:
    """Size in bytes and time of the last change (seconds since the epoch)."""

    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies directly below a prefix: an object, or a folder of further ones."""

    name: str
    folder: bool


class Reader(Protocol):
    """An object being read. `file` is the file behind it, at the right position, if sendfile(2) may be used."""

    file: BinaryIO | None

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, b"" at the end."""

    def close(self) -> None:
        """Let go of it."""


class Upload(Protocol):
    """Bytes that grow. Not thread-safe. `offset`: how many there are."""

    offset: int

    def write(self, data: bytes, /) -> None:
        """Append."""

    def read(self, start: int, size: int, /) -> bytes:
        """Return up to `size` bytes from `start`, b"" at the end."""

    def flush(self) -> None:
        """Make what was written so far survive a crash of this process."""

    def commit(self, key: str, beside: Mapping[str, bytes] = NOTHING) -> None:
        """Make the bytes the object `key`, then write the small objects `beside` it; the upload is over. An object
        of that key stays as it is: keys of uploads are digests."""

    def close(self) -> None:
        """Let go of it; it can be opened again with all that was flushed."""


class Storage(Protocol):
    """Objects by key."""

    name: str  # for people: "disk /var/lib/…"

    def get(self, key: str) -> bytes | None:
        """Return a small object, None if there is none."""

    def put(self, objects: Mapping[str, bytes], *, durable: bool = True) -> None:
        """Write or replace small objects, in this order. Together they cost hardly more than one. What need not be
        `durable` may be lost with the machine's power."""

    def stat(self, key: str) -> Stat | None:
        """Return size and time of an object, None if there is none."""

    def open(self, key: str, start: int = 0, end: int | None = None) -> Reader | None:
        """Open an object from `start` up to, not including, `end`; None if there is none."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield what lies directly below the folder `prefix` (no trailing slash), in no order; nothing if it is
        not there."""

    def delete(self, key: str) -> bool:
        """Remove an object; tell whether it was there."""

    def delete_folder(self, prefix: str) -> None:
        """Remove all objects below a folder, and the upload of that name."""

    def upload(self, folder: str) -> Upload:
        """Open the upload in the folder, or begin it."""

    def redirect(self, key: str) -> str | None:
        """Return an address at which a client may fetch the object itself for a while, None if it may not."""

    def close(self) -> None:
        """Let go of everything."""
