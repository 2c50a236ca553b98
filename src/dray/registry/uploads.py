"""A blob on its way out to a registry (`model.Upload`).

    POST   /v2/NAME/blobs/uploads/[?mount=DIGEST&from=OTHER]   201 mounted; 202 + Location
    PATCH  Location, Content-Range: first-last                 202 + Location, Range: 0-last
    GET    Location                                            204 + Location, Range: 0-last
    PUT    Location?digest=DIGEST [with the last bytes]        201
    DELETE Location

A blob of a single small chunk goes with the PUT. Every answer may name another Location, absolute or relative.
"""

from __future__ import annotations

import contextlib
import re
from urllib.parse import urlencode

from dray.base.errors import DrayError, Forbidden, InvalidParameter, Unavailable
from dray.base.patterns import pattern
from dray.registry.session import Session
from dray.registry.tokens import Scopes
from dray.registry.transport import Response, joined

SMALL = 1 << 20  # bytes of a first chunk that is held back, to go with the PUT
COMMIT = 300.0  # seconds of patience while the registry hashes what it was sent
_DRAIN = 64 << 10
_RANGE = pattern(r"(?:bytes=)?(\d+)-(\d+)", re.ASCII)


def begin(session: Session, digest: str, mount_from: str | None) -> RemoteUpload | None:
    """Ask for a place to upload to; None if the registry mounted the blob."""
    url = session.url("blobs/uploads/")
    scopes: Scopes = (session.scope,)
    if mount_from:
        url += "?" + urlencode({"mount": digest, "from": mount_from})
        scopes = (session.scope, f"repository:{mount_from}:pull")
    response = session.exchange("POST", url, body=b"", scopes=scopes)
    session.expect(response, 201, 202)
    response.start_of_body(_DRAIN)
    if response.status == 201:
        if not mount_from:
            raise InvalidParameter(f"{response.request}: the registry says it has a blob that it was not sent")
        return None
    return RemoteUpload(session, _location(session, url, response), scopes)


def _location(session: Session, url: str, response: Response) -> str:
    location = response.header("Location")
    if not location:
        raise InvalidParameter(f"{response.request}: the registry did not say where to upload to")
    target = joined(url, location)
    if target.startswith("http:") and url.startswith("https:"):
        raise Forbidden(
            f"{response.request}: an upload to plain HTTP is refused: a registry behind a proxy that does TLS must be "
            "told so (X-Forwarded-Proto, or `http.host` in its configuration)"
        )
    return target


class RemoteUpload:
    """One upload. Not thread-safe: one thread sends one blob."""

    def __init__(self, session: Session, location: str, scopes: tuple[str, ...]) -> None:
        self.offset = 0
        self._session = session
        self._location = location
        self._scopes = scopes
        self._held = b""

    def send(self, data: bytes | memoryview, /) -> None:
        """Append a chunk; Unavailable if it breaks off, or the registry took another number of bytes."""
        if not data:
            return
        if self.offset == 0 and not self._held and len(data) <= SMALL:
            self._held = bytes(data)
            self.offset = len(data)
            return
        self._flush()
        self._patch(data)

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self.offset = 0
            self._patch(held)

    def _patch(self, data: bytes | memoryview) -> None:
        first, last = self.offset, self.offset + len(data) - 1
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{first}-{last}",
        }
        response = self._exchange("PATCH", self._location, headers=headers, body=data)
        if response.status == 416:
            response.start_of_body(_DRAIN)
            self._follow(response)
            raise Unavailable(f"{response.request}: the registry has another number of bytes than {first}")
        self._session.expect(response, 202, 204, 201)
        response.start_of_body(_DRAIN)
        self._follow(response)
        match = _RANGE.fullmatch(response.header("Range"))
        taken = int(match[2]) + 1 if match else last + 1
        self.offset = min(taken, last + 1)
        if taken != last + 1:
            raise Unavailable(f"{response.request}: the registry took {taken} bytes of {last + 1}")

    def resume(self) -> int:
        """Ask the registry how much it has."""
        self._held = b""

        def ask() -> int:
            response = self._session.expect(self._exchange("GET", self._location), 204, 202, 200)
            response.start_of_body(_DRAIN)
            self._follow(response)
            match = _RANGE.fullmatch(response.header("Range"))
            # "0-0" is what registries say of nothing, as well as of one byte: nobody sends a chunk of one.
            return int(match[2]) + 1 if match and match[2] != "0" else 0

        self.offset = self._session.retrying(ask)
        return self.offset

    def commit(self, digest: str) -> None:
        """Finish, with what was held back."""
        url = f"{self._location}{'&' if '?' in self._location else '?'}{urlencode({'digest': digest})}"
        headers = {"Content-Type": "application/octet-stream"}
        response = self._exchange("PUT", url, headers=headers, body=self._held, patience=COMMIT)
        self._session.expect(response, 201, 204, 200)
        response.start_of_body(_DRAIN)
        self._held = b""
        told = response.header("Docker-Content-Digest")
        if told and told != digest:
            raise InvalidParameter(f"{response.request}: the registry has {told[:100]}, not {digest}")

    def cancel(self) -> None:
        """Forget the upload."""
        self._held = b""
        with contextlib.suppress(DrayError):
            self._exchange("DELETE", self._location).start_of_body(_DRAIN)

    def _exchange(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | memoryview | None = None,
        patience: float | None = None,
    ) -> Response:
        return self._session.exchange(
            method, url, headers=headers, body=body, scopes=self._scopes, patience=patience
        )

    def _follow(self, response: Response) -> None:
        if response.header("Location"):
            self._location = _location(self._session, self._location, response)
