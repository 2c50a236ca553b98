"""The swarm's endpoints on a node that is in none."""

from __future__ import annotations

from dray.base.errors import Unavailable, Unsupported
from dray.server.backends import Backends
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.router import Table

routes = Table()

NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)


@routes.post("/swarm/init")
@routes.post("/swarm/join")
async def enter(backends: Backends, call: Call) -> StreamResponse:
    """Refuse to make or join a swarm."""
    raise Unsupported("swarm mode is not available in this daemon")


@routes.post("/swarm/leave")
async def leave(backends: Backends, call: Call) -> StreamResponse:
    """Refuse to leave what this node is not in."""
    raise Unavailable("This node is not part of a swarm")


async def _manage(backends: Backends, call: Call) -> StreamResponse:
    raise Unavailable(NOT_A_MANAGER)


for _path in ("/swarm", "/swarm/unlockkey", "/nodes", "/services", "/tasks"):
    routes.get(_path)(_manage)
for _path in ("/swarm/update", "/swarm/unlock", "/services/create"):
    routes.post(_path)(_manage)
for _path in ("/nodes/{id}", "/services/{id}"):
    routes.get(_path)(_manage)
    routes.delete(_path)(_manage)
    routes.post(_path + "/update")(_manage)
for _path in ("/services/{id}/logs", "/tasks/{id}", "/tasks/{id}/logs"):
    routes.get(_path)(_manage)
for _group, _since in (("/secrets", (1, 25)), ("/configs", (1, 30))):
    routes.get(_group, _since)(_manage)
    routes.post(_group + "/create", _since)(_manage)
    routes.get(_group + "/{id}", _since)(_manage)
    routes.delete(_group + "/{id}", _since)(_manage)
    routes.post(_group + "/{id}/update", _since)(_manage)
