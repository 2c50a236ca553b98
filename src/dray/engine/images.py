"""The `Images` backend of the server: images as the API shows them."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from dray.api import models as api
from dray.api.filters import Filters
from dray.api.requests import CommitOptions
from dray.base import reference
from dray.base.errors import Conflict, DrayError, InvalidParameter, NotFound, Unsupported
from dray.base.malformed import MALFORMED
from dray.engine import clock
from dray.engine.events import Events
from dray.engine.model import ContainerRecord
from dray.engine.registry import Registry
from dray.oci import platform as platforms
from dray.oci.image import Descriptor
from dray.oci.platform import Platform
from dray.store.images import Image, Images, ImageUser, ManifestSummary


def _images_of(record: ContainerRecord) -> set[str]:
    """Return the images that a container keeps in use: its own, and those it has mounted."""
    return {record.image_id, *(point.image_id for point in record.mounts if point.image_id)}


def parse_platform(text: str) -> Platform | None:
    """Read a platform argument: the client's JSON, or `os[/arch[/variant]]`; empty is None."""
    if not text:
        return None
    if text.startswith("{"):
        try:
            return msgspec.json.decode(text, type=Platform)
        except MALFORMED as error:
            raise InvalidParameter(f"invalid platform: {error}") from None
    return platforms.parse(text)


def container_config(image: Image) -> api.ContainerConfig:
    """Return an image's execution defaults as a container configuration."""
    if image.config.config is None:
        return api.ContainerConfig()
    return msgspec.convert(_without_nulls(msgspec.to_builtins(image.config.config)), api.ContainerConfig)


def _without_nulls(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: _without_nulls(value) for key, value in document.items() if value is not None}
    return document


def _nanoseconds(created: str) -> int:
    try:
        return clock.parse_timestamp(created) if created else 0
    except InvalidParameter:
        return 0


def _descriptor(descriptor: Descriptor) -> api.OCIDescriptor:
    return msgspec.convert(_without_nulls(msgspec.to_builtins(descriptor)), api.OCIDescriptor)


class Commits(Protocol):
    """What makes images of containers (`engine.commits`, which stands on the lifecycle)."""

    async def commit(self, options: CommitOptions, config: api.ContainerConfig | None) -> str:
        """Return the id of the new image."""


