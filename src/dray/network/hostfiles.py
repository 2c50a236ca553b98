"""The three files that name a container and its network: /etc/hosts, /etc/hostname, /etc/resolv.conf.

Pure functions from settings to text; nothing of the host's files is copied but what a container can use of the
host's resolv.conf (its name servers that are not on the host's own loopback, search domains, options).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from dray.base.errors import InvalidParameter
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
_DOMAIN = re.compile(r"(?:[a-zA-Z0-9_](?:[a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?\.?)+", re.ASCII)


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
    host_mode: bool = False,
) -> str:
    """Return /etc/hosts: localhost, --add-host, linked containers (address, names), the container's own names.

    host_gateway: what `host-gateway` stands for; InvalidParameter if it is asked for and empty
    host_mode: the container is on the host's network and has no address of its own
    """
    lines = list(_LOCALHOST)
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
    short = hostname.partition(".")[0]
    names = f"{hostname}.{domainname} {hostname}" if domainname else " ".join(dict.fromkeys((hostname, short)))
    own = [address for endpoint in endpoints for address in (endpoint.ipv4, endpoint.ipv6) if address]
    if host_mode:
        own = ["127.0.1.1"]  # hosts(5) on Debian: the name of a host without a fixed address
    lines += [(address, names) for address in own if names]
    return "".join(f"{address}\t{names}\n" for address, names in lines)


def hostname_file(hostname: str) -> str:
    """Return /etc/hostname."""
    return hostname + "\n"


@dataclass(frozen=True, slots=True)
class ResolvConf:
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


def resolv_conf(
    host: str,
    *,
    servers: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    ipv6: bool = False,
    host_mode: bool = False,
) -> str:
    """Return /etc/resolv.conf.

    host: text of the host's file
    servers, search, options: replace the host's, each if not empty; a search of "." means none
    ipv6: the container has IPv6, so that name servers on IPv6 are of use
    host_mode: the container is on the host's network, and reaches name servers on its loopback
    """
    for server in servers:
        check_nameserver(server)
    for domain in search:
        check_search(domain)
    found = parse_resolv_conf(host)
    nameservers = list(servers) or list(found.nameservers)
    if not servers and not host_mode:
        nameservers = [server for server in nameservers if _reachable(server, ipv6=ipv6)]
        nameservers = nameservers or [*_PUBLIC, *(_PUBLIC6 if ipv6 else ())]
    domains = [domain for domain in search if domain != "."] if search else list(found.search)
    lines = ["# Generated by dray for this container; changes made here stay until it is removed."]
    lines += [f"nameserver {server}" for server in nameservers]
    if domains:
        lines.append("search " + " ".join(domains))
    words = list(options) or list(found.options)
    if words:
        lines.append("options " + " ".join(words))
    return "\n".join(lines) + "\n"


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


def _reachable(server: str, *, ipv6: bool) -> bool:
    try:
        address = ip_address(server)
    except ValueError:
        return False
    return not address.is_loopback and (address.version == 4 or ipv6)
