"""Sandboxes of running containers that are not as their records say, made so again.

A daemon that is killed while a container joins or leaves a network leaves the sandbox half changed: an interface
without a record, a record without its interface, a default route that has gone with one or the other. What is in a
sandbox that shows neither sign from outside is the container's own business, and is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network

import msgspec

from dray.linux import routes
from dray.linux.links import Link, Links
from dray.linux.netlink import Request
from dray.network import endpoints, sandbox, sysctls
from dray.network.model import Endpoint

Held = Mapping[str, Endpoint]  # by network id


def damaged(
    running: Mapping[str, Held], present: Iterable[Link], *, owner: str, keep: Collection[str]
) -> list[str]:
    """Return the ids of the containers whose sandbox needs `mend`, judged from the host's interfaces.

    running: the recorded endpoints of the containers that run
    owner: begins the aliases of our interfaces
    keep: the names of the host's interfaces that are wanted
    """
    here = {link.name: link.alias for link in present}
    strays = {alias.removeprefix(f"{owner}/") for name, alias in here.items() if name not in keep}
    return [
        container_id
        for container_id, held in running.items()
        if container_id in strays
        or any(end.veth not in here if end.veth else bool(end.interface) for end in held.values())
    ]


def mend(pid: int, held: Sequence[Endpoint], plug: Callable[[Endpoint, int], None]) -> list[Endpoint]:
    """Give the sandbox of process `pid` the interfaces and default routes of its endpoints; return those that had
    none. `plug` makes an endpoint's interface in the namespace of a descriptor.

    NotFound or OSError if the process ends meanwhile.
    """
    with sandbox.of_process(pid) as netns, sandbox.inside(netns, Links.open) as inside:
        missing = [end for end in held if end.interface and inside.find(end.interface) is None]
        for end in missing:
            plug(end, netns)
        settings = endpoints.sysctls(missing, ipv6=sysctls.has_ipv6())
        sandbox.inside(netns, lambda: [sysctls.write(key, value) for key, value in settings.items()])
        routeless = [msgspec.structs.replace(end, default4=False, default6=False) for end in missing]
        sandbox.wire(inside, routeless, fresh=False)
        _reroute(inside, held)
    return missing


def _reroute(inside: Links, held: Sequence[Endpoint]) -> None:
    """Leave the default routes that the endpoints carry, and no others."""
    indices = {link.name: link.index for link in inside.links()}
    wanted: dict[tuple[int, str, int], Request] = {}
    for end in held:
        if end.interface not in indices:
            continue
        index = indices[end.interface]
        for version, carries, gateway in ((4, end.default4, end.gateway4), (6, end.default6, end.gateway6)):
            one = msgspec.structs.replace(
                end, default4=carries and version == 4, default6=carries and version == 6
            )
            for request in sandbox.default_routes(one, index):
                wanted[version, gateway, index] = request
    present = set()
    for route in inside.routes():
        destination = ip_network(route.destination)
        if destination.prefixlen == 0 and route.index in indices.values():
            present.add((destination.version, route.gateway, route.index))
    inside.apply([_removal(*one) for one in present - set(wanted)])
    inside.apply([request for one, request in wanted.items() if one not in present])


def _removal(version: int, gateway: str, index: int) -> Request:
    return routes.default_route_request(index, ip_address(gateway) if gateway else None, version, remove=True)
