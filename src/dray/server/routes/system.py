"""The engine itself: ping, version, info, disk usage, credentials, events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from dray.api import filters, models, shapes, versions
from dray.base.errors import InvalidParameter
from dray.server import replies
from dray.server.backends import Backends
from dray.server.call import Call
from dray.server.httpserver import Response, StreamResponse
from dray.server.parts import need
from dray.server.router import Table
from dray.server.routes.streams import unix_nanoseconds

routes = Table()

USAGE_TYPES = frozenset({"container", "image", "volume", "build-cache"})


@routes.get("/_ping")
@routes.head("/_ping")
async def ping(backends: Backends, call: Call) -> StreamResponse:
    """Say OK, and in headers what clients need to know first."""
    status = backends.system.ping()
    headers = {
        "Builder-Version": status.builder_version,
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Content-Type": "text/plain; charset=utf-8",
        "Pragma": "no-cache",
        "Swarm": status.swarm,
    }
    if call.request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": "0"})
    return Response(body=b"OK", headers=headers)


@routes.get("/version")
async def version(backends: Backends, call: Call) -> StreamResponse:
    """Tell versions."""
    found = await backends.system.version()
    found.api_version = versions.text(versions.NEWEST)
    found.min_api_version = versions.text(versions.MINIMUM)
    return replies.json(found)


@routes.get("/info")
async def info(backends: Backends, call: Call) -> StreamResponse:
    """Describe the engine and its host."""
    return replies.json(shapes.info(await backends.system.info(), call.version))


@routes.post("/auth")
async def auth(backends: Backends, call: Call) -> StreamResponse:
    """Try credentials."""
    credentials, unknown = await call.required_json(models.AuthConfig)
    call.ignore(unknown)
    return replies.json(await backends.system.authenticate(credentials))


@routes.get("/system/df", since=(1, 25))
async def disk_usage(backends: Backends, call: Call) -> StreamResponse:
    """Tell what takes disk space."""
    types = call.many("type") if call.version >= (1, 42) else ()
    for kind in types:
        if kind not in USAGE_TYPES:
            raise InvalidParameter(f"unknown object type: {kind}")
    verbose = call.version >= (1, 52) and call.flag("verbose")
    call.cancel_when_client_goes()
    detailed = verbose or call.version <= (1, 52)  # the older shape lists all objects
    usage = await backends.system.disk_usage(types=types, verbose=detailed)
    return replies.json(shapes.disk_usage(usage, call.version, types=types, verbose=verbose))


_EVENT_TYPES = {
    "application/jsonl": b"",
    "application/x-ndjson": b"",
    "application/json-seq": b"\x1e",
}


def _event_format(call: Call) -> tuple[str, bytes]:
    """Choose the media type of events, and what precedes each record."""
    if call.version < (1, 52):
        return replies.JSON, b""
    for part in call.request.headers.get("Accept", "").split(","):
        media_type = part.partition(";")[0].strip().lower()
        if media_type in _EVENT_TYPES:
            return media_type, _EVENT_TYPES[media_type]
    return "application/jsonl", b""


@routes.get("/events")
async def events(backends: Backends, call: Call) -> StreamResponse:
    """Stream events; the head is flushed at once."""
    # Nothing said is no bound, but 0 is one: the epoch.
    since = max(1, unix_nanoseconds(call.text("since"), "since")) if call.text("since") else 0
    until = max(1, unix_nanoseconds(call.text("until"), "until")) if call.text("until") else 0
    if since and until and since > until:
        raise InvalidParameter(
            f"`since` time ({call.text('since')}) cannot be after `until` time ({call.text('until')})"
        )
    wanted = call.filters(filters.EVENTS)
    subscription = need(backends.events, "events").subscribe(since=since, until=until, filters=wanted)
    content_type, prefix = _event_format(call)
    return await replies.lines(call, _shaped(subscription, call.version), content_type=content_type, prefix=prefix)


async def _shaped(
    subscription: AsyncIterator[models.EventMessage], version: versions.Version
) -> AsyncIterator[Any]:
    try:
        async for message in subscription:
            shaped = shapes.event(message, version)
            if shaped is not None:
                yield shaped
    finally:
        await replies.close(subscription)
