"""Volumes and networks over the Engine API."""

from __future__ import annotations

from dray.client.transport import Transport, path_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from dray.client.http1 import Response
    from dray.client.transport import Readable


class Volumes:
    """`/volumes`."""

    def __init__(self, transport: Transport) -> None:
        self._t = transport

    def list(self, filters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return `{Volumes, Warnings}`."""
        query = {"filters": dict(filters) if filters else None}
        answer: dict[str, Any] = self._t.request("GET", "/volumes", query).json()
        return answer

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create a volume, or return the one there is."""
        answer: dict[str, Any] = self._t.request("POST", "/volumes/create", json_body=body).json()
        return answer

    def inspect(self, name: str) -> dict[str, Any]:
        """Return one volume."""
        answer: dict[str, Any] = self._t.request("GET", f"/volumes/{path_name(name)}").json()
        return answer

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a volume; with `force` one that does not exist is no error."""
        self._t.request("DELETE", f"/volumes/{path_name(name)}", {"force": force}).read()

    def rename(self, name: str, new: str) -> None:
        """Give a volume another name (an addition of dray's)."""
        self._t.request("POST", f"/volumes/{path_name(name)}/rename", {"name": new}).read()

    def export(self, name: str) -> Response:
        """Return a volume's files as a tar stream (an addition of dray's)."""
        return self._t.request("GET", f"/volumes/{path_name(name)}/export")

    def import_(self, name: str, body: Readable) -> dict[str, Any]:
        """Unpack a tar into a new or empty volume (an addition of dray's)."""
        headers = {"Content-Type": "application/x-tar"}
        path = f"/volumes/{path_name(name)}/import"
        answer: dict[str, Any] = self._t.request("PUT", path, body=body, headers=headers).json()
        return answer

    def prune(self, filters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Remove unused volumes; returns `{VolumesDeleted, SpaceReclaimed}`."""
        query = {"filters": dict(filters) if filters else None}
        answer: dict[str, Any] = self._t.request("POST", "/volumes/prune", query).json()
        return answer


class Networks:
    """`/networks`."""

    def __init__(self, transport: Transport) -> None:
        self._t = transport

    def list(self, filters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return networks without their containers."""
        query = {"filters": dict(filters) if filters else None}
        answer: list[dict[str, Any]] = self._t.request("GET", "/networks", query).json() or []
        return answer

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create a network; returns `{Id, Warning}`."""
        answer: dict[str, Any] = self._t.request("POST", "/networks/create", json_body=body).json()
        return answer

    def inspect(self, name: str, *, verbose: bool = False, scope: str = "") -> dict[str, Any]:
        """Return one network with its containers."""
        query = {"verbose": verbose, "scope": scope or None}
        answer: dict[str, Any] = self._t.request("GET", f"/networks/{path_name(name)}", query).json()
        return answer

    def remove(self, name: str) -> None:
        """Remove a network."""
        self._t.request("DELETE", f"/networks/{path_name(name)}").read()

    def connect(self, name: str, body: Mapping[str, Any]) -> None:
        """Connect a container (`Container`, `EndpointConfig`)."""
        self._t.request("POST", f"/networks/{path_name(name)}/connect", json_body=body).read()

    def disconnect(self, name: str, body: Mapping[str, Any]) -> None:
        """Disconnect a container (`Container`, `Force`)."""
        self._t.request("POST", f"/networks/{path_name(name)}/disconnect", json_body=body).read()

    def prune(self, filters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Remove unused networks; returns `{NetworksDeleted}`."""
        query = {"filters": dict(filters) if filters else None}
        answer: dict[str, Any] = self._t.request("POST", "/networks/prune", query).json()
        return answer