class ImageVerbs:
    """List, inspect, tag, remove and prune images; and what other verbs ask of them."""

    def __init__(self, images: Images, registry: Registry, events: Events, commits: Commits) -> None:
        self._images = images
        self._commits = commits
        self._registry = registry
        self._events = events

    # -- for other verbs -----------------------------------------------------------------------------------

    def find(self, word: str, platform: str = "") -> Image:
        """Return the image a container is to be made of, NotFound in the words that make clients pull."""
        return self._images.resolve(word, parse_platform(platform))

    async def ready(self, image: Image) -> None:
        """Make sure that the image's layers are unpacked."""
        if image.chain_id is not None and not self._images.snapshots.exists(image.chain_id):
            await asyncio.to_thread(self._images.ensure_unpacked, image)

    def exists(self, image_id: str) -> bool:
        """Tell whether there is (still) an image of that id."""
        try:
            self._images.resolve(image_id)
        except DrayError:
            return False
        return True

    def count(self) -> int:
        """Return how many images there are."""
        return len(self._images.list())

    def with_descendants(self, word: str) -> set[str]:
        """Return the ids of an image and of those that stand on it; empty if there is none of that name."""
        try:
            image = self._images.resolve(word)
        except NotFound:
            return set()
        return {image.id, *(child.id for child in self._images.children(image))}

    def shown_name(self, record: ContainerRecord) -> str:
        """Return what `ps` shows for a container's image: the name it was made with while that still stands for
        the same image, else the id (daemon/list.go)."""
        try:
            if self._images.resolve(record.image_ref).id == record.image_id:
                return record.image_ref
        except DrayError:
            pass
        return record.image_id

    def unpacked_size(self, image_id: str) -> int:
        """Return the bytes of an image's layers; 0 if it is gone."""
        try:
            return self._images.resolve(image_id).unpacked_size
        except DrayError:
            return 0

    def manifest_descriptor(self, record: ContainerRecord) -> api.OCIDescriptor | None:
        """Return the descriptor of the manifest a container was made of."""
        try:
            image = self._images.resolve(record.image_id)
        except DrayError:
            return None
        for summary in image.manifests:
            if summary.descriptor.digest == record.manifest_digest:
                return _descriptor(summary.descriptor)
        return None

    def users(self, image_id: str) -> list[ImageUser]:
        """Return the containers made of an image, or with it mounted."""
        return [
            ImageUser(container.id, container.state.running)
            for container in self._registry
            if image_id in _images_of(container.record)
        ]

    # -- verbs ---------------------------------------------------------------------------------------------

    async def list_images(
        self, *, all: bool, filters: Filters, shared_size: bool, manifests: bool, identity: bool
    ) -> list[api.ImageSummary]:
        """List images, newest first."""
        del identity  # what signed an image: nothing here signs
        found = await asyncio.to_thread(self._images.list)
        chosen = [
            image for image in self._select(found, filters) if all or filters or not self._intermediate(image)
        ]
        used: dict[str, int] = {}
        for container in self._registry:
            for image_id in _images_of(container.record):
                used[image_id] = used.get(image_id, 0) + 1
        shared = _shared_sizes(found, self._layer_size) if shared_size else {}
        return [
            api.ImageSummary(
                id=image.id,
                repo_tags=_matching(image.tags, filters),
                repo_digests=_matching(image.digests, filters),
                created=_nanoseconds(image.created) // 10**9,
                size=image.size,
                shared_size=shared.get(image.id, 0) if shared_size else -1,
                labels=image.labels or None,
                containers=used.get(image.id, 0),
                manifests=[self._manifest(image, summary) for summary in image.manifests] if manifests else [],
                descriptor=_descriptor(image.target),
            )
            for image in chosen
        ]

    def _intermediate(self, image: Image) -> bool:
        return image.dangling and bool(self._images.children(image))

    def _layer_size(self, chain_id: str) -> int:
        snapshots = self._images.snapshots
        return snapshots.usage(chain_id).size if snapshots.exists(chain_id) else 0

    def _select(self, images: list[Image], filters: Filters) -> list[Image]:
        chosen = images
        for word in filters.values_of("before"):
            limit = _nanoseconds(self._images.resolve(word).created)
            chosen = [image for image in chosen if _nanoseconds(image.created) < limit]
        for word in filters.values_of("since"):
            limit = _nanoseconds(self._images.resolve(word).created)
            chosen = [image for image in chosen if _nanoseconds(image.created) > limit]
        for word in filters.values_of("until"):
            limit = clock.parse_timestamp(word)
            chosen = [image for image in chosen if _nanoseconds(image.created) < limit]
        if "dangling" in filters:
            dangling = filters.boolean("dangling", True)
            chosen = [image for image in chosen if (not image.tags) == dangling]
        if patterns := filters.values_of("reference"):
            chosen = [
                image
                for image in chosen
                if any(_matches_reference(name, patterns) for name in (*image.tags, *image.digests))
            ]
        if "containers" in filters:
            used = {container.record.image_id for container in self._registry}
            wanted = filters.boolean("containers", True)
            chosen = [image for image in chosen if (image.id in used) == wanted]
        return [image for image in chosen if filters.matches_labels(image.labels)]

    def _manifest(self, image: Image, summary: ManifestSummary) -> api.ImageManifestSummary:
        shown = api.ImageManifestSummary(
            id=summary.descriptor.digest,
            descriptor=_descriptor(summary.descriptor),
            available=summary.available,
            size=api.ManifestSize(
                total=summary.content_size + summary.unpacked_size, content=summary.content_size
            ),
            kind=summary.kind,
        )
        if summary.kind == "image" and summary.platform is not None:
            shown.image_data = api.ManifestImageData(
                platform=msgspec.convert(_without_nulls(msgspec.to_builtins(summary.platform)), api.OCIPlatform),
                containers=[
                    container.id
                    for container in self._registry
                    if container.record.manifest_digest == summary.descriptor.digest
                ],
                size=api.ManifestImageSize(unpacked=summary.unpacked_size),
            )
        elif summary.kind == "attestation":
            shown.attestation_data = api.ManifestAttestationData(for_=summary.attests)
        return shown

    async def inspect(self, name: str, *, manifests: bool, platform: str) -> api.ImageInspect:
        """Return everything known of one image."""
        image = await asyncio.to_thread(self._images.resolve, name, parse_platform(platform))
        config = image.config
        return api.ImageInspect(
            id=image.id,
            descriptor=_descriptor(image.target),
            manifests=[self._manifest(image, summary) for summary in image.manifests] if manifests else [],
            repo_tags=list(image.tags),
            repo_digests=list(image.digests),
            comment=config.comment or "",
            created=image.created,
            author=config.author or "",
            config=msgspec.convert(
                _without_nulls(msgspec.to_builtins(config.config)) if config.config else {}, api.ImageConfig
            ),
            architecture=image.platform.architecture,
            variant=image.platform.variant or "",
            os=image.platform.os,
            size=image.size,
            graph_driver=api.DriverData(name=self._images.snapshots.name, data=None),
            rootfs=api.RootFS(type="layers", layers=list(image.diff_ids)),
            metadata=api.ImageMetadata(last_tag_time=clock.rfc3339(image.tagged_at)),
            docker_version=config.docker_version or "",
        )

    async def history(self, name: str, *, platform: str) -> list[api.ImageHistoryResponseItem]:
        """Return the steps that made an image, newest first."""
        image = await asyncio.to_thread(self._images.resolve, name, parse_platform(platform))
        steps = await asyncio.to_thread(self._images.history, image)
        return [
            api.ImageHistoryResponseItem(
                id=str(step["Id"]),
                created=_nanoseconds(str(step["created"])) // 10**9,
                created_by=str(step["CreatedBy"]),
                tags=step["Tags"] if isinstance(step["Tags"], list) else None,
                size=step["Size"] if isinstance(step["Size"], int) else 0,
                comment=str(step["Comment"]),
            )
            for step in steps
        ]

    async def attestations(
        self, name: str, *, platforms: tuple[str, ...], types: tuple[str, ...], statement: bool
    ) -> list[api.AttestationStatement]:
        """Return the attestations attached to an image."""
        del platforms, types, statement
        self._images.resolve(name)
        raise Unsupported(
            "reading attestations is not built in yet: `image inspect` lists them among the manifests"
        )

    async def tag(self, name: str, repo: str, tag: str) -> None:
        """Give an image one more name."""
        target = reference.parse(repo)
        if target.digest is not None:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        if tag:
            target = target.with_tag(tag)
        await asyncio.to_thread(self._images.tag, name, target.tagged().familiar)
        await self._registry.sync()

    async def remove(
        self, name: str, *, force: bool, no_prune: bool, platforms: tuple[str, ...]
    ) -> list[api.ImageDeleteResponseItem]:
        """Remove a name, and the image with its last name."""
        if platforms:
            raise Unsupported("platforms: removing single platforms of an image is not built in yet")
        lines = await asyncio.to_thread(
            self._images.delete, name, force=force, prune=not no_prune, in_use=self.users
        )
        return _deleted(lines)

    async def prune(self, filters: Filters) -> api.ImagePruneReport:
        """Remove images that no container uses: those without a name, or all with `dangling=false`."""
        dangling_only = filters.boolean("dangling", True)
        until = min((clock.parse_timestamp(text) for text in filters.values_of("until")), default=None)
        deleted: list[api.ImageDeleteResponseItem] = []
        before = await asyncio.to_thread(self._total)
        for image in await asyncio.to_thread(self._images.list):
            if (dangling_only and image.tags) or self.users(image.id):
                continue
            if not filters.matches_labels(image.labels):
                continue
            if until is not None and _nanoseconds(image.created) >= until:
                continue
            for name in image.tags or [image.id]:
                try:
                    lines = await asyncio.to_thread(
                        self._images.delete, name, force=not image.tags, in_use=self.users
                    )
                except (Conflict, NotFound):
                    continue  # taken into use, or gone, meanwhile
                deleted += _deleted(lines)
        reclaimed = max(0, before - await asyncio.to_thread(self._total))
        self._events.publish("image", "prune", "", {"reclaimed": str(reclaimed)})
        return api.ImagePruneReport(images_deleted=deleted, space_reclaimed=reclaimed)

    def _total(self) -> int:
        """Return the bytes that all images take, shared layers and blobs counted once."""
        layers = {chain for image in self._images.list() for chain in image.chain_ids}
        blobs = sum(size for _, size in self._images.content.walk())
        return blobs + sum(self._layer_size(chain) for chain in layers)

    async def disk_usage(self, *, verbose: bool) -> api.ImagesDiskUsage:
        """Return what images take, for `system df`."""
        items = await self.list_images(
            all=False, filters=Filters(), shared_size=True, manifests=False, identity=False
        )
        total = await asyncio.to_thread(self._total)
        used = sum(item.size - max(item.shared_size, 0) for item in items if item.containers)
        return api.ImagesDiskUsage(
            active_count=sum(1 for item in items if item.containers),
            total_count=len(items),
            reclaimable=max(0, total - used),
            total_size=total,
            items=items if verbose else [],
        )

    async def commit(self, options: CommitOptions, config: api.ContainerConfig | None) -> api.IDResponse:
        """Make an image of a container."""
        return api.IDResponse(id=await self._commits.commit(options, config))


