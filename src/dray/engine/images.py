"""The `Images` backend of the server: images as the API shows them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from dray.api import models as api
from dray.api.filters import Filters
from dray.api.requests import CommitOptions
from dray.base import reference
from dray.base.errors import Conflict, DrayError, InvalidParameter, NotFound
from dray.engine import clock, imagefilters
from dray.engine.events import Events
from dray.engine.model import ContainerRecord
from dray.engine.registry import Registry
from dray.oci import platform as platforms
from dray.oci.image import Descriptor
from dray.oci.platform import Platform
from dray.store.images import Image, Images, ImageUser, ManifestSummary, usage
from dray.store.images import attestations as stored
from dray.store.images.variants import remove_platforms


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
        except msgspec.DecodeError as error:
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
        self._pruning = False

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

    def _uses(self) -> Counter[str]:
        """Return how many containers use each image, by its id."""
        return Counter(image for container in self._registry for image in _images_of(container.record))

    # -- verbs ---------------------------------------------------------------------------------------------

    async def list_images(
        self, *, all: bool, filters: Filters, shared_size: bool, manifests: bool, identity: bool
    ) -> list[api.ImageSummary]:
        """List images, newest first."""
        del all  # nothing is hidden: no image here is but a step of a build
        found = await asyncio.to_thread(self._images.list)
        used = self._uses()
        chosen = imagefilters.select(found, filters, resolve=self._images.resolve, used=frozenset(used))
        shared = (await asyncio.to_thread(usage.measure, self._images, used)).shared if shared_size else {}
        return [
            api.ImageSummary(
                id=image.id,
                repo_tags=tags,
                repo_digests=digests,
                created=imagefilters.created(image) // 10**9,
                size=image.size,
                shared_size=shared.get(image.id, 0) if shared_size else -1,
                labels=image.labels or None,
                containers=used[image.id],
                manifests=self._manifests(image, identity=identity) if manifests else [],
                descriptor=_descriptor(image.target),
            )
            for image in chosen
            for tags, digests in [imagefilters.shown(image, filters)]
        ]

    def _identity(self, image: Image) -> dict[str, Any] | None:
        """Return what is known for sure of an image's origin; no signature is checked."""
        repositories = self._images.sources.of(image.id)
        return {"Pull": [{"Repository": name} for name in repositories]} if repositories else None

    def _manifests(self, image: Image, *, identity: bool = False) -> list[api.ImageManifestSummary]:
        found = [self._manifest(summary) for summary in image.manifests]
        for one in found:
            if identity and one.image_data is not None:
                one.image_data.identity = self._identity(image)
        return found

    def _manifest(self, summary: ManifestSummary) -> api.ImageManifestSummary:
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
            manifests=self._manifests(image) if manifests else [],
            identity=self._identity(image),
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
                created=imagefilters.nanoseconds(str(step["created"])) // 10**9,
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
        if len(platforms) > 1:
            raise InvalidParameter("only one platform can be asked for at a time")
        wanted = parse_platform(platforms[0] if platforms else "")

        def collect() -> list[api.AttestationStatement]:
            return [
                api.AttestationStatement(
                    descriptor=_descriptor(descriptor),
                    predicate_type=kind,
                    statement=stored.read(self._images, descriptor) if statement else None,
                )
                for descriptor, kind in stored.statements(self._images, name, platform=wanted, types=types)
            ]

        return await asyncio.to_thread(collect)

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
            lines = await self._remove_platforms(name, platforms, force=force)
        else:
            lines = await asyncio.to_thread(
                self._images.delete, name, force=force, prune=not no_prune, in_use=self.users
            )
        return _deleted(lines)

    async def _remove_platforms(
        self, name: str, platforms: tuple[str, ...], *, force: bool
    ) -> list[dict[str, str]]:
        if not force:
            raise InvalidParameter(
                "Content will be removed from all images referencing this variant. Use --force to force delete."
            )
        wanted = [platform for text in platforms if (platform := parse_platform(text)) is not None]
        return await asyncio.to_thread(remove_platforms, self._images, name, wanted)

    async def prune(self, filters: Filters) -> api.ImagePruneReport:
        """Remove images that no container uses: those without a name, or all with `dangling=false`.

        What the report counts as reclaimed are the bytes of the blobs and layers that went.
        """
        if self._pruning:
            raise Conflict("a prune operation is already running")
        self._pruning = True
        try:
            lines, reclaimed = await asyncio.to_thread(self._prune, filters)
        finally:
            self._pruning = False
        self._events.publish("image", "prune", "", {"reclaimed": str(reclaimed)})
        return api.ImagePruneReport(images_deleted=_deleted(lines), space_reclaimed=reclaimed)

    def _prune(self, filters: Filters) -> tuple[list[dict[str, str]], int]:
        images = self._images
        chosen = imagefilters.prunable(images.list(), filters, used=frozenset(self._uses()))
        lines: list[dict[str, str]] = []
        for image in chosen:
            for name in (*image.tags, *image.digests) or (image.id,):
                try:
                    lines += images.delete(name, collect=False, in_use=self.users)
                except (Conflict, NotFound):
                    continue  # taken into use, or gone, meanwhile
        return lines, images.collect()  # also of what nothing has ever named

    async def disk_usage(self, *, verbose: bool) -> api.ImagesDiskUsage:
        """Return what images take, for `system df` (see `store.images.usage`)."""
        items = await self.list_images(
            all=True, filters=Filters(), shared_size=True, manifests=False, identity=False
        )
        used = [item.id for item in items if item.containers]
        measured = await asyncio.to_thread(usage.measure, self._images, used)
        return api.ImagesDiskUsage(
            active_count=len(used),
            total_count=len(items),
            reclaimable=measured.reclaimable,
            total_size=measured.total,
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
