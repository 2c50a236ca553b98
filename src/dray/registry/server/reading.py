"""Blobs going out: HEAD and GET, ranges, sendfile(2) where the bytes are a file."""

from __future__ import annotations

import asyncio
import re

from aiohttp import web

from dray.registry.server import names
from dray.registry.server.call import Call, reply
from dray.registry.server.errors import Refusal
from dray.registry.server.storage import Reader

_BLOCK = 256 << 10
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the (start, end) that a Range header asks for, end exclusive; None if it is to be ignored.

    RFC 9110, 14.1.2: what we cannot read, and several ranges at once, are ignored; a range outside is refused.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match[0].endswith("=-"):
        return None
    first, last = match[1], match[2]
    if not first:
        start, end = max(size - int(last), 0), size
        satisfiable = int(last) > 0 and size > 0
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
        satisfiable = start < size
    if not satisfiable:
        raise Refusal("RANGE_INVALID", {"size": size}, headers={"Content-Range": f"bytes */{size}"})
    return start, end


def unchanged(call: Call, digest: str) -> bool:
    """Tell whether the client has that digest already (If-None-Match)."""
    given = call.request.headers.get("If-None-Match", "")
    tags = {one.strip().removeprefix("W/").strip('"') for one in given.split(",")}
    return bool(given) and bool(tags & {digest, "*"})


async def get_blob(call: Call) -> web.StreamResponse:
    """GET or HEAD of a blob (end-2)."""
    digest = names.check_digest(call.reference)
    server, head = call.server, call.request.method == "HEAD"
    size = await server.run(server.repositories.blob_size, call.name, digest)
    if size is None:
        if server.proxy is not None:
            return await server.proxy.get_blob(call, digest)
        raise Refusal("BLOB_UNKNOWN", {"digest": digest})
    return await send_blob(call, digest, size, head=head)


async def send_blob(call: Call, digest: str, size: int, *, head: bool = False) -> web.StreamResponse:
    """Answer with a blob of the storage."""
    server, headers = call.server, blob_headers(digest)
    if unchanged(call, digest):
        return reply(304, headers)
    if not head and (address := await server.run(server.repositories.storage.redirect, names.blob(digest))):
        return reply(307, {**headers, "Location": address})
    status, start, end = 200, 0, size
    if span := parse_range(call.request.headers.get("Range", ""), size):
        status, (start, end) = 206, span
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if head:
        return await _head(call, status, headers)
    reader = await server.run(server.repositories.open_blob, digest, start, end)
    if reader is None:
        raise Refusal("BLOB_UNKNOWN", {"digest": digest})
    try:
        return await _send(call, web.StreamResponse(status=status, headers=headers), reader, start, end)
    finally:
        reader.close()


def blob_headers(digest: str) -> dict[str, str]:
    """The headers of every answer about a blob."""
    return {
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "max-age=31536000",
    }


async def _head(call: Call, status: int, headers: dict[str, str]) -> web.StreamResponse:
    answer = web.StreamResponse(status=status, headers=headers)
    await answer.prepare(call.request)
    await answer.write_eof()
    return answer


async def _send(
    call: Call, answer: web.StreamResponse, reader: Reader, start: int, end: int
) -> web.StreamResponse:
    transport = call.request.transport
    await answer.prepare(call.request)
    if transport is None:
        raise ConnectionResetError("the client is gone")
    if reader.file is None or transport.get_extra_info("sslcontext") is not None:
        await _write(call, answer, reader)
        if call.sent != end - start:
            raise ConnectionResetError("the storage ended early")  # the length is promised: only a break tells
    elif end > start:
        file = reader.file
        try:
            await asyncio.get_running_loop().sendfile(transport, file, start, end - start)
        finally:
            call.sent = file.tell() - start  # the loop leaves the position where it stopped
    await answer.write_eof()
    return answer


async def _write(call: Call, answer: web.StreamResponse, reader: Reader) -> None:
    """Send through the process; the next block is read while one is on its way."""

    def read() -> asyncio.Future[bytes]:
        return asyncio.ensure_future(call.server.run(reader.read, _BLOCK))

    coming = read()
    try:
        while data := await coming:
            coming = read()
            await answer.write(data)
            call.sent += len(data)
    finally:
        await asyncio.wait([coming])  # the reader is closed next


async def delete_blob(call: Call) -> web.StreamResponse:
    """DELETE of a blob (end-10): the repository's link goes, the bytes when nobody needs them."""
    digest = names.check_digest(call.reference)
    server = call.server
    if not await server.run(server.repositories.unlink_blob, call.name, digest):
        raise Refusal("BLOB_UNKNOWN", {"digest": digest})
    return reply(202, {"Docker-Content-Digest": digest})
