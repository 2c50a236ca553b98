"""The `Networks` backend of the server: user-defined networks, and connecting containers while they run or before."""

from __future__ import annotations

import logging

import msgspec

from dray.api import models as api
from dray.api.filters import Filters
from dray.base import failpoints
from dray.base.errors import Conflict, DrayError, Forbidden, InvalidParameter, NotFound
from dray.engine import clock
from dray.engine.events import Events
from dray.engine.model import Container
from dray.engine.peers import Peers
from dray.engine.registry import Registry
from dray.engine.sandbox import endpoint_ask, sandbox_ask
from dray.network.asks import NetworkAsk
from dray.network.controller import Controller
from dray.network.model import Network, Pool

log = logging.getLogger(__name__)


def summary(network: Network) -> api.NetworkSummary:
    """Return an entry of `GET /networks`."""
    return msgspec.convert(_common(network), api.NetworkSummary)


def _common(network: Network) -> dict[str, object]:
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": clock.rfc3339(network.created),
        "Scope": network.scope,
        "Driver": network.driver,
        "EnableIPv4": network.ipv4,
        "EnableIPv6": network.ipv6,
        "IPAM": {
            "Driver": network.ipam_driver,
            "Options": network.ipam_options or None,
            "Config": [_pool(pool) for pool in network.pools],
        },
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": network.ingress,
        "ConfigFrom": {"Network": network.config_from},
        "ConfigOnly": network.config_only,
        "Options": network.options,
        "Labels": network.labels,
    }


def _pool(pool: Pool) -> dict[str, object]:
    shown: dict[str, object] = {"Subnet": pool.subnet}
    if pool.ip_range:
        shown["IPRange"] = pool.ip_range
    if pool.gateway:
        shown["Gateway"] = pool.gateway
    if pool.auxiliary:
        shown["AuxiliaryAddresses"] = pool.auxiliary
    return shown


