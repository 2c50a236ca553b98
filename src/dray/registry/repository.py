"""One repository over HTTP (`model.Repository`): which endpoint, which request, what its answer means.

Endpoints are tried in order: mirrors, then the registry itself; an insecure registry by HTTPS, then by HTTP. The one
that gave the last answer comes first for the next request. A mirror is passed over whatever is wrong with it; HTTP is
tried only where nothing answered by HTTPS.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import quote

import msgspec

from dray.base import digest as digests
from dray.base.errors import DrayError, InvalidParameter, NotFound
from dray.base.malformed import MALFORMED
from dray.base.patterns import pattern
from dray.base.reference import Reference
from dray.oci import image as oci
from dray.oci.image import Descriptor
from dray.registry.answers import PlainAnswer
from dray.registry.blobs import RemoteBlob
from dray.registry.foreign import open_foreign
from dray.registry.model import ANONYMOUS, MANIFEST_LIMIT, Credentials
from dray.registry.session import Session
from dray.registry.settings import RegistrySettings
from dray.registry.transport import Response, Transport, joined, same_host
from dray.registry.uploads import RemoteUpload, begin

log = logging.getLogger("dray.registry")

T = TypeVar("T")

TAGS_LIMIT = 4 << 20  # bytes of one page of tags
PAGES = 10_000
SCHEMA1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
_TYPES = (oci.OCI_INDEX, oci.DOCKER_LIST, oci.OCI_MANIFEST, oci.DOCKER_MANIFEST)
_ACCEPT = {"Accept": ", ".join((*_TYPES, "application/json;q=0.5", "*/*;q=0.1"))}
_NEXT = pattern(r'<([^<>]+)>\s*;[^,]*\brel\s*=\s*"?next"?', re.ASCII)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)


class RemoteRepository:
    """`model.Repository` at one registry, for one user. Thread-safe; `close` breaks off what is under way."""

    def __init__(self, settings: RegistrySettings, name: Reference, auth: Credentials, *, push: bool) -> None:
        self.name = name
        self._settings = settings
        self._auth = auth
        self._push = push
        self._transport = Transport(settings)
        self._sessions: list[Session] | None = None
        self._elsewhere: set[str] = set()  # blobs that the registry has not got, only their foreign addresses

    def _endpoints(self) -> list[Session]:
        """Return the sessions, the one that answered last first; made late, since hosts may be looked up."""
        if self._sessions is None:
            self._sessions = [
                Session(
                    endpoint,
                    self.name,
                    # Credentials are for the registry; a mirror is somebody else.
                    ANONYMOUS if endpoint.mirror else self._auth,
                    self._transport,
                    push=self._push,
                )
                for endpoint in self._settings.endpoints(self.name.domain, push=self._push)
            ]
        return self._sessions

    def _first(self, operation: Callable[[Session], T]) -> T:
        """Do `operation` at the first endpoint that is able to."""
        failed: list[tuple[Session, DrayError]] = []
        sessions = list(self._endpoints())
        for session in sessions:
            try:
                result = operation(session)
            except DrayError as error:
                if self._transport.closed.is_set() or session is sessions[-1] or not _passed_over(session):
                    raise self._chosen_error([*failed, (session, error)]) from error
                if session.endpoint.mirror:
                    log.info("mirror %s is passed over: %s", session.endpoint.url, error)
                failed.append((session, error))
            else:
                if session is not sessions[0]:
                    self._sessions = [session, *(one for one in sessions if one is not session)]
                return result
        raise AssertionError("a registry has at least one endpoint")

    @staticmethod
    def _chosen_error(failed: list[tuple[Session, DrayError]]) -> DrayError:
        """Return the failure that says most: plain HTTP spoken to a TLS server yields a 400 that explains nothing."""
        last, error = failed[-1]
        if len(failed) < 2 or last.endpoint.tls or not isinstance(error, InvalidParameter):
            return error
        by_tls = failed[-2][1]
        return error if isinstance(by_tls, PlainAnswer) else by_tls

    # -- manifests

    def resolve(self, reference: str) -> Descriptor:
        """Return the descriptor of a tag or digest, by HEAD if the registry tells enough in its headers."""

        def ask(session: Session) -> Descriptor | None:
            response = session.exchange("HEAD", session.url(_manifest(reference)), headers=_ACCEPT)
            response.read(1)  # ends the answer: only then another thread may have the connection
            response.release()
            if response.status in (401, 429) or response.status >= 500:
                session.expect(response, 200, name=self._named(reference))
            if response.status != 200:
                return None  # the reason is in a body, which HEAD has not
            return _described(response, reference)

        def both(session: Session) -> Descriptor:
            found = session.retrying(lambda: ask(session))
            return found if found is not None else session.retrying(lambda: self._get(session, reference))[0]

        return self._first(both)

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """Fetch a manifest or index, and check it."""
        return self._first(lambda session: session.retrying(lambda: self._get(session, reference)))

    def _get(self, session: Session, reference: str) -> tuple[Descriptor, bytes]:
        name = self._named(reference)
        response = session.exchange("GET", session.url(_manifest(reference)), headers=_ACCEPT)
        session.expect(response, 200, name=name)
        if encoding := response.header("Content-Encoding"):
            response.close()
            raise InvalidParameter(
                f"{response.request}: the registry encoded a manifest as {encoding[:40]!r}, unasked"
            )
        data = response.body(MANIFEST_LIMIT, "a manifest")
        digest = _checked_digest(data, reference, response)
        return Descriptor(media_type=_media_type(data, response, name), digest=digest, size=len(data)), data

    def put_manifest(self, reference: str, media_type: str, data: bytes) -> str:
        """Store a manifest; return its digest."""
        digest = digests.of(data)

        def put(session: Session) -> str:
            url = session.url(_manifest(reference))
            response = session.exchange("PUT", url, headers={"Content-Type": media_type}, body=data)
            session.expect(response, 201, 200, 202, name=self._named(reference))
            response.start_of_body(TAGS_LIMIT)
            told = response.header("Docker-Content-Digest")
            if told and told != digest:
                raise InvalidParameter(f"{response.request}: the registry stored {told[:100]}, not {digest}")
            return digest

        return self._first(lambda session: session.retrying(lambda: put(session)))

    def _named(self, reference: str) -> Reference:
        if digests.is_digest(reference):
            return Reference(self.name.domain, self.name.path, None, reference)
        return Reference(self.name.domain, self.name.path, reference)

    # -- blobs

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> RemoteBlob:
        """Open a blob, or a part of it; at its foreign addresses, if it has any and the registry has not got it."""
        headers = {}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"

        def fetch(session: Session) -> RemoteBlob:
            response = session.exchange("GET", session.url(_blob(descriptor.digest)), headers=headers)
            session.expect(response, 200, 206)
            if response.status == 206 and not headers:
                response.close()
                raise InvalidParameter(f"{response.request}: the registry sent a part where none was asked for")
            return RemoteBlob(response, descriptor, start, end)

        if not descriptor.urls:
            return self._first(fetch)
        if descriptor.digest not in self._elsewhere:
            try:
                return self._first(fetch)
            except NotFound:
                self._elsewhere.add(descriptor.digest)
        return open_foreign(self._transport, descriptor.urls, descriptor, start, end)

    def has_blob(self, digest: str) -> bool:
        """Tell whether the registry has a blob in this repository."""
        return self._head_of_blob(digest) is not None

    def blob_size(self, digest: str) -> int | None:
        """Return the size of a blob as HEAD tells it, None if it does not; NotFound if the repository has none such."""
        response = self._head_of_blob(digest)
        if response is None:
            raise NotFound(f"{self.name.familiar} has no blob {digest}")
        length = response.header("Content-Length")
        return int(length) if length.isascii() and length.isdigit() else None

    def _head_of_blob(self, digest: str) -> Response | None:
        def ask(session: Session) -> Response | None:
            response = session.exchange("HEAD", session.url(_blob(digest)))
            response.read(1)  # ends the answer: only then another thread may have the connection
            response.release()
            return None if response.status == 404 else session.expect(response, 200)

        return self._first(lambda session: session.retrying(lambda: ask(session)))

    def upload(self, digest: str, *, mount_from: str | None = None) -> RemoteUpload | None:
        """Begin an upload; None if the blob was mounted."""
        return self._first(lambda session: session.retrying(lambda: begin(session, digest, mount_from)))

    # -- tags

    def tags(self) -> Iterator[str]:
        """Yield all tags; InvalidParameter if pages lead to another host or in a circle."""
        session, page, link = self._first(
            lambda one: (one, *one.retrying(lambda: _page(one, one.url("tags/list"))))
        )
        seen: set[str] = set()
        while True:
            yield from page
            if link is None:
                return
            if not same_host(link, session.endpoint.url):
                raise InvalidParameter(
                    f"{session.endpoint.url}: its next page of tags is at another host: refused"
                )
            if link in seen or len(seen) >= PAGES:
                raise InvalidParameter(f"{session.endpoint.url}: its list of tags does not end")
            seen.add(link)
            following = link
            page, link = session.retrying(lambda: _page(session, following))  # noqa: B023 - called at once

    # -- referrers

    def referrers(self, digest: str) -> list[dict[str, object]]:
        """Return the descriptors of manifests whose subject a digest is (distribution-spec 1.1, Listing Referrers);
        of a registry without that endpoint, those of the index that stands under the digest's own tag."""

        def ask(session: Session) -> bytes | None:
            response = session.exchange(
                "GET", session.url(f"referrers/{digest}"), headers={"Accept": oci.OCI_INDEX}
            )
            if response.status == 404:
                response.release()
                return None
            return session.expect(response, 200).body(MANIFEST_LIMIT, "a list of referrers")

        data = self._first(lambda session: session.retrying(lambda: ask(session)))
        if data is None:
            try:
                data = self.manifest(digest.replace(":", "-"))[1]
            except NotFound:
                return []
        try:
            found = json.loads(data).get("manifests") or []
        except (ValueError, AttributeError, RecursionError) as error:
            raise InvalidParameter(f"{self.name.domain}: invalid list of referrers: {error}") from error
        return [one for one in found if isinstance(one, dict) and digests.is_digest(str(one.get("digest", "")))]

    def close(self) -> None:
        """Drop connections; whatever is under way in other threads breaks off."""
        self._transport.close()


