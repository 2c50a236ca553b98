"""What takes the connection over: attach, attach over a websocket, logs."""

from __future__ import annotations

import re

from dray.api.requests import AttachOptions, LogOptions
from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern
from dray.server import replies
from dray.server.backends import Backends, Streams
from dray.server.call import Call
from dray.server.hijack import check_websocket
from dray.server.httpserver import StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()

_TIMESTAMP = pattern(r"(-?[0-9]{1,18})(?:\.([0-9]{1,18}))?", re.ASCII)


def _part(backends: Backends) -> Streams:
    return need(backends.streams, "attaching to containers")


def unix_nanoseconds(text: str, key: str) -> int:
    """Read `seconds[.fraction]`; empty and `0` are 0."""
    if not text:
        return 0
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise InvalidParameter(f"invalid value for {key}: {text!r} is not a Unix timestamp")
    return int(match[1]) * 10**9 + int((match[2] or "").ljust(9, "0")[:9])


def tail_count(text: str) -> int | None:
    """Read how many lines; None is all, which is also what anything but a natural number means."""
    return int(text) if text.isascii() and text.isdigit() else None


def _attach_options(call: Call) -> AttachOptions:
    return AttachOptions(
        stdin=call.flag("stdin"),
        stdout=call.flag("stdout"),
        stderr=call.flag("stderr"),
        stream=call.flag("stream"),
        logs=call.flag("logs"),
        detach_keys=call.text("detachKeys"),
    )


@routes.post("/containers/{id:link}/attach")
async def attach(backends: Backends, call: Call) -> StreamResponse:
    """Connect the client to a container's streams."""
    await _part(backends).attach(call.params["id"], _attach_options(call), call.connect("attach"))
    return replies.taken()


@routes.get("/containers/{id:link}/attach/ws")
async def attach_websocket(backends: Backends, call: Call) -> StreamResponse:
    """Connect the client to a container's streams over a websocket."""
    await need(backends.containers, "container management").inspect(
        call.params["id"], size=False
    )  # NotFound first
    check_websocket(call.request.headers)
    await _part(backends).attach(call.params["id"], _attach_options(call), call.connect("websocket"))
    return replies.taken()


@routes.get("/containers/{id:link}/logs")
async def logs(backends: Backends, call: Call) -> StreamResponse:
    """Send a container's log."""
    options = LogOptions(
        stdout=call.flag("stdout"),
        stderr=call.flag("stderr"),
        follow=call.flag("follow"),
        timestamps=call.flag("timestamps"),
        details=call.flag("details"),
        tail=tail_count(call.text("tail")),
        since=unix_nanoseconds(call.text("since"), "since"),
        until=unix_nanoseconds(call.text("until"), "until"),
    )
    if not (options.stdout or options.stderr):
        raise InvalidParameter("Bad parameters: you must choose at least one stream")
    call.cancel_when_client_goes()
    await _part(backends).logs(call.params["id"], options, call.connect("logs"))
    return replies.taken()