class NetworkVerbs:
    """Create, list, inspect, remove, connect, disconnect and prune networks."""

    def __init__(self, controller: Controller, registry: Registry, events: Events, peers: Peers) -> None:
        self._controller = controller
        self._registry = registry
        self._events = events
        self._peers = peers

    async def create(self, request: api.NetworkCreateRequest) -> api.NetworkCreateResponse:
        """Create a network."""
        ipam = request.ipam or api.IPAM()
        network = await self._controller.create(
            NetworkAsk(
                name=request.name,
                driver=request.driver,
                scope=request.scope,
                ipv4=request.enable_ipv4 is not False,
                ipv6=bool(request.enable_ipv6),
                internal=request.internal,
                attachable=request.attachable,
                ingress=request.ingress,
                config_only=request.config_only,
                config_from=request.config_from.network if request.config_from else "",
                ipam_driver=ipam.driver,
                ipam_options=dict(ipam.options or {}),
                pools=[
                    Pool(
                        subnet=pool.subnet,
                        ip_range=pool.ip_range,
                        gateway=pool.gateway,
                        auxiliary=dict(pool.auxiliary_addresses or {}),
                        configured=bool(pool.subnet),
                    )
                    for pool in ipam.config or []
                ],
                options=dict(request.options or {}),
                labels=dict(request.labels or {}),
            )
        )
        await self._registry.sync()
        failpoints.reach("network-create.done")
        self._peers.warm()
        self._publish("create", network)
        return api.NetworkCreateResponse(id=network.id)

    async def list_networks(self, filters: Filters) -> list[api.NetworkSummary]:
        """List networks."""
        return [summary(network) for network in self._controller.networks() if self._matches(network, filters)]

    def _matches(self, network: Network, filters: Filters) -> bool:
        if "type" in filters:
            kind = "builtin" if network.predefined else "custom"
            wrong = set(filters["type"]) - {"builtin", "custom"}
            if wrong:
                raise InvalidParameter(f"invalid filter: 'type'='{wrong.pop()}'")
            if kind not in filters["type"]:
                return False
        if "dangling" in filters:
            dangling = not network.predefined and not self._used_by(network)
            if filters.boolean("dangling", True) != dangling:
                return False
        return (
            filters.matches_exactly("driver", network.driver)
            and filters.matches_prefix("id", network.id)
            and filters.matches_text("name", network.name)
            and filters.matches_exactly("scope", network.scope)
            and filters.matches_labels(network.labels)
        )

    def _used_by(self, network: Network) -> list[Container]:
        return [
            container
            for container in self._registry
            if any(endpoint.network_id == network.id for endpoint in container.record.endpoints)
        ]

    async def inspect(self, ref: str, *, verbose: bool, scope: str) -> api.NetworkInspect:
        """Return everything known of one network."""
        del verbose  # only swarm networks have more to tell
        network = self._controller.resolve(ref)
        if scope and scope != network.scope:
            raise NotFound(f"network {ref} not found")
        shown = msgspec.convert(_common(network), api.NetworkInspect)
        for container in self._used_by(network):
            for endpoint in container.record.endpoints:
                if endpoint.network_id == network.id:
                    shown.containers[container.id] = api.EndpointResource(
                        name=container.name,
                        endpoint_id=endpoint.id,
                        mac_address=endpoint.mac,
                        ipv4_address=f"{endpoint.ipv4}/{endpoint.prefix4}" if endpoint.ipv4 else "",
                        ipv6_address=f"{endpoint.ipv6}/{endpoint.prefix6}" if endpoint.ipv6 else "",
                    )
        return shown

    async def remove(self, ref: str) -> None:
        """Remove a network that nothing is connected to."""
        network = self._controller.resolve(ref)
        if network.predefined:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        users = self._used_by(network)
        if users:
            names = " ".join(f'name:"{container.name}" id:"{container.id[:12]}"' for container in users)
            raise Forbidden(f"error while removing network: network {network.name} has active endpoints ({names})")
        await self._controller.remove(network.id)
        await self._registry.sync()
        failpoints.reach("network-remove.done")
        self._publish("destroy", network)

    async def connect(self, ref: str, request: api.NetworkConnectRequest) -> None:
        """Connect a container: at once if it runs, else at its next start."""
        network = self._controller.resolve(ref)
        container = self._registry.find(request.container)
        async with container.lock:
            record = container.record
            mode = record.host_config.network_mode
            if mode == "host" or network.driver == "host":
                raise InvalidParameter(
                    "cannot connect container to host network - container must be created in host network mode"
                )
            if mode.startswith("container:"):
                raise Conflict(
                    "container sharing network namespace with another container or host cannot be connected to any other network"
                )
            if mode == "none" or network.driver == "null":
                raise InvalidParameter(
                    "container cannot be connected to multiple networks with one of the networks in private (none) mode"
                )
            asked = dict((record.networking.endpoints_config if record.networking else None) or {})
            if network.name in asked or any(one.network_id == network.id for one in record.endpoints):
                raise Forbidden(f"endpoint with name {record.name} already exists in network {network.name}")
            settings = request.endpoint_config or api.EndpointSettings()
            if not asked:
                asked[mode] = api.EndpointSettings()
            if container.state.running and container.task is not None:
                before = record.endpoints
                record.endpoints = await self._controller.connect(
                    record.id, sandbox_ask(record), endpoint_ask(network.name, settings), pid=container.task.pid
                )
                await self._peers.connected(container, before)
                failpoints.reach("connect.named")
            asked[network.name] = settings
            record.networking = api.NetworkingConfig(endpoints_config=asked)
            self._registry.save(container)
            failpoints.reach("connect.recorded")
            await self._registry.sync()
        self._publish("connect", network, container)

    async def disconnect(self, ref: str, request: api.NetworkDisconnectRequest) -> None:
        """Disconnect a container."""
        network = self._controller.resolve(ref)
        container = self._registry.find(request.container)
        async with container.lock:
            record = container.record
            if record.host_config.network_mode == "host" and network.driver == "host":
                raise Conflict("container cannot be disconnected from host network or connected to host network")
            held = [one for one in record.endpoints if one.network_id == network.id]
            asked = dict((record.networking.endpoints_config if record.networking else None) or {})
            default = record.host_config.network_mode == network.name and not asked
            if not held and network.name not in asked and not default:
                raise Forbidden(f"container {record.id} is not connected to network {network.name}")
            if held and container.state.running and container.task is not None:
                before = record.endpoints
                record.endpoints = await self._controller.disconnect(record.id, held[0], pid=container.task.pid)
                self._peers.disconnected(container, before)
                failpoints.reach("disconnect.named")
            asked.pop(network.name, None)
            record.networking = api.NetworkingConfig(endpoints_config=asked)
            self._registry.save(container)
            failpoints.reach("disconnect.recorded")
            await self._registry.sync()
        self._publish("disconnect", network, container)

    async def prune(self, filters: Filters) -> api.NetworkPruneReport:
        """Remove the networks that no container, running or not, uses."""
        until = min((clock.parse_timestamp(text) for text in filters.values_of("until")), default=None)
        wanted = set[str]()
        for container in self._registry:
            record = container.record
            wanted.add(record.host_config.network_mode)
            wanted |= set((record.networking.endpoints_config if record.networking else None) or {})
            wanted |= {endpoint.network_id for endpoint in record.endpoints}
        deleted = []
        for network in self._controller.networks():
            if network.predefined or network.id in wanted or network.name in wanted:
                continue
            if not filters.matches_labels(network.labels) or (until is not None and network.created >= until):
                continue
            try:
                await self._controller.remove(network.id)
            except DrayError as error:  # its plugin is gone, or another network has its configuration
                log.warning("network %s is not pruned: %s", network.name, error)
                continue
            self._publish("destroy", network)
            deleted.append(network.name)
        await self._registry.sync()
        self._events.publish("network", "prune", "", {"reclaimed": "0"})
        return api.NetworkPruneReport(networks_deleted=deleted)

    def _publish(self, action: str, network: Network, container: Container | None = None) -> None:
        attributes = {"name": network.name, "type": network.driver}
        if container is not None:
            attributes["container"] = container.id
        self._events.publish("network", action, network.id, attributes)
