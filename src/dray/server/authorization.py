"""Authorization plugins: every request is shown to each of them, and so is its answer (docker docs, "Access
authorization plugin").

    /AuthZPlugin.AuthZReq   {User, UserAuthNMethod, RequestMethod, RequestUri, RequestBody, RequestHeaders, ...}
    /AuthZPlugin.AuthZRes   the same, with ResponseStatusCode, ResponseBody, ResponseHeaders
    answer                  {Allow, Msg, Err}

Invariants
- A plugin sees the very bytes that the handler is then given: a JSON body is read whole first, and one too large to
  be shown fails the request (CVE-2024-41110). Nothing but JSON is ever decoded into a request (`Call.check_json`);
  archives are streams and are not shown, as in Docker.
- Only a clear "allow" of every plugin lets a request pass: one that is dead, hangs or talks nonsense denies.
- Credentials for registries are not shown.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Sequence
from typing import Any

from dray.base.errors import DrayError, Forbidden, Internal
from dray.plugins.registry import AUTHORIZATION, Plugins
from dray.server.call import Call
from dray.server.httpserver import BaseRequest, Response, StreamResponse, hdrs

_HIDDEN = ("x-registry-auth", "x-registry-config")
_UNSHOWN = ("/auth",)  # its body is a password


class AuthorizationPlugins:
    """Asks plugins, by name, in their order; about answers in the reverse order."""

    def __init__(self, names: Sequence[str], plugins: Plugins) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._plugins = plugins

    async def request(self, call: Call, path: str) -> dict[str, Any]:
        """See `backends.Authorization`."""
        request = call.request
        user, method = _identity(request)
        shown: dict[str, Any] = {
            "User": user,
            "UserAuthNMethod": method,
            "RequestMethod": request.method,
            "RequestUri": request.raw_path,
            "RequestHeaders": _headers(request.headers),
        }
        if certificates := _certificates(request):
            shown["RequestPeerCertificates"] = certificates
        if _is_json(request.headers.get(hdrs.CONTENT_TYPE, "")):
            body = await call.keep_body()
            if body and path not in _UNSHOWN:
                shown["RequestBody"] = base64.b64encode(body).decode()
        for name in self._names:
            await self._ask(name, "AuthZPlugin.AuthZReq", shown)
        return shown

    async def response(self, shown: dict[str, Any], response: StreamResponse) -> None:
        """See `backends.Authorization`."""
        answer = {**shown, "ResponseStatusCode": response.status, "ResponseHeaders": _headers(response.headers)}
        body = response.body if isinstance(response, Response) else None
        if isinstance(body, bytes) and body and _is_json(response.headers.get(hdrs.CONTENT_TYPE, "")):
            answer["ResponseBody"] = base64.b64encode(body).decode()
        for name in reversed(self._names):
            await self._ask(name, "AuthZPlugin.AuthZRes", answer)

    async def _ask(self, name: str, method: str, shown: dict[str, Any]) -> None:
        try:
            plugin = await self._plugins.get(name, AUTHORIZATION)
            said = await plugin.call(method, shown, timeout=self._plugins.limits.short)
        except DrayError as error:
            raise Internal(f"plugin {name} failed with error: {error}") from error
        if said.get("Allow") is not True:
            raise Forbidden(f"authorization denied by plugin {name}: {said.get('Msg') or ''}")


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


def _headers(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HIDDEN}


def _identity(request: BaseRequest) -> tuple[str, str]:
    """Return (common name of the client's certificate, "TLS"), or two empty texts."""
    certificate = request.transport.get_extra_info("peercert") if request.transport else None
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value), "TLS"
    return "", ""


def _certificates(request: BaseRequest) -> list[str]:
    """Return the client's certificate as PEM."""
    connection = request.transport.get_extra_info("ssl_object") if request.transport else None
    binary = connection.getpeercert(True) if connection is not None else None
    return [ssl.DER_cert_to_PEM_cert(binary)] if binary else []
