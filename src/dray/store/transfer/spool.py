"""Reading an image archive from a stream that can be read only once.

Every file goes into the content store while it passes by, whatever it turns out to be: its name says which digest
it must have (`blobs/sha256/<hex>`) or none. Nothing of it is named in the image store until the archive has been
read to its end, so an interrupted load leaves nothing that is listed; the blobs it left are collected.

Blobs are put on disk by worker threads while the stream is read on, and while its layers are unpacked: `settle`
waits for them, before anything that needs them is named.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from dray.base import digest as digests
from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern
from dray.oci.image import Descriptor
from dray.store.content import ContentStore, Ingest, Lease
from dray.store.layers.headers import DIRECTORY, LINK, REGULAR, SYMLINK, Entry, TarReader
from dray.store.layers.stream import Budget, Decompressed, ForwardReader, Readable

_BLOB = pattern(r"blobs/(sha256|sha512)/([0-9a-f]+)", re.ASCII)
_MEMBERS = 100_000


class Spooled:
    """The files of an archive: `blobs` by name, and the names that are links to others."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._commits: list[Future[str]] = []
        self.blobs: dict[str, Descriptor] = {}
        self.links: dict[str, str] = {}

    def take(self, name: str, ingest: Ingest, size: int) -> None:
        """Add a file that has arrived; put it on disk in the background."""
        self.blobs[name] = Descriptor(digest=ingest.stage(size=size), size=size)
        self._commits.append(self._pool.submit(ingest.commit))

    def settle(self) -> None:
        """Wait until every blob is on disk; raises what went wrong with one."""
        for commit in self._commits:
            commit.result()

    def find(self, name: str) -> Descriptor | None:
        """Return the blob that a name in the archive stands for."""
        name = posixpath.normpath(name)
        for _ in range(8):
            if name in self.blobs:
                return self.blobs[name]
            if name not in self.links:
                break
            name = self.links[name]
        match = _BLOB.fullmatch(name)
        return self._by_digest(f"{match[1]}:{match[2]}") if match else None

    def _by_digest(self, digest: str) -> Descriptor | None:
        return next((blob for blob in self.blobs.values() if blob.digest == digest), None)


def _name(entry: Entry) -> str:
    name = posixpath.normpath(entry.name.decode("utf-8", "replace").lstrip("/"))
    if name.startswith("../") or name == "..":
        raise InvalidParameter(f"invalid archive: {name} leaves it")
    return name


def _link_target(entry: Entry, name: str) -> str:
    target = entry.linkname.decode("utf-8", "replace")
    if entry.type == SYMLINK:
        target = posixpath.join(posixpath.dirname(name), target)
    return posixpath.normpath(target)


def spool(stream: Readable, content: ContentStore, lease: Lease, pool: ThreadPoolExecutor) -> Spooled:
    """Read an archive (gzip, zstd, xz, bzip2 or plain) to its end into `content`.

    InvalidParameter for what is no tar, is truncated, or has a blob that its name belies.
    """
    spooled = Spooled(pool)
    budget = Budget(content.path("sha256:" + 64 * "0").parent)
    chunks = Decompressed(stream, budget, hashed=False, threaded=False)
    tar = TarReader(ForwardReader(iter(chunks)))
    written = 0
    for entry in _members(tar):
        name = _name(entry)
        if entry.type in (LINK, SYMLINK):
            spooled.links[name] = _link_target(entry, name)
            continue
        if entry.sparse is not None:
            raise InvalidParameter(f"invalid archive: {name} is a sparse file")
        written += entry.size
        budget.write(written)
        match = _BLOB.fullmatch(name)
        expected = f"{match[1]}:{match[2]}" if match else None
        if expected is not None and not digests.is_digest(expected):
            raise InvalidParameter(f"invalid archive: {name} is no digest")
        ingest = content.ingest(expected=expected, lease=lease)
        try:
            for piece in tar.data(entry):
                ingest.write(piece)
        except BaseException:
            ingest.abort()
            raise
        spooled.take(name, ingest, entry.size)
    return spooled


def _members(tar: TarReader) -> Iterator[Entry]:
    count = 0
    for entry in tar:
        count += 1
        if count > _MEMBERS:
            raise InvalidParameter(f"invalid archive: more than {_MEMBERS} members")
        if entry.type == DIRECTORY:
            continue
        if entry.type not in (REGULAR, LINK, SYMLINK):
            raise InvalidParameter(f"invalid archive: {_name(entry)} is a device")
        yield entry
