"""The Engine API over HTTP: finds the route, checks the version, shapes errors.

It is aiohttp's low-level server: connections, parsing and framing are aiohttp's; routing is `router`'s; each
handler in `routes` decodes, calls the engine and encodes. Every routed response carries Api-Version,
Docker-Experimental, Ostype and Server, also when the version is refused; an unknown path does not.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any
from urllib.parse import unquote

from dray import __version__
from dray.api import versions
from dray.base.errors import DrayError
from dray.server import access, replies
from dray.server.backends import Authorization, Backends
from dray.server.call import Call
from dray.server.hijack import EngineConnection
from dray.server.httpserver import BaseRequest, Response, Server, StreamResponse
from dray.server.router import Route, Router
from dray.server.routes import TABLES

log = logging.getLogger(__name__)

SERVER = f"dray/{__version__} (linux)"
READ_BUFFER = 256 << 10

_VERSIONED = re.compile(r"/v([0-9]+\.[0-9.]+)(/.*)", re.DOTALL)


class Api(Server):
    """The protocol factory of all listeners of one kind of trust.

    `browsers_reach` asks for the checks of `access.check_browser`: set it for TCP, with `check_host` unless the
    clients prove themselves by certificates.
    """

    def __init__(
        self,
        backends: Backends,
        *,
        browsers_reach: bool = False,
        check_host: bool = True,
        allowed_hosts: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(self._answer)
        self._backends = backends
        self._router = Router(TABLES)
        self._browsers_reach = browsers_reach
        self._check_host = check_host
        self._allowed_hosts = allowed_hosts
        self.options: dict[str, Any] = {
            "access_log": None,
            "auto_decompress": False,
            "keepalive_timeout": 3600.0,
            "lingering_time": 5.0,
            "max_field_size": 64 << 10,  # credentials of several registries in one header
            "max_line_size": 64 << 10,
            "read_bufsize": READ_BUFFER,
        }

    def __call__(self) -> EngineConnection:
        """Return the protocol of a new connection."""
        return EngineConnection(self, loop=asyncio.get_running_loop(), **self.options)

    def _common_headers(self, version: versions.Version) -> dict[str, str]:
        experimental = "true" if self._backends.system.ping().experimental else "false"
        return {
            "Api-Version": versions.text(versions.NEWEST),
            "Docker-Experimental": experimental,
            "Ostype": "linux",
            "Server": SERVER,
        }

    async def _answer(self, request: BaseRequest) -> StreamResponse:
        raw_path, _, query = request.raw_path.partition("?")
        path = unquote(raw_path)
        match = _VERSIONED.fullmatch(path)
        version, plain = versions.NEWEST, False
        common: dict[str, str] = {}
        call: Call | None = None
        try:
            if self._browsers_reach:
                access.check_browser(request.headers, self._allowed_hosts, check_host=self._check_host)
            if match is not None:
                version, path = versions.parse(match[1].rstrip(".")), match[2]
                plain = version < versions.JSON_ERRORS
            found = self._router.find(request.method, path, max(version, versions.MINIMUM))
            if found is None and request.method == "OPTIONS" and self._router.knows(path):
                return self._finished(replies.empty(), self._common_headers(version))
            if found is None:
                return self._finished(replies.error(404, "page not found"), {"Server": SERVER})
            common = self._common_headers(version)
            versions.check(version)
            route, params = found
            call = Call(request, version, params, query, common)
            if self._backends.authorization is not None:
                return self._finished(
                    await self._authorized(self._backends.authorization, route, call, path), common
                )
            return self._finished(await route.handler(self._backends, call), common)
        except Exception as failure:
            if request.transport is None or request.transport.is_closing():
                log.debug("%s %s: the client has gone: %s", request.method, request.raw_path[:200], failure)
                return Response()  # cannot be sent, which ends the connection
            if call is not None and call.responding:
                log.error("%s %s: cut: %s", request.method, request.raw_path[:200], failure)
                request.transport.abort()
                return Response()
            return self._failed(request, failure, common or {"Server": SERVER}, plain=plain)

    async def _authorized(
        self, authorization: Authorization, route: Route, call: Call, path: str
    ) -> StreamResponse:
        """Handle a request that plugins have a say in. What was streamed already can only be cut."""
        shown = await authorization.request(call, path)
        response = await route.handler(self._backends, call)
        transport = call.request.transport
        if transport is not None and not transport.is_closing():  # a connection that was taken over has no answer
            await authorization.response(shown, response)
        return response

    @staticmethod
    def _finished(response: StreamResponse, headers: dict[str, str]) -> StreamResponse:
        if not response.prepared:
            response.headers.update(headers)
        return response

    def _failed(
        self, request: BaseRequest, failure: Exception, common: dict[str, str], *, plain: bool
    ) -> StreamResponse:
        status = failure.status if isinstance(failure, DrayError) else 500
        if status >= 500:
            trace = None if isinstance(failure, DrayError) else failure
            log.error("%s %s: %s", request.method, request.raw_path[:200], failure, exc_info=trace)
        response = replies.error(status, replies.error_message(failure), plain=plain)
        return self._finished(response, common)
