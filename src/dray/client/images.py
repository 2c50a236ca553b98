"""Images, builds and commits over the Engine API."""

from __future__ import annotations

from dray.client.http1 import Response
from dray.client.transport import Transport, path_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from dray.client.transport import Readable

    # Named, since `list` is a method of the classes below.
    Objects = list[dict[str, Any]]
    Texts = list[str]

AUTH_HEADER = "X-Registry-Auth"
CONFIG_HEADER = "X-Registry-Config"


def encode_auth(auth: Mapping[str, Any]) -> str:
    """Encode credentials for a header: JSON in padded URL-safe base64."""
    import base64
    import json

    return base64.urlsafe_b64encode(json.dumps(auth, separators=(",", ":")).encode()).decode()


def split_tag(reference: str) -> tuple[str, str]:
    """Split `name[:tag][@digest]` into name and tag (or digest)."""
    name, at, digest = reference.partition("@")
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        head, tag = name, ""
    return head, digest if at else tag


class Images:
    """`/images`, `/build` and `/commit`."""

    def __init__(self, transport: Transport) -> None:
        self._t = transport

    def _path(self, name: str, verb: str = "") -> str:
        return f"/images/{path_name(name)}{verb}"

    def list(
        self,
        *,
        all: bool = False,
        filters: Mapping[str, Any] | None = None,
        shared_size: bool = False,
        manifests: bool = False,
    ) -> Objects:
        """Return summaries, newest first; intermediate images too with `all`."""
        query = {
            "all": all,
            "filters": dict(filters) if filters else None,
            "shared-size": shared_size,
            "manifests": manifests,
        }
        answer: Objects = self._t.request("GET", "/images/json", query).json() or []
        return answer

    def inspect(self, name: str, *, platform: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return everything about one image."""
        query = {"platform": dict(platform) if platform else None}
        answer: dict[str, Any] = self._t.request("GET", self._path(name, "/json"), query).json()
        return answer

    def history(self, name: str, *, platform: Mapping[str, Any] | None = None) -> Objects:
        """Return the image's history records, newest first."""
        query = {"platform": dict(platform) if platform else None}
        answer: Objects = self._t.request("GET", self._path(name, "/history"), query).json() or []
        return answer

    def tag(self, name: str, repo: str, tag: str) -> None:
        """Give an image another name."""
        self._t.request("POST", self._path(name, "/tag"), {"repo": repo, "tag": tag or None}).read()

    def remove(
        self, name: str, *, force: bool = False, noprune: bool = False, platforms: Texts | None = None
    ) -> Objects:
        """Remove a name, or the image when it was the last; returns `[{Untagged} | {Deleted}]`."""
        query = {"force": force, "noprune": noprune, "platforms": platforms}
        answer: Objects = self._t.request("DELETE", self._path(name), query).json() or []
        return answer

    def pull(
        self, reference: str, *, platform: str | None = None, auth: str | None = None, all_tags: bool = False
    ) -> Response:
        """Pull an image; returns the progress stream."""
        name, tag = split_tag(reference)
        query = {"fromImage": name, "tag": None if all_tags else tag or "latest", "platform": platform or None}
        return self._t.request("POST", "/images/create", query, headers={AUTH_HEADER: auth} if auth else None)

    def push(
        self, name: str, *, tag: str = "", auth: str | None = None, platform: Mapping[str, Any] | None = None
    ) -> Response:
        """Push an image (all tags when `tag` is empty); returns the progress stream."""
        query = {"tag": tag or None, "platform": dict(platform) if platform else None}
        return self._t.request(
            "POST", self._path(name, "/push"), query, headers={AUTH_HEADER: auth or encode_auth({})}
        )

    def import_(
        self,
        source: str,
        body: Readable | None,
        *,
        repo: str,
        tag: str,
        message: str,
        changes: Texts,
        platform: str,
    ) -> Response:
        """Make an image of a filesystem archive (`source` "-" reads `body`); returns the progress stream."""
        query = {
            "fromSrc": source,
            "repo": repo or None,
            "tag": tag or None,
            "message": message or None,
            "changes": changes or None,
            "platform": platform or None,
        }
        return self._t.request("POST", "/images/create", query, body=body)

    def load(self, body: Readable, *, quiet: bool = False, platforms: Texts | None = None) -> Response:
        """Load images from an archive; returns the progress stream."""
        query = {"quiet": 1 if quiet else 0, "platform": platforms}
        return self._t.request(
            "POST", "/images/load", query, body=body, headers={"Content-Type": "application/x-tar"}
        )

    def save(self, names: Texts, *, platforms: Texts | None = None) -> Response:
        """Return an archive of images as a tar stream."""
        return self._t.request("GET", "/images/get", {"names": names, "platform": platforms})

    def search(
        self,
        term: str,
        *,
        limit: int | None = None,
        filters: Mapping[str, Any] | None = None,
        auth: str | None = None,
    ) -> Objects:
        """Search a registry for names."""
        query = {"term": term, "limit": limit or None, "filters": dict(filters) if filters else None}
        headers = {AUTH_HEADER: auth} if auth else None
        answer: Objects = self._t.request("GET", "/images/search", query, headers=headers).json() or []
        return answer

    def prune(self, filters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Remove unused images; returns `{ImagesDeleted, SpaceReclaimed}`."""
        query = {"filters": dict(filters) if filters else None}
        answer: dict[str, Any] = self._t.request("POST", "/images/prune", query).json()
        return answer

    def commit(self, container: str, query: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> str:
        """Make an image of a container (`repo`, `tag`, `comment`, `author`, `changes`, `pause`); returns its ID."""
        response = self._t.request(
            "POST", "/commit", {"container": container, **query}, json_body=dict(config or {})
        )
        return str(response.json()["Id"])

    def build(
        self, body: Readable | None, query: Mapping[str, Any], *, registry_config: str | None = None
    ) -> Response:
        """Build an image from a context archive; returns the progress stream."""
        headers = {"Content-Type": "application/x-tar"}
        if registry_config:
            headers[CONFIG_HEADER] = registry_config
        return self._t.request("POST", "/build", query, body=body, headers=headers)

    def prune_build_cache(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """Remove build cache; returns `{CachesDeleted, SpaceReclaimed}`."""
        answer: dict[str, Any] = self._t.request("POST", "/build/prune", query).json()
        return answer
