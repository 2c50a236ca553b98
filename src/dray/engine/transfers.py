"""The `Transfer` backend of the server: images coming and going.

Load and import read the request's body from a pipe in a worker thread, and their progress comes back through the
loop as a stream of messages; a client that goes away breaks the pipe and thereby ends the thread.

Pull and push each run in a thread of their own, not in the loop's pool: they may last for hours, and the pool is what
everything else in the daemon waits for. A client that goes away cancels them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, cast

from dray.api import models as api
from dray.api.filters import Filters
from dray.api.requests import Download, ImportOptions, Progress, ProgressStream, Upload
from dray.base import reference
from dray.base.errors import Forbidden, InvalidParameter, Unauthorized
from dray.engine import fetch, remote
from dray.engine.bodies import read_body, stream_of
from dray.engine.images import parse_platform
from dray.engine.remote import credentials
from dray.registry.model import Registries
from dray.store import transfer
from dray.store.content import STALE
from dray.store.images import Images
from dray.store.transfer import Cancellation, Downloads, Puller, Pusher, Uploads
from dray.store.transfer.progress import silent

Report = Callable[[Mapping[str, Any]], None]


class Transfers:
    """Pull, push, import, load, save, search."""

    def __init__(
        self,
        images: Images,
        registries: Registries,
        *,
        downloads: int = 3,
        uploads: int = 5,
        download_attempts: int = 5,
    ) -> None:
        self._images = images
        self._registries = registries
        self._downloads = Downloads(images.content, concurrency=downloads, attempts=download_attempts)
        self._uploads = Uploads(uploads)
        self._expiry: asyncio.TimerHandle | None = None

    def set_limits(self, *, downloads: int, uploads: int, download_attempts: int) -> None:
        """Use other limits from now on; pushes that go on keep theirs."""
        self._downloads.set_limits(concurrency=downloads, attempts=download_attempts)
        if uploads != self._uploads.concurrency:
            self._uploads = Uploads(uploads)

    async def pull(
        self, image: str, tag: str, *, platform: str, auth: api.AuthConfig | None, meta: Mapping[str, str]
    ) -> ProgressStream:
        """Pull one tag or digest, or all tags (see `store.transfer.pull`)."""
        name = reference.parse(image)
        if tag:
            name = _with(name, tag)
        wanted = parse_platform(platform)

        def work(report: Report, cancel: Cancellation) -> None:
            with contextlib.closing(self._registries.repository(name, credentials(auth))) as repository:
                cancel.breaks(repository.close)
                puller = Puller(self._images, self._downloads, repository, report, cancel, platform=wanted)
                every = not (name.tag or name.digest)
                transfer.pull(puller, repository, name, all_tags=every, report=report, images=self._images)

        try:
            async for message in _cancellable(work):
                yield message
        finally:
            # What a broken-off pull has left is collected when its time is over, whatever happens till then.
            if self._expiry is not None:
                self._expiry.cancel()
            self._expiry = asyncio.get_running_loop().call_later(STALE + 60, self._expire)

    def _expire(self) -> None:
        threading.Thread(target=self._images.collect, name="expire", daemon=True).start()

    async def push(
        self, name: str, tag: str, *, platform: str, auth: api.AuthConfig | None, meta: Mapping[str, str]
    ) -> ProgressStream:
        """Push one tag, or all (see `store.transfer.push`)."""
        parsed = reference.parse(name)
        if tag:
            parsed = parsed.with_tag(tag)
        if parsed.digest is not None:
            raise InvalidParameter("cannot push a digest reference")
        wanted = parse_platform(platform)

        def work(report: Report, cancel: Cancellation) -> None:
            opened = self._registries.repository(parsed, credentials(auth), push=True)
            with contextlib.closing(opened) as repository:
                cancel.breaks(repository.close)
                pusher = Pusher(self._images, self._uploads, repository, report, cancel, platform=wanted)
                transfer.push(pusher, self._images, parsed, all_tags=parsed.tag is None, report=report)

        async for message in _cancellable(work):
            yield message

    async def import_(self, options: ImportOptions, content: Upload) -> ProgressStream:
        """Make an image of a root file system's tar stream."""
        target = None
        if options.repo:
            parsed = reference.parse(options.repo)
            if parsed.digest is not None:
                raise InvalidParameter("cannot import digest reference")
            target = (parsed.with_tag(options.tag) if options.tag else parsed.tagged()).canonical
        platform = parse_platform(options.platform)
        remote_file = None if options.source == "-" else fetch.clean_url(options.source)

        def work(stream: BinaryIO, report: Report) -> None:
            image = transfer.import_image(
                self._images,
                stream,
                reference=target,
                message=options.message,
                source=fetch.shown(remote_file) if remote_file else "-",
                changes=options.changes,
                platform=platform,
                progress=report if remote_file else silent,  # clients take the first message for the id
            )
            report({"status": image.id})

        def download(report: Report, cancel: Cancellation) -> None:
            assert remote_file is not None
            with fetch.open_url(remote_file, self._registries.proxies) as stream:
                cancel.breaks(stream.shutdown)
                report({"status": f"Downloading from {fetch.shown(remote_file)}"})
                work(cast("BinaryIO", stream), report)

        messages = _in_thread(work, content) if remote_file is None else _cancellable(download)
        async for message in messages:
            yield message

    async def load(self, content: Upload, *, quiet: bool, platforms: tuple[str, ...]) -> ProgressStream:
        """Load images from a docker archive or an OCI layout."""
        wanted = [platform for text in platforms if (platform := parse_platform(text)) is not None]

        def work(stream: BinaryIO, report: Report) -> None:
            transfer.load(self._images, stream, progress=report, platforms=wanted, quiet=quiet)

        async for message in _in_thread(work, content):
            yield message

    async def save(self, names: tuple[str, ...], *, platforms: tuple[str, ...]) -> Download:
        """Return images as one archive."""
        wanted = [platform for text in platforms if (platform := parse_platform(text)) is not None]
        chunks = await asyncio.to_thread(transfer.save, self._images, names, platforms=wanted)
        return stream_of(iter(chunks))

    async def search(
        self, term: str, *, limit: int, filters: Filters, auth: api.AuthConfig | None
    ) -> list[api.ImageSearchResult]:
        """Search a registry; filters are ours, registries know none."""
        return await remote.search(self._registries, term, limit=limit, filters=filters, auth=credentials(auth))

    async def distribution(self, name: str, *, auth: api.AuthConfig | None) -> api.DistributionInspect:
        """Ask a registry for an image's descriptor and platforms."""
        return await remote.distribution(self._registries, name, credentials(auth))


