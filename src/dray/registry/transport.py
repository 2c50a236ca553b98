"""HTTP requests to registries, one at a time: proxies, TLS, redirects, limits, and errors in Docker's words.

Of redirects: only GET and HEAD follow them, at most ten; `Authorization` goes to the host it was meant for and to
no other (CVE-2020-15157); from https none leads to http. Of bodies: every reading has a limit in bytes and a floor in
bytes per second. A `Transport` may be used by several threads; `close` breaks whatever is under way.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urljoin, urlsplit

from urllib3 import PoolManager, Timeout
from urllib3 import exceptions as http
from urllib3.response import BaseHTTPResponse

from dray import __version__
from dray.base.errors import DrayError, Forbidden, InvalidParameter, Unavailable
from dray.registry.answers import go_request, tls_failure
from dray.registry.certificates import tls_context
from dray.registry.connections import DEAD, WATCHDOG, open_manager, shut
from dray.registry.model import Unreachable
from dray.registry.proxies import redacted
from dray.registry.settings import Endpoint, RegistrySettings

CONNECT = 15.0  # seconds to connect to one address
STALL = 30.0  # seconds without a single byte after which a peer counts as gone
WINDOW = 30.0  # seconds over which the floor is measured
FLOOR = 32 << 10  # bytes in a window, below which a peer counts as stalling
BLOCK = 256 << 10  # bytes that are waited for at once where reading less costs too much
PATIENCE = 60.0  # seconds for a whole small body
REDIRECTS = 10
_PIECE = 256 << 10

# At debug level it writes every URL, with the secrets that some registries put into an upload's.
logging.getLogger("urllib3").setLevel(logging.WARNING)

_REDIRECT = frozenset({301, 302, 303, 307, 308})


@dataclass(slots=True)
class Response:
    """An answer whose body is still to be read. `url` is where it came from at last, `request` names what was asked
    for messages."""

    raw: BaseHTTPResponse
    url: str
    request: str
    _transport: Transport

    @property
    def status(self) -> int:
        """The status code."""
        return self.raw.status

    def header(self, name: str) -> str:
        """Return a header's value, "" without one."""
        return self.raw.headers.get(name, "") or ""

    def headers(self, name: str) -> list[str]:
        """Return all values of a header."""
        return list(self.raw.headers.getlist(name))

    def read(self, size: int) -> bytes:
        """Return some bytes of the body, at most `size`, b"" at its end."""
        return self._transport.read(self, size)

    def read_into(self, view: memoryview) -> int:
        """Fill `view` from the body; see `Transport.read_into`."""
        return self._transport.read_into(self, view)

    def body(self, limit: int, what: str) -> bytes:
        """Read the whole body; InvalidParameter if it is larger than `limit` bytes."""
        length = self.raw.headers.get("Content-Length", "")
        if length.isdigit() and int(length) > limit:
            self.close()
            raise InvalidParameter(f"{self.request}: {what} of {length} bytes is refused: the limit is {limit}")
        pieces, held = [], 0
        with self._transport.within(self, PATIENCE) as expired:
            try:
                while piece := self.read(min(_PIECE, limit + 1 - held)):
                    pieces.append(piece)
                    held += len(piece)
                    if held > limit:
                        self.close()
                        raise InvalidParameter(
                            f"{self.request}: {what} is refused: it is larger than {limit} bytes"
                        )
            except Unavailable as error:
                if not expired.is_set():
                    raise
                words = f"{self.request}: {what} took longer than {PATIENCE:.0f} s to arrive"
                raise Unavailable(words) from error
        self.release()
        return b"".join(pieces)

    def start_of_body(self, limit: int) -> bytes:
        """Return at most the first `limit` bytes, and end the answer; never fails (for error bodies)."""
        pieces, held, piece = [], 0, b"-"
        try:
            with self._transport.within(self, PATIENCE):
                while held < limit and (piece := self.read(limit - held)):
                    pieces.append(piece)
                    held += len(piece)
        except DrayError:
            return b""
        if piece:  # not at the end: nobody else may read the rest
            self.close()
        else:
            self.release()
        return b"".join(pieces)

    def release(self) -> None:
        """Give the connection back, the body having been read."""
        self.raw.release_conn()

    def close(self) -> None:
        """Drop the connection, if the body has not been read to its end."""
        self.raw.close()
        self.raw.release_conn()


