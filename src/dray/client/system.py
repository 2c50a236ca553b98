"""The daemon itself over the Engine API: ping, version, info, events, disk usage, registry credentials."""

from __future__ import annotations

from dray.client.http1 import Connection, Response
from dray.client.transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class System:
    """Endpoints that name no object."""

    def __init__(self, transport: Transport) -> None:
        self._t = transport

    def ping(self) -> dict[str, str]:
        """Return the headers of the daemon's ping."""
        return self._t.ping()

    def version(self) -> dict[str, Any]:
        """Return the versions of the daemon and its parts."""
        answer: dict[str, Any] = self._t.request("GET", "/version").json()
        return answer

    def info(self) -> dict[str, Any]:
        """Return what the daemon says of itself and its host."""
        answer: dict[str, Any] = self._t.request("GET", "/info").json()
        return answer

    def events(
        self, *, since: str | None = None, until: str | None = None, filters: Mapping[str, Any] | None = None
    ) -> Response:
        """Return the event stream."""
        query = {"since": since or None, "until": until or None, "filters": dict(filters) if filters else None}
        return self._t.request("GET", "/events", query)

    def disk_usage(self, *, types: list[str] | None = None) -> dict[str, Any]:
        """Return what images, containers, volumes and build cache take."""
        answer: dict[str, Any] = self._t.request("GET", "/system/df", {"type": types}).json()
        return answer

    def login(self, auth: Mapping[str, Any]) -> dict[str, Any]:
        """Check credentials with a registry; returns `{Status, IdentityToken}`."""
        answer: dict[str, Any] = self._t.request("POST", "/auth", json_body=auth).json()
        return answer

    def dial(self) -> Connection:
        """Return a new raw connection to the daemon."""
        return self._t.connect()
