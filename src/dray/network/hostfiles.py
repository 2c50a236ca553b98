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
    addresses: Iterable[str] = (),
    aliases: Iterable[str] = (),
    extra: Iterable[str] = (),
    links: Iterable[tuple[str, Sequence[str]]] = (),
    host_gateway: Sequence[str] = (),
) -> str:
    """Return /etc/hosts: localhost, --add-host, linked containers (address, names), the container's own names.

    host_gateway: what `host-gateway` stands for. InvalidParameter if it is asked for and empty.
    """
    lines = list(_LOCALHOST)
    for text in extra:
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
    own = [f"{hostname}.{domainname}", hostname] if domainname else [hostname]
    names = " ".join(dict.fromkeys([*own, *aliases]))
    lines += [(address, names) for address in addresses if names]
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
    dns: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    ipv6: bool = False,
    own_namespace: bool = True,
) -> str:
    """Return /etc/resolv.conf.

    host: text of the host's file
    dns, search, options: replace the host's, each if not empty; a search of "." means none
    ipv6: the container has IPv6, so that name servers on IPv6 are of use
    own_namespace: False for a container on the host's network, which keeps the host's loopback name servers
    """
    for server in dns:
        check_nameserver(server)
    for domain in search:
        check_search(domain)
    found = parse_resolv_conf(host)
    nameservers = list(dns) or list(found.nameservers)
    if not dns and own_namespace:
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
