"""The `Transfer` backend of the server: images coming and going.

Load and import read the request's body from a pipe in a worker thread, and their progress comes back through the
loop as a stream of messages; a client that goes away breaks the pipe and thereby ends the thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from dray.api import models as api
from dray.api.filters import Filters
from dray.api.requests import Download, ImportOptions, Progress, ProgressStream, Upload
from dray.base import reference
from dray.base.errors import InvalidParameter, NotFound, Unavailable
from dray.engine.bodies import read_body, stream_of
from dray.engine.images import parse_platform
from dray.store import transfer
from dray.store.images import Images

NO_REGISTRY = "there is no registry client yet: bring images in with `docker load` or `docker import`"

Report = Callable[[Mapping[str, Any]], None]


class Transfers:
    """Pull, push, import, load, save, search."""

    def __init__(self, images: Images) -> None:
        self._images = images

    async def pull(
        self, image: str, tag: str, *, platform: str, auth: api.AuthConfig | None, meta: Mapping[str, str]
    ) -> ProgressStream:
        """Say clearly that there is no registry."""
        raise NotFound(f"cannot pull {image}{':' + tag if tag else ''}: {NO_REGISTRY}")
        yield

    async def push(
        self, name: str, tag: str, *, platform: str, auth: api.AuthConfig | None, meta: Mapping[str, str]
    ) -> ProgressStream:
        """Say clearly that there is no registry."""
        self._images.resolve(name)
        raise Unavailable(f"cannot push {name}: there is no registry client yet; use `docker save`")
        yield

    async def import_(self, options: ImportOptions, content: Upload) -> ProgressStream:
        """Make an image of a root file system's tar stream."""
        if options.source != "-":
            raise InvalidParameter(
                f"cannot import from {options.source}: send the tar itself (`docker import - …`)"
            )
        target = None
        if options.repo:
            parsed = reference.parse(options.repo)
            target = (parsed.with_tag(options.tag) if options.tag else parsed.tagged()).canonical
        platform = parse_platform(options.platform)

        def work(stream: BinaryIO, report: Report) -> None:
            image = transfer.import_image(
                self._images,
                stream,
                reference=target,
                message=options.message,
                changes=options.changes,
                platform=platform,
                progress=report,
            )
            report({"status": image.id})

        async for message in _in_thread(work, content):
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
        """Say clearly that there is no registry."""
        raise Unavailable(f"cannot search for {term}: {NO_REGISTRY}")

    async def distribution(self, name: str, *, auth: api.AuthConfig | None) -> api.DistributionInspect:
        """Say clearly that there is no registry."""
        raise Unavailable(f"cannot ask a registry about {name}: {NO_REGISTRY}")


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
