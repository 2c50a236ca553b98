"""How the daemon is to deal with registries: mirrors, insecure registries, certificates, proxies. Pure, and light.

Of hosts: `docker.io` is served by registry-1.docker.io, and is the only one that mirrors stand in for. A registry is
insecure if it is listed (as `host`, `host:port`), or one of its addresses is in a listed CIDR; 127.0.0.0/8 and ::1
always are. An insecure one is tried by HTTPS without verification first, then by plain HTTP, as dockerd does.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from msgspec import Struct, field

from dray.base import reference
from dray.base.errors import InvalidParameter
from dray.registry.proxies import Proxies

INDEX_NAME = "docker.io"
INDEX_SERVER = "https://index.docker.io/v1/"  # the key of Docker Hub's credentials
INDEX_HOST = "index.docker.io"  # logins are tried and searches asked here
HUB_HOST = "registry-1.docker.io"
HUB_NAMES = frozenset({INDEX_NAME, INDEX_HOST, HUB_HOST})
CERTIFICATES = "/etc/docker/certs.d"
LOOPBACK = ("::1/128", "127.0.0.0/8")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str], Sequence[str]]


class Endpoint(Struct, frozen=True):
    """One place where a registry, or a mirror of it, answers: `url` is `scheme://host[:port]`."""

    url: str
    mirror: bool = False
    verify: bool = True

    @property
    def host(self) -> str:
        """`host[:port]` as it was written."""
        return self.url.partition("://")[2]

    @property
    def tls(self) -> bool:
        """Whether it is reached by HTTPS."""
        return self.url.startswith("https:")


def addresses_of(name: str) -> list[str]:
    """Return the addresses of a host's name, none if it has none."""
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


class RegistrySettings(Struct, frozen=True, kw_only=True):
    """The configuration, checked. `mirrors` are URLs without a final slash; `insecure_hosts` are lower case."""

    mirrors: tuple[str, ...] = ()
    insecure_networks: tuple[Network, ...] = field(
        default_factory=lambda: tuple(ipaddress.ip_network(text) for text in LOOPBACK)
    )
    insecure_hosts: frozenset[str] = frozenset()
    proxies: Proxies = field(default_factory=Proxies)
    certificate_folders: tuple[str, ...] = (CERTIFICATES,)
    attempts: int = 5  # of an idempotent request that a registry answers with 429 or 5xx, or breaks off

    def is_insecure(self, host: str, resolve: Resolver = addresses_of) -> bool:
        """Tell whether `host[:port]` may be spoken to without verification."""
        host = host.lower()
        name = host_name(host)
        if host in self.insecure_hosts or name in self.insecure_hosts:
            return True
        try:
            addresses: Sequence[str] = [str(ipaddress.ip_address(name))]
        except ValueError:
            addresses = resolve(name)
        found = [ipaddress.ip_address(text.partition("%")[0]) for text in addresses]
        return any(address in network for address in found for network in self.insecure_networks)

    def endpoints(self, domain: str, *, push: bool, resolve: Resolver = addresses_of) -> list[Endpoint]:
        """Return where to look for a repository of `domain`, best first."""
        found = []
        if domain == INDEX_NAME:
            if not push:
                for mirror in self.mirrors:
                    scheme, _, host = mirror.partition("://")
                    secure = scheme == "https" and not self.is_insecure(host, resolve)
                    found.append(Endpoint(mirror, mirror=True, verify=secure))
            return [*found, Endpoint(f"https://{HUB_HOST}")]
        return self.hosts(domain, resolve=resolve)

    def hosts(self, host: str, *, resolve: Resolver = addresses_of) -> list[Endpoint]:
        """Return how to reach one host: by HTTPS, and if it is insecure by HTTP as well."""
        if not self.is_insecure(host, resolve):
            return [Endpoint(f"https://{host}")]
        return [Endpoint(f"https://{host}", verify=False), Endpoint(f"http://{host}", verify=False)]


def host_name(host: str) -> str:
    """Return `host[:port]` without the port and without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def parse_mirror(text: str) -> str:
    """Check a mirror's URL (dockerd `ValidateMirror`); return it without a final slash."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises if it is no number
    except ValueError:
        raise InvalidParameter(f"invalid mirror: {text!r} is not a valid URI") from None
    if not parts.scheme or not parts.netloc:
        raise InvalidParameter(
            f"invalid mirror: no scheme specified for {text!r}: must use either 'https://' or 'http://'"
        )
    if parts.scheme not in ("http", "https"):
        raise InvalidParameter(
            f"invalid mirror: unsupported scheme {parts.scheme!r} in {text!r}: use https:// or http://"
        )
    if parts.username is not None:
        shown = f"{parts.scheme}://xxxxx:xxxxx@{parts.netloc.rpartition('@')[2]}"
        raise InvalidParameter(f"invalid mirror: username/password not allowed in URI {shown!r}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise InvalidParameter(f"invalid mirror: path, query, or fragment at end of the URI {text!r}")
    return f"{parts.scheme}://{parts.netloc}"


def parse_insecure(entries: Sequence[str]) -> tuple[tuple[Network, ...], frozenset[str]]:
    """Split `insecure-registries` into networks (loopback's among them) and hosts; InvalidParameter names a wrong one."""
    networks = [ipaddress.ip_network(text) for text in LOOPBACK]
    hosts = set()
    for entry in entries:
        text = entry
        for prefix in ("http://", "https://"):
            text = text.removeprefix(prefix)
        text = text.strip().rstrip("/")
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            network = None
        if network is not None and "/" in text:
            networks.append(network)
            continue
        try:
            if "/" in text:
                raise InvalidParameter("a host has no path")
            bare = text if ":" in text or "." in text or text.startswith("[") else f"{text}:443"
            reference.parse(f"{bare}/probe")
        except InvalidParameter:
            raise InvalidParameter(
                f"insecure registry {entry} is not valid: use host, host:port or a CIDR such as 10.0.0.0/8"
            ) from None
        hosts.add(text.lower())
    return tuple(dict.fromkeys(networks)), frozenset(hosts)