def _passed_over(session: Session) -> bool:
    return session.endpoint.mirror or (
        session.endpoint.tls and not session.endpoint.verify and not session.answered
    )


def _manifest(reference: str) -> str:
    return f"manifests/{quote(reference, safe=':')}"


def _blob(digest: str) -> str:
    digests.parse(digest)
    return f"blobs/{digest}"


def _described(response: Response, reference: str) -> Descriptor | None:
    """Read a descriptor from the headers of HEAD; None if they do not tell all of it."""
    digest, length = response.header("Docker-Content-Digest"), response.header("Content-Length")
    media_type = response.header("Content-Type").partition(";")[0].strip()
    if not digest and digests.is_digest(reference):
        digest = reference
    if not digests.is_digest(digest) or not length.isdigit() or media_type not in _TYPES:
        return None
    if digests.is_digest(reference) and digest != reference:
        raise InvalidParameter(f"{response.request}: the registry offers {digest} for {reference}")
    if int(length) > MANIFEST_LIMIT:
        raise InvalidParameter(
            f"{response.request}: a manifest of {int(length)} bytes is refused: the limit is {MANIFEST_LIMIT}"
        )
    return Descriptor(media_type=media_type, digest=digest, size=int(length))


def _checked_digest(data: bytes, reference: str, response: Response) -> str:
    """Return the digest of a manifest's bytes; InvalidParameter if another was asked for, or promised."""
    wanted = reference if digests.is_digest(reference) else ""
    told = response.header("Docker-Content-Digest")
    for expected in (wanted, told):
        if not expected:
            continue
        if not digests.is_digest(expected):
            raise InvalidParameter(f"{response.request}: the registry sent the digest {expected[:100]!r}")
        algorithm = expected.partition(":")[0]
        found = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
        if found != expected:
            raise InvalidParameter(
                f"{response.request}: manifest verification failed for digest {expected}: it is {found}"
            )
    return wanted or digests.of(data)


