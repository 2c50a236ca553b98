"""`docker push`: an image to a registry.

    what to send ──▶ layers and configs, side by side ──▶ manifests ──▶ the index, under the tag, last

Everything goes as it is stored: bytes and media types are never rewritten, so the digest is the same on both sides.
A blob that the registry has is passed over; one that another repository of the same registry may have is asked to be
mounted from there. Which repositories: those whose names this engine's images bear at that registry and which hold
the blob, so there is nothing to remember and nothing to clean up.

Of an index whose platforms are not all here: it goes as a whole if the registry has what is missing. Otherwise the
one platform that is here goes alone and the client is told (moby `daemon/containerd/image_push.go`); with several, the
user must say which.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import msgspec
from msgspec import Struct, field

from dray.base import reference
from dray.base.errors import DrayError, Forbidden, InvalidParameter, NotFound, Unauthorized, Unavailable
from dray.base.reference import Reference
from dray.oci.image import Descriptor, Manifest
from dray.oci.platform import Platform
from dray.registry.model import Repository, Upload
from dray.store.images.model import DANGLING, Image
from dray.store.images.reading import Found
from dray.store.images.service import Images
from dray.store.recipes.book import Tell
from dray.store.transfer.cancel import Cancellation
from dray.store.transfer.progress import LayerBars, Report

_CHUNK = 8 << 20  # bytes of one request; what a broken connection costs at most
_ATTEMPTS = 5
_DELAYS = (0.1, 1.0, 2.0, 4.0)


class Uploads:
    """How many blobs may be on their way out at a time, over all pushes (`max-concurrent-uploads`)."""

    def __init__(self, concurrency: int = 5) -> None:
        self.concurrency = concurrency
        self.slots = threading.BoundedSemaphore(concurrency)


class _Plan(Struct):
    """What to send: `root` is what the tag will stand for; `manifests` in the order they go, `root` last."""

    root: Descriptor
    manifests: list[Descriptor] = field(default_factory=list)
    blobs: dict[str, Descriptor] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)


class Pusher:
    """One push to one repository. Blocking, for a thread of its own; `cancel` ends it with Cancelled."""

    def __init__(
        self,
        images: Images,
        uploads: Uploads,
        repository: Repository,
        report: Report,
        cancel: Cancellation,
        *,
        platform: Platform | None = None,
    ) -> None:
        self._images = images
        self._uploads = uploads
        self._repository = repository
        self._report = report
        self._cancel = cancel
        self._platform = platform
        self._bars = LayerBars(report)

    def push(self, name: Reference) -> None:
        """Push one tag.

        NotFound if the image or its platform is not here; the registry's errors come as they are.
        """
        image = self._images.resolve(name.canonical)
        with self._images.hold(named=True) as lease:
            root = self._root(image, name)
            plan = self._plan(root)
            for digest in [*plan.blobs, *(item.digest for item in plan.manifests)]:
                lease.add(digest)
            self._send(plan, name)
            assert name.tag is not None
            for item in plan.manifests:
                self._cancel.check()
                tag = name.tag if item.digest == root.digest else item.digest
                self._put(tag, item)
            if root.digest == image.target.digest:
                self._images.sources.add(root.digest, name.name)
        if root.digest != image.target.digest and self._platform is None:
            self._aux(
                {
                    "manifestPushedInsteadOfIndex": True,
                    "originalIndex": msgspec.to_builtins(image.target),
                    "selectedManifest": msgspec.to_builtins(root),
                }
            )
        self._report({"status": f"{name.tag}: digest: {root.digest} size: {root.size}"})
        self._aux({"Tag": name.tag, "Digest": root.digest, "Size": root.size})
        self._images.on_event("push", name.familiar, {**image.labels, "name": name.familiar_name})

    def _aux(self, aux: dict[str, Any]) -> None:
        self._report({"progressDetail": {}, "aux": aux})

    # --- what

    def _root(self, image: Image, name: Reference) -> Descriptor:
        """Return what is to be pushed: the image's target, or one manifest of it."""
        if self._platform is not None:
            try:
                found = self._images.choose(image.target, self._platform)
            except NotFound:
                raise NotFound(
                    f"image with reference {name.familiar} was found but does not provide the specified platform "
                    f"({self._platform})"
                ) from None
            self._whole(found, name)
            return found.descriptor
        lacking = [item for item in self._images.blobs(image.target) if not self._images.content.has(item.digest)]
        if not lacking or self._registry_has(image.target, lacking):
            return image.target
        whole = [one for one in self._images.founds(image.target) if self._images.complete(one.descriptor)]
        if len(whole) == 1:
            return whole[0].descriptor
        if whole:
            shown = ", ".join(str(found.platform) for found in whole)
            raise InvalidParameter(
                f"not all platforms of {name.familiar} are here, and several are ({shown}): choose one with "
                "--platform, or pull the others first"
            )
        self._aux({"contentMissing": True, "desc": msgspec.to_builtins(image.target)})
        raise NotFound(f"content of {name.familiar} is missing here ({lacking[0].digest}): pull it again")

    def _whole(self, found: Found, name: Reference) -> None:
        if not self._images.complete(found.descriptor):
            raise NotFound(f"content of {name.familiar} for {found.platform} is missing here: pull it again")

    def _registry_has(self, target: Descriptor, lacking: Sequence[Descriptor]) -> bool:
        """Tell whether the registry has all manifests of an index that are not here; of those that are here
        everything else must be here too."""
        if not self._images.complete(target):
            return False
        try:
            for item in lacking:
                self._repository.resolve(item.digest)
        except NotFound:
            return False
        return True

    def _plan(self, root: Descriptor) -> _Plan:
        plan = _Plan(root)
        for item in self._walk(root):
            plan.manifests.append(item)
            document = self._images.reading.document(item)
            if isinstance(document, Manifest):
                for layer in document.layers or ():
                    plan.blobs[layer.digest] = layer
                    plan.layers.add(layer.digest)
                plan.blobs[document.config.digest] = document.config
        return plan

    def _walk(self, item: Descriptor) -> Iterator[Descriptor]:
        """Yield what is here of a tree of manifests, children first."""
        if not self._images.content.has(item.digest):
            return
        document = self._images.reading.document(item)
        if not isinstance(document, Manifest):
            for child in document.manifests or ():
                yield from self._walk(child)
        yield item

    # --- blobs

    def _send(self, plan: _Plan, name: Reference) -> None:
        """Bring every blob of the plan to the registry."""
        for digest in plan.layers:
            self._bars.say(digest, "Preparing")
        sources = self._sources(name, plan.blobs)
        for digest in plan.layers:
            self._bars.say(digest, "Waiting")
        workers = max(1, min(self._uploads.concurrency, len(plan.blobs)))
        with ThreadPoolExecutor(workers, "upload") as pool:
            jobs = [
                pool.submit(self._blob, blob, sources.get(blob.digest, ()), digest in plan.layers)
                for digest, blob in plan.blobs.items()
            ]
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            failed = next((job for job in done if job.exception() is not None), None)
            if failed is not None:
                self._cancel.cancel()
                pool.shutdown(wait=True, cancel_futures=True)
                failed.result()

    def _sources(self, name: Reference, blobs: Iterable[str]) -> dict[str, list[str]]:
        """Return for each blob the other repositories at the same registry that may have it, by this engine's images."""
        wanted, found = set(blobs), dict[str, list[str]]()
        for image in self._images.list():
            paths = {
                parsed.path
                for text in (*image.tags, *image.digests)
                if not text.startswith(DANGLING) and (parsed := reference.parse(text)).domain == name.domain
            } - {name.path}
            if paths:
                for blob in self._images.blobs(image.target):
                    if blob.digest in wanted:
                        found.setdefault(blob.digest, []).extend(sorted(paths))
        return found

    def _blob(self, blob: Descriptor, sources: Sequence[str], shown: bool) -> None:
        with self._uploads.slots:
            self._cancel.check()
            outcome = self._bring(blob, sources, shown)
        if shown:
            self._bars.say(blob.digest, outcome)

    def _bring(self, blob: Descriptor, sources: Sequence[str], shown: bool) -> str:
        """Have the registry get one blob; return how it did, in Docker's words."""
        for attempt in range(_ATTEMPTS):
            try:
                if self._repository.has_blob(blob.digest):
                    return "Layer already exists"
                upload, source = self._open(blob, sources if attempt == 0 else ())
                if upload is None:
                    return f"Mounted from {source}"
                self._upload(upload, blob, shown)
                return "Pushed"
            except Unavailable:
                if attempt == _ATTEMPTS - 1:
                    raise
                self._cancel.sleep(_DELAYS[attempt])
        raise AssertionError("unreachable")

    def _open(self, blob: Descriptor, sources: Sequence[str]) -> tuple[Upload | None, str]:
        """Begin an upload, or have the blob mounted: (None, from where)."""
        for source in dict.fromkeys(sources):
            try:
                upload = self._repository.upload(blob.digest, mount_from=source)
            except (NotFound, Unauthorized, Forbidden, InvalidParameter):
                continue  # not ours to read, or not there: it is only a short cut
            return upload, source
        return self._repository.upload(blob.digest), ""

    def _upload(self, upload: Upload, blob: Descriptor, shown: bool) -> None:
        """Send a blob in chunks; a chunk that broke off goes again from where the registry stands."""
        buffer = memoryview(bytearray(min(_CHUNK, max(blob.size, 1))))
        broken = 0
        try:
            with self._images.content.open(blob.digest, self._rebuilding(blob)) as file:
                while upload.offset < blob.size:
                    self._cancel.check()
                    before = upload.offset
                    file.seek(before)
                    count = file.readinto(buffer)  # type: ignore[attr-defined]
                    if not count:
                        raise InvalidParameter(f"content {blob.digest} is shorter than its descriptor says")
                    try:
                        upload.send(buffer[:count])
                    except Unavailable:
                        broken += 1
                        if broken >= _ATTEMPTS:
                            raise
                        self._cancel.sleep(_DELAYS[broken - 1])
                        upload.resume()
                    else:
                        broken = 0
                    if shown:
                        self._bars.count(blob.digest, "Pushing", upload.offset, blob.size)
            upload.commit(blob.digest)
        except BaseException:
            upload.cancel()
            raise

    def _rebuilding(self, blob: Descriptor) -> Tell:
        """Return what shows the client that a blob is made again from its layer first."""

        def tell(done: int, total: int) -> None:
            self._cancel.check()
            self._bars.count(blob.digest, "Rebuilding", done, total)

        return tell

    # --- manifests

    def _put(self, tag: str, item: Descriptor) -> None:
        data = self._images.content.read(item.digest)
        document = self._images.reading.document(item)
        media_type = item.media_type or document.media_type
        if not media_type:
            raise InvalidParameter(f"manifest {item.digest} does not say what it is")
        for attempt in range(_ATTEMPTS):
            try:
                stored = self._repository.put_manifest(tag, media_type, data)
            except Unavailable:
                if attempt == _ATTEMPTS - 1:
                    raise
                self._cancel.sleep(_DELAYS[attempt])
            else:
                break
        if stored and stored != item.digest:
            raise DrayError(f"the registry has stored {item.digest} as {stored}")


def push(pusher: Pusher, images: Images, name: Reference, *, all_tags: bool, report: Report) -> None:
    """Push one tag, or every tag that this engine has in the repository."""
    names = [name]
    if all_tags:
        tags = (reference.parse(tag) for image in images.list() for tag in image.tags)
        names = sorted((tag for tag in tags if tag.name == name.name), key=lambda tag: tag.tag or "")
        if not names:
            raise NotFound(f"An image does not exist locally with the tag: {name.familiar_name}")
    elif images.target_of(name.canonical) is None:
        raise NotFound(f"An image does not exist locally with the tag: {name.familiar_name}")
    report({"status": f"The push refers to repository [{name.name}]"})
    for one in names:
        pusher.push(one)
