"""Further processes in running containers."""

from __future__ import annotations

from dray.api import models
from dray.base.errors import InvalidParameter
from dray.server import replies
from dray.server.backends import Backends, Execs
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table
from dray.server.routes.lifecycle import terminal_size

routes = Table()

# What clients send here though it is said elsewhere: Detach counts on start, the container is in the path.
_REPEATED = frozenset({"Detach", "Container"})


def _part(backends: Backends) -> Execs:
    return need(backends.execs, "exec")


def _check_console(size: list[int] | None) -> None:
    if size and (len(size) != 2 or not all(0 <= value < 1 << 32 for value in size)):
        raise InvalidParameter("invalid ConsoleSize: expected height and width")


@routes.post("/containers/{id:link}/exec")
async def create(backends: Backends, call: Call) -> StreamResponse:
    """Prepare an exec."""
    config, unknown = await call.required_json(models.ExecConfig)
    call.ignore([key for key in unknown if key not in _REPEATED])
    if not config.cmd:
        raise InvalidParameter("No exec command specified")
    if call.version < (1, 42):
        config.console_size = None
    _check_console(config.console_size)
    return replies.json(await _part(backends).create(call.params["id"], config), 201)


@routes.post("/exec/{id}/start")
async def start(backends: Backends, call: Call) -> StreamResponse:
    """Run a prepared exec, detached or on this connection."""
    options, unknown = await call.json(models.ExecStartConfig)
    call.ignore(unknown)
    if options.console_size and (call.version < (1, 42) or not options.tty or options.detach):
        options.console_size = None
    _check_console(options.console_size)
    if options.detach:
        await _part(backends).start(call.params["id"], options, None)
        return replies.empty()
    await _part(backends).start(call.params["id"], options, call.connect("exec"))
    return replies.taken()


@routes.post("/exec/{id}/resize")
async def resize(backends: Backends, call: Call) -> StreamResponse:
    """Set the size of an exec's terminal."""
    height, width = terminal_size(call)
    await _part(backends).resize(call.params["id"], height, width)
    return replies.empty()


@routes.get("/exec/{id}/json")
async def inspect(backends: Backends, call: Call) -> StreamResponse:
    """Inspect an exec."""
    return replies.json(await _part(backends).inspect(call.params["id"]))
