"""Dropping the blobs of unpacked layers, in the background, one after the other (`discard-compressed-layers`).

    unpacked ──▶ on disk (settled) ──▶ recipe written and proved ──▶ recipe named ──▶ blob dropped

A crash between any two of these leaves a blob, a recipe, or both, and each will do. What was found not to be made
again is remembered with the versions of the encoders (records of the kind `blob.kept`), and is looked at again when
these change. A blob that somebody holds a lease on is left for the next round.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import Protocol, cast

import msgspec
from msgspec import Struct

from dray.base.errors import DrayError
from dray.base.records import Change, Records
from dray.base.units import human_size
from dray.store.images.service import Images
from dray.store.recipes.book import Head
from dray.store.recipes.encoders import Encoding, version_of
from dray.store.recipes.playing import NotRebuilt, Recorder

log = logging.getLogger("dray.store")

KIND = "blob.kept"
SMALLEST = 16 << 10  # bytes of a blob that is worth the while
_NICE = 19


class Kept(Struct, frozen=True):
    """Why a blob stays, and which encoders were there when that was found."""

    reason: str
    encoders: str


class Layer(Struct, frozen=True):
    """A blob that may go: what it is unpacked to."""

    digest: str
    size: int
    diff_id: str
    chain_id: str


class _Settling(Protocol):
    def settle(self) -> None:
        """Make unpacked layers durable."""


class _Closed(Exception):
    """The daemon stops."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Kept).decode


class Discarder:
    """One thread that drops blobs while nobody waits. `wake` it when layers were unpacked; `close` ends it."""

    def __init__(self, images: Images, records: Records) -> None:
        self._images = images
        self._records = records
        self._content = images.content
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin with what is there already."""
        self._thread = threading.Thread(target=self._run, name="discard", daemon=True)
        self._thread.start()
        self.wake()

    def wake(self) -> None:
        """Have another look, soon."""
        self._wanted.set()

    def close(self) -> None:
        """End; what is half done is as if it had not been begun."""
        self._closed.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while self._wanted.wait() and not self._closed.is_set():
            self._wanted.clear()
            try:
                self.round()
            except _Closed:
                return
            except Exception:
                log.exception("compressed layers could not be discarded")

    def _check(self) -> None:
        if self._closed.is_set():
            raise _Closed

    def summary(self) -> list[list[str]]:
        """Return what `docker info` tells beside the storage driver."""
        content, kept = self._content, self._records.scan(KIND)
        heads = content.recipes.heads()
        saved = sum(head.size - content.taken(head.digest) for head in heads)
        held = sum(content.taken(digest) for digest, _ in kept)
        return [
            ["Discarded Compressed Layers", f"{len(heads)} ({human_size(saved)} saved)"],
            ["Kept Compressed Layers", f"{len(kept)} ({human_size(held)}; no encoder here makes them)"],
        ]

    # --- one round

    def round(self) -> int:
        """Drop every blob that can go now; return how many went."""
        layers = list(self._layers())
        cast("_Settling", self._images.snapshots).settle()
        encoders = ", ".join(f"{name} {version_of(name)}" for name in ("zlib", "gzip", "zstd"))
        kept = self._kept({layer.digest for layer in layers})
        count = 0
        for layer in layers:
            self._check()
            verdict = kept.get(layer.digest)
            if verdict is not None and verdict.encoders == encoders:
                continue
            try:
                count += self._layer(layer)
            except NotRebuilt as error:
                self._keep(layer.digest, Kept(error.message, encoders))
            except (DrayError, OSError) as error:
                log.warning("layer %s keeps its blob for now: %s", layer.digest, error)
        if count:
            self._images.forget_sizes()
            self._images.collect()  # what was held meanwhile
        return count

    def _layers(self) -> Iterator[Layer]:
        """Yield the blobs that are on disk and unpacked."""
        seen = set()
        for image in self._images.list():
            for found in self._images.founds(image.target):
                diff_ids = found.config.rootfs.diff_ids or []
                for blob, diff_id, chain in zip(found.manifest.layers or (), diff_ids, found.chain, strict=True):
                    if blob.digest in seen or blob.size < SMALLEST or not blob.digest.startswith("sha256:"):
                        continue
                    if self._images.snapshots.exists(chain) and os.path.exists(self._content.path(blob.digest)):
                        seen.add(blob.digest)
                        yield Layer(blob.digest, blob.size, diff_id, chain)

    def _kept(self, present: set[str]) -> dict[str, Kept]:
        """Return what is known of blobs that stay; forget those that are not here any more."""
        known = {key: _decode(value) for key, value in self._records.scan(KIND)}
        if gone := known.keys() - present:
            self._records.write([Change(KIND, key, None) for key in gone])
        return known

    def _keep(self, digest: str, kept: Kept) -> None:
        log.info("layer %s keeps its blob: %s", digest, kept.reason)
        self._records.write([Change(KIND, digest, _encode(kept))])

    def _layer(self, layer: Layer) -> int:
        """Drop one blob; return 1 if that was done. NotRebuilt if it has to stay."""
        images, content = self._images, self._content
        with images.hold(named=True) as lease:
            images.keep_layers(lease, [layer.chain_id])
            lease.add(layer.digest)
            if not images.snapshots.exists(layer.chain_id) or content.leases(layer.digest) > 1:
                return 0
            directory = images.snapshots.upper(layer.chain_id)
            recipes = content.recipes
            head = Head(
                layer.digest, layer.size, layer.diff_id, layer.chain_id, recipes.relative(directory), Encoding()
            )
            if not self._proved(head):
                Recorder(recipes, head, lambda: content.open(layer.digest), directory, self._check).record()
            return int(content.discard(layer.digest))

    def _proved(self, wanted: Head) -> bool:
        """Tell whether there is a recipe from before that is still right: the blob has come back, or the daemon was
        killed before it dropped it. One that is not goes."""
        recipes = self._content.recipes
        head = recipes.head(wanted.digest)
        if head is None:
            return False
        if (head.directory, head.chain_id) == (wanted.directory, wanted.chain_id):
            with contextlib.suppress(DrayError):
                for _ in recipes.stream(wanted.digest):
                    self._check()
                return True
        recipes.drop(wanted.digest)
        return False
