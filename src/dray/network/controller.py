"""The engine's door to networking: networks, and containers' membership in them.

`attach` builds a container's whole network before any of its processes exist, `detach` takes it down; both are a
few netlink messages (about a millisecond), so they run straight on the event loop, and nothing else of ours runs
in between. Every step of `attach` has its undo on one stack.

What containers hold is known from their stored endpoints; `start` makes the kernel follow them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from dray.base.errors import DrayError, NotFound
from dray.base.records import Records
from dray.linux.links import Links
from dray.network import endpoints, sandbox, sysctls
from dray.network.bridge import BridgeDriver
from dray.network.host import HostDriver
from dray.network.ipam import Ipam
from dray.network.model import (
    Attachment,
    Driver,
    Endpoint,
    EndpointAsk,
    NamespaceSource,
    Network,
    NetworkConfig,
    SandboxAsk,
)
from dray.network.networks import Networks
from dray.network.none import NoneDriver
from dray.network.sandbox import NamespacePool


class Controller:
    """Networking of one daemon. Owns the host's netlink sockets and the pool of namespaces."""

    def __init__(self, records: Records, config: NetworkConfig, namespaces: NamespaceSource) -> None:
        self._config = config
        self._host = Links.open()
        self._ipam = Ipam(config.address_pools, config.ipv6_pools)
        self._drivers: dict[str, Driver] = {
            driver.name: driver
            for driver in (BridgeDriver(self._host, owner=config.table_name), HostDriver(), NoneDriver())
        }
        self._networks = Networks(records, config, self._host, self._ipam, self._drivers)
        self._pool = NamespacePool(namespaces)
        self._endpoints: dict[str, dict[str, Endpoint]] = {}  # container id → network id → endpoint

    async def start(self, live: Mapping[str, Sequence[Endpoint]]) -> None:
        """Make the kernel follow the records; `live` are the endpoints of the containers that run."""
        self._networks.load()
        for network in self._networks.all():
            if not network.config_only:
                self._networks.driver(network).up(network)
        for container_id, held in live.items():
            for endpoint in held:
                self._adopt(container_id, endpoint)
        self._pool.fill()

    async def close(self) -> None:
        """Give up sockets and spare namespaces; networks and containers stay as they are."""
        await self._pool.close()
        self._host.close()

    def networks(self) -> list[Network]:
        """Return all networks, by name."""
        return self._networks.all()

    def resolve(self, name_or_id: str) -> Network:
        """Find a network by id, name or unique id prefix; NotFound otherwise."""
        return self._networks.resolve(name_or_id)

    def members(self, network_id: str) -> list[Endpoint]:
        """Return the endpoints of running containers in a network."""
        return [held[network_id] for held in self._endpoints.values() if network_id in held]

    async def attach(self, container_id: str, ask: SandboxAsk) -> Attachment:
        """Build a container's network: namespace, interfaces, addresses, routes.

        The caller owns the result. Whatever fails, nothing stays behind.
        """
        if ask.mode.startswith("container:"):
            return Attachment()
        planned = endpoints.plan(ask, self._networks.resolve)
        if container_id in self._endpoints:
            await self.detach(container_id, list(self._endpoints[container_id].values()))
        if planned[0][0].driver == "host":
            return self._attach_host(container_id, ask, planned)
        namespace = await self._pool.take()
        with ExitStack() as undo:
            undo.callback(namespace.close)
            built = [
                endpoints.build(network, asked, ask, container_id, pools=self._ipam, undo=undo)
                for network, asked in planned
            ]
            built = endpoints.route(endpoints.name_interfaces(built, self._network))
            for endpoint in built:
                self._plug(endpoint, namespace.netns, undo)
            sandbox.wire(namespace.inside, built)
            self._endpoints[container_id] = {endpoint.network_id: endpoint for endpoint in built}
            undo.pop_all()
        return Attachment(
            netns=namespace.detach(), endpoints=built, sysctls=endpoints.sysctls(built, ipv6=sysctls.has_ipv6())
        )

    async def detach(self, container_id: str, held: Sequence[Endpoint]) -> None:
        """Take a container's network down. May be repeated; the container may be dead already."""
        known = self._endpoints.pop(container_id, {})
        for endpoint in {endpoint.id: endpoint for endpoint in [*held, *known.values()]}.values():
            network = self._networks.get(endpoint.network_id)
            if network is not None:
                self._networks.driver(network).unplug(network, endpoint)
            if endpoint.network_id in known:  # else its addresses may be another container's by now
                self._release(endpoint)

    def _attach_host(
        self, container_id: str, ask: SandboxAsk, planned: Sequence[tuple[Network, EndpointAsk]]
    ) -> Attachment:
        with ExitStack() as undo:
            built = [
                endpoints.build(network, asked, ask, container_id, pools=self._ipam, undo=undo)
                for network, asked in planned
            ]
        self._endpoints[container_id] = {endpoint.network_id: endpoint for endpoint in built}
        return Attachment(endpoints=built)

    def _network(self, network_id: str) -> Network:
        network = self._networks.get(network_id)
        if network is None:
            raise NotFound(f"network {network_id} not found")
        return network

    def _plug(self, endpoint: Endpoint, netns: int, undo: ExitStack) -> None:
        network = self._network(endpoint.network_id)
        driver = self._networks.driver(network)
        undo.callback(driver.unplug, network, endpoint)
        driver.plug(network, endpoint, netns)

    def _adopt(self, container_id: str, endpoint: Endpoint) -> None:
        self._endpoints.setdefault(container_id, {})[endpoint.network_id] = endpoint
        for interface in endpoint.interfaces():
            with contextlib.suppress(DrayError):  # the network's subnet has changed since
                self._ipam.reserve(endpoint.network_id, interface.ip)

    def _release(self, endpoint: Endpoint) -> None:
        for interface in endpoint.interfaces():
            self._ipam.release(endpoint.network_id, interface.ip)
