"""What a registry is to the rest of the engine: the distribution protocol's verbs, by repository.

`Repository` is one repository at one registry, as one user sees it: it knows hosts, mirrors, TLS and tokens, so
that its callers speak of manifests and blobs alone. Implementations are blocking and thread-safe: several threads
fetch from one repository at a time. `store.transfer` drives it; `registry.remote` implements it over HTTP.

Errors are the kinds of `base.errors`: NotFound (no such manifest, blob or repository), Unauthorized (credentials
are missing or refused), Forbidden, InvalidParameter (the registry sent what it may not send), Unavailable (it does
not answer, or broke off; worth another try, unless it is Unreachable).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct

from dray.base.errors import Unavailable
from dray.base.reference import Reference
from dray.oci.image import Descriptor
from dray.registry.proxies import Proxies


class Unreachable(Unavailable):
    """Nothing at this address speaks the protocol, or it cannot be trusted: another try will not help soon."""


MANIFEST_LIMIT = 4 << 20  # bytes; the distribution specification advises registries to take no larger ones


class Credentials(Struct, frozen=True):
    """What a client sent in X-Registry-Auth. All empty: anonymous."""

    username: str = ""
    password: str = ""
    identity_token: str = ""  # OAuth2 refresh token
    registry_token: str = ""  # a bearer token to be sent as it is


ANONYMOUS = Credentials()


class BlobStream(Protocol):
    """Bytes of a blob on their way in; a context manager that closes its connection if it was not read to the end."""

    start: int  # offset in the blob of the first byte that `read` returns; 0 if the registry ignored the range
    size: int | None  # the whole blob's size as the registry tells it, None if it does not
    ranged: bool  # the registry honours ranges (it answered 206, or said so)

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, b"" at the end. Unavailable if the connection breaks or stalls."""

    def close(self) -> None:
        """Give the connection back, or drop it."""

    def __enter__(self) -> BlobStream: ...
    def __exit__(self, *_: object) -> None: ...


class Upload(Protocol):
    """A blob on its way out. `offset`: how many bytes the registry has acknowledged."""

    offset: int

    def send(self, data: bytes | memoryview, /) -> None:
        """Append one chunk. Unavailable if it breaks off; then `resume`, and send again from `offset`."""

    def resume(self) -> int:
        """Ask the registry how much it has; return and set `offset`. NotFound if it has forgotten the upload."""

    def commit(self, digest: str) -> None:
        """Finish; InvalidParameter if the registry finds another digest."""

    def cancel(self) -> None:
        """Forget the upload; never fails."""


class Repository(Protocol):
    """One repository of one registry."""

    name: Reference

    def resolve(self, reference: str) -> Descriptor:
        """Return the descriptor (media type, digest, size) of a tag or digest."""

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """Fetch a manifest or index by tag or digest, at most MANIFEST_LIMIT bytes, its digest checked if one was
        asked for; the descriptor is of the very bytes returned."""

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> BlobStream:
        """Open a blob from `start` up to, not including, `end`; if the registry lacks it, at one of the descriptor's
        `urls`. Nothing is checked here but lengths."""

    def has_blob(self, digest: str) -> bool:
        """Tell whether the registry has a blob in this repository."""

    def upload(self, digest: str, *, mount_from: str | None = None) -> Upload | None:
        """Begin an upload; None if nothing is to be sent, because the registry mounted the blob from the repository
        `mount_from` (its path at the same registry)."""

    def put_manifest(self, reference: str, media_type: str, data: bytes) -> str:
        """Store a manifest under a tag or digest; return its digest."""

    def tags(self) -> Iterator[str]:
        """Yield all tags, following pages."""

    def close(self) -> None:
        """Drop connections."""


class Registries(Protocol):
    """The registries there are, as the daemon's configuration has them. `auth` is what the client sent."""

    def repository(self, name: Reference, auth: Credentials = ANONYMOUS, *, push: bool = False) -> Repository:
        """Return a repository; nothing is sent yet. With `push`, mirrors are left out."""

    def login(self, address: str, auth: Credentials) -> tuple[str, str]:
        """Try credentials; return (status text, identity token or ""). Unauthorized if they are refused."""

    def search(self, term: str, *, limit: int, auth: Credentials = ANONYMOUS) -> list[dict[str, object]]:
        """Search a registry (`GET /v1/search`), results as the registry gave them."""

    @property
    def proxies(self) -> Proxies:
        """The proxies of the daemon's requests."""
