"""Containers as processes: start, stop, restart, kill, pause, unpause, wait, resize."""

from __future__ import annotations

import asyncio

from dray.api import models
from dray.base.errors import DrayError, InvalidParameter
from dray.server import replies
from dray.server.backends import Backends, Lifecycle
from dray.server.call import Call
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()

CONDITIONS = frozenset({"not-running", "next-exit", "removed"})


def _part(backends: Backends) -> Lifecycle:
    return need(backends.lifecycle, "running containers")


def terminal_size(call: Call) -> tuple[int, int]:
    """Read height and width, both required and of 32 bits."""
    sizes = []
    for key, name in (("h", "height"), ("w", "width")):
        value = call.text(key)
        if not (value.isascii() and value.isdigit()) or int(value[:12]) >= 1 << 32:
            raise InvalidParameter(f'invalid resize {name} "{value}": must be a number from 0 to 4294967295')
        sizes.append(int(value))
    return sizes[0], sizes[1]


@routes.post("/containers/{id:link}/start")
async def start(backends: Backends, call: Call) -> StreamResponse:
    """Start a container. A body was a HostConfig in versions before 1.24."""
    length = call.request.content_length
    if call.request.headers.get("Transfer-Encoding") or (length is not None and length > 7):
        raise InvalidParameter(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"
        )
    await _part(backends).start(
        call.params["id"],
        checkpoint=call.text("checkpoint"),
        checkpoint_dir=call.text("checkpoint-dir"),
        detach_keys=call.text("detachKeys"),
    )
    return replies.empty(204)


@routes.post("/containers/{id:link}/stop")
async def stop(backends: Backends, call: Call) -> StreamResponse:
    """Stop a container."""
    await _part(backends).stop(call.params["id"], signal=_stop_signal(call), timeout=call.optional_integer("t"))
    return replies.empty(204)


@routes.post("/containers/{id:link}/restart")
async def restart(backends: Backends, call: Call) -> StreamResponse:
    """Stop and start a container."""
    await _part(backends).restart(call.params["id"], signal=_stop_signal(call), timeout=call.optional_integer("t"))
    return replies.empty(204)


def _stop_signal(call: Call) -> str:
    return call.text("signal") if call.version >= (1, 42) else ""


@routes.post("/containers/{id:link}/kill")
async def kill(backends: Backends, call: Call) -> StreamResponse:
    """Send a signal."""
    await _part(backends).kill(call.params["id"], signal=call.text("signal"))
    return replies.empty(204)


@routes.post("/containers/{id:link}/pause")
async def pause(backends: Backends, call: Call) -> StreamResponse:
    """Freeze a container."""
    await _part(backends).pause(call.params["id"])
    return replies.empty(204)


@routes.post("/containers/{id:link}/unpause")
async def unpause(backends: Backends, call: Call) -> StreamResponse:
    """Thaw a container."""
    await _part(backends).unpause(call.params["id"])
    return replies.empty(204)


@routes.post("/containers/{id:link}/wait")
async def wait(backends: Backends, call: Call) -> StreamResponse:
    """Wait for an exit; from 1.30 on the head is sent once the wait is registered."""
    condition = call.text("condition") if call.version >= (1, 30) else ""
    condition = condition or "not-running"
    if condition not in CONDITIONS:
        raise InvalidParameter(f'invalid condition: "{condition}"')
    call.cancel_when_client_goes()
    pending = await _part(backends).wait(call.params["id"], condition)
    result = asyncio.ensure_future(pending)
    try:
        if call.version < (1, 30):
            return replies.json(await result)
        response = replies.stream(call, replies.JSON)
        await response.prepare(call.request)
        await response.write(b"")  # sends the head
        try:
            answer = await result
        except DrayError as failure:  # the head is out: the failure is part of the answer
            message = models.ContainerWaitExitError(message=failure.message)
            answer = models.ContainerWaitResponse(status_code=-1, error=message)
        await response.write_eof(replies.encode(answer) + b"\n")
        return response
    finally:
        result.cancel()


@routes.post("/containers/{id:link}/resize")
async def resize(backends: Backends, call: Call) -> StreamResponse:
    """Set the size of a container's terminal."""
    height, width = terminal_size(call)
    await _part(backends).resize(call.params["id"], height, width)
    return replies.empty()
