"""Managed plugins: there are none."""

from __future__ import annotations

from dray.api import filters
from dray.base.errors import NotFound, Unsupported
from dray.server import replies
from dray.server.backends import Backends
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.router import Table

routes = Table()


@routes.get("/plugins")
async def list_plugins(backends: Backends, call: Call) -> StreamResponse:
    """List no plugins."""
    call.filters(filters.PLUGINS)
    return replies.json([])


@routes.get("/plugins/privileges")
@routes.post("/plugins/pull")
@routes.post("/plugins/create")
async def install(backends: Backends, call: Call) -> StreamResponse:
    """Refuse to install plugins."""
    raise Unsupported("managed plugins are not supported by this engine")


@routes.get("/plugins/{name:.*}/json")
@routes.post("/plugins/{name:.*}/enable")
@routes.post("/plugins/{name:.*}/disable")
@routes.post("/plugins/{name:.*}/upgrade", since=(1, 26))
@routes.post("/plugins/{name:.*}/push")
@routes.post("/plugins/{name:.*}/set")
@routes.delete("/plugins/{name:.*}")
async def find(backends: Backends, call: Call) -> StreamResponse:
    """Find no plugin."""
    raise NotFound(f'plugin "{call.params["name"]}" not found')
