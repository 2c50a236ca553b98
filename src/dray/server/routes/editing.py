"""Changing a container that exists: dray's own endpoint, which Docker has not."""

from __future__ import annotations

from dray.api.requests import EditRequest
from dray.base.errors import InvalidParameter
from dray.server import replies
from dray.server.backends import Backends
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()


@routes.post("/containers/{id:link}/edit")
async def edit(backends: Backends, call: Call) -> StreamResponse:
    """Change environment, labels, ports, mounts and name; answers {"Warnings": [...]}."""
    request, unknown = await call.required_json(EditRequest)
    if unknown:
        raise InvalidParameter(f"an edit cannot change {', '.join(sorted(unknown))}")
    warnings = await need(backends.editing, "editing of containers").edit(call.params["id"], request)
    return replies.json({"Warnings": warnings})
