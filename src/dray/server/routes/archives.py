"""Containers' files: export, and archives in and out."""

from __future__ import annotations

import base64
import zlib
from collections.abc import AsyncIterator

import msgspec

from dray.api.requests import Download, PathStat
from dray.base.errors import InvalidParameter
from dray.server import replies
from dray.server.backends import Archives, Backends
from dray.server.call import Call
from dray.server.httpserver import Response, StreamResponse
from dray.server.parts import need
from dray.server.router import Table

routes = Table()

TAR = "application/x-tar"


def _part(backends: Backends) -> Archives:
    return need(backends.archives, "copying files of containers")


def _path(call: Call) -> str:
    path = call.text("path")
    if not path:
        raise InvalidParameter("missing required parameter: path")
    return path


def _stat_header(stat: PathStat) -> dict[str, str]:
    return {"X-Docker-Container-Path-Stat": base64.b64encode(msgspec.json.encode(stat)).decode()}


@routes.get("/containers/{id:link}/export")
async def export(backends: Backends, call: Call) -> StreamResponse:
    """Send the root filesystem as a tar stream."""
    content = await _part(backends).export(call.params["id"])
    return await replies.download(call, content, "application/octet-stream")


@routes.head("/containers/{id:link}/archive")
async def stat(backends: Backends, call: Call) -> StreamResponse:
    """Describe a path."""
    found = await _part(backends).stat(call.params["id"], _path(call))
    return Response(headers={**_stat_header(found), "Content-Length": "0"})


@routes.get("/containers/{id:link}/archive")
async def read(backends: Backends, call: Call) -> StreamResponse:
    """Send a path as a tar stream, compressed if the client asks for it."""
    found, content = await _part(backends).read(call.params["id"], _path(call))
    headers = _stat_header(found)
    accepted = {
        part.partition(";")[0].strip() for part in call.request.headers.get("Accept-Encoding", "").split(",")
    }
    for encoding, window in (("gzip", 31), ("deflate", 15)):
        if encoding in accepted:
            content, headers["Content-Encoding"] = _compressed(content, window), encoding
            break
    return await replies.download(call, content, TAR, **headers)


async def _compressed(content: Download, window: int) -> AsyncIterator[bytes]:
    compressor = zlib.compressobj(1, zlib.DEFLATED, window)
    try:
        async for chunk in content:
            yield compressor.compress(chunk)
        yield compressor.flush()
    finally:
        await replies.close(content)


@routes.put("/containers/{id:link}/archive")
async def write(backends: Backends, call: Call) -> StreamResponse:
    """Unpack a tar stream into a directory."""
    call.cancel_when_client_goes()
    await _part(backends).write(
        call.params["id"],
        _path(call),
        call.upload(),
        no_overwrite_dir_non_dir=call.flag("noOverwriteDirNonDir"),
        copy_uid_gid=call.flag("copyUIDGID"),
    )
    return replies.empty()
