"""From targets to manifests, configs and layers: what the content store says about an image.

Everything here is read from blobs that never change, so parsed documents are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from msgspec import Struct

from dray.base.errors import DrayError, InvalidParameter, NotFound
from dray.oci import platform as platforms
from dray.oci.image import (
    CONFIG_TYPES,
    REFERENCE_TYPE,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    chain_ids,
    parse_config,
    parse_document,
)
from dray.oci.platform import Platform
from dray.store.content import ContentStore
from dray.store.images.model import ManifestSummary
from dray.store.snapshots import LayerSource, Snapshots

REFERENCE_DIGEST = "vnd.docker.reference.digest"  # annotation: the manifest that an attestation is about
_KEPT = 512
_NESTING = 4


class Found(Struct, frozen=True):
    """A manifest of an image, with its config."""

    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig

    @property
    def platform(self) -> Platform:
        """What it runs on: the index's word, else the config's."""
        return self.descriptor.platform or self.config.platform

    @property
    def chain(self) -> list[str]:
        """The chain ids of its layers, lowest first."""
        return chain_ids(self.config.rootfs.diff_ids or [])


class Reading:
    """Parsed documents of the content store. Thread-safe."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._documents: dict[str, Manifest | Index] = {}
        self._configs: dict[str, ImageConfig] = {}

    def document(self, descriptor: Descriptor) -> Manifest | Index:
        """Return a manifest or index; NotFound if it is not here, InvalidParameter if it is malformed."""
        document = self._documents.get(descriptor.digest)
        if document is None:
            document = parse_document(self._content.read(descriptor.digest), descriptor.media_type)
            if len(self._documents) >= _KEPT:
                self._documents.clear()
            self._documents[descriptor.digest] = document
        return document

    def config(self, descriptor: Descriptor) -> ImageConfig:
        """Return a config; errors as `document`."""
        config = self._configs.get(descriptor.digest)
        if config is None:
            config = parse_config(self._content.read(descriptor.digest))
            if len(self._configs) >= _KEPT:
                self._configs.clear()
            self._configs[descriptor.digest] = config
        return config

    def forget(self) -> None:
        """Drop what is kept: blobs may have gone."""
        self._documents.clear()
        self._configs.clear()

    # --- walking

    def manifests(self, target: Descriptor, depth: int = 0) -> Iterator[Descriptor]:
        """Yield the descriptors of a target's manifests, itself if it is one; what is not here included."""
        if depth > _NESTING:
            raise InvalidParameter(f"image index {target.digest} is nested too deeply")
        if not self._content.has(target.digest):
            if depth:
                yield target
            return
        document = self.document(target)
        if isinstance(document, Manifest):
            yield target
            return
        for descriptor in document.manifests or ():
            yield from self.manifests(descriptor, depth + 1)

    def blobs(
        self, target: Descriptor, depth: int = 0, *, dropped: Set[str] = frozenset()
    ) -> Iterator[Descriptor]:
        """Yield every descriptor that a target leads to, itself included, here or not; none by way of `dropped`."""
        if target.digest in dropped:
            return
        yield target
        if depth > _NESTING or not self._content.has(target.digest):
            return
        document = self.document(target)
        if isinstance(document, Manifest):
            yield document.config
            yield from document.layers or ()
            return
        for descriptor in document.manifests or ():
            yield from self.blobs(descriptor, depth + 1, dropped=dropped)

    def found(self, descriptor: Descriptor) -> Found:
        """Read a manifest and its config; NotFound or InvalidParameter if that is not possible."""
        manifest = self.document(descriptor)
        if not isinstance(manifest, Manifest):
            raise InvalidParameter(f"{descriptor.digest} is an index, not a manifest")
        if manifest.config.media_type and manifest.config.media_type not in CONFIG_TYPES:
            raise InvalidParameter(f"{descriptor.digest} is no image: its config is {manifest.config.media_type}")
        found = Found(descriptor, manifest, self.config(manifest.config))
        if len(manifest.layers or ()) != len(found.config.rootfs.diff_ids or ()):
            raise InvalidParameter(
                f"invalid image {descriptor.digest}: {len(manifest.layers or ())} layers in its manifest, "
                f"{len(found.config.rootfs.diff_ids or ())} in its config"
            )
        return found

    def choose(self, target: Descriptor, wanted: Platform | None) -> Found:
        """Return the manifest for `wanted`, or without it the one for this host, or else the first that is here.

        NotFound if none will do.
        """
        best: tuple[int, Found] | None = None
        first: Found | None = None
        for descriptor in self.manifests(target):
            if is_attestation(descriptor):
                continue
            try:
                found = self.found(descriptor)
            except DrayError:
                continue  # not here, or no image: another manifest may serve
            first = first or found
            rank = platforms.rank(found.platform, wanted or platforms.host())
            if rank is not None and (best is None or rank < best[0]):
                best = rank, found
        if best:
            return best[1]
        if first is None or wanted is not None:
            raise NotFound(str(target.digest))
        return first

    def layer_sources(self, found: Found) -> list[LayerSource]:
        """Describe a manifest's layers for a storage driver."""
        sources = []
        parent = None
        diff_ids = found.config.rootfs.diff_ids or []
        for layer, diff_id, chain in zip(found.manifest.layers or (), diff_ids, found.chain, strict=True):
            sources.append(
                LayerSource(
                    chain,
                    parent,
                    diff_id,
                    open=lambda digest=layer.digest: self._content.open(digest),  # type: ignore[misc]
                    verified=layer.digest == diff_id,
                    size=layer.size,
                )
            )
            parent = chain
        return sources

    def summaries(self, target: Descriptor, snapshots: Snapshots) -> list[ManifestSummary]:
        """Tell about every manifest of a target."""
        summaries = []
        for descriptor in self.manifests(target):
            kind = "attestation" if is_attestation(descriptor) else "image"
            attests = (descriptor.annotations or {}).get(REFERENCE_DIGEST, "")
            blobs = {blob.digest: blob for blob in self.blobs(descriptor)}
            here = [blob for blob in blobs.values() if self._content.has(blob.digest)]
            platform, unpacked = descriptor.platform, 0
            try:
                if kind == "image":
                    found = self.found(descriptor)
                    platform = found.platform
                    unpacked = sum(snapshots.usage(key).size for key in found.chain if snapshots.exists(key))
            except NotFound:
                pass
            except DrayError:
                kind = "unknown"
            summaries.append(
                ManifestSummary(
                    descriptor,
                    available=len(here) == len(blobs),
                    kind=kind,
                    platform=platform,
                    attests=attests,
                    content_size=sum(self._content.taken(blob.digest) for blob in here),
                    unpacked_size=unpacked,
                )
            )
        return summaries


def is_attestation(descriptor: Descriptor) -> bool:
    """Tell whether a manifest of an index is about another one."""
    return (descriptor.annotations or {}).get(REFERENCE_TYPE) == "attestation-manifest"
