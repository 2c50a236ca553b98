"""`linux.netDevices`: interfaces of the runtime's network namespace become the container's (config-linux.md).

An interface keeps its global addresses and is up again if it was; routes are not taken along. The kernel gives a
hardware interface back to the initial namespace when the container's ends, and deletes a virtual one.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from typing import Any

from dray.base.errors import InvalidParameter
from dray.linux import namespaces
from dray.linux.links import Interface, Link, Links, address_request, move_request, up_request


def check(devices: Mapping[str, Any]) -> None:
    """Raise InvalidParameter for a name that no interface can have (dev_valid_name in the kernel)."""
    names = [name for host, wanted in devices.items() for name in (host, (wanted or {}).get("name") or host)]
    for name in names:
        if not 0 < len(name) < 16 or name in (".", "..") or any(c in "/:" or c.isspace() for c in name):
            raise InvalidParameter(f"linux.netDevices: {name!r} is not an interface name")
    inside = names[1::2]
    if len(set(inside)) != len(inside):
        raise InvalidParameter("linux.netDevices: two interfaces get the same name")


def move(devices: Mapping[str, Any], namespace: int) -> None:
    """Move them into the network namespace of that descriptor, under their new names."""
    moved: list[tuple[str, Link, list[Interface]]] = []
    with Links.open() as links:
        found = {}
        for name in devices:
            link = links.find(name)
            if link is None:
                raise InvalidParameter(f"linux.netDevices: there is no interface {name!r} to move")
            found[name] = link
        for name, link in found.items():
            target = (devices[name] or {}).get("name") or name
            addresses = [address for _, address in links.addresses(link.index, permanent=True)]
            try:
                links.apply([move_request(link.index, target, namespace)])
            except OSError as error:
                if error.errno == errno.EEXIST:
                    raise InvalidParameter(
                        f"linux.netDevices: the container has an interface {target!r}"
                    ) from None
                raise
            moved.append((target, link, addresses))
    with namespaces.joined({"network": namespace}):
        inside = Links.open()
    with contextlib.closing(inside):
        for target, before, addresses in moved:
            now = inside.find(target)
            assert now is not None  # it was moved there under this name
            inside.apply([address_request(now.index, address) for address in addresses])
            if before.up:
                inside.apply([up_request(now.index)])
