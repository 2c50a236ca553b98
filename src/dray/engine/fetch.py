"""Files from web servers, for `docker import URL`: http and https, through the daemon's proxies.

At most ten redirects, to http and https alone; what the URL says of a user goes to no other host. Connecting and every
read have a time limit; how much may come is the reader's to say.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from dray.base.errors import InvalidParameter, NotFound, Unavailable
from dray.registry.proxies import Proxies, redacted

if TYPE_CHECKING:
    from urllib3.poolmanager import PoolManager
    from urllib3.response import BaseHTTPResponse

_CONNECT = 30.0  # seconds
_READ = 120.0
_REDIRECTS = 10


def clean_url(text: str) -> str:
    """Return the URL that an import's source means: without a scheme it is http, as Docker has it.

    InvalidParameter for a scheme that is not fetched.
    """
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InvalidParameter(f"cannot import from {shown(text)}: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise InvalidParameter(
            f"cannot import from {shown(text)}: only http and https are fetched; send the tar itself (`docker import -`)"
        )
    if not parts.hostname:
        raise InvalidParameter(f"cannot import from {shown(text)}: it names no host")
    return url


def shown(url: str) -> str:
    """Return a URL without the password in it."""
    return redacted(url)


class Remote(io.RawIOBase):
    """A file that arrives. A context manager; `shutdown` breaks off a read in another thread."""

    def __init__(self, url: str, pool: PoolManager, response: BaseHTTPResponse) -> None:
        super().__init__()
        self._url = url
        self._pool = pool
        self._response = response

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; Unavailable if the server breaks off."""
        from urllib3.exceptions import HTTPError

        try:
            return self._response.read(size if size >= 0 else None)
        except (HTTPError, OSError, ValueError) as error:
            raise Unavailable(f"{shown(self._url)} broke off: {error}") from error

    def shutdown(self) -> None:
        """Break off."""
        with contextlib.suppress(Exception):  # it may have ended this moment
            self._response.shutdown()

    def close(self) -> None:
        """Drop the connection."""
        if not self.closed:
            self._response.close()
            self._pool.clear()
        super().close()


def open_url(url: str, proxies: Proxies) -> Remote:
    """Ask for a file; return it once the server has said yes.

    NotFound if there is none, Unavailable if the server cannot be reached or says something else.
    """
    import urllib3
    from urllib3.exceptions import HTTPError

    parts = urlsplit(url)
    headers = {"User-Agent": "dray", "Accept-Encoding": "identity"}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers |= urllib3.make_headers(basic_auth=user)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    timeout = urllib3.Timeout(connect=_CONNECT, read=_READ)
    retries = urllib3.Retry(total=_REDIRECTS, connect=0, read=0, other=0, redirect=_REDIRECTS)
    proxy = proxies.for_url(bare)
    pool: PoolManager = (
        urllib3.ProxyManager(proxy, timeout=timeout, retries=retries)
        if proxy
        else urllib3.PoolManager(timeout=timeout, retries=retries)
    )
    try:
        response = pool.request("GET", bare, headers=headers, preload_content=False, decode_content=False)
    except (HTTPError, OSError, ValueError, KeyError) as error:
        pool.clear()
        raise Unavailable(f"cannot fetch {shown(url)}: {_reason(error)}") from error
    if response.status != 200:
        response.close()
        pool.clear()
        kind = NotFound if response.status == 404 else Unavailable
        raise kind(
            f"cannot fetch {shown(url)}: the server says {response.status} {response.reason or ''}".rstrip()
        )
    return Remote(url, pool, response)


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return str(cause).rpartition(": ")[2] or type(error).__name__