class Transport:
    """Connections for the requests of one repository or one login."""

    def __init__(self, settings: RegistrySettings) -> None:
        self.settings = settings
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._managers: dict[tuple[str, str, bool], PoolManager] = {}
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()

    def _manager(self, url: str, *, verify: bool) -> PoolManager:
        parts = urlsplit(url)
        proxy = self.settings.proxies.for_url(url)
        key = (parts.netloc if parts.scheme == "https" else "", proxy, verify)
        with self._lock:
            if (manager := self._managers.get(key)) is None:
                if parts.scheme == "https":
                    context = tls_context(parts.netloc, self.settings.certificate_folders, verify=verify)
                else:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # for no one: plain HTTP
                manager = self._managers[key] = open_manager(proxy, context)
            return manager

    def send(
        self,
        method: str,
        url: str,
        *,
        endpoint: Endpoint,
        headers: Mapping[str, str],
        body: bytes | memoryview | None = None,
        patience: float | None = None,
    ) -> Response:
        """Ask, and follow redirects. `patience`: seconds without a byte of the answer's head, if not STALL."""
        asked = go_request(method, url)
        sent = {"User-Agent": f"dray/{__version__}", **headers}
        if body:
            sent["Content-Length"] = str(len(body))
        # An upload may go to another host than its registry's.
        verify = endpoint.verify if same_host(url, endpoint.url) else self._verifies(url)
        for _ in range(REDIRECTS + 1):
            raw = self._once(method, url, sent, body, verify=verify, patience=patience)
            location = raw.headers.get("Location")
            if raw.status not in _REDIRECT or method not in ("GET", "HEAD") or not location:
                return Response(raw, url, asked, self)
            raw.close()
            raw.release_conn()
            target = self._redirected(url, location, endpoint=endpoint)
            if not same_host(url, target):
                sent.pop("Authorization", None)
                verify = self._verifies(target)
            url = target
        raise InvalidParameter(f"{asked}: stopped after {REDIRECTS} redirects")

    def _verifies(self, url: str) -> bool:
        return not self.settings.is_insecure(urlsplit(url).netloc.rpartition("@")[2])

    @staticmethod
    def _redirected(url: str, location: str, *, endpoint: Endpoint) -> str:
        target = joined(url, location)
        parts = urlsplit(target)
        if parts.scheme == "http" and url.startswith("https:"):
            raise Forbidden(
                f"{url}: a redirect from https to {parts.scheme}://{parts.hostname} is refused: "
                "what comes over plain HTTP can be changed on its way"
            )
        return target

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | memoryview | None,
        *,
        verify: bool,
        patience: float | None,
    ) -> BaseHTTPResponse:
        if self.closed.is_set():
            raise Unavailable(f"{go_request(method, url)}: context canceled")
        manager = self._manager(url, verify=verify)
        try:
            raw = manager.urlopen(
                method,
                url,
                body=_sliced(body),
                headers=dict(headers),
                redirect=False,
                preload_content=False,
                decode_content=False,
                retries=False,
                timeout=Timeout(connect=CONNECT, read=STALL if patience is None else patience),
            )
        except http.HTTPError as error:
            raise failure(error, method, url, closed=self.closed.is_set()) from error
        except (ValueError, UnicodeError) as error:
            raise InvalidParameter(f"{go_request(method, url)}: {error}") from error
        self._open.add(raw)
        if self.closed.is_set():
            raw.close()
            raise Unavailable(f"{go_request(method, url)}: context canceled")
        return raw

    def read(self, response: Response, size: int) -> bytes:
        """Read what there is, at most `size` bytes."""
        try:
            if response.raw.headers.get("Transfer-Encoding"):
                # Trailers, and sizes of chunks, may trickle in for ever inside one call.
                with self.within(response, PATIENCE):
                    return response.raw.read1(size)
            return response.raw.read1(size)
        except (http.HTTPError, OSError, ValueError) as error:
            raise self._broken(response, error) from error

    def read_into(self, response: Response, view: memoryview) -> int:
        """Fill `view`, of at most BLOCK bytes, from a body whose length is told; return how many bytes came: fewer
        only at its end. For TLS, which comes in records of 16 KB: by `read`, each would be copied three times.
        """
        body: Any = response.raw._original_response  # type: ignore[attr-defined]
        seconds, cause, count = BLOCK / FLOOR * WINDOW, None, 0
        with self.within(response, seconds) as expired:
            try:
                count = body.readinto(view)
            except (HTTPException, OSError, ValueError) as error:
                cause = error
        if expired.is_set() and not self.closed.is_set():
            response.close()
            words = f"the registry stalls: less than {BLOCK} bytes in {seconds:.0f} s"
            raise Unavailable(f"{response.request}: {words}") from cause
        if cause is not None or (count < len(view) and self.closed.is_set()):
            raise self._broken(response, cause or EOFError()) from cause
        return int(count)

    def _broken(self, response: Response, error: Exception) -> Unavailable:
        """Drop a connection; return the error for what happened to it."""
        response.close()
        if self.closed.is_set():
            return Unavailable(f"{response.request}: context canceled")
        if _dead(error):
            words = f"the registry's host has not answered for {DEAD:.0f} s"
        elif isinstance(error, (http.ReadTimeoutError, TimeoutError)):
            words = f"the registry sent nothing for {STALL:.0f} s"
        else:
            words = "unexpected EOF: the connection broke off"
        return Unavailable(f"{response.request}: {words}")

    def within(self, response: Response, seconds: float) -> AbstractContextManager[threading.Event]:
        """Bound the time of a block that reads from `response`."""
        sock: socket.socket = response.raw.dray_sock  # type: ignore[attr-defined]
        return WATCHDOG.watch(sock, seconds)

    def wait(self, seconds: float) -> None:
        """Sleep before another try; Unavailable at once if `close` is called."""
        if self.closed.wait(seconds):
            raise Unavailable("context canceled")

    def close(self) -> None:
        """Break off whatever is under way, and drop all connections."""
        self.closed.set()
        for raw in list(self._open):
            sock = getattr(raw, "dray_sock", None)
            if sock is not None:
                shut(sock)
        with self._lock:
            managers, self._managers = list(self._managers.values()), {}
        for manager in managers:
            manager.clear()


