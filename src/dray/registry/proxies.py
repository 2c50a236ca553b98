"""Which proxy a request goes through (Go `golang.org/x/net/http/httpproxy`, whose rules dockerd has).

Sources, strongest first: flags and `daemon.json`, then the daemon's environment (upper or lower case). `no_proxy` is a
comma-separated list of: `*`; an address; a CIDR; `name`, which means the name and all below it; `.name` or `*.name`,
only those below it; each but the CIDR optionally with `:port`. Requests to localhost and loopback never go through a
proxy. Pure: nothing is asked of a name server.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from msgspec import Struct

from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern

_PORTS = {"http": 80, "https": 443}
_USER = pattern(r"(?<=//)[^/@]*@")


class Proxies(Struct, frozen=True):
    """`http` and `https` are proxies' URLs for requests of that scheme, "" for none; `no` is the list of exceptions."""

    http: str = ""
    https: str = ""
    no: str = ""

    def for_url(self, url: str) -> str:
        """Return the proxy of a request, "" if it goes straight to its host."""
        parts = urlsplit(url)
        proxy = self.https if parts.scheme == "https" else self.http
        if not proxy or self._excepted(parts.hostname or "", parts.port or _PORTS[parts.scheme]):
            return ""
        return proxy

    def _excepted(self, host: str, port: int) -> bool:
        host = host.lower().rstrip(".")
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        return any(_matches(entry.strip().lower(), host, address, port) for entry in self.no.split(","))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _matches(
    entry: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int
) -> bool:
    if not entry:
        return False
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    if (literal := _address(entry)) is None and ":" in entry:
        entry, _, wanted = entry.rpartition(":")
        if wanted != str(port):
            return False
        literal = _address(entry)
    if literal is not None:
        return literal == address
    if address is not None:
        return False
    if entry.startswith("*."):
        entry = entry[1:]
    return host.endswith(entry) if entry.startswith(".") else host == entry or host.endswith("." + entry)


def parse_proxy(text: str) -> str:
    """Check a proxy's URL; a bare `host:port` means http. InvalidParameter, with credentials left out of the words."""
    if not text:
        return ""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InvalidParameter(f"invalid proxy URL {redacted(text)!r}: use http://[user:password@]host[:port]")
    return url


def redacted(url: str) -> str:
    """Return a URL with its credentials blotted out, for messages and `info`."""
    return _USER.sub("xxxxx:xxxxx@", url) if "://" in url else re.sub(r"^[^/@]*@", "xxxxx:xxxxx@", url)


def from_environment(environment: Mapping[str, str]) -> Proxies:
    """Read HTTP_PROXY, HTTPS_PROXY and NO_PROXY, upper case first."""

    def value(name: str) -> str:
        return environment.get(name) or environment.get(name.lower()) or ""

    return Proxies(value("HTTP_PROXY"), value("HTTPS_PROXY"), value("NO_PROXY"))
