"""Joining and leaving networks while a container runs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from dray.base.errors import Forbidden
from dray.linux import links
from dray.linux.links import Links
from dray.linux.netlink import Request
from dray.network import endpoints, sandbox
from dray.network.model import Endpoint, EndpointAsk, Network
from dray.network.plugin_driver import give_back


def check(network: Network, ask: EndpointAsk, held: Sequence[Endpoint]) -> None:
    """Refuse, in Docker's words, what cannot be joined."""
    if network.driver == "host" or any(endpoint.driver == "host" for endpoint in held):
        raise Forbidden("container cannot be disconnected from host network or connected to host network")
    if network.driver == "null" or any(endpoint.driver == "null" for endpoint in held):
        raise Forbidden(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        )
    if any(endpoint.network_id == network.id for endpoint in held):
        raise Forbidden(f"endpoint with name {held[0].container_name} already exists in network {network.name}")
    endpoints.check(network, ask, alone=True)


def reroute(inside: Links, before: Sequence[Endpoint], after: Sequence[Endpoint]) -> None:
    """Move the default routes: those that end first, then those that begin."""
    ending: list[Request] = []
    beginning: list[Request] = []
    for old, new in zip(before, after, strict=True):
        if (old.default4, old.default6) == (new.default4, new.default6):
            continue
        link = inside.find(old.interface)
        if link is not None:
            ending += sandbox.default_routes(old, link.index, remove=True)
            beginning += sandbox.default_routes(new, link.index)
    inside.apply(ending)
    inside.apply(beginning)


def forget(inside: Links, endpoint: Endpoint) -> None:
    """Delete an endpoint's interface in a sandbox that lives on; a plugin gets its own back."""
    if endpoint.source:
        give_back(inside, endpoint)
    elif endpoint.interface:
        with contextlib.suppress(OSError):  # somebody in the container was faster
            inside.apply([links.delete_request(endpoint.interface)])


def delete(names: Sequence[str]) -> None:
    """Delete interfaces: slow (15 ms each and more), so on a thread, over a socket of its own."""
    with Links.open() as host:
        for name in names:
            with contextlib.suppress(OSError):  # gone with its namespace meanwhile
                host.apply([links.delete_request(name)])
