"""The engine's parts that a daemon may lack: asked for by name, refused by name."""

from __future__ import annotations

from typing import TypeVar

from dray.base.errors import Unsupported

P = TypeVar("P")


def need(part: P | None, what: str) -> P:
    """Return a part of the engine; Unsupported naming it when there is none."""
    if part is None:
        raise Unsupported(f"{what} is not available in this daemon")
    return part
