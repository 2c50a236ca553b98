"""Repositories: links, tags, manifests and referrers on top of a storage. Blocking and thread-safe.

Order of writes, so that a crash at any moment leaves nothing half visible: bytes, then the entry among the referrers,
then the link to the manifest, then the tag. Removal goes the other way. A tag or a referrer whose manifest has no link
does not exist for readers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dray.base import digest as digests
from dray.registry.server import documents, names
from dray.registry.server.documents import Document
from dray.registry.server.errors import Refusal
from dray.registry.server.leases import Leases
from dray.registry.server.storage import Reader, Storage, Upload
from dray.registry.server.turns import Turns

_STRIPES = 64


@dataclass(frozen=True, slots=True)
class Found:
    """A manifest: its digest, media type and bytes."""

    digest: str
    media_type: str
    data: bytes


class Repositories:
    """All repositories of one storage."""

    def __init__(self, storage: Storage, leases: Leases) -> None:
        self.storage = storage
        self.leases = leases
        self._locks = tuple(Turns() for _ in range(_STRIPES))

    def turns(self, name: str) -> Turns:
        """Return the lock of a repository's manifests and tags: many add at a time, one removes alone."""
        return self._locks[hashlib.sha256(name.encode()).digest()[0] % _STRIPES]

    # --- blobs

    def blob_size(self, name: str, digest: str) -> int | None:
        """Return the size of a blob of a repository, None if it has none such. The blob is leased."""
        with self.leases.lock(digest):
            if self.storage.stat(names.blob_link(name, digest)) is None:
                return None
            stat = self.storage.stat(names.blob(digest))
            if stat is not None:
                self.leases.touch(digest)
        return None if stat is None else stat.size

    def open_blob(self, digest: str, start: int, end: int) -> Reader | None:
        """Open the bytes of a blob."""
        return self.storage.open(names.blob(digest), start, end)

    def link_blob(self, name: str, digest: str) -> bool:
        """Give a repository a blob whose bytes are here; tell whether they are."""
        with self.leases.hold({digest}):
            if self.storage.stat(names.blob(digest)) is None:
                return False
            self.storage.put({names.blob_link(name, digest): b""})
        return True

    def mount(self, name: str, digest: str, sources: Iterable[str]) -> bool:
        """Give a repository a blob that one of the sources has; tell whether that worked."""
        for source in sources:
            if self.blob_size(source, digest) is not None:
                return self.link_blob(name, digest)
        return False

    def unlink_blob(self, name: str, digest: str) -> bool:
        """Take a blob from a repository; tell whether it had it."""
        with self.leases.lock(digest):
            return self.storage.delete(names.blob_link(name, digest))

    def keep(self, name: str, digest: str, upload: Upload) -> None:
        """Make an upload, whose digest this is, a blob of a repository."""
        with self.leases.hold({digest}):
            upload.commit(names.blob(digest), {names.blob_link(name, digest): b""})

    # --- manifests

    def resolve(self, name: str, reference: str) -> str:
        """Return the digest of a tag, or the digest itself; refused if there is no such manifest."""
        digest = reference
        if not digests.is_digest(reference):
            if not names.is_tag(reference):
                raise Refusal("MANIFEST_UNKNOWN", {"tag": reference})
            text = self.storage.get(names.tag(name, reference))
            if text is None:
                raise self._unknown(name, {"tag": reference})
            digest = text.decode()
        if self.storage.stat(names.manifest_link(name, digest)) is None:
            raise self._unknown(name, {"reference": reference})
        return digest

    def _unknown(self, name: str, detail: Any) -> Refusal:
        return Refusal("MANIFEST_UNKNOWN" if self.exists(name) else "NAME_UNKNOWN", {"name": name, **detail})

    def manifest(self, name: str, reference: str) -> Found:
        """Return a manifest; refused if there is none, or if its bytes were changed on disk."""
        digest = self.resolve(name, reference)
        link = self.storage.get(names.manifest_link(name, digest))
        data = self.storage.get(names.blob(digest))
        if link is None or data is None:
            raise self._unknown(name, {"reference": reference})
        check = digests.hasher(digest)
        check.update(data)
        if check.hexdigest() != digests.parse(digest)[1]:
            raise Refusal("UNKNOWN", {"digest": digest}, message="the manifest was changed in the storage")
        self.leases.touch(digest)
        return Found(digest, json.loads(link)["mediaType"], data)

    def put_manifest(
        self,
        name: str,
        digest: str,
        data: bytes,
        document: Document,
        *,
        tags: Iterable[str] = (),
        whole: bool = True,
    ) -> None:
        """Store a manifest under its digest, and tags; refused if what it refers to is not in the repository.

        A cache stores a manifest before its parts (`whole` false).
        """
        parts = {digest, *document.blobs, *document.manifests}
        with self.leases.hold(parts):
            if whole:
                self._check_references(name, document)
            objects = {names.blob(digest): data}
            record = documents.encode(document.descriptor)
            if document.subject is not None:
                objects[f"{names.referrers(name, document.subject)}/{digest}"] = record
            objects[names.manifest_link(name, digest)] = record
            objects.update({names.tag(name, tag): digest.encode() for tag in tags})
            with self.turns(name).shared():
                self.storage.put(objects)

    def _check_references(self, name: str, document: Document) -> None:
        missing = [digest for digest in document.blobs if self.blob_size(name, digest) is None]
        missing += [
            digest for digest in document.manifests if self.storage.stat(names.manifest_link(name, digest)) is None
        ]
        if missing:
            raise Refusal("MANIFEST_BLOB_UNKNOWN", {"digests": missing})

    def set_tag(self, name: str, tag: str, digest: str) -> None:
        """Point a tag at a manifest of the repository."""
        with self.turns(name).shared():
            self.storage.put({names.tag(name, tag): digest.encode()})

    def delete_tag(self, name: str, tag: str) -> None:
        """Remove a tag; refused if there is none."""
        with self.turns(name).alone():
            if not names.is_tag(tag) or not self.storage.delete(names.tag(name, tag)):
                raise self._unknown(name, {"tag": tag})

    def delete_manifest(self, name: str, digest: str) -> None:
        """Remove a manifest, its tags, and its entry among the referrers; refused if it is not there."""
        with self.turns(name).alone():
            if self.storage.stat(names.manifest_link(name, digest)) is None:
                raise self._unknown(name, {"digest": digest})
            for tag in list(self._entries(f"{names.folder(name)}/tags")):
                if self.storage.get(names.tag(name, tag)) == digest.encode():
                    self.storage.delete(names.tag(name, tag))
            data = self.storage.get(names.blob(digest))
            self.storage.delete(names.manifest_link(name, digest))
            if data is not None and (subject := documents.subject_of(data)) is not None:
                self.storage.delete(f"{names.referrers(name, subject)}/{digest}")

    # --- lists

    def _entries(self, folder: str) -> Iterator[str]:
        return (entry.name for entry in self.storage.list(folder) if not entry.folder)

    def exists(self, name: str) -> bool:
        """Tell whether a repository has a manifest."""
        return next(self._entries(f"{names.folder(name)}/manifests"), None) is not None

    def names(self) -> list[str]:
        """Return the names of all repositories that have a manifest, sorted."""
        found = (names.from_folder(entry.name) for entry in self.storage.list("repositories") if entry.folder)
        return sorted(name for name in found if self.exists(name))

    def all_names(self) -> list[str]:
        """Return the names of all repositories, also of those that have only blobs yet."""
        return [names.from_folder(entry.name) for entry in self.storage.list("repositories") if entry.folder]

    def tags(self, name: str) -> list[str]:
        """Return all tags in the specification's order; refused if there is no such repository."""
        found = sorted(self._entries(f"{names.folder(name)}/tags"), key=lambda tag: (tag.lower(), tag))
        if not found and not self.exists(name):
            raise Refusal("NAME_UNKNOWN", {"name": name})
        return found

    def manifests(self, name: str) -> list[str]:
        """Return the digests of a repository's manifests."""
        return list(self._entries(f"{names.folder(name)}/manifests"))

    def blobs(self, name: str) -> list[str]:
        """Return the digests of a repository's blobs."""
        return list(self._entries(f"{names.folder(name)}/blobs"))

    def referrers(self, name: str, subject: str) -> list[dict[str, Any]]:
        """Return the descriptors of the manifests whose subject a digest is, sorted by digest."""
        folder, found = names.referrers(name, subject), []
        for digest in sorted(self._entries(folder)):
            if self.storage.stat(names.manifest_link(name, digest)) is None:
                continue
            record = self.storage.get(f"{folder}/{digest}")
            with contextlib.suppress(ValueError):
                found.append(json.loads(record or b""))
        return found
