"""Networks."""

from __future__ import annotations

from dray.api import decoding, filters, models, shapes
from dray.server import replies
from dray.server.backends import Backends, Networks
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()


def _part(backends: Backends) -> Networks:
    return need(backends.networks, "network management")


@routes.get("/networks")
@routes.get("/networks/")
async def list_networks(backends: Backends, call: Call) -> StreamResponse:
    """List networks."""
    found = await _part(backends).list_networks(call.filters(filters.NETWORKS))
    return replies.json(shapes.network_summaries(found, call.version))


@routes.post("/networks/create")
async def create(backends: Backends, call: Call) -> StreamResponse:
    """Create a network."""
    request, unknown = await call.required_json(models.NetworkCreateRequest)
    response = await _part(backends).create(request)
    if unknown:
        response.warning = "; ".join(filter(None, [response.warning, *decoding.warnings_for(unknown)]))
    return replies.json(response, 201)


@routes.post("/networks/prune", since=(1, 25))
async def prune(backends: Backends, call: Call) -> StreamResponse:
    """Remove unused networks."""
    return replies.json(await _part(backends).prune(call.filters(filters.NETWORKS_PRUNE)))


@routes.get("/networks/{id:.*}")
async def inspect(backends: Backends, call: Call) -> StreamResponse:
    """Inspect a network."""
    found = await _part(backends).inspect(
        call.params["id"], verbose=call.flag("verbose"), scope=call.text("scope")
    )
    return replies.json(shapes.network(found, call.version))


@routes.delete("/networks/{id:.*}")
async def remove(backends: Backends, call: Call) -> StreamResponse:
    """Remove a network."""
    await _part(backends).remove(call.params["id"])
    return replies.empty(204)


@routes.post("/networks/{id:.*}/connect")
async def connect(backends: Backends, call: Call) -> StreamResponse:
    """Connect a container to a network."""
    request, unknown = await call.required_json(models.NetworkConnectRequest)
    call.ignore(unknown)
    await _part(backends).connect(call.params["id"], request)
    return replies.empty()


@routes.post("/networks/{id:.*}/disconnect")
async def disconnect(backends: Backends, call: Call) -> StreamResponse:
    """Disconnect a container from a network."""
    request, unknown = await call.required_json(models.NetworkDisconnectRequest)
    call.ignore(unknown)
    await _part(backends).disconnect(call.params["id"], request)
    return replies.empty()
