"""What a pushed manifest says of itself and of others.

Only documents that every client reads alike are taken (CVE-2021-41190; `oci.image.parse_document`), and only of the
four media types of images and indexes. What a document refers to: blobs and manifests that must be there, a subject
that need not be.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec

from dray.base.errors import InvalidParameter
from dray.base.malformed import MALFORMED
from dray.oci.image import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, OCI_MANIFEST, Descriptor, Index, parse_document
from dray.registry.server.errors import Refusal

OCI_EMPTY = "application/vnd.oci.empty.v1+json"


class _Link(msgspec.Struct, rename="camel"):
    subject: Descriptor | None = None


_link = msgspec.json.Decoder(_Link)


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or index. `descriptor` is what a list of referrers says of it."""

    media_type: str
    blobs: tuple[str, ...]  # digests that must be in the repository, distributable ones only
    manifests: tuple[str, ...]
    subject: str | None
    descriptor: dict[str, Any]


def read(data: bytes, digest: str, content_type: str) -> Document:
    """Read a manifest or index that was sent as `content_type` ("" unknown); refused if it is not a sound one."""
    given = content_type.partition(";")[0].strip().lower()
    try:
        parsed = parse_document(data, given)
        subject = _link.decode(data).subject
    except (InvalidParameter, *MALFORMED) as error:
        raise Refusal("MANIFEST_INVALID", {"reason": str(error)}) from None
    is_index = isinstance(parsed, Index)
    media_type = parsed.media_type or given or (OCI_INDEX if is_index else OCI_MANIFEST)
    if given and given != media_type:
        raise Refusal(
            "MANIFEST_INVALID", {"reason": f"it was sent as {given}, but says of itself that it is {media_type}"}
        )
    if media_type not in (INDEX_TYPES if is_index else MANIFEST_TYPES):
        raise Refusal("MANIFEST_INVALID", {"reason": f"media type {media_type} is not one of images or indexes"})
    artifact = parsed.artifact_type or ""
    blobs: tuple[str, ...] = ()
    manifests: tuple[str, ...] = ()
    if isinstance(parsed, Index):
        manifests = tuple(one.digest for one in parsed.manifests or ())
    else:
        # Layers with addresses of their own (foreign, non-distributable) are fetched from there.
        blobs = (parsed.config.digest, *(one.digest for one in parsed.layers or () if not one.urls))
        artifact = artifact or parsed.config.media_type
    descriptor: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": len(data)}
    if artifact:
        descriptor["artifactType"] = artifact
    if parsed.annotations:
        descriptor["annotations"] = parsed.annotations
    return Document(media_type, blobs, manifests, subject.digest if subject else None, descriptor)


def encode(document: Any) -> bytes:
    """Encode a small record, the same bytes for the same record."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def subject_of(data: bytes) -> str | None:
    """Return the digest of a stored manifest's subject, None if it has none."""
    try:
        subject = _link.decode(data).subject
    except (InvalidParameter, *MALFORMED):
        return None
    return subject.digest if subject else None
