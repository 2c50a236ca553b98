"""Blobs coming in: uploads in one request, in two, and in chunks (end-4 to end-6, end-11, end-13).

Bytes are gathered to batches, and a batch is written and hashed in a worker thread while the next one arrives. When a
connection breaks, what has arrived stays; the client asks how much that is and goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable

from aiohttp import web

from dray.registry.server import names
from dray.registry.server.access import PULL, Wish
from dray.registry.server.call import Call, reply
from dray.registry.server.errors import Refusal
from dray.registry.server.uploads import Session

_BATCH = 1 << 20
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?(\d+)-(\d+)(?:/(?:\d+|\*))?", re.ASCII)


def _progress(session: Session) -> dict[str, str]:
    """The headers that tell how far an upload is. An empty one is `0-0`, as docker-registry has it."""
    return {
        "Location": f"/v2/{session.name}/blobs/uploads/{session.identifier}",
        "Range": f"0-{max(session.offset - 1, 0)}",
        "Docker-Upload-UUID": session.identifier,
    }


async def begin(call: Call) -> web.StreamResponse:
    """POST: mount a blob, take a whole one, or begin an upload."""
    server, query = call.server, call.query
    if "mount" in query:
        digest = names.check_digest(query["mount"])
        if await server.run(server.repositories.mount, call.name, digest, await _sources(call, query.get("from"))):
            return _created(call, digest)
    digest = names.check_digest(query["digest"]) if "digest" in query else ""
    session = await server.run(server.uploads.begin, call.name)
    if not digest:
        return reply(202, _progress(session))
    try:
        async with _writing(call, session):
            await _receive(call, session)
            await server.run(server.uploads.commit, session, digest)
    except BaseException:
        await asyncio.shield(server.run(server.uploads.forget, session))  # nobody knows its address
        raise
    return _created(call, digest)


async def _sources(call: Call, source: str | None) -> list[str]:
    """The repositories that a blob may be mounted from: the one named, or all that the client may read."""
    if source is not None:
        names.check_name(source)
        return [source] if call.identity.may(Wish(PULL, source)) else []
    everywhere = await call.server.run(call.server.repositories.all_names)
    return [name for name in everywhere if call.identity.may(Wish(PULL, name))]


def _created(call: Call, digest: str) -> web.Response:
    headers = {"Location": f"/v2/{call.name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return reply(201, headers)


async def status(call: Call) -> web.StreamResponse:
    """GET: how far an upload is."""
    session = await call.server.run(call.server.uploads.find, call.name, call.reference)
    return reply(204, _progress(session))


async def cancel(call: Call) -> web.StreamResponse:
    """DELETE: forget an upload."""
    session = await call.server.run(call.server.uploads.find, call.name, call.reference)
    async with _writing(call, session):
        await call.server.run(call.server.uploads.forget, session)
    return reply(204)


async def append(call: Call) -> web.StreamResponse:
    """PATCH: append a chunk, or a stream of any length."""
    session = await call.server.run(call.server.uploads.find, call.name, call.reference)
    async with _writing(call, session):
        _check_position(call, session)
        await _receive(call, session)
    return reply(202, _progress(session))


async def finish(call: Call) -> web.StreamResponse:
    """PUT: append the last chunk, if there is one, and make the upload a blob."""
    session = await call.server.run(call.server.uploads.find, call.name, call.reference)
    if "digest" not in call.query:
        raise Refusal("DIGEST_INVALID", message="the query names no digest")
    digest = names.check_digest(call.query["digest"])
    async with _writing(call, session):
        _check_position(call, session)
        await _receive(call, session)
        await call.server.run(call.server.uploads.commit, session, digest)
    return _created(call, digest)


def _check_position(call: Call, session: Session) -> None:
    """Refuse a chunk that does not follow what has arrived."""
    header = call.request.headers.get("Content-Range")
    if header is None:
        return
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        raise Refusal("BLOB_UPLOAD_INVALID", {"Content-Range": header}, message="malformed Content-Range")
    start, last, length = int(match[1]), int(match[2]), call.request.content_length
    if start != session.offset:
        raise Refusal("RANGE_INVALID", {"offset": session.offset}, headers=_progress(session))
    if last + 1 < start or (length is not None and length != last + 1 - start):
        raise Refusal("SIZE_INVALID", {"Content-Range": header, "Content-Length": length})


@contextlib.asynccontextmanager
async def _writing(call: Call, session: Session) -> AsyncIterator[None]:
    """Have an upload alone. Whoever has it now is a request whose client gave up: it is cancelled."""
    server = call.server
    if session.writer is not None:
        session.writer.cancel()
    async with session.lock:
        session.writer = asyncio.current_task()
        try:
            if not await server.run(_still_there, call, session):
                raise Refusal("BLOB_UPLOAD_UNKNOWN", {"upload": session.identifier})
            await server.run(server.uploads.open, session)
            yield
        finally:
            session.writer = None
            await asyncio.shield(server.run(server.uploads.rest, session))


def _still_there(call: Call, session: Session) -> bool:
    storage = call.server.repositories.storage
    return storage.stat(f"{names.upload(session.identifier)}/repository") is not None


async def _receive(call: Call, session: Session) -> None:
    """Write the body to the upload; also what came before the connection broke."""
    await call.go_on()
    gathered: list[bytes] = []
    size = 0
    pending: Awaitable[None] | None = None
    before = session.offset
    try:
        while data := await call.piece():
            gathered.append(data)
            size += len(data)
            if size >= _BATCH:
                if pending is not None:
                    await pending
                pending = asyncio.ensure_future(call.server.run(session.write, b"".join(gathered)))
                gathered, size = [], 0
    finally:
        if pending is not None:
            await asyncio.shield(pending)
        if gathered:
            await asyncio.shield(call.server.run(session.write, b"".join(gathered)))
    length = call.request.content_length
    if length is not None and session.offset - before != length:
        raise Refusal("SIZE_INVALID", {"received": session.offset - before, "Content-Length": length})
