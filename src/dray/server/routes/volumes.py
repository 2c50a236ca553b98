"""Volumes."""

from __future__ import annotations

from dray.api import filters, models
from dray.base.errors import InvalidParameter, Unavailable
from dray.server import replies
from dray.server.backends import Backends, Volumes, VolumeTransfer
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


def _transfer(backends: Backends) -> VolumeTransfer:
    return need(backends.volume_transfer, "renaming, exporting and importing volumes")


@routes.post("/volumes/{name}/rename")
async def rename(backends: Backends, call: Call) -> StreamResponse:
    """Give a volume another name (an addition of dray's)."""
    await _transfer(backends).rename(call.params["name"], call.text("name"))
    return replies.empty(204)


@routes.get("/volumes/{name}/export")
async def export(backends: Backends, call: Call) -> StreamResponse:
    """Send a volume's files as a tar stream (an addition of dray's)."""
    content = await _transfer(backends).export(call.params["name"])
    return await replies.download(call, content, "application/x-tar")


@routes.put("/volumes/{name}/import")
async def import_(backends: Backends, call: Call) -> StreamResponse:
    """Unpack a tar stream into a new or empty volume (an addition of dray's)."""
    call.cancel_when_client_goes()
    return replies.json(await _transfer(backends).import_(call.params["name"], call.upload()))


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
