"""One API request being answered: its version, path parameters, query and body, decoded as Docker does.

Query values follow Go's form rules: the first value of a key counts; a boolean is false for "", 0, no, false and
none and true for anything else. JSON bodies are capped at `BODY_LIMIT` bytes; anything larger is an upload and
is streamed.
"""

from __future__ import annotations

import base64
import binascii
import logging
from typing import TypeVar
from urllib.parse import parse_qs

import msgspec

from dray.api import decoding, filters, models
from dray.api.versions import Version
from dray.base.errors import InvalidParameter
from dray.server.hijack import ClientConnection, EngineConnection, Kind
from dray.server.httpserver import BaseRequest, hdrs
from dray.server.uploads import KeptBody, RequestBody

T = TypeVar("T", bound=msgspec.Struct)
log = logging.getLogger(__name__)

BODY_LIMIT = 4 << 20
_FALSE = frozenset({"", "0", "no", "false", "none"})


class Call:
    """What a route's handler is given."""

    __slots__ = ("_kept", "_query", "common_headers", "params", "query_string", "request", "responding", "version")

    def __init__(
        self,
        request: BaseRequest,
        version: Version,
        params: dict[str, str],
        query_string: str,
        common_headers: dict[str, str],
    ) -> None:
        self.request = request
        self.version = version
        self.params = params
        self.query_string = query_string
        self.common_headers = common_headers
        self.responding = False  # a head was sent: a failure can only cut the connection
        self._query: dict[str, list[str]] | None = None
        self._kept: bytes | None = None

    @property
    def query(self) -> dict[str, list[str]]:
        """All query values by key."""
        if self._query is None:
            try:
                self._query = parse_qs(self.query_string, keep_blank_values=True, max_num_fields=1000)
            except ValueError as error:
                raise InvalidParameter("too many query parameters") from error
        return self._query

    def text(self, key: str, default: str = "") -> str:
        """Return the first value of a query parameter."""
        values = self.query.get(key)
        return values[0] if values else default

    def many(self, key: str) -> tuple[str, ...]:
        """Return all values of a repeatable query parameter; empty ones do not count."""
        return tuple(value for value in self.query.get(key, ()) if value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Read a boolean; `default` when the parameter is absent."""
        values = self.query.get(key)
        return default if values is None else values[0].strip().lower() not in _FALSE

    def integer(self, key: str, default: int = 0) -> int:
        """Read an integer; `default` when absent or empty, InvalidParameter when it is not a number of 64 bits."""
        return self._number(key, self.text(key)) if self.text(key) else default

    def optional_integer(self, key: str) -> int | None:
        """Read an integer that may be absent."""
        return self._number(key, self.text(key)) if self.text(key) else None

    @staticmethod
    def _number(key: str, value: str) -> int:
        try:
            number = int(value) if value.strip() == value and "_" not in value else None
        except ValueError:
            number = None
        if number is None or not -(1 << 63) <= number < 1 << 63:
            raise InvalidParameter(f"invalid value for {key}: {value!r} is not a number")
        return number

    def filters(self, known: frozenset[str]) -> filters.Filters:
        """Read the `filters` parameter."""
        return filters.parse(self.text("filters"), known)

    def check_json(self) -> None:
        """Refuse a body of another type; an empty body needs none."""
        given = self.request.headers.get(hdrs.CONTENT_TYPE, "")
        if not given and not self.request.can_read_body:
            return
        if given.partition(";")[0].strip().lower() != "application/json":
            raise InvalidParameter(f"unsupported Content-Type header ({given}): must be 'application/json'")

    async def body(self, limit: int = BODY_LIMIT) -> bytes:
        """Read the whole body; InvalidParameter when it is larger than `limit`."""
        if self._kept is not None:
            return self._kept
        self._go_on()
        chunks, size = [], 0
        async for chunk in self.request.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise InvalidParameter(f"request body is larger than {limit} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    async def keep_body(self) -> bytes:
        """Read the whole body for somebody who is to see it first; whoever reads it later gets the same bytes."""
        self._kept = await self.body()
        return self._kept

    def _go_on(self) -> None:
        """Tell a client that waits with its body to send it (RFC 9110, 10.1.1)."""
        transport = self.request.transport
        if self.request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and transport is not None:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def json(self, cls: type[T]) -> tuple[T, list[str]]:
        """Decode the JSON body; also return the keys that nothing reads."""
        self.check_json()
        return decoding.decode(await self.body(), cls)

    async def required_json(self, cls: type[T]) -> tuple[T, list[str]]:
        """Decode a JSON body that must be there."""
        self.check_json()
        body = await self.body()
        if not body.strip():
            raise InvalidParameter("invalid JSON: got EOF while reading request body")
        return decoding.decode(body, cls)

    def ignore(self, unknown: list[str]) -> None:
        """Note keys that nothing reads, where the response has no place to say so."""
        if unknown:
            log.warning(
                "%s %s: unknown fields ignored: %s", self.request.method, self.request.path, ", ".join(unknown)
            )

    def upload(self) -> RequestBody:
        """Return the body as a stream."""
        if self._kept is not None:
            return RequestBody(KeptBody(self._kept))
        self._go_on()
        return RequestBody(self.request.content)

    def auth(self) -> models.AuthConfig | None:
        """Read X-Registry-Auth; None when absent or not readable, as Docker ignores nonsense here."""
        return read_auth(self.request.headers.get("X-Registry-Auth", ""))

    def meta(self) -> dict[str, str]:
        """Return the X-Meta-* headers, to be passed on to registries."""
        return {name: value for name, value in self.request.headers.items() if name.lower().startswith("x-meta-")}

    def connect(self, kind: Kind) -> ClientConnection:
        """Return the client's connection, for what may take it over."""
        return ClientConnection(self.protocol, self.request, self.version, kind, self.common_headers)

    @property
    def protocol(self) -> EngineConnection:
        """The HTTP connection under the request."""
        return self.request.protocol  # type: ignore[return-value]

    def cancel_when_client_goes(self) -> None:
        """Cancel the current task when the client disconnects (it runs to its end otherwise)."""
        self.protocol.cancel_on_loss()


def read_auth(header: str) -> models.AuthConfig | None:
    """Decode base64url JSON credentials; None when there are none that can be read."""
    if not header:
        return None
    padded = header + "=" * (-len(header) % 4)
    try:
        document = base64.b64decode(padded, altchars=b"-_", validate=True)
        return decoding.decode(document, models.AuthConfig)[0]
    except (binascii.Error, ValueError, InvalidParameter):
        return None
