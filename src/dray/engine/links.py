"""`--link` on the default bridge: names in /etc/hosts and variables of the linked container (legacy, pure).

Source: Docker's documentation, "Legacy container links". On user-defined networks links are network-scoped aliases
and belong to the endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from msgspec import Struct

from dray.base.errors import Conflict, InvalidParameter
from dray.engine.model import Container

DEFAULT_NETWORK = ("", "default", "bridge")  # the network modes that have such links


class Link(Struct, frozen=True):
    """A resolved link: the other container's address, the names it gets, and the variables it brings."""

    address: str
    names: tuple[str, ...]
    variables: tuple[str, ...]


def parse(text: str) -> tuple[str, str]:
    """Split `container[:alias]`; InvalidParameter in Docker's words."""
    name, colon, alias = text.partition(":")
    if not name or (colon and not alias) or ":" in alias:
        raise InvalidParameter(f"bad format for links: {text}")
    return name.removeprefix("/"), (alias or name).rpartition("/")[2]


def resolve(own_name: str, texts: Sequence[str], find: Callable[[str], Container]) -> list[Link]:
    """Resolve links to running containers on the default bridge."""
    found = []
    for text in texts:
        name, alias = parse(text)
        other = find(name)
        record = other.record
        if not record.state.running:
            raise Conflict(f"Cannot link to a non running container: /{record.name} AS /{own_name}/{alias}")
        address = next((one.ipv4 for one in record.endpoints if one.network_name == "bridge"), "")
        if not address:
            raise Conflict(f"Cannot link to /{record.name}, as it does not belong to the default network")
        found.append(
            Link(
                address=address,
                names=(alias, record.config.hostname, record.name),
                variables=tuple(_variables(own_name, alias, address, other)),
            )
        )
    return found


def _variables(own_name: str, alias: str, address: str, other: Container) -> list[str]:
    prefix = re.sub(r"[^A-Z0-9]", "_", alias.upper())
    ports = sorted((key.partition("/")[::2] for key in other.record.config.exposed_ports or {}), key=_port_order)
    lines = []
    for index, (number, protocol) in enumerate(ports):
        url = f"{protocol}://{address}:{number}"
        if index == 0:
            lines.append(f"{prefix}_PORT={url}")
        base = f"{prefix}_PORT_{number}_{protocol.upper()}"
        lines += [f"{base}={url}", f"{base}_ADDR={address}", f"{base}_PORT={number}", f"{base}_PROTO={protocol}"]
    lines.append(f"{prefix}_NAME=/{own_name}/{alias}")
    for entry in other.record.config.env or []:
        name, _, value = entry.partition("=")
        if name not in ("HOME", "PATH", "HOSTNAME", "TERM"):
            lines.append(f"{prefix}_ENV_{name}={value}")
    return lines


def _port_order(port: tuple[str, str]) -> tuple[int, str]:
    return int(port[0]), port[1]
