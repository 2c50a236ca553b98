"""Indexing a large layer in a process of its own, see `layers.worker`."""

from __future__ import annotations

import os
from collections.abc import Callable

from dray.store.erofs.indexing import Indexed, index_layer
from dray.store.layers.worker import run_in_process, serve, told
from dray.store.snapshots import LayerSource

_MODULE = __name__


def index_in_process(layer: LayerSource, directory: str, *, tell: Callable[[int], None]) -> Indexed:
    """Do what `index_layer` does, in another process; the same errors."""
    fields = run_in_process(_MODULE, layer, directory, (), tell)
    slots = {os.fsencode(path): at for path, at in fields["slots"].items()}
    return Indexed(
        size=fields["size"], inodes=fields["inodes"], implicit=set(slots), opaque=set(map(os.fsencode, fields["opaque"])),
        opaque_root=fields["opaque_root"], slots=slots,
    )  # fmt: skip


def main() -> None:
    """Be that process."""

    def work(layer: LayerSource, directory: str, _: object, tell: Callable[[int], None]) -> dict[str, object]:
        indexed = index_layer(layer, directory, tell=tell)
        return told(indexed) | {"slots": {os.fsdecode(path): at for path, at in indexed.slots.items()}}

    serve(work)
