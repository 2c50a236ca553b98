"""In-toto statements that are attached to images.

buildkit keeps them in the image's index beside the image's manifests: a manifest annotated with
`vnd.docker.reference.type: attestation-manifest` and the digest of the manifest that it is about, whose layers are
the statements, each annotated with its predicate type (buildkit `docs/attestations/attestation-storage.md`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from dray.base.errors import InvalidParameter, NotFound
from dray.oci.image import Descriptor, Manifest
from dray.oci.platform import Platform, host
from dray.store.images.reading import REFERENCE_DIGEST, is_attestation
from dray.store.images.service import Images

PREDICATE_TYPE = "in-toto.io/predicate-type"
_LIMIT = 64 << 20  # bytes of a statement: an SBOM of a large image has some tens of megabytes


def statements(
    images: Images, word: str, *, platform: Platform | None, types: Collection[str]
) -> Iterator[tuple[Descriptor, str]]:
    """Yield (descriptor, predicate type) of the statements about an image's manifest for a platform (None: this
    host's). `types`: only these predicate types (none: all).

    NotFound if there is no such image, or none for that platform.
    """
    image = images.resolve(word, platform or host())
    for descriptor in images.reading.manifests(image.target):
        about = (descriptor.annotations or {}).get(REFERENCE_DIGEST)
        if not is_attestation(descriptor) or about != image.manifest or not images.content.has(descriptor.digest):
            continue
        manifest = images.reading.document(descriptor)
        for layer in (manifest.layers or ()) if isinstance(manifest, Manifest) else ():
            kind = (layer.annotations or {}).get(PREDICATE_TYPE, "")
            if kind and (not types or kind in types):
                yield layer, kind


def read(images: Images, descriptor: Descriptor) -> dict[str, Any]:
    """Return a statement; NotFound if it is not here, InvalidParameter if it is none."""
    try:
        data = images.content.read(descriptor.digest, limit=_LIMIT)
    except NotFound:
        raise NotFound(
            f"attestation statement {descriptor.digest} is not here: pull the image again for this platform"
        ) from None
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise InvalidParameter(f"attestation statement {descriptor.digest} is malformed: {error}") from None
