"""Publishing: from what a container asks to reserved host ports, redirections, and forwarding in user space."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from typing import TypeVar

import msgspec

from dray.linux import conntrack
from dray.linux.links import Links
from dray.linux.nftables import NFPROTO_IPV4
from dray.network import options, sysctls
from dray.network.firewall import FAMILIES, Firewall
from dray.network.model import Attachment, Endpoint, Network, NetworkConfig, PortAsk, PortBinding, SandboxAsk
from dray.network.ports import HostPorts, Reach, Reservation, in_order, published_port
from dray.network.rules import Published

T = TypeVar("T")

# Ports handled in one go: some milliseconds. Between these the event loop does what else there is to do.
_AT_ONCE = 64


class Publisher:
    """Publishes ports of containers. Borrows the firewall (None: everything goes through user space)."""

    def __init__(
        self,
        config: NetworkConfig,
        firewall: Firewall | None,
        ports: HostPorts,
        host: Links,
        network: Callable[[str], Network],
    ) -> None:
        self._network = network
        self._config = config
        self._firewall = firewall
        self._ports = ports
        self._host = host

    async def publish(
        self,
        held: Sequence[Endpoint],
        ask: SandboxAsk,
        made: Attachment,
        undo: ExitStack,
    ) -> list[Endpoint]:
        """Publish a container's ports through the endpoint that carries its default route (as Docker, a container
        on internal networks alone publishes nothing). Fills `made` with sockets and forwards. Suspends only where
        there are many."""
        asks = _asks(ask)
        index = _carrier(held)
        if not asks or index is None:
            return list(held)
        endpoint = held[index]
        network = self._network(endpoint.network_id)
        if network.driver != "bridge":
            return list(held)  # its containers are on the host's own wire: nothing leads there by a host port
        default_ip = network.options.get(options.HOST_BINDING) or self._config.default_binding
        reserved = await self._reserve(endpoint, in_order(asks), default_ip, self._reach(network), undo)
        for one in reserved:
            if one.sock is None:
                continue
            if one.forward_to:
                binding = one.binding
                made.forwards.append(
                    (binding.protocol, len(made.hold_fds), one.forward_to, binding.container_port)
                )
            made.hold_fds.append(one.sock.detach())
        bindings = sorted(
            (one.binding for one in reserved), key=lambda b: (b.container_port, b.protocol, b.host_ip)
        )
        changed = list(held)
        changed[index] = msgspec.structs.replace(endpoint, ports=bindings)
        return changed

    async def _reserve(
        self, endpoint: Endpoint, asks: Sequence[PortAsk], default_ip: str, reach: Reach, undo: ExitStack
    ) -> list[Reservation]:
        """Reserve and redirect; what fails half way is given back as gently as it was taken."""
        reserved: list[Reservation] = []
        done: list[ExitStack] = []
        try:
            for few in _few(asks):
                if done:
                    await asyncio.sleep(0)
                done.append(ExitStack())
                new = self._ports.reserve(endpoint, few, default_ip, reach, done[-1])
                self._redirect([one.published for one in new if one.published is not None], done[-1])
                reserved += new
        except BaseException:
            while done:
                done.pop().close()
                await asyncio.sleep(0)
            raise
        for stack in done:
            undo.push(stack)
        return reserved

    def redirections(self, endpoints: Iterable[Endpoint]) -> list[Published]:
        """Return the redirections of endpoints' published ports."""
        found: list[Published] = []
        for endpoint in endpoints:
            if endpoint.ports:
                found += self._of_bindings(endpoint, endpoint.ports, self._network(endpoint.network_id))
        return found

    def _of_bindings(
        self, endpoint: Endpoint, bindings: Iterable[PortBinding], network: Network
    ) -> list[Published]:
        direct = self._direct(network)
        families = self._firewall.families if self._firewall is not None else ()
        found = (published_port(endpoint, binding, direct=direct) for binding in bindings)
        return [port for port in found if port is not None and port.family in families and port.host_ip != "::1"]

    def adopt(self, endpoint: Endpoint) -> None:
        """Remember the ports of a running container."""
        self._ports.adopt(endpoint.container_id, endpoint.ports)

    async def withdraw(self, endpoint: Endpoint) -> None:
        """Publish the endpoint's ports no longer."""
        if endpoint.ports:
            await self._withdraw_all(endpoint)
            self._ports.release(endpoint.container_id, endpoint.ports)

    async def _withdraw_all(self, endpoint: Endpoint) -> None:
        network = self._network(endpoint.network_id)
        for number, few in enumerate(_few(endpoint.ports)):
            if number:
                await asyncio.sleep(0)
            self._withdraw(self._of_bindings(endpoint, few, network))

    async def move(self, held: Sequence[Endpoint], gone: Endpoint | None) -> list[Endpoint]:
        """After the default route moved (or `gone` left), let the published ports lead to the endpoint that
        carries it now. The reservations stay where they are, with the container's shim."""
        index = _carrier(held)
        before = next((end for end in [*held, *([gone] if gone else [])] if end.ports), None)
        if before is None or (index is not None and held[index].id == before.id):
            return list(held)
        await self._withdraw_all(before)
        after = [msgspec.structs.replace(end, ports=[]) if end.ports else end for end in held]
        if index is not None:
            after[index] = msgspec.structs.replace(after[index], ports=before.ports)
            network = self._network(after[index].network_id)
            for few in _few(before.ports):
                self._redirect(self._of_bindings(after[index], few, network), None)
                await asyncio.sleep(0)
        return after

    def _redirect(self, redirections: Sequence[Published], undo: ExitStack | None) -> None:
        if self._firewall is None or not redirections:
            return
        if undo is not None:
            undo.callback(self._firewall.unpublish, redirections)
        self._firewall.publish(redirections)
        for family, ports in _udp(redirections).items():
            # Senders that were there first have flows to the host itself, which no redirection touches.
            own = {found.ip for _, found in self._host.addresses()}
            conntrack.forget_udp(
                family,
                [port.host_port for port in ports],
                lambda flow, own=own: (
                    flow.destination in own  # type: ignore[misc]
                    and flow.answered_from == flow.destination
                ),
            )

    def _withdraw(self, redirections: Sequence[Published]) -> None:
        if self._firewall is None or not redirections:
            return
        self._firewall.unpublish(redirections)
        for family, ports in _udp(redirections).items():
            old = {ip_address(port.address) for port in ports}
            conntrack.forget_udp(
                family,
                [port.host_port for port in ports],
                lambda flow, old=old: flow.answered_from in old,  # type: ignore[misc]
            )

    def _direct(self, network: Network) -> bool:
        return self._config.allow_direct_routing or bool(options.trusted_interfaces(network))

    def _reach(self, network: Network) -> Reach:
        modes = {family: options.gateway_mode(network, 4 if family == NFPROTO_IPV4 else 6) for family in FAMILIES}
        return Reach(
            families=self._firewall.families if self._firewall is not None else (),
            userland=self._config.userland_proxy,
            ipv6=sysctls.has_ipv6(),
            routed=tuple(family for family, mode in modes.items() if mode == "routed"),
            direct=self._direct(network),
        )


def _asks(ask: SandboxAsk) -> list[PortAsk]:
    asks = list(ask.ports)
    if ask.publish_all:
        named = {(port.protocol, port.container_port) for port in asks}
        asks += [
            PortAsk(protocol=protocol, container_port=port)
            for protocol, port in ask.exposed
            if (protocol, port) not in named
        ]
    return asks


def _carrier(held: Sequence[Endpoint]) -> int | None:
    """Return the index of the endpoint that publishes: the one with the default route, IPv4's before IPv6's."""
    for carries in ("default4", "default6"):
        for index, endpoint in enumerate(held):
            if getattr(endpoint, carries):
                return index
    return None


def _udp(redirections: Iterable[Published]) -> dict[int, list[Published]]:
    """Return the UDP ports of the host by AF_*."""
    found: dict[int, list[Published]] = {}
    for port in redirections:
        if port.protocol == "udp" and port.host_port:
            family = socket.AF_INET6 if ":" in port.host_ip else socket.AF_INET
            found.setdefault(int(family), []).append(port)
    return found


def _few(things: Sequence[T]) -> Iterator[Sequence[T]]:
    """Return them in parts."""
    return (things[first : first + _AT_ONCE] for first in range(0, len(things), _AT_ONCE))
