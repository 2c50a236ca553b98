"""The seam between what must be remembered and how: a durable table of JSON documents.

Floors that may not import each other (store, network, volumes, engine) are all handed one `Records`; the
implementation over SQLite is `store.metadata.Metadata`. Keys are unique within a kind. Values are JSON bytes,
owned by whoever owns the kind:

    kind        key                  owner
    container   container id         engine.containers
    image       canonical reference  store.images
    network     network id           network.controller
    volume      volume name          volumes.local
    ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Change(NamedTuple):
    """One row to write; `value` None removes it."""

    kind: str
    key: str
    value: bytes | None


class Records(Protocol):
    """Thread-safe. `write` is atomic over its changes."""

    def get(self, kind: str, key: str) -> bytes | None:
        """Return a document, or None."""

    def scan(self, kind: str) -> list[tuple[str, bytes]]:
        """Return all (key, document) of a kind, by key."""

    def write(self, changes: Sequence[Change]) -> None:
        """Write all changes or none. They survive a killed process from here on (~50 µs)."""

    def sync(self) -> None:
        """Put everything written so far on disk, to survive a power loss (~0.5 ms; one fsync serves all
        concurrent callers). To be called off the event loop."""
