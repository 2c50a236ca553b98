"""Images coming and going: pull, import, push, load, save, search."""

from __future__ import annotations

from dray.api import filters
from dray.api.requests import ImportOptions
from dray.base.errors import InvalidParameter
from dray.server import replies
from dray.server.backends import Backends, Transfer
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()


def _part(backends: Backends) -> Transfer:
    return need(backends.transfer, "image transfer")


@routes.post("/images/create")
async def create(backends: Backends, call: Call) -> StreamResponse:
    """Pull an image, or import one when no image is named."""
    image = call.text("fromImage").removesuffix(":")
    platform = call.text("platform") if call.version >= (1, 32) else ""
    if image:
        messages = _part(backends).pull(
            image, call.text("tag"), platform=platform, auth=call.auth(), meta=call.meta()
        )
        return await replies.progress(call, messages)
    options = ImportOptions(
        source=call.text("fromSrc"),
        repo=call.text("repo"),
        tag=call.text("tag"),
        message=call.text("message"),
        changes=call.many("changes"),
        platform=platform,
    )
    if not options.source:
        raise InvalidParameter("neither fromImage nor fromSrc is given")
    return await replies.progress(call, _part(backends).import_(options, call.upload()))


@routes.post("/images/{name:.*}/push")
async def push(backends: Backends, call: Call) -> StreamResponse:
    """Push an image. Clients before 1.22 send their credentials in the body; the header is what counts."""
    platform = call.text("platform") if call.version >= (1, 46) else ""
    messages = _part(backends).push(
        call.params["name"], call.text("tag"), platform=platform, auth=call.auth(), meta=call.meta()
    )
    return await replies.progress(call, messages)


@routes.post("/images/load")
async def load(backends: Backends, call: Call) -> StreamResponse:
    """Load images from an archive."""
    platforms = call.many("platform") if call.version >= (1, 48) else ()
    messages = _part(backends).load(call.upload(), quiet=call.flag("quiet", default=True), platforms=platforms)
    return await replies.progress(call, messages)


@routes.get("/images/get")
async def save_all(backends: Backends, call: Call) -> StreamResponse:
    """Send several images as one archive."""
    names = call.many("names")
    if not names:
        raise InvalidParameter("no image names specified")
    return await _save(backends, call, names)


@routes.get("/images/{name:.*}/get")
async def save(backends: Backends, call: Call) -> StreamResponse:
    """Send one image as an archive."""
    return await _save(backends, call, (call.params["name"],))


async def _save(backends: Backends, call: Call, names: tuple[str, ...]) -> StreamResponse:
    platforms = call.many("platform") if call.version >= (1, 48) else ()
    content = await _part(backends).save(names, platforms=platforms)
    return await replies.download(call, content, "application/x-tar")


@routes.get("/images/search")
async def search(backends: Backends, call: Call) -> StreamResponse:
    """Search a registry."""
    limit = call.integer("limit")
    if limit and not 1 <= limit <= 100:
        raise InvalidParameter(f"limit {limit} is outside the range of [1, 100]")
    found = await _part(backends).search(
        call.text("term"), limit=limit, filters=call.filters(filters.IMAGES_SEARCH), auth=call.auth()
    )
    return replies.json(found)