def _deleted(lines: Iterable[dict[str, str]]) -> list[api.ImageDeleteResponseItem]:
    return [
        api.ImageDeleteResponseItem(untagged=line.get("Untagged", ""), deleted=line.get("Deleted", ""))
        for line in lines
    ]


def _matching(names: Iterable[str], filters: Filters) -> list[str]:
    """Return the names of an image that a `reference` filter lets through: all without one."""
    patterns = filters.values_of("reference")
    return [name for name in names if not patterns or _matches_reference(name, patterns)]


def _matches_reference(name: str, patterns: Iterable[str]) -> bool:
    bare = name.partition("@")[0]
    bare = bare[: bare.rindex(":")] if ":" in bare.rpartition("/")[2] else bare
    return any(fnmatch.fnmatchcase(word, pattern) for pattern in patterns for word in (name, bare))


def _shared_sizes(images: list[Image], size_of: Callable[[str], int]) -> dict[str, int]:
    """Return for each image the bytes of the layers that another image has too."""
    counts: dict[str, int] = {}
    for image in images:
        for chain in set(image.chain_ids):
            counts[chain] = counts.get(chain, 0) + 1
    return {
        image.id: sum(size_of(chain) for chain in set(image.chain_ids) if counts[chain] > 1) for image in images
    }
