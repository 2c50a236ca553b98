"""Volumes."""

from __future__ import annotations

from dray.api import filters, models
from dray.base.errors import InvalidParameter, Unavailable
from dray.server import replies
from dray.server.backends import Backends, Volumes
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()


def _part(backends: Backends) -> Volumes:
    return need(backends.volumes, "volume management")


@routes.get("/volumes")
async def list_volumes(backends: Backends, call: Call) -> StreamResponse:
    """List volumes."""
    return replies.json(await _part(backends).list_volumes(call.filters(filters.VOLUMES)))


@routes.post("/volumes/create")
async def create(backends: Backends, call: Call) -> StreamResponse:
    """Create a volume; one that exists already is returned, also with 201."""
    request, unknown = await call.required_json(models.VolumeCreateRequest)
    call.ignore(unknown)
    if request.cluster_volume_spec is not None:
        raise Unavailable("cluster volumes need a swarm; this node is not part of one")
    return replies.json(await _part(backends).create(request), 201)


@routes.post("/volumes/prune", since=(1, 25))
async def prune(backends: Backends, call: Call) -> StreamResponse:
    """Remove unused volumes: before 1.42 all of them, since then anonymous ones unless the filter `all` is set."""
    wanted = call.filters(filters.VOLUMES_PRUNE)
    if call.version < (1, 42):
        if "all" in wanted:
            raise InvalidParameter("invalid filter 'all'")
        wanted["all"] = ["true"]
    wanted.boolean("all", False)
    return replies.json(await _part(backends).prune(wanted))


@routes.get("/volumes/{name:.*}")
async def inspect(backends: Backends, call: Call) -> StreamResponse:
    """Inspect a volume."""
    return replies.json(await _part(backends).inspect(call.params["name"]))


@routes.put("/volumes/{name:.*}", since=(1, 42))
async def update(backends: Backends, call: Call) -> StreamResponse:
    """Refuse to update a cluster volume, the only kind that can be updated."""
    if call.optional_integer("version") is None:
        raise InvalidParameter("invalid swarm object version ''")
    raise Unavailable("volume update only valid for cluster volumes, but swarm is unavailable")


@routes.delete("/volumes/{name:.*}")
async def remove(backends: Backends, call: Call) -> StreamResponse:
    """Remove a volume."""
    await _part(backends).remove(call.params["name"], force=call.flag("force"))
    return replies.empty(204)
