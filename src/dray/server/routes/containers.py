"""Containers as objects: create, list, inspect, rename, update, remove, prune, top, changes, stats."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from dray.api import adapt, decoding, filters, models, shapes
from dray.api.requests import CreateOptions, RemoveOptions
from dray.base.errors import InvalidParameter
from dray.server import replies
from dray.server.backends import Backends, Containers
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()


class CreateRequest(models.ContainerConfig, kw_only=True, omit_defaults=True):
    """The body of a creation: the configuration with two more parts beside its fields."""

    host_config: models.HostConfig | None = msgspec.field(name="HostConfig", default=None)
    networking_config: models.NetworkingConfig | None = msgspec.field(name="NetworkingConfig", default=None)


def _part(backends: Backends) -> Containers:
    return need(backends.containers, "container management")


@routes.post("/containers/create")
async def create(backends: Backends, call: Call) -> StreamResponse:
    """Create a container."""
    request, unknown = await call.required_json(CreateRequest)
    config = models.ContainerConfig(
        **{name: getattr(request, name) for name in models.ContainerConfig.__struct_fields__}
    )
    if config == models.ContainerConfig():
        raise InvalidParameter("config cannot be empty in order to create a container")
    host_config = request.host_config or models.HostConfig()
    networking_config = request.networking_config or models.NetworkingConfig()
    warnings = adapt.create_request(call.version, config, host_config, networking_config)
    options = CreateOptions(name=call.text("name").removeprefix("/"), platform=call.text("platform"))
    response = await _part(backends).create(options, config, host_config, networking_config)
    response.warnings += warnings + decoding.warnings_for(unknown)
    return replies.json(response, 201)


@routes.get("/containers/json")
async def list_containers(backends: Backends, call: Call) -> StreamResponse:
    """List containers."""
    found = await _part(backends).list_containers(
        all=call.flag("all"),
        limit=max(call.integer("limit"), 0),
        size=call.flag("size"),
        filters=call.filters(filters.CONTAINERS),
    )
    return replies.json(shapes.container_summaries(found, call.version))


@routes.get("/containers/{id:link}/json")
async def inspect(backends: Backends, call: Call) -> StreamResponse:
    """Inspect a container."""
    found = await _part(backends).inspect(call.params["id"], size=call.flag("size"))
    return replies.json(shapes.container(found, call.version))


@routes.post("/containers/{id:link}/rename")
async def rename(backends: Backends, call: Call) -> StreamResponse:
    """Rename a container."""
    name = call.text("name").removeprefix("/")
    if not name:
        raise InvalidParameter("Neither old nor new names may be empty")
    await _part(backends).rename(call.params["id"], name)
    return replies.empty(204)


@routes.post("/containers/{id:link}/update")
async def update(backends: Backends, call: Call) -> StreamResponse:
    """Change a container's resources and restart policy."""
    request, unknown = await call.required_json(models.ContainerUpdateRequest)
    adapt.update_request(call.version, request)
    response = await _part(backends).update(call.params["id"], request)
    if unknown:
        response.warnings = [*(response.warnings or ()), *decoding.warnings_for(unknown)]
    return replies.json(response)


@routes.delete("/containers/{id:link}")
async def remove(backends: Backends, call: Call) -> StreamResponse:
    """Remove a container."""
    options = RemoveOptions(force=call.flag("force"), volumes=call.flag("v"), link=call.flag("link"))
    await _part(backends).remove(call.params["id"], options)
    return replies.empty(204)


@routes.post("/containers/prune", since=(1, 25))
async def prune(backends: Backends, call: Call) -> StreamResponse:
    """Remove stopped containers."""
    return replies.json(await _part(backends).prune(call.filters(filters.CONTAINERS_PRUNE)))


@routes.get("/containers/{id:link}/top")
async def top(backends: Backends, call: Call) -> StreamResponse:
    """List a container's processes."""
    return replies.json(await _part(backends).top(call.params["id"], call.text("ps_args")))


@routes.get("/containers/{id:link}/changes")
async def changes(backends: Backends, call: Call) -> StreamResponse:
    """List what changed against the image."""
    return replies.json(await _part(backends).changes(call.params["id"]))


@routes.get("/containers/{id:link}/stats")
async def stats(backends: Backends, call: Call) -> StreamResponse:
    """Stream resource usage, or tell it once."""
    streaming = call.flag("stream", default=True)
    one_shot = call.version >= (1, 41) and call.flag("one-shot")
    if streaming and one_shot:
        raise InvalidParameter("cannot have stream=true and one-shot=true")
    records = _part(backends).stats(call.params["id"], stream=streaming, one_shot=one_shot)
    call.cancel_when_client_goes()
    first = await anext(records, None)  # an unknown container is an error, not an empty stream
    if first is None or not streaming:
        return replies.json(first if first is not None else models.ContainerStatsResponse())
    return await replies.lines(call, _again(first, records), content_type=replies.JSON)


async def _again(
    first: models.ContainerStatsResponse, rest: AsyncIterator[models.ContainerStatsResponse]
) -> AsyncIterator[models.ContainerStatsResponse]:
    try:
        yield first
        async for record in rest:
            yield record
    finally:
        await replies.close(rest)
