"""From a request to its handler, and from errors to answers."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from dray.base.errors import DrayError
from dray.registry.server import manifests, names, reading, writing
from dray.registry.server.access import DELETE, PULL, PUSH, Wish
from dray.registry.server.accesslog import AccessLog
from dray.registry.server.call import Call, Server, reply, reply_json
from dray.registry.server.errors import Refusal

log = logging.getLogger("dray.registry")

Handler = Callable[[Call], Awaitable[web.StreamResponse]]
_HOST = re.compile(r"[a-zA-Z0-9._-]+(:\d+)?|\[[0-9a-fA-F:]+\](:\d+)?", re.ASCII)
API_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}


@dataclass(frozen=True, slots=True)
class Route:
    """A pattern of paths, and what its methods do: (the right that is needed, the handler)."""

    pattern: re.Pattern[str]
    methods: dict[str, tuple[str, Handler]]


async def _base(call: Call) -> web.StreamResponse:
    return reply_json({})


def _route(pattern: str, **methods: tuple[str, Handler]) -> Route:
    if "GET" in methods:
        methods.setdefault("HEAD", methods["GET"])
    return Route(re.compile(pattern), methods)


ROUTES = (
    _route(r"/v2/?", GET=(PULL, _base)),
    _route(r"/v2/_catalog", GET=(PULL, manifests.catalog)),
    _route(r"/v2/(?P<name>.+)/tags/list", GET=(PULL, manifests.tags)),
    _route(r"/v2/(?P<name>.+)/referrers/(?P<reference>[^/]+)", GET=(PULL, manifests.referrers)),
    _route(
        r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)",
        GET=(PULL, manifests.get),
        PUT=(PUSH, manifests.put),
        DELETE=(DELETE, manifests.delete),
    ),
    _route(r"/v2/(?P<name>.+)/blobs/uploads/?", POST=(PUSH, writing.begin)),
    Route(
        re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<reference>[^/]+)"),
        {
            "GET": (PUSH, writing.status),
            "PATCH": (PUSH, writing.append),
            "PUT": (PUSH, writing.finish),
            "DELETE": (PUSH, writing.cancel),
        },
    ),
    _route(
        r"/v2/(?P<name>.+)/blobs/(?P<reference>[^/]+)",
        GET=(PULL, reading.get_blob),
        DELETE=(DELETE, reading.delete_blob),
    ),
)


class Application:
    """Answers requests; `extra` are further paths, open to everybody (a token endpoint)."""

    def __init__(self, server: Server, access_log: AccessLog, extra: dict[str, Handler] | None = None) -> None:
        self._server = server
        self._log = access_log
        self._extra = extra or {}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever happens."""
        call = Call(server=self._server, request=request)
        status = 499  # nobody was there any more
        began = self._log.now()
        try:
            answer = await self._guarded(call)
            status = answer.status
            if isinstance(answer, web.Response):
                answer.headers.extend(
                    {name: value for name, value in API_VERSION.items() if name not in answer.headers}
                )
                await answer.prepare(request)
                if request.method != "HEAD" and isinstance(answer.body, bytes):
                    call.sent = len(answer.body)
            return answer
        except (ConnectionError, web.RequestPayloadError):
            # The client left, or must not take what it got for the whole: nothing more goes out.
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=status)
        finally:
            self._log.write(call, status, began)

    async def _guarded(self, call: Call) -> web.StreamResponse:
        try:
            answer = await self._dispatch(call)
        except Refusal as refusal:
            answer = _refused(refusal)
        except (ConnectionError, web.RequestPayloadError):
            raise
        except DrayError as error:
            log.warning("%s %s: %s", call.request.method, call.request.path, error)
            answer = _refused(Refusal("UNAVAILABLE" if error.status == 503 else "UNKNOWN", message=str(error)))
        except OSError as error:
            log.error("%s %s: %s", call.request.method, call.request.path, error)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            message = "the registry's disk is full" if full else "the registry's storage failed"
            answer = _refused(Refusal("UNAVAILABLE" if full else "UNKNOWN", message=message))
        except Exception:
            log.exception("%s %s", call.request.method, call.request.path)
            answer = _refused(Refusal("UNKNOWN"))
        return answer

    async def _dispatch(self, call: Call) -> web.StreamResponse:
        path, method = call.request.path, call.request.method
        if (handler := self._extra.get(path)) is not None:
            return await handler(call)
        for route in ROUTES:
            match = route.pattern.fullmatch(path)
            if match is None:
                continue
            found = match.groupdict()
            if method not in route.methods:
                allowed = ", ".join(sorted(route.methods))
                raise Refusal("UNSUPPORTED", {"method": method}, headers={"Allow": allowed})
            right, handler = route.methods[method]
            if "name" in found:
                call.name, call.reference = names.check_name(found["name"]), found.get("reference", "")
            await self._admit(call, right, catalog=path == "/v2/_catalog")
            if right != PULL:
                call.refuse_changes()
            return await handler(call)
        return reply(404, API_VERSION, b'{"errors":[{"code":"UNSUPPORTED","message":"no such endpoint"}]}')

    async def _admit(self, call: Call, right: str, *, catalog: bool) -> None:
        repository = "*" if catalog else call.name
        wishes: tuple[Wish, ...] = (Wish(right, repository),)
        if right == PUSH:
            wishes = (Wish(PULL, repository), Wish(PUSH, repository))
        header = call.request.headers.get("Authorization", "")
        call.identity = await self._server.guard.admit(header, wishes, origin=_origin(call.request))


def _origin(request: web.BaseRequest) -> str:
    """Scheme and host at which the client reached us; a host that is none (it goes into a header) is left out."""
    host = request.headers.get("Host", "")
    return f"{request.scheme}://{host if _HOST.fullmatch(host) else 'localhost'}"


def _refused(refusal: Refusal) -> web.StreamResponse:
    headers = {**API_VERSION, "Content-Type": "application/json", **refusal.headers}
    return web.Response(status=refusal.status, body=refusal.body, headers=headers)
