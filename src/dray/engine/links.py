"""`--link` on the default bridge: names in /etc/hosts and variables of the linked container (legacy, pure).

A record has its links as `child's id:alias`, so that renaming either side loses nothing. A linked container has the
further name `/parent/alias`.

Source: Docker's documentation, "Legacy container links". On user-defined networks links are network-scoped aliases
and belong to the endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from msgspec import Struct

from dray.base.errors import Conflict, InvalidParameter
from dray.engine.model import Container, ContainerRecord

if TYPE_CHECKING:
    from dray.engine.registry import Registry

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


def children(record: ContainerRecord, get: Callable[[str], Container | None]) -> Iterator[tuple[str, Container]]:
    """Yield alias and container of each link of a container; of those that are gone nothing is left, as in dockerd."""
    if record.host_config.network_mode in DEFAULT_NETWORK:
        for text in record.host_config.links or ():
            identity, alias = parse(text)
            child = get(identity)
            if child is not None:
                yield alias, child


def shown(record: ContainerRecord, get: Callable[[str], Container | None]) -> list[str] | None:
    """Return `HostConfig.Links` as inspect has it: `/child:/parent/alias`."""
    return [f"/{child.name}:/{record.name}/{alias}" for alias, child in children(record, get)] or None


def further_names(registry: Registry) -> dict[str, list[str]]:
    """Return the names that containers have by links: id → `/parent/alias`."""
    found: dict[str, list[str]] = {}
    for parent in registry:
        for alias, child in children(parent.record, registry.get):
            found.setdefault(child.id, []).append(f"/{parent.name}/{alias}")
    return found


def find(path: str, registry: Registry) -> tuple[Container, Container] | None:
    """Return parent and child of the link that `parent/alias` names."""
    name, slash, wanted = path.removeprefix("/").partition("/")
    if not slash:
        return None
    parent = registry.named(name)
    if parent is None:
        return None
    return next(
        ((parent, child) for alias, child in children(parent.record, registry.get) if alias == wanted), None
    )


def without(record: ContainerRecord, alias: str) -> list[str] | None:
    """Return a container's links without the one of that alias."""
    return [text for text in record.host_config.links or () if parse(text)[1] != alias] or None


def resolve(linking: ContainerRecord, get: Callable[[str], Container | None]) -> list[Link]:
    """Resolve links to running containers on the default bridge."""
    found = []
    for alias, other in children(linking, get):
        record = other.record
        if not record.state.running:
            raise Conflict(f"Cannot link to a non running container: /{record.name} AS /{linking.name}/{alias}")
        address = next((one.ipv4 for one in record.endpoints if one.network_name == "bridge"), "")
        if not address:
            raise Conflict(f"Cannot link to /{record.name}, as it does not belong to the default network")
        found.append(
            Link(
                address=address,
                names=(alias, record.config.hostname, record.name),
                variables=tuple(_variables(linking.name, alias, address, other)),
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