def _with(name: reference.Reference, tag: str) -> reference.Reference:
    """Return a name with what the request's `tag` says: a tag or a digest."""
    if ":" in tag:
        return reference.parse(f"{name.name}@{tag}")
    return name.with_tag(tag)


async def _cancellable(work: Callable[[Report, Cancellation], None]) -> ProgressStream:
    """Run `work` in a thread of its own; yield what it reports. Its error is raised behind its last report.

    When the client goes, the thread is told, and ends by itself: nobody waits for it.
    """
    loop = asyncio.get_running_loop()
    reports: asyncio.Queue[Mapping[str, Any] | BaseException | None] = asyncio.Queue()
    cancel = Cancellation()

    def report(message: Mapping[str, Any] | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the daemon is stopping, the loop is closed
            loop.call_soon_threadsafe(reports.put_nowait, message)

    def run() -> None:
        try:
            work(report, cancel)
        except BaseException as error:
            report(error)
        else:
            report(None)

    threading.Thread(target=run, name="transfer", daemon=True).start()
    try:
        while (message := await reports.get()) is not None:
            if isinstance(message, Unauthorized):
                # A 401 of the daemon's own would have clients ask for a login, and wait at a terminal for ever.
                raise Forbidden(message.message) from message
            if isinstance(message, BaseException):
                raise message
            yield _progress(message)
    finally:
        cancel.cancel()


async def _in_thread(work: Callable[[BinaryIO, Report], None], content: Upload) -> ProgressStream:
    """Run `work` on the body in a thread; yield what it reports. Its error is raised behind its last report."""
    loop = asyncio.get_running_loop()
    reports: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()

    def report(message: Mapping[str, Any]) -> None:
        loop.call_soon_threadsafe(reports.put_nowait, message)

    def run(stream: BinaryIO) -> None:
        try:
            work(stream, report)
        finally:
            loop.call_soon_threadsafe(reports.put_nowait, None)

    job = asyncio.ensure_future(read_body(content, run))
    try:
        while (message := await reports.get()) is not None:
            yield _progress(message)
    finally:
        await job


def _progress(message: Mapping[str, Any]) -> Progress:
    return Progress(
        stream=message.get("stream", ""),
        status=message.get("status", ""),
        progress_detail=message.get("progressDetail"),
        progress=message.get("progress", ""),
        id=message.get("id", ""),
        aux=message.get("aux"),
    )
