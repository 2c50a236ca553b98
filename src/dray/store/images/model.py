"""What an image is.

As in Docker's containerd image store, an image is a *target* (the descriptor of a manifest or of an index) with
names. Its id is the target's digest. Names are records (kind `image`):

    docker.io/library/busybox:latest     a tag
    docker.io/library/busybox@sha256:…   pulled by digest
    dangling@sha256:…                    an image that has lost its last name, shown as <none>
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from msgspec import Struct, field

from dray.oci.image import Descriptor, ImageConfig
from dray.oci.platform import Platform

DANGLING = "dangling@"


class NameRecord(msgspec.Struct, frozen=True):
    """A name's document in the records; times are unix nanoseconds."""

    target: Descriptor
    created: int
    updated: int


class ImageUser(NamedTuple):
    """A container made from an image."""

    container: str
    running: bool


class ManifestSummary(Struct, frozen=True):
    """One manifest of an image (the Engine API's ImageManifestSummary).

    available: all its content is here; kind: "image", "attestation" or "unknown"; sizes in bytes
    """

    descriptor: Descriptor
    available: bool
    kind: str
    platform: Platform | None = None
    attests: str = ""
    content_size: int = 0
    unpacked_size: int = 0


class Image(Struct, frozen=True):
    """An image as seen through one of its manifests (the host's, or the one asked for).

    id: digest of the target; manifest: digest of the chosen manifest; config_digest: of its config
    diff_ids, chain_ids: its layers, lowest first
    created: RFC 3339 as the config has it, "" if it has none
    content_size: the blobs of all manifests that are here; unpacked_size: of all their layers on disk
    tags: familiar names with tags; digests: familiar names with digests
    name: the canonical name by which it was resolved, None by id
    tagged_at: when a name was last put on it, unix nanoseconds
    """

    id: str
    target: Descriptor
    manifest: str
    config_digest: str
    config: ImageConfig
    platform: Platform
    diff_ids: tuple[str, ...] = ()
    chain_ids: tuple[str, ...] = ()
    created: str = ""
    content_size: int = 0
    unpacked_size: int = 0
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    manifests: tuple[ManifestSummary, ...] = ()
    name: str | None = None
    tagged_at: int = 0

    @property
    def chain_id(self) -> str | None:
        """The snapshot that a container of this image stands on; None for an image without layers."""
        return self.chain_ids[-1] if self.chain_ids else None

    @property
    def size(self) -> int:
        """All the disk it takes: content and unpacked layers."""
        return self.content_size + self.unpacked_size

    @property
    def dangling(self) -> bool:
        """Whether nothing names it."""
        return not self.tags and not self.digests
