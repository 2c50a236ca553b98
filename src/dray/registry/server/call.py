"""One request on its way through the server: what the handlers share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from aiohttp import web

from dray.registry.server.access import Anybody, Guard, Identity
from dray.registry.server.errors import Refusal
from dray.registry.server.repositories import Repositories
from dray.registry.server.uploads import Uploads

if TYPE_CHECKING:
    from dray.registry.server.proxy import Proxy

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(kw_only=True, eq=False)
class Server:
    """What all requests share. `idle`: seconds that a client may be silent in the middle of a body."""

    repositories: Repositories
    uploads: Uploads
    guard: Guard
    pool: ThreadPoolExecutor
    proxy: Proxy | None = None
    read_only: bool = False
    idle: float = 60.0

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a blocking function in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, partial(function, *args, **kwargs))


@dataclass(kw_only=True, eq=False)
class Call:
    """A request with the parts of its path. `name`: the repository; `reference`: what follows in the path."""

    server: Server
    request: web.BaseRequest
    name: str = ""
    reference: str = ""
    identity: Identity = field(default_factory=Anybody)
    sent: int = 0  # bytes of the body that went out, for the access log

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters, the first one of each name."""
        return self.request.query

    async def go_on(self) -> None:
        """Tell a client that waits for it (Expect: 100-continue) to send the body."""
        if self.request.headers.get("Expect", "").lower() == "100-continue":
            writer = self.request.writer
            await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            writer.output_size = 0

    def refuse_changes(self) -> None:
        """Refuse a request that would change something where nothing may be changed."""
        if self.server.proxy is not None:
            raise Refusal("UNSUPPORTED", message="this registry is a cache of another one: push to that one")
        if self.server.read_only:
            raise Refusal("UNSUPPORTED", message="this registry is read-only")

    async def body(self, limit: int) -> bytes:
        """Return the whole body; refused with 413 if it has more than `limit` bytes."""
        too_large = Refusal("SIZE_INVALID", {"limit": limit}, status=413, message=f"more than {limit} bytes")
        if (self.request.content_length or 0) > limit:
            raise too_large
        await self.go_on()
        data = bytearray()
        while chunk := await self.piece():
            data += chunk
            if len(data) > limit:
                raise too_large
        return bytes(data)

    async def piece(self) -> bytes:
        """Return what has arrived of the body, b"" at the end; refused if the client falls silent."""
        try:
            async with asyncio.timeout(self.server.idle):
                return await self.request.content.readany()
        except TimeoutError:
            raise Refusal(
                "BLOB_UPLOAD_INVALID",
                status=408,
                message="nothing arrived for too long",
                headers={"Connection": "close"},
            ) from None


def reply(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> web.Response:
    """An answer without a media type of its own."""
    answer = web.Response(status=status, body=body, headers=headers)
    if not body:
        answer.headers.popall("Content-Type", None)
        answer.headers["Content-Length"] = "0"
    return answer


def reply_json(document: Any, headers: Mapping[str, str] | None = None, *, media_type: str = "") -> web.Response:
    """An answer in JSON."""
    return web.Response(
        body=json.dumps(document).encode(),
        headers={"Content-Type": media_type or "application/json", **(headers or {})},
    )