def _media_type(data: bytes, response: Response, name: Reference) -> str:
    """Return what a manifest is; InvalidParameter if header and contents say different things, or it is too old."""
    header = response.header("Content-Type").partition(";")[0].strip().lower()
    try:
        fields = _fields.decode(data)
        told = _text.decode(fields["mediaType"]) if "mediaType" in fields else ""
    except MALFORMED as error:
        raise InvalidParameter(f"{response.request}: invalid manifest: {error}") from error
    if header in SCHEMA1 or told in SCHEMA1 or "fsLayers" in fields:
        raise InvalidParameter(
            "[DEPRECATION NOTICE] Docker Image Format v1 and Docker Image manifest version 2, schema 1 are no longer "
            f"supported. Suggest the author of {name.familiar} to upgrade the image to the OCI Format or Docker Image "
            "manifest v2, schema 2. More information at https://docs.docker.com/go/deprecated-image-specs/"
        )
    known = header if header in _TYPES else ""
    if known and told and told != known:
        raise InvalidParameter(
            f"{response.request}: ambiguous manifest: the registry calls it {known}, it calls itself {told[:100]}"
        )
    if not known and not told:
        known = oci.OCI_INDEX if "manifests" in fields else oci.OCI_MANIFEST
    oci.parse_document(data, known or told)
    return known or told


def _page(session: Session, url: str) -> tuple[list[str], str | None]:
    """Fetch one page of tags; return them, and the URL of the next page."""
    response = session.expect(session.exchange("GET", url), 200)
    body = response.body(TAGS_LIMIT, "a list of tags")
    try:
        tags = json.loads(body).get("tags") or []
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidParameter(f"{response.request}: invalid list of tags: {error}") from error
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise InvalidParameter(f"{response.request}: invalid list of tags")
    match = _NEXT.search(response.header("Link"))
    return tags, joined(url, match[1]) if match else None
