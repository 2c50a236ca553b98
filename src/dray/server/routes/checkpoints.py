"""Checkpoints of containers, an experimental part of the Engine API."""

from __future__ import annotations

from dray.api.requests import CheckpointRequest
from dray.server import replies
from dray.server.backends import Backends, Checkpoints
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()


def _part(backends: Backends) -> Checkpoints:
    return need(backends.checkpoints, "checkpoints of containers")


@routes.get("/containers/{id:link}/checkpoints")
async def list_checkpoints(backends: Backends, call: Call) -> StreamResponse:
    """List a container's checkpoints."""
    names = _part(backends).list_checkpoints(call.params["id"], directory=call.text("dir"))
    return replies.json([{"Name": name} for name in names])


@routes.post("/containers/{id:link}/checkpoints")
async def create(backends: Backends, call: Call) -> StreamResponse:
    """Write a running container down."""
    request, _ = await call.required_json(CheckpointRequest)
    await _part(backends).create(
        call.params["id"],
        request.checkpoint_id,
        directory=request.checkpoint_dir,
        leave_running=not request.exit,
    )
    return replies.empty(201)


@routes.delete("/containers/{id:link}/checkpoints/{checkpoint}")
async def remove(backends: Backends, call: Call) -> StreamResponse:
    """Remove a checkpoint."""
    await _part(backends).remove(call.params["id"], call.params["checkpoint"], directory=call.text("dir"))
    return replies.empty(204)