def _dead(error: BaseException | None) -> bool:
    """Tell whether the kernel gave a connection up (see `connections`)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
            return True
        error = error.__cause__
    return False


def _sliced(body: bytes | memoryview | None) -> bytes | memoryview | Iterator[memoryview] | None:
    """Cut a large body: a socket's timeout is for a whole `sendall`, and a slow line may take longer for all of it.

    The request must carry its Content-Length.
    """
    if body is None or len(body) <= _PIECE:
        return body
    view = memoryview(body)
    return (view[start : start + _PIECE] for start in range(0, len(view), _PIECE))


def joined(url: str, location: str) -> str:
    """Return where a Location, or a link, leads from `url`; InvalidParameter unless it is the web."""
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        parts.port  # noqa: B018 - raises if it is no number
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidParameter(f"{redacted(url)}: a redirect to {location[:200]!r} is refused")
    return target


def same_host(one: str, other: str) -> bool:
    """Tell whether two URLs name the same scheme, host and port."""
    first, second = urlsplit(one), urlsplit(other)
    ports = {"http": 80, "https": 443}
    return (first.scheme, first.hostname, first.port or ports.get(first.scheme)) == (
        second.scheme,
        second.hostname,
        second.port or ports.get(second.scheme),
    )


def failure(error: http.HTTPError, method: str, url: str, *, closed: bool) -> DrayError:
    """Return the error for a request that got no answer, in the words of Go's http client."""
    asked = go_request(method, url)
    if closed:
        return Unavailable(f"{asked}: context canceled")
    host = urlsplit(url).netloc.rpartition("@")[2]
    prefix = ""
    if isinstance(error, http.ProxyError):
        prefix = "proxyconnect tcp: "
        original = error.original_error
        if not isinstance(original, http.HTTPError):
            return Unreachable(f"{asked}: {prefix}{original}: check the daemon's proxies")
        error = original
    cause: BaseException | None = error.__cause__
    if isinstance(error, http.SSLError):
        inner = error.args[0] if error.args else error
        if isinstance(inner, ssl.SSLError):
            return tls_failure(inner, host, asked + (f": {prefix[:-2]}" if prefix else ""))
        return Unreachable(f"{asked}: {prefix}tls: {inner}")
    if isinstance(error, http.NameResolutionError):
        name = getattr(error, "host", "") or host
        return Unreachable(f"{asked}: {prefix}dial tcp: lookup {name}: no such host")
    if isinstance(error, http.NewConnectionError):
        words = (
            "connection refused"
            if isinstance(cause, ConnectionRefusedError)
            else str(getattr(cause, "strerror", cause))
        )
        return Unreachable(f"{asked}: {prefix}dial tcp {_dialled(error, host)}: connect: {words.lower()}")
    if isinstance(error, http.ConnectTimeoutError):
        return Unreachable(
            f"{asked}: {prefix}net/http: request canceled while waiting for connection "
            f"(nothing answered for {CONNECT:.0f} s)"
        )
    if isinstance(error, http.ReadTimeoutError):
        return Unavailable(f"{asked}: {prefix}net/http: timeout awaiting response headers")
    if isinstance(error, http.ProtocolError) and len(error.args) > 1:
        inner = error.args[1]
        if isinstance(inner, ConnectionResetError):
            return Unavailable(f"{asked}: {prefix}read: connection reset by peer")
        if isinstance(inner, (ConnectionError, OSError)):
            return Unavailable(f"{asked}: {prefix}EOF")
        return Unavailable(f"{asked}: {prefix}malformed HTTP response: {inner!r}")
    return Unavailable(f"{asked}: {prefix}{error}")


def _dialled(error: http.NewConnectionError, host: str) -> str:
    """Return the address that was tried, as far as it is known."""
    connection: Any = getattr(error, "conn", None)
    name, port = getattr(connection, "host", None), getattr(connection, "port", None)
    return f"{name}:{port}" if name and port else host
