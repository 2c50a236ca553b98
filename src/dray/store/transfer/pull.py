"""`docker pull`: an image from a registry.

    manifest (of the tag, once) ── index? choose the platform's ──▶ config ──▶ layers, side by side
                                                                                 │ each as soon as those below it
                                                                                 ▼ are here
                                                                               unpacked ──▶ all on disk ──▶ named

The image's target is what the tag stands for: of an index only the chosen platform's content is fetched, the index
itself is kept, so that the id is the one that everybody sees. Nothing is named before everything is on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

from msgspec import Struct

from dray.base.errors import InvalidParameter, NotFound, Unavailable
from dray.base.reference import Reference
from dray.oci import platform as platforms
from dray.oci.image import (
    CONFIG_TYPES,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    INDEX_TYPES,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    Index,
    Manifest,
    parse_document,
)
from dray.oci.platform import Platform
from dray.registry.model import Repository, Unreachable
from dray.store.content import Lease
from dray.store.images.model import Image
from dray.store.images.reading import Found, is_attestation
from dray.store.images.service import Images
from dray.store.transfer.cancel import Cancellation
from dray.store.transfer.downloads import Downloads
from dray.store.transfer.progress import LayerBars, Report
from dray.store.transfer.tickets import Ticket

LAYER_TYPES = frozenset(
    {
        DOCKER_LAYER,
        DOCKER_LAYER_GZIP,
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        OCI_LAYER,
        OCI_LAYER_GZIP,
        OCI_LAYER_ZSTD,
        # Not to be distributed: a registry may have them all the same, or they lie at their descriptors' `urls`.
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    }
)
_CONFIG_LIMIT = 8 << 20
_NESTING = 4
_TRIES = (0.2, 1.0, 2.0)  # seconds between attempts at a manifest or config
_UNKNOWN = 10_000  # rank of a manifest whose index does not say what it runs on

T = TypeVar("T")


class Pulled(Struct, frozen=True):
    """What a pull has brought: the image, and whether anything of it is new here."""

    image: Image
    fresh: bool


class Puller:
    """One pull of one repository. Blocking, for a thread of its own; `cancel` ends it with Cancelled."""

    def __init__(
        self,
        images: Images,
        downloads: Downloads,
        repository: Repository,
        report: Report,
        cancel: Cancellation,
        *,
        platform: Platform | None = None,
    ) -> None:
        self._images = images
        self._downloads = downloads
        self._repository = repository
        self._report = report
        self._cancel = cancel
        self._asked = platform
        self._wanted = platform or platforms.host()

    def pull(self, name: Reference) -> Pulled:
        """Pull one tag or digest.

        Before the first message: NotFound and its like if the registry does not give the manifest. Later:
        InvalidParameter for what is no image or not what its digest says, NotFound for a missing platform,
        Unavailable for a registry that breaks off for good or a full disk. Nothing is listed then.
        """
        asked = name.digest or name.tag or "latest"
        stored = Reference(name.domain, name.path, None if name.digest else asked, name.digest)
        with self._images.hold(named=True) as lease:
            target, data = self._retried(lambda: self._head(stored, asked))
            document = parse_document(data, target.media_type)
            self._report({"status": f"Pulling from {name.path}", "id": asked})
            before = self._images.target_of(stored.canonical)
            self._images.content.put(data, lease=lease, expected=target.digest)
            chosen = self._choose(target, document, lease)
            found = self._found(chosen, lease, name)
            fetched = self._layers(found, lease)
            self._cancel.check()
            image = self._images.put([stored.canonical], target)
            self._images.sources.add(target.digest, name.name)
            self._images.content.forget_bookmarks(layer.digest for layer in found.manifest.layers or ())
        self._report({"status": f"Digest: {target.digest}"})
        return Pulled(image, fetched or before is None or before.digest != target.digest)

    def _retried(self, verb: Callable[[], T]) -> T:
        """Call `verb`, again if the registry broke off."""
        for delay in _TRIES:
            self._cancel.check()
            try:
                return verb()
            except Unreachable:
                raise
            except Unavailable:
                self._cancel.sleep(delay)
        return verb()

    # --- manifests

    def _head(self, stored: Reference, asked: str) -> tuple[Descriptor, bytes]:
        """Return what the tag stands for. What is here already is not fetched again (and is no pull that a registry
        would count)."""
        content = self._images.content
        if self._images.target_of(stored.canonical) is not None:
            target = self._repository.resolve(asked)
            if content.has(target.digest):
                return target, content.read(target.digest)
            asked = target.digest
        return self._repository.manifest(asked)

    def _document(self, descriptor: Descriptor, lease: Lease) -> Manifest | Index:
        """Return a manifest that an index names, fetched if it is not here."""
        content = self._images.content
        if lease.add(descriptor.digest):
            data = content.read(descriptor.digest)
        else:
            _, data = self._retried(lambda: self._repository.manifest(descriptor.digest))
            content.put(data, lease=lease, expected=descriptor.digest)
        return parse_document(data, descriptor.media_type)

    def _choose(self, target: Descriptor, document: Manifest | Index, lease: Lease) -> Descriptor:
        """Return the manifest for the wanted platform; its content is here then."""
        if isinstance(document, Manifest):
            return target
        candidates = sorted(self._candidates(document, lease, 0), key=lambda item: item[0])
        if not candidates:
            raise self._no_match()
        chosen = candidates[0][1]
        if isinstance(self._document(chosen, lease), Index):
            raise InvalidParameter(f"{chosen.digest} is an index, and its descriptor says it is a manifest")
        return chosen

    def _candidates(self, index: Index, lease: Lease, depth: int) -> list[tuple[int, Descriptor]]:
        """Return (rank, descriptor) of an index' manifests that will do, in the index' order."""
        if depth > _NESTING:
            raise InvalidParameter("the image index is nested too deeply")
        found: list[tuple[int, Descriptor]] = []
        for item in index.manifests or ():
            if is_attestation(item):
                continue
            rank = platforms.rank(item.platform, self._wanted) if item.platform else _UNKNOWN
            if rank is None:
                continue
            if item.media_type in INDEX_TYPES:
                nested = self._document(item, lease)
                if isinstance(nested, Index):
                    found += self._candidates(nested, lease, depth + 1)
            else:
                found.append((rank, item))
        return found

    def _no_match(self) -> NotFound:
        return NotFound(f"no matching manifest for {self._wanted} in the manifest list entries")

    def _found(self, chosen: Descriptor, lease: Lease, name: Reference) -> Found:
        """Fetch the config of the chosen manifest, and refuse what is no image or one for another platform."""
        manifest = self._document(chosen, lease)
        assert isinstance(manifest, Manifest)
        kind = manifest.config.media_type
        if kind and kind not in CONFIG_TYPES:
            raise InvalidParameter(
                f"unsupported media type {kind}: {name.familiar} is no container image; fetch it with the tool "
                "that it was made with"
            )
        for layer in manifest.layers or ():
            _check_layer(layer)
        self._config(manifest.config, lease)
        found = self._images.reading.found(chosen)
        if chosen.platform is None and platforms.rank(found.platform, self._wanted) is None and self._asked:
            raise NotFound(
                f"image with reference {name.familiar} was found but does not provide the specified platform "
                f"({self._wanted}): it is for {found.platform}"
            )
        return found

    def _config(self, descriptor: Descriptor, lease: Lease) -> None:
        if descriptor.size > _CONFIG_LIMIT:
            raise InvalidParameter(f"image config {descriptor.digest} is larger than {_CONFIG_LIMIT} bytes")
        if lease.add(descriptor.digest):
            return
        data = self._retried(lambda: _read(self._repository, descriptor))
        digest = descriptor.digest
        if (actual := hashlib.new(digest.partition(":")[0], data).hexdigest()) != digest.partition(":")[2]:
            raise InvalidParameter(f"unexpected digest: content is sha256:{actual}, expected {digest}")
        self._images.content.put(data, lease=lease, expected=digest)

    # --- layers

    def _layers(self, found: Found, lease: Lease) -> bool:
        """Fetch and unpack all layers; tell whether there was anything to do."""
        layers = found.manifest.layers or []
        exists = self._images.snapshots.exists
        self._images.keep_layers(lease, found.chain)
        bars = LayerBars(self._report)
        # Every layer is protected first, then looked for.
        here = {layer.digest for layer in layers if lease.add(layer.digest)}
        new = {layer.digest for layer, chain in zip(layers, found.chain, strict=True) if not exists(chain)}
        waiting = [layer for layer in layers if layer.digest not in here or layer.digest in new]
        if not waiting:
            return False
        for layer in layers:
            bars.say(layer.digest, "Pulling fs layer" if layer in waiting else "Already exists")
        with ExitStack() as stack:
            tickets: dict[str, Ticket] = {}
            for layer in waiting:
                if layer.digest not in tickets:
                    watch = bars.watch(layer.digest)
                    ticket = self._downloads.join(layer, self._repository, lease, watch, self._cancel)
                    tickets[layer.digest] = stack.enter_context(ticket)
            self._unpack(found, layers, tickets, bars)
            for ticket in tickets.values():
                ticket.settle(self._cancel)
        return True

    def _unpack(
        self, found: Found, layers: Sequence[Descriptor], tickets: dict[str, Ticket], bars: LayerBars
    ) -> None:
        """Unpack layers in order as they become complete: always as many at a time as are here without a gap."""
        digests = dict(zip(found.chain, (layer.digest for layer in layers), strict=True))

        def extracting(chain_id: str, current: int, total: int) -> None:
            self._cancel.check()
            bars.count(digests[chain_id], "Extracting", current, total)

        done = 0
        while done < len(layers):
            if (ticket := tickets.get(layers[done].digest)) is not None:
                ticket.wait(self._cancel)
            upto = done + 1
            while upto < len(layers) and ((t := tickets.get(layers[upto].digest)) is None or t.done()):
                upto += 1
            self._cancel.check()
            self._images.unpack_layers(found, upto, extracting)
            for layer in layers[done:upto]:
                if layer.digest in tickets:
                    bars.say(layer.digest, "Pull complete")
            done = upto


def _check_layer(layer: Descriptor) -> None:
    if layer.media_type not in LAYER_TYPES:
        raise InvalidParameter(f"unsupported layer media type {layer.media_type or '(none)'} of {layer.digest}")


def _read(repository: Repository, descriptor: Descriptor) -> bytes:
    """Return a small blob, not yet checked; Unavailable if it broke off."""
    pieces, left = [], descriptor.size
    with repository.blob(descriptor) as stream:
        while left and (data := stream.read(left)):
            pieces.append(data)
            left -= len(data)
    if left:
        raise Unavailable(f"{descriptor.digest} broke off {left} bytes before its end")
    return b"".join(pieces)


def pull(
    puller: Puller, repository: Repository, name: Reference, *, all_tags: bool, report: Report, images: Images
) -> list[Pulled]:
    """Pull one tag or digest, or all tags, and say so at the end in Docker's words."""
    if all_tags:
        names = [name.with_tag(tag) for tag in repository.tags()]
        if not names:
            raise NotFound(f"{name.familiar_name} has no tags")
    else:
        names = [name]
    pulled = []
    for one in names:
        pulled.append(puller.pull(one))
        familiar = one.familiar
        labels = dict(pulled[-1].image.labels)
        images.on_event("pull", familiar, {**labels, "name": one.familiar_name})
    shown = name.familiar_name if all_tags else names[0].familiar
    fresh = any(item.fresh for item in pulled)
    what = "Downloaded newer image for" if fresh else "Image is up to date for"
    report({"status": f"Status: {what} {shown}"})
    images.collect()
    return pulled
