"""The image store as the engine sees it: resolve, list, tag, delete, and the collection of what nobody needs.

All methods are synchronous and thread-safe. `resolve` of a known image takes microseconds; what reads much or
deletes (`delete`, `collect`, `ensure_unpacked`, `repair`) belongs off the event loop.

Whatever writes blobs and then names (load, pull, import, build) does so inside `hold()`: until it ends, nothing
that it writes is collected, neither blobs nor layers. While such a hold is open no layer is collected at all; one
that may last long (a pull) names its layers instead, with `keep_layers`, so that pulls which overlap without end do
not put off the collection for ever.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set

from msgspec.structs import replace

from dray.base import reference
from dray.base.errors import Conflict, DrayError, InvalidParameter, NotFound
from dray.base.records import Records
from dray.oci.image import Descriptor, ImageConfig
from dray.oci.platform import Platform
from dray.store.content import ContentStore, Lease
from dray.store.images import collection, deletion
from dray.store.images.model import DANGLING, Image, ImageUser
from dray.store.images.names import Names, no_such_image
from dray.store.images.reading import Found, Reading, is_attestation
from dray.store.images.sources import Sources
from dray.store.recipes.book import Head
from dray.store.snapshots import Progress, Snapshots

# Told (action, image id or name, attributes) after the fact; actions are the Engine API's.
Listener = Callable[[str, str, Mapping[str, str]], None]
Users = Callable[[str], Sequence[ImageUser]]


def _silent(action: str, actor: str, attributes: Mapping[str, str]) -> None:
    """Hear nothing."""


class Images:
    """Images over one content store and one storage driver."""

    def __init__(
        self, records: Records, content: ContentStore, snapshots: Snapshots, *, on_event: Listener = _silent
    ) -> None:
        self.content = content
        self.snapshots = snapshots
        self.on_event = on_event
        self._records = records
        self._names = Names(records)
        self.sources = Sources(records)
        self.reading = Reading(content)
        self._cache: dict[tuple[str, str], Image] = {}
        self._cached_generation = -1
        self._lock = threading.Lock()
        self._holding = threading.Lock()
        self._holds = 0
        self._kept: dict[Lease, frozenset[str]] = {}
        self._roots: list[Callable[[], set[str]]] = []
        self.written: Callable[[], None] = lambda: None  # told after an image was named

    # --- reading

    def resolve(self, word: str, platform: Platform | None = None) -> Image:
        """Return the image that a name, an id or the beginning of an id stands for, seen through `platform`.

        NotFound (`No such image: name:tag`) if there is none, or none for that platform.
        """
        target, name = self._names.find(word)
        try:
            return replace(self._image(target, platform), name=name)
        except NotFound:
            if platform is None:
                raise no_such_image(word) from None
            raise NotFound(
                f"image with reference {word} was found but does not provide the specified platform ({platform})"
            ) from None

    def _image(self, target: Descriptor, platform: Platform | None) -> Image:
        key = (target.digest, str(platform or ""))
        with self._lock:
            if self._cached_generation != self._names.generation:
                self._cache.clear()
                self._cached_generation = self._names.generation
            image = self._cache.get(key)
        if image is None:
            image = self._read(target, platform)
            with self._lock:
                self._cache[key] = image
        return image

    def _read(self, target: Descriptor, platform: Platform | None) -> Image:
        found = self.reading.choose(target, platform)
        summaries = self.reading.summaries(target, self.snapshots)
        blobs = {blob.digest: self.content.taken(blob.digest) for blob in self.reading.blobs(target)}
        chains = {key for key in self.chains(target) if self.snapshots.exists(key)}
        config = found.config
        return self._named(
            target,
            manifest=found.descriptor.digest,
            config_digest=found.manifest.config.digest,
            config=config,
            platform=found.platform,
            diff_ids=tuple(config.rootfs.diff_ids or ()),
            chain_ids=tuple(found.chain),
            created=config.created or "",
            content_size=sum(blobs.values()),
            unpacked_size=sum(self.snapshots.usage(key).size for key in chains),
            labels=dict((config.config.labels if config.config else None) or {}),
            manifests=tuple(summaries),
        )

    def _named(self, target: Descriptor, **fields: object) -> Image:
        names = [reference.parse(name) for name in self._names.of(target.digest) if not name.startswith(DANGLING)]
        digests = {f"{name.familiar_name}@{target.digest}": None for name in names}
        return Image(
            id=target.digest,
            target=target,
            tags=tuple(name.familiar for name in names if name.tag),
            digests=tuple(digests),
            tagged_at=self._names.tagged_at(target.digest),
            **fields,  # type: ignore[arg-type]
        )

    def _broken(self, target: Descriptor) -> Image:
        """Show an image whose content is gone or damaged, so that it can be deleted."""
        return self._named(
            target, manifest=target.digest, config_digest="", config=ImageConfig(), platform=Platform()
        )  # fmt: skip

    def chains(self, target: Descriptor) -> set[str]:
        """Return the chain ids of the layers of all of a target's manifests that are here, unpacked or not."""
        return {key for found in self.founds(target) for key in found.chain}

    def raw_config(self, image: Image) -> bytes:
        """Return an image's config as it is stored."""
        return self.content.read(image.config_digest)

    def history(self, image: Image) -> list[dict[str, object]]:
        """Return the Engine API's history, newest step first; `created` as the config has it (RFC 3339)."""
        steps: list[dict[str, object]] = []
        chain = iter(image.chain_ids)
        for item in image.config.history or ():
            key = None if item.empty_layer else next(chain, None)
            size = self.snapshots.usage(key).size if key and self.snapshots.exists(key) else 0
            steps.append(
                {
                    "Id": "<missing>",
                    "created": item.created or "",
                    "CreatedBy": item.created_by or "",
                    "Tags": None,
                    "Size": size,
                    "Comment": item.comment or "",
                }
            )
        if steps:
            steps[-1] |= {"Id": image.id, "Tags": list(image.tags) or None}
        return steps[::-1]

    def children(self, image: Image) -> list[Image]:
        """Return the images that stand on all layers of this one and have more."""
        count = len(image.diff_ids)
        return [
            other
            for other in self.list()
            if other.id != image.id
            and len(other.diff_ids) > count > 0
            and other.diff_ids[:count] == image.diff_ids
        ]

    def parents(self, image: Image) -> list[Image]:
        """Return the images that this one stands on, nearest first."""
        below = [
            other
            for other in self.list()
            if other.id != image.id
            and 0 < len(other.diff_ids) < len(image.diff_ids)
            and image.diff_ids[: len(other.diff_ids)] == other.diff_ids
        ]
        return sorted(below, key=lambda other: len(other.diff_ids), reverse=True)

    # --- naming

    def tag(self, source: str, target: str) -> Image:
        """Give an image one more name; the name's former image stays, perhaps as `<none>`."""
        descriptor, _ = self._names.find(source)
        parsed = reference.parse(target)
        if parsed.digest is not None:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        name = parsed.tagged()
        self._names.put([name.canonical], descriptor)
        image = self.resolve(name.canonical)
        self.notify("tag", image, name=name.familiar)
        return image

    def put(self, names: Sequence[str], target: Descriptor) -> Image:
        """Name a target that has just been written (canonical names; none: dangling), durably."""
        self._names.put(names, target)
        self._records.sync()
        self.written()
        return self._image(target, None)

    def notify(self, action: str, image: Image, *, name: str | None = None) -> None:
        """Tell the listener; attributes are the image's labels and its name, as Docker's are."""
        attributes = dict(image.labels)
        attributes["name"] = name if name is not None else image.id
        self.on_event(action, image.id, attributes)

    # --- layers

    def choose(self, target: Descriptor, platform: Platform | None = None) -> Found:
        """Return a target's manifest for a platform (None: the best for this host); NotFound if it has none."""
        return self.reading.choose(target, platform)

    def target_of(self, name: str) -> Descriptor | None:
        """Return what a canonical name stands for, None if nothing bears it."""
        return self._names.target(name)

    def tags_in(self, repository: str) -> Sequence[str]:
        """Return the canonical names of a repository's tags (`docker.io/library/busybox`), sorted."""
        return sorted(name for name in self._names.all() if name.startswith(f"{repository}:"))

    def founds(self, target: Descriptor) -> Iterator[Found]:
        """Yield every image manifest of a target that can be read."""
        for descriptor in self.reading.manifests(target):
            if not is_attestation(descriptor):
                with contextlib.suppress(DrayError):
                    yield self.reading.found(descriptor)

    def blobs(self, target: Descriptor) -> Iterator[Descriptor]:
        """Yield every descriptor that a target leads to, itself included, here or not."""
        return self.reading.blobs(target)

    def complete(self, target: Descriptor) -> bool:
        """Tell whether, of every manifest of a target that is here, all other content is here too.

        An index may name manifests that are not (an archive of one platform of many).
        """
        here = (item for item in self.reading.manifests(target) if self.content.has(item.digest))
        return all(self.content.has(blob.digest) for item in here for blob in self.reading.blobs(item))

    def unpack(self, target: Descriptor, platform: Platform, progress: Progress | None = None) -> None:
        """Unpack a target's layers for `platform`, if it has that platform; to be called inside `hold`."""
        with contextlib.suppress(NotFound):
            found = self.reading.choose(target, platform)
            self.snapshots.unpack(self.reading.layer_sources(found), progress)

    def unpack_layers(self, found: Found, count: int, progress: Progress | None = None) -> None:
        """Unpack the lowest `count` layers of a manifest, whose blobs must be here; to be called inside `hold`."""
        self.snapshots.unpack(self.reading.layer_sources(found)[:count], progress)
        self.forget_sizes()

    def ensure_unpacked(self, image: Image, progress: Progress | None = None) -> None:
        """Unpack the layers of an image that are not unpacked; returns at once if they are.

        NotFound if their blobs are not here (another platform's, which was never fetched).
        """
        if image.chain_id is None or self.snapshots.exists(image.chain_id):
            return
        found = self.reading.found(Descriptor(digest=image.manifest, size=0))
        with self.hold():
            self.snapshots.unpack(self.reading.layer_sources(found), progress)
            self.forget_sizes()

    def forget_sizes(self) -> None:
        """Sizes have changed: make images anew."""
        with self._lock:
            self._cached_generation = -1

    def repair(self) -> None:
        """At start: unpack anew what a power loss has taken from under containers, and collect leftovers."""
        wanted = {info.parent for info in self.snapshots.list() if info.parent}
        missing = {key for key in wanted if not self.snapshots.exists(key)}
        for target in self._names.targets().values() if missing else ():
            for descriptor in self.reading.manifests(target):
                with contextlib.suppress(DrayError):
                    found = self.reading.found(descriptor)
                    if missing & set(found.chain):
                        self.snapshots.unpack(self.reading.layer_sources(found))
        self.collect()

    # --- removal

    def delete(
        self, word: str, *, force: bool = False, prune: bool = True, collect: bool = True, in_use: Users
    ) -> list[dict[str, str]]:
        """Remove a name or an image; return the Engine API's list of `Untagged` and `Deleted`.

        prune: dangling images that it stood on go, too; collect: free their space now (the caller does it otherwise)
        in_use: `in_use(id)` tells the containers of an image

        Conflict in Docker's words where something stands in the way.
        """
        target, name = self._names.find(word)
        try:
            image = self._image(target, None)
        except DrayError:
            image = self._broken(target)
        names = self._names.of(target.digest)
        users = list(in_use(image.id))
        plan = deletion.plan(
            image.id, name, names, users, force=force, repository=name is not None and "@" in word
        )
        if isinstance(plan, Conflict):
            raise plan
        lines = self._take(image, plan)
        if plan.whole and prune:
            lines += self._prune_parents(image, in_use)
        if plan.whole and collect:
            self.collect()
        self._records.sync()
        return lines

    def _take(self, image: Image, plan: deletion.Plan) -> list[dict[str, str]]:
        """Carry out a plan; tell what happened."""
        self._names.remove(plan.names, keep_image=not plan.whole)
        lines = []
        for gone in plan.names:
            if not gone.startswith(DANGLING):
                shown = reference.parse(gone).familiar
                lines.append({"Untagged": shown})
                self.notify("untag", image)
        if plan.whole:
            lines.append({"Deleted": image.id})
            self.notify("delete", image)
        return lines

    def _prune_parents(self, image: Image, in_use: Users) -> list[dict[str, str]]:
        lines = []
        for parent in self.parents(image):
            if not parent.dangling or self.children(parent) or in_use(parent.id):
                break
            plan = deletion.Plan(tuple(self._names.of(parent.id)), whole=True)
            lines += self._take(parent, plan)
        return lines

    def add_roots(self, roots: Callable[[], set[str]]) -> None:
        """Let somebody else (a build cache) name digests that must stay."""
        self._roots.append(roots)

    @contextlib.contextmanager
    def hold(self, *, named: bool = False) -> Iterator[Lease]:
        """Keep everything that is written inside from being collected; yields the lease for the blobs.

        named: only those layers are kept that are given to `keep_layers`, before they are unpacked
        """
        with self._holding:
            self._holds += not named
        with self.content.lease() as lease:
            try:
                yield lease
            finally:
                with self._holding:
                    self._holds -= not named
                    self._kept.pop(lease, None)

    def keep_layers(self, lease: Lease, chain_ids: Sequence[str]) -> None:
        """Keep these layers, unpacked or not yet, until the hold that gave `lease` ends."""
        with self._holding:
            self._kept[lease] = self._kept.get(lease, frozenset()) | frozenset(chain_ids)

    def collect(self, *, dropped: Set[str] = frozenset()) -> int:
        """Remove blobs and layers that nothing refers to; return the bytes freed.

        Layers stay while a hold is open: they have no name yet. The next collection takes them. What broken-off
        transfers have left goes when its time is over. `dropped`: manifests that are no longer wanted, though the
        indexes of images name them.
        """
        self.content.expire()
        _, freed = self.content.collect(lambda: self._live(dropped))
        self.reading.forget()
        self.sources.forget(self._names.targets().keys())
        self._bring_back()
        with self._holding:
            if self._holds == 0:
                wanted = self._wanted_layers()
                needed = {key for head in self._orphans(wanted) for key in self._chain_of(head.chain_id)}
                freed += collection.collect_layers(self.snapshots, wanted | needed)
        self.forget_sizes()
        return freed

    def _wanted_layers(self) -> set[str]:
        wanted = {key for target in self._names.targets().values() for key in self.chains(target)}
        return wanted.union(*self._kept.values())

    def _bring_back(self) -> None:
        """Make the blobs again that are made from layers about to go: another image has them on other layers."""
        if not self.content.recipes.heads():
            return
        with self._holding:
            orphans = self._orphans(self._wanted_layers()) if self._holds == 0 else []
        for head in orphans:
            with contextlib.suppress(DrayError):  # its layer stays, then
                self.content.restore(head.digest)

    def _orphans(self, wanted: Set[str]) -> list[Head]:
        """Return the recipes whose layers nothing else wants."""
        recipes = self.content.recipes
        return [
            head
            for head in recipes.heads()
            if head.chain_id not in wanted
            and self.snapshots.exists(head.chain_id)
            and head.directory == recipes.relative(self.snapshots.upper(head.chain_id))
        ]

    def _chain_of(self, chain_id: str) -> Iterator[str]:
        """Yield a layer and all below it."""
        parents = {info.key: info.parent for info in self.snapshots.list()}
        above: str | None = chain_id
        while above is not None:
            yield above
            above = parents.get(above)

    def _live(self, dropped: Set[str]) -> set[str]:
        live: set[str] = set()
        for target in self._names.targets().values():
            live.update(blob.digest for blob in self.reading.blobs(target, dropped=dropped))
        for roots in self._roots:
            live |= roots()
        return live

    def list(self) -> list[Image]:
        """Return all images, newest first."""
        images = []
        for target in self._names.targets().values():
            try:
                images.append(self._image(target, None))
            except DrayError:
                images.append(self._broken(target))
        return sorted(images, key=lambda image: (image.created, image.id), reverse=True)
