"""What a registry knows of an image."""

from __future__ import annotations

from dray.server import replies
from dray.server.backends import Backends
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()


@routes.get("/distribution/{name:.*}/json", since=(1, 30))
async def inspect(backends: Backends, call: Call) -> StreamResponse:
    """Ask a registry for an image's descriptor and platforms."""
    call.cancel_when_client_goes()
    part = need(backends.transfer, "image transfer")
    return replies.json(await part.distribution(call.params["name"], auth=call.auth()))
