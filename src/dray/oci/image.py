"""OCI and Docker image documents: descriptor, manifest, index, config (image-spec 1.1; docker schema 2).

Documents are read leniently (unknown fields are ignored, `null` is an empty list or object, as Go writes it) and
never written back: an image's identity is the digest of its bytes. Only documents that dray makes itself are
encoded here, by `encode`, deterministically.

A document that could be read both as a manifest and as an index is refused (CVE-2021-41190).
"""

from __future__ import annotations

from typing import Any

import msgspec

from dray.base import digest as digests
from dray.base.errors import InvalidParameter
from dray.base.malformed import MALFORMED
from dray.oci.platform import Platform

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})

# The name of an image in an archive's index.json (containerd `images/annotations.go`, image-spec annotations.md).
IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
# Marks a manifest of an index that is an attestation about another one (buildkit).
REFERENCE_TYPE = "vnd.docker.reference.type"


class Descriptor(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True, kw_only=True):
    """A pointer to content (image-spec descriptor.md). `size` is in bytes."""

    media_type: str = ""
    digest: str
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    urls: list[str] | None = None

    def __post_init__(self) -> None:
        digests.parse(self.digest)
        if self.size < 0:
            raise InvalidParameter(f"descriptor of {self.digest} has a negative size")


class Manifest(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """An image manifest (image-spec manifest.md)."""

    schema_version: int
    media_type: str | None = None
    config: Descriptor
    layers: list[Descriptor] | None = None
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """An image index or manifest list (image-spec image-index.md)."""

    schema_version: int
    media_type: str | None = None
    manifests: list[Descriptor] | None = None
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class RootFS(msgspec.Struct, omit_defaults=True):
    """The digests of the uncompressed layers, lowest first."""

    type: str = "layers"
    diff_ids: list[str] | None = None


class History(msgspec.Struct, omit_defaults=True):
    """How one layer, or one step without a layer, came to be. `created` is RFC 3339."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class Healthcheck(msgspec.Struct, rename="pascal", omit_defaults=True):
    """Docker's health check; durations are nanoseconds."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(msgspec.Struct, rename="pascal", omit_defaults=True):
    """The execution defaults of an image (image-spec config.md, with Docker's own fields)."""

    user: str = ""
    exposed_ports: dict[str, Any] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    args_escaped: bool = False
    healthcheck: Healthcheck | None = None
    on_build: list[str] | None = None
    shell: list[str] | None = None


class ImageConfig(msgspec.Struct, omit_defaults=True, kw_only=True):
    """An image's config document (image-spec config.md)."""

    created: str | None = None
    author: str | None = None
    architecture: str = ""
    os: str = ""
    variant: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")
    config: ContainerConfig | None = None
    rootfs: RootFS = msgspec.field(default_factory=RootFS)
    history: list[History] | None = None
    comment: str | None = None  # Docker's own
    docker_version: str | None = None

    @property
    def platform(self) -> Platform:
        """What the image runs on."""
        return Platform(
            architecture=self.architecture,
            os=self.os,
            variant=self.variant,
            os_version=self.os_version,
            os_features=self.os_features,
        )


_probe = msgspec.json.Decoder(dict[str, msgspec.Raw])
_manifest = msgspec.json.Decoder(Manifest)
_index = msgspec.json.Decoder(Index)
_config = msgspec.json.Decoder(ImageConfig)
_encoder = msgspec.json.Encoder(order="deterministic")


def parse_document(data: bytes, media_type: str = "") -> Manifest | Index:
    """Read a manifest or an index; `media_type` is what its descriptor says of it ("" unknown).

    InvalidParameter if it is neither, both, schema 1, or not what the descriptor says.
    """
    try:
        fields = _probe.decode(data)
        is_index = "manifests" in fields
        if is_index and ("layers" in fields or "config" in fields or "fsLayers" in fields):
            raise InvalidParameter(
                "ambiguous manifest: it has both the fields of a manifest and those of an index"
            )
        if "fsLayers" in fields:
            raise InvalidParameter(
                "manifest schema 1 is no longer supported: push the image again with a newer tool"
            )
        document: Manifest | Index = _index.decode(data) if is_index else _manifest.decode(data)
    except MALFORMED as error:
        raise InvalidParameter(f"invalid manifest: {error}") from error
    wrong = MANIFEST_TYPES if is_index else INDEX_TYPES
    if media_type in wrong or document.media_type in wrong:
        raise InvalidParameter("ambiguous manifest: its media type and its fields contradict each other")
    if document.schema_version != 2:
        raise InvalidParameter(f"unsupported manifest schema version {document.schema_version}")
    return document


def parse_config(data: bytes) -> ImageConfig:
    """Read an image config; InvalidParameter if it is not one."""
    try:
        return _config.decode(data)
    except MALFORMED as error:
        raise InvalidParameter(f"invalid image config: {error}") from error


def encode(document: Any) -> bytes:
    """Encode a document that dray makes: compact, the same bytes for the same document."""
    return _encoder.encode(document)


def chain_ids(diff_ids: list[str]) -> list[str]:
    """Return the chain id of every layer, lowest first (image-spec config.md, Layer ChainID)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        digests.parse(diff_id)
        chain.append(digests.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
