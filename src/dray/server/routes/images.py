"""Images present on the host."""

from __future__ import annotations

from dray.api import filters, models, shapes
from dray.api.requests import CommitOptions
from dray.base.errors import InvalidParameter
from dray.server import replies
from dray.server.backends import Backends, Images
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()


def _part(backends: Backends) -> Images:
    return need(backends.images, "image management")


@routes.get("/images/json")
async def list_images(backends: Backends, call: Call) -> StreamResponse:
    """List images. `filter` is the reference filter of clients before 1.28; `digests` is always obeyed."""
    wanted = call.filters(filters.IMAGES)
    if call.version < (1, 28) and call.text("filter"):
        wanted.setdefault("reference", []).append(call.text("filter"))
    found = await _part(backends).list_images(
        all=call.flag("all"),
        filters=wanted,
        shared_size=call.version >= (1, 42) and call.flag("shared-size"),
        manifests=call.version >= (1, 47) and call.flag("manifests"),
        identity=call.flag("identity"),
    )
    return replies.json(shapes.image_summaries(found, call.version))


@routes.get("/images/{name:.*}/json")
async def inspect(backends: Backends, call: Call) -> StreamResponse:
    """Inspect an image."""
    manifests = call.version >= (1, 48) and call.flag("manifests")
    platform = call.text("platform") if call.version >= (1, 49) else ""
    if manifests and platform:
        raise InvalidParameter("conflicting options: manifests and platform options cannot both be set")
    found = await _part(backends).inspect(call.params["name"], manifests=manifests, platform=platform)
    return replies.json(shapes.image(found, call.version))


@routes.get("/images/{name:.*}/history")
async def history(backends: Backends, call: Call) -> StreamResponse:
    """List the steps that made an image."""
    return replies.json(await _part(backends).history(call.params["name"], platform=call.text("platform")))


@routes.get("/images/{name:.*}/attestations", since=(1, 55))
async def attestations(backends: Backends, call: Call) -> StreamResponse:
    """List an image's attestations."""
    found = await _part(backends).attestations(
        call.params["name"],
        platforms=call.many("platform"),
        types=call.many("type"),
        statement=call.flag("statement"),
    )
    return replies.json(found)


@routes.post("/images/{name:.*}/tag")
async def tag(backends: Backends, call: Call) -> StreamResponse:
    """Give an image one more name."""
    await _part(backends).tag(call.params["name"], call.text("repo"), call.text("tag"))
    return replies.empty(201)


@routes.delete("/images/{name:.*}")
async def remove(backends: Backends, call: Call) -> StreamResponse:
    """Remove an image or one of its names."""
    if not call.params["name"].strip():
        raise InvalidParameter("image name cannot be blank")
    removed = await _part(backends).remove(
        call.params["name"],
        force=call.flag("force"),
        no_prune=call.flag("noprune"),
        platforms=call.many("platforms"),
    )
    return replies.json(removed)


@routes.post("/images/prune", since=(1, 25))
async def prune(backends: Backends, call: Call) -> StreamResponse:
    """Remove unused images."""
    return replies.json(await _part(backends).prune(call.filters(filters.IMAGES_PRUNE)))


@routes.post("/commit")
async def commit(backends: Backends, call: Call) -> StreamResponse:
    """Make an image of a container."""
    config, unknown = await call.json(models.ContainerConfig)
    call.ignore(unknown)
    options = CommitOptions(
        container=call.text("container"),
        repo=call.text("repo"),
        tag=call.text("tag"),
        comment=call.text("comment"),
        author=call.text("author"),
        pause=call.flag("pause", default=True),
        changes=call.many("changes"),
    )
    if not options.container:
        raise InvalidParameter("missing required parameter: container")
    given = config if call.request.content_length else None
    return replies.json(await _part(backends).commit(options, given), 201)
