"""The three files that name a container and its network: /etc/hosts, /etc/hostname, /etc/resolv.conf.

Pure functions from settings to text; nothing of the host's files is copied but what a container can use of the
host's resolv.conf: search domains, options, and name servers. A container in a network with names has the resolver
for its only one, which asks the host's, also those on the host's own loopback; any other is given the host's but
those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from msgspec import Struct

from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern
from dray.network.dns.model import ADDRESS
from dray.network.model import Endpoint

HOST_GATEWAY = "host-gateway"
RESOLV_CONF = "/etc/resolv.conf"
# Where systemd-resolved lists the real servers, when resolv.conf names only its stub.
RESOLVED_CONF = "/run/systemd/resolve/resolv.conf"
_STUB = "127.0.0.53"
_PUBLIC = ("8.8.8.8", "8.8.4.4")  # what Docker falls back on
_PUBLIC6 = ("2001:4860:4860::8888", "2001:4860:4860::8844")
_LOCALHOST = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)
_DOMAIN = pattern(r"(?:[a-zA-Z0-9_](?:[a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?\.?)+", re.ASCII)


def parse_extra_host(text: str) -> tuple[str, str]:
    """Split `name:address` (or `name=address`) of --add-host; the address may be `host-gateway` or bracketed."""
    separator = "=" if "=" in text else ":"
    name, found, address = text.partition(separator)
    if not found or not name or not address:
        raise InvalidParameter(f'bad format for add-host: "{text}"')
    if address == HOST_GATEWAY:
        return name, address
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    try:
        return name, str(ip_address(address))
    except ValueError:
        raise InvalidParameter(f'invalid IP address in add-host: "{address}"') from None


def hosts(
    *,
    hostname: str,
    domainname: str = "",
    endpoints: Iterable[Endpoint] = (),
    extra_hosts: Iterable[str] = (),
    links: Iterable[tuple[str, Sequence[str]]] = (),
    host_gateway: Sequence[str] = (),
    origin: str = "",
) -> str:
    """Return /etc/hosts: localhost, --add-host, linked containers (address, names), the container's own names.

    host_gateway: what `host-gateway` stands for; InvalidParameter if it is asked for and empty
    origin: what the file begins with in place of localhost: the host's own, for a container on the host's network
    """
    lines = [] if origin else list(_LOCALHOST)
    for text in extra_hosts:
        name, address = parse_extra_host(text)
        if address != HOST_GATEWAY:
            lines.append((address, name))
        elif host_gateway:
            lines += [(gateway, name) for gateway in host_gateway]
        else:
            raise InvalidParameter(
                "unable to derive the IP value for host-gateway: set host-gateway-ip of the daemon"
            )
    lines += [(address, " ".join(dict.fromkeys(names))) for address, names in links]
    names = own_names(hostname, domainname)
    own = [address for endpoint in endpoints for address in (endpoint.ipv4, endpoint.ipv6) if address]
    if origin and hostname not in origin.split():
        own = ["127.0.1.1"]  # hosts(5) on Debian: the name of a host without a fixed address
    lines += [(address, names) for address in own if names]
    if origin and not origin.endswith("\n"):
        origin += "\n"
    return origin + "".join(f"{address}\t{names}\n" for address, names in lines)


def own_names(hostname: str, domainname: str = "") -> str:
    """Return what a line of /etc/hosts calls the container itself."""
    if domainname:
        return f"{hostname}.{domainname} {hostname}"
    return " ".join(dict.fromkeys((hostname, hostname.partition(".")[0])))


def hostname_file(hostname: str) -> str:
    """Return /etc/hostname."""
    return hostname + "\n"


class ResolvConf(Struct, frozen=True):
    """What resolv.conf(5) says, as far as a container can use it."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse_resolv_conf(text: str) -> ResolvConf:
    """Read resolv.conf(5): the last `search` or `domain` wins, options add up."""
    nameservers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        words = re.split(r"[#;]", line, maxsplit=1)[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            nameservers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = words[1:]
        elif words[0] == "options":
            options += words[1:]
    return ResolvConf(tuple(nameservers), tuple(search), tuple(options))


def read_host_resolv_conf() -> str:
    """Return the text of the host's resolv.conf: systemd-resolved's own list if the file only names its stub.

    A missing file is an empty one.
    """
    text = _read(RESOLV_CONF)
    servers = parse_resolv_conf(text).nameservers
    if servers and all(server == _STUB for server in servers):
        return _read(RESOLVED_CONF) or text
    return text


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


class Resolving(Struct, frozen=True):
    """How a container resolves names.

    nameservers: those that it can ask itself
    servers: (address, whether it is reached from the host's namespace): those that the resolver asks for it
    ndots: `ndots` above 0 was asked for
    source: the host's file; overrides: what was said instead of it
    """

    nameservers: tuple[str, ...]
    servers: tuple[tuple[str, bool], ...]
    search: tuple[str, ...]
    options: tuple[str, ...]
    ndots: bool
    source: str
    overrides: tuple[str, ...]


def resolving(
    host: str,
    *,
    servers: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    ipv6: bool = False,
    host_mode: bool = False,
    source: str = RESOLV_CONF,
) -> Resolving:
    """Return how a container resolves names.

    host: text of the host's file
    servers, search, options: replace the host's, each if not empty; a search of "." means none
    ipv6: the container has IPv6, so that name servers on IPv6 are of use
    host_mode: the container is on the host's network, and reaches name servers on its loopback
    source: the file's path
    """
    for server in servers:
        check_nameserver(server)
    for domain in search:
        check_search(domain)
    found = parse_resolv_conf(host)
    public = [*_PUBLIC, *(_PUBLIC6 if ipv6 else ())]
    if servers:
        nameservers = list(servers)
        # To ask the resolver itself would go round in circles.
        asked = [(server, False) for server in servers if server != ADDRESS]
    else:
        nameservers = [server for server in found.nameservers if host_mode or _reachable(server, ipv6=ipv6)]
        nameservers = nameservers or ([] if host_mode else public)
        usable = [server for server in found.nameservers if _is_address(server)]
        asked = [(server, not _reachable(server, ipv6=ipv6)) for server in usable]
        asked = asked or [(server, False) for server in public]
    words = tuple(options) or found.options
    ndots = [word.partition(":")[2] for word in words if word.startswith("ndots:")]
    given = (("nameservers", servers), ("search", search), ("options", options))
    return Resolving(
        nameservers=tuple(nameservers),
        servers=tuple(asked),
        search=tuple(domain for domain in search if domain != ".") if search else found.search,
        options=words,
        ndots=bool(ndots) and ndots[-1].isdigit() and int(ndots[-1]) > 0,
        source=source,
        overrides=tuple(word for word, value in given if value),
    )


def plain(settings: Resolving) -> str:
    """Return /etc/resolv.conf of a container that asks name servers itself."""
    lines = ["# Generated by dray for this container; changes made here stay until it is removed."]
    lines += [f"nameserver {server}" for server in settings.nameservers]
    return "\n".join(lines + _search_and_options(settings.search, settings.options)) + "\n"


def embedded(settings: Resolving) -> str:
    """Return /etc/resolv.conf of a container that asks the resolver."""
    options = settings.options
    own = any(word.startswith("ndots:") for word in options)
    options = options if own else (*options, "ndots:0")
    servers = " ".join(f"host({server})" if host else server for server, host in settings.servers)
    lines = [
        "# Generated by dray.",
        "# This file can be edited; dray makes no further changes to it in a running container once it has been.",
        "",
        f"nameserver {ADDRESS}",
        *_search_and_options(settings.search, options),
        "",
        f"# Based on host file: '{settings.source}' (internal resolver)",
        f"# ExtServers: [{servers}]",
        f"# Overrides: [{' '.join(settings.overrides)}]",
    ]
    if not own:
        lines.append("# Option ndots from: internal")
    return "\n".join(lines) + "\n"


def _search_and_options(search: Sequence[str], options: Sequence[str]) -> list[str]:
    lines = ["search " + " ".join(search)] if search else []
    return lines + (["options " + " ".join(options)] if options else [])


def check_nameserver(text: str) -> None:
    """InvalidParameter unless `text` is an address (a zone such as fe80::1%eth0 is allowed)."""
    try:
        ip_address(text)
    except ValueError:
        raise InvalidParameter(f"{text} is not an ip address") from None


def check_search(text: str) -> None:
    """InvalidParameter unless `text` is a domain name or "."."""
    if text != "." and (len(text) > 255 or not _DOMAIN.fullmatch(text)):
        raise InvalidParameter(f"{text} is not a valid domain")


def check_hostname(text: str) -> None:
    """InvalidParameter unless `text` can be a host's name (sethostname(2): 64 bytes)."""
    if len(text) > 64 or not re.fullmatch(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]*[a-zA-Z0-9])?", text, re.ASCII):
        raise InvalidParameter(f"invalid hostname: {text}: up to 64 letters, digits, '-' and '.'")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _reachable(server: str, *, ipv6: bool) -> bool:
    try:
        address = ip_address(server)
    except ValueError:
        return False
    return not address.is_loopback and "%" not in server and (address.version == 4 or ipv6)
