"""Garbage collection, while the registry serves.

What goes, each only when it is older than the grace time and nobody leased it (`leases`):

1. uploads that nobody went on with for their expiry time;
2. with `untagged`: manifests that no tag leads to, directly or through an index, and whose subject is gone;
3. a repository's links to blobs that none of its manifests refers to;
4. bytes that no repository links to.

Everything that is linked is marked first, then the rest is swept. A manifest that arrives meanwhile holds leases on
itself and on all it refers to, so the sweep spares them though the mark has missed them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from dray.registry.server import documents, names
from dray.registry.server.errors import Refusal
from dray.registry.server.repositories import Repositories
from dray.registry.server.uploads import Uploads


@dataclass
class Collected:
    """What a collection has removed. `freed`: bytes."""

    uploads: int = 0
    manifests: int = 0
    links: int = 0
    blobs: int = 0
    freed: int = 0

    def __str__(self) -> str:
        return (
            f"removed {self.blobs} blobs ({self.freed} bytes), {self.links} links, {self.manifests} manifests, "
            f"{self.uploads} uploads"
        )


class Collector:
    """Collects the garbage of one storage. Blocking; one collection at a time."""

    def __init__(self, repositories: Repositories, uploads: Uploads, *, grace: float, untagged: bool) -> None:
        self._repositories = repositories
        self._storage = repositories.storage
        self._leases = repositories.leases
        self._uploads = uploads
        self._grace = grace
        self._untagged = untagged
        self._turn = threading.Lock()

    def collect(self) -> Collected:
        """Collect once; waits for a collection that runs."""
        with self._turn:
            return self._collect()

    def _collect(self) -> Collected:
        done = Collected(uploads=self._uploads.expire())
        with self._leases.collection():
            live: set[str] = set()
            for name in self._repositories.all_names():
                if self._untagged:
                    done.manifests += self._drop_untagged(name)
                live |= self._sweep_links(name, done)
            self._sweep_blobs(live, done)
        return done

    def _old(self, key: str) -> bool:
        stat = self._storage.stat(key)
        return stat is not None and time.time() - stat.modified >= self._grace

    def _references(self, name: str) -> dict[str, documents.Document]:
        """Return every manifest of a repository, read."""
        found = {}
        for digest in self._repositories.manifests(name):
            data = self._storage.get(names.blob(digest))
            if data is not None:
                found[digest] = documents.read(data, digest, "")
        return found

    def _sweep_links(self, name: str, done: Collected) -> set[str]:
        """Remove the blob links that no manifest needs; return all digests that the repository still links to."""
        blobs = self._repositories.blobs(name)  # listed first: a manifest read later may need a link made later
        needed: set[str] = set()
        manifests = self._repositories.manifests(name)
        try:
            for document in self._references(name).values():
                needed.update(document.blobs)
        except Refusal:  # a manifest was damaged on disk: nobody can tell what it needs
            return {*blobs, *manifests}
        kept = set(manifests)
        for digest in blobs:
            key = names.blob_link(name, digest)
            if digest not in needed and self._old(key) and self._remove(digest, key):
                done.links += 1
            else:
                kept.add(digest)
        return kept

    def _remove(self, digest: str, key: str) -> bool:
        return self._leases.remove(digest, lambda: self._storage.delete(key))

    def _sweep_blobs(self, live: set[str], done: Collected) -> None:
        for digest in self._all_blobs():
            if digest in live:
                continue
            key = names.blob(digest)
            stat = self._storage.stat(key)
            if stat is None or time.time() - stat.modified < self._grace:
                continue
            # Links are made under the same lock and lease the digest: one that the mark has missed is leased.
            if self._remove(digest, key):
                done.blobs += 1
                done.freed += stat.size

    def _all_blobs(self) -> Iterator[str]:
        for algorithm in ("sha256", "sha512"):
            for folder in self._storage.list(f"blobs/{algorithm}"):
                for entry in list(self._storage.list(f"blobs/{algorithm}/{folder.name}")):
                    yield f"{algorithm}:{entry.name}"

    def _drop_untagged(self, name: str) -> int:
        """Remove the manifests that no tag leads to; return how many."""
        repositories = self._repositories
        try:
            manifests = self._references(name)
            tagged = {repositories.resolve(name, tag) for tag in repositories.tags(name)}
        except Refusal:
            return 0
        live: set[str] = set()
        while tagged:
            live |= tagged
            inner = {child for digest in tagged if digest in manifests for child in manifests[digest].manifests}
            referring = {digest for digest, one in manifests.items() if one.subject in live}
            tagged = (inner | referring) - live
        count = 0
        for digest in set(manifests) - live:
            if self._old(names.manifest_link(name, digest)):
                count += self._leases.remove(digest, partial(self._drop, name, digest))
        return count

    def _drop(self, name: str, digest: str) -> bool:
        tags = self._repositories.tags(name)
        if any(self._storage.get(names.tag(name, tag)) == digest.encode() for tag in tags):
            return False  # tagged just now
        self._repositories.delete_manifest(name, digest)
        return True
