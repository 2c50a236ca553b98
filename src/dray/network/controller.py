"""The engine's door to networking: networks, and containers' membership in them.

`attach` builds a container's whole network before any of its processes exist, `detach` takes it down; both are a
few netlink messages (about a millisecond), so they run straight on the event loop, and nothing else of ours runs
in between. Every step of `attach` has its undo on one stack.

What containers hold is known from their stored endpoints; `start` makes the kernel follow them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from dray.base.errors import DrayError, Forbidden, NotFound, Unsupported
from dray.base.records import Records
from dray.linux import links
from dray.linux.links import Links
from dray.linux.nftables import NFPROTO_IPV4, NFPROTO_IPV6
from dray.network import endpoints, forwarding, hostfiles, live, sandbox, sysctls
from dray.network.bridge import BridgeDriver
from dray.network.firewall import Firewall
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
from dray.network.networks import NetworkAsk, Networks
from dray.network.none import NoneDriver
from dray.network.ports import HostPorts
from dray.network.publisher import Publisher
from dray.network.sandbox import NamespacePool


class Controller:
    """Networking of one daemon. Owns the host's netlink sockets and the pool of namespaces."""

    def __init__(self, records: Records, config: NetworkConfig, namespaces: NamespaceSource) -> None:
        self._config = config
        self._host = Links.open()
        self._ipam = Ipam(config.address_pools, config.ipv6_pools)
        self._bridge = BridgeDriver(self._host, owner=config.table_name)
        self._drivers: dict[str, Driver] = {
            driver.name: driver for driver in (self._bridge, HostDriver(), NoneDriver())
        }
        self._networks = Networks(records, config, self._host, self._ipam, self._drivers)
        self._firewall = _firewall(config)
        self._publisher = Publisher(config, self._firewall, HostPorts(), self._host)
        self._pool = NamespacePool(namespaces)
        self._endpoints: dict[str, dict[str, Endpoint]] = {}  # container id → network id → endpoint
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching = False

    async def start(self, running: Mapping[str, Sequence[Endpoint]]) -> None:
        """Make the kernel follow the records; `running` are the stored endpoints of the containers that run.

        What is missing is made, what is left over is removed, and established connections go on. Unsupported,
        saying what to do, where the host forbids what is needed.
        """
        self._networks.load()
        for container_id, held in running.items():
            for endpoint in held:
                self._adopt(container_id, endpoint)
        everything = [endpoint for held in self._endpoints.values() for endpoint in held.values()]
        if self._firewall is not None and self._bridges():
            self._firewall.start(self._bridges(), self._publisher.redirections(everything))
        for network in self._networks.all():
            if not network.config_only:
                self._networks.driver(network).up(network)
        self._forward()
        self._reconcile(everything)
        if self._firewall is not None:
            asyncio.get_running_loop().add_reader(self._firewall, self._firewall.check)
            self._watching = True
        self._pool.fill()

    async def close(self, *, wipe: bool = False) -> None:
        """Give up sockets and spare namespaces; networks and containers stay as they are.

        wipe: no container runs and the host shall be as before: bridges, tables and forwarding go too
        """
        await self._pool.close()
        await asyncio.gather(*self._tasks)
        if self._firewall is not None and self._watching:
            asyncio.get_running_loop().remove_reader(self._firewall)
            self._watching = False
        if wipe:
            for network in self._bridges():
                self._bridge.down(network)
            if self._firewall is not None:
                for family in self._firewall.families:
                    if self._firewall.guarded(family):
                        forwarding.disable(family)
                if self._bridges():
                    self._firewall.remove()
        if self._firewall is not None:
            self._firewall.close()
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

    def host_gateway(self, held: Sequence[Endpoint] = ()) -> list[str]:
        """Return the addresses that `host-gateway` stands for in --add-host: configured, else the default
        bridge's, else the gateways of the container's own endpoints."""
        if self._config.host_gateway_ips:
            return list(self._config.host_gateway_ips)
        default = [network for network in self._bridges() if network.predefined]
        if default:
            return [pool.gateway for network in default for pool in network.pools if pool.gateway]
        return [gateway for endpoint in held for gateway in (endpoint.gateway4, endpoint.gateway6) if gateway]

    @staticmethod
    def host_resolv_conf() -> str:
        """Return the text of the host's resolv.conf (see `hostfiles.read_host_resolv_conf`)."""
        return hostfiles.read_host_resolv_conf()

    def warnings(self) -> list[str]:
        """Return what on this host stands in networking's way, in words for the user (`docker info`)."""
        found: list[str] = []
        if sysctls.read("net.ipv4.ip_forward") == "0":
            found.append(
                "WARNING: IPv4 forwarding is disabled: containers on bridges reach nothing beyond the host"
            )
        for chain in self._firewall.blocking_chains() if self._firewall is not None else ():
            found.append(
                f"WARNING: nftables chain {chain} drops forwarded packets by policy: containers are reachable from "
                "this host alone until it accepts the bridges' interfaces"
            )
        return found

    async def create(self, ask: NetworkAsk) -> Network:
        """Create a network; Conflict if the name is taken, Forbidden if its subnet is."""
        network = self._networks.create(ask)
        if network.config_only:
            return network
        with ExitStack() as undo:
            undo.callback(self._networks.forget, network)
            undo.callback(self._networks.driver(network).down, network)
            self._rules(undo)
            self._networks.driver(network).up(network)
            self._forward()
            undo.pop_all()
        return network

    async def remove(self, name_or_id: str) -> Network:
        """Remove a network nobody is in; Forbidden for a predefined one or one in use. Returns what it was."""
        network = self._networks.resolve(name_or_id)
        if network.predefined:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        members = self.members(network.id)
        if members:
            names = ", ".join(f'name:"{end.container_name}" id:"{end.container_id[:12]}"' for end in members)
            raise Forbidden(f"error while removing network: network {network.name} has active endpoints ({names})")
        users = [other.name for other in self._networks.all() if other.config_from == network.name]
        if network.config_only and users:
            raise Forbidden(f'configuration network "{network.name}" is in use by {", ".join(users)}')
        self._networks.driver(network).down(network)
        self._networks.forget(network)
        self._rules()
        return network

    async def prune(self, select: Callable[[Network], bool]) -> list[Network]:
        """Remove the selected networks that can be removed and that nobody is in; return them."""
        removed: list[Network] = []
        for network in self._networks.all():
            if not network.predefined and select(network) and not self.members(network.id):
                with contextlib.suppress(Forbidden):  # a configuration that another network uses
                    removed.append(await self.remove(network.id))
        return removed

    async def attach(self, container_id: str, ask: SandboxAsk) -> Attachment:
        """Build a container's network: namespace, interfaces, addresses, routes, published ports.

        The caller owns the result. Whatever fails, nothing stays behind. Errors are Docker's: NotFound for an
        unknown network, InvalidParameter for what makes no sense, Forbidden for an address in use, Internal
        with the endpoint's name for a port that is taken.
        """
        if ask.mode.startswith("container:"):
            return Attachment()
        planned = endpoints.plan(ask, self._networks.resolve)
        if container_id in self._endpoints:
            await self.detach(container_id, ())
        if planned[0][0].driver == "host":
            with ExitStack() as undo:
                built = self._build(container_id, ask, planned, undo)
            self._endpoints[container_id] = {endpoint.network_id: endpoint for endpoint in built}
            return Attachment(endpoints=built)
        namespace = await self._pool.take()
        with ExitStack() as undo:
            undo.callback(namespace.close)
            built = self._build(container_id, ask, planned, undo)
            made = Attachment()
            undo.callback(made.close)
            for endpoint in built:
                self._plug(endpoint, namespace.netns, undo)
            sandbox.wire(namespace.inside, built)
            self._ready(built)
            made.endpoints = self._publisher.publish(built, ask, self._network, made, undo)
            made.sysctls = endpoints.sysctls(built, ipv6=sysctls.has_ipv6())
            self._endpoints[container_id] = {endpoint.network_id: endpoint for endpoint in made.endpoints}
            undo.pop_all()
        made.netns = namespace.detach()
        return made

    async def detach(self, container_id: str, held: Sequence[Endpoint]) -> None:
        """Take a container's network down. May be repeated; the container may be dead already."""
        known = self._endpoints.pop(container_id, {})
        gone = list({endpoint.id: endpoint for endpoint in [*held, *known.values()]}.values())
        for endpoint in gone:
            network = self._networks.get(endpoint.network_id)
            if network is not None:
                self._networks.driver(network).unplug(network, endpoint)
        # Addresses and ports of a stale endpoint may be another container's by now: only what we know is freed.
        for endpoint in known.values():
            self._publisher.withdraw(endpoint)
            self._release(endpoint)

    async def connect(
        self, container_id: str, sandbox_ask: SandboxAsk, ask: EndpointAsk, *, pid: int
    ) -> list[Endpoint]:
        """Join a running container, whose init is `pid`, to a further network.

        Returns all its endpoints, to be stored in place of those before: default route and published ports may
        have moved to another.
        """
        network = self._networks.resolve(ask.network)
        held = list(self._endpoints.get(container_id, {}).values())
        live.check(network, ask, held)
        with sandbox.of_process(pid) as netns, sandbox.inside(netns, Links.open) as inside, ExitStack() as undo:
            built = endpoints.build(network, ask, sandbox_ask, container_id, pools=self._ipam, undo=undo)
            taken = [link.name for link in inside.links()]
            (built,) = endpoints.name_interfaces([built], self._network, taken)
            self._plug(built, netns, undo)
            undo.callback(_forget, inside, built)
            settings = endpoints.sysctls([built], ipv6=sysctls.has_ipv6())
            sandbox.inside(netns, lambda: [sysctls.write(key, value) for key, value in settings.items()])
            sandbox.wire(inside, [built], fresh=False)
            self._ready([built])
            after = self._rerouted(inside, [*held, built])
            self._endpoints[container_id] = {endpoint.network_id: endpoint for endpoint in after}
            undo.pop_all()
        return after

    def rename(self, container_id: str, old: str, new: str) -> list[Endpoint]:
        """A running container has another name; return its endpoints, to be stored in place of those before."""
        held = self._endpoints.get(container_id, {})
        renamed = {network: endpoints.renamed(endpoint, old, new) for network, endpoint in held.items()}
        self._endpoints[container_id] = renamed
        return list(renamed.values())

    async def disconnect(self, container_id: str, endpoint: Endpoint, *, pid: int) -> list[Endpoint]:
        """Take a running container, whose init is `pid`, out of a network.

        Returns the endpoints that remain, to be stored in place of those before.
        """
        held = dict(self._endpoints.get(container_id, {}))
        network = self._network(endpoint.network_id)
        known = held.pop(network.id, None)
        if known is None:
            raise Forbidden(f"container {container_id} is not connected to network {network.name}")
        if network.driver == "host":
            raise Forbidden("container cannot be disconnected from host network or connected to host network")
        with sandbox.of_process(pid) as netns, sandbox.inside(netns, Links.open) as inside:
            self._networks.driver(network).unplug(network, known)
            self._release(known)
            _forget(inside, known)
            after = self._rerouted(inside, list(held.values()), gone=known)
        self._endpoints[container_id] = {end.network_id: end for end in after}
        return after

    def _rerouted(self, inside: Links, held: Sequence[Endpoint], gone: Endpoint | None = None) -> list[Endpoint]:
        after = endpoints.route(held)
        live.reroute(inside, held, after)
        return self._publisher.move(after, gone)

    def _build(
        self, container_id: str, ask: SandboxAsk, planned: Sequence[tuple[Network, EndpointAsk]], undo: ExitStack
    ) -> list[Endpoint]:
        built = [
            endpoints.build(network, asked, ask, container_id, pools=self._ipam, undo=undo)
            for network, asked in planned
        ]
        return endpoints.route(endpoints.name_interfaces(built, self._network))

    def _network(self, network_id: str) -> Network:
        network = self._networks.get(network_id)
        if network is None:
            raise NotFound(f"network {network_id} not found")
        return network

    def _bridges(self) -> list[Network]:
        return [found for found in self._networks.all() if found.driver == "bridge" and not found.config_only]

    def _plug(self, endpoint: Endpoint, netns: int, undo: ExitStack) -> None:
        network = self._network(endpoint.network_id)
        driver = self._networks.driver(network)
        undo.callback(driver.unplug, network, endpoint)
        driver.plug(network, endpoint, netns)

    def _ready(self, built: Sequence[Endpoint]) -> None:
        for endpoint in built:
            network = self._network(endpoint.network_id)
            self._networks.driver(network).ready(network, endpoint)

    def _adopt(self, container_id: str, endpoint: Endpoint) -> None:
        self._endpoints.setdefault(container_id, {})[endpoint.network_id] = endpoint
        self._publisher.adopt(endpoint)
        for interface in endpoint.interfaces():
            with contextlib.suppress(DrayError):  # the network's subnet has changed since
                self._ipam.reserve(endpoint.network_id, interface.ip)

    def _release(self, endpoint: Endpoint) -> None:
        for interface in endpoint.interfaces():
            self._ipam.release(endpoint.network_id, interface.ip)

    def _rules(self, undo: ExitStack | None = None) -> None:
        if self._firewall is None:
            return
        if undo is not None:
            undo.callback(self._rules)
        self._firewall.set_networks(self._bridges())

    def _forward(self) -> None:
        """Let the host forward packets for the families that its bridges use."""
        if not self._config.ip_forward:
            return
        ours = {network.interface for network in self._bridges()}
        ours |= {endpoint.veth for held in self._endpoints.values() for endpoint in held.values()}
        routed = [network for network in self._bridges() if not network.internal]
        for family, used in (
            (NFPROTO_IPV4, any(network.ipv4 for network in routed)),
            (NFPROTO_IPV6, any(network.ipv6 for network in routed)),
        ):
            if used:
                drop = not self._config.ip_forward_no_drop
                forwarding.enable(family, self._host, self._firewall, ours, drop=drop)

    def _reconcile(self, everything: Sequence[Endpoint]) -> None:
        """Put host ends of running containers right, and remove interfaces that nothing wants any more."""
        present = {link.name: link for link in self._host.links()}
        for endpoint in everything:
            network = self._networks.get(endpoint.network_id)
            if network is not None and network.driver == "bridge" and endpoint.veth in present:
                self._bridge.replug(network, endpoint, present[endpoint.veth])
        keep = {network.interface for network in self._bridges()} | {endpoint.veth for endpoint in everything}
        left = self._bridge.sweep(keep)
        if left:
            task = asyncio.get_running_loop().create_task(asyncio.to_thread(_delete, left))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def _forget(inside: Links, endpoint: Endpoint) -> None:
    """Delete an endpoint's interface in a sandbox that lives on."""
    if endpoint.interface:
        with contextlib.suppress(OSError):  # somebody in the container was faster
            inside.apply([links.delete_request(endpoint.interface)])


def _delete(names: Sequence[str]) -> None:
    """Delete interfaces: slow (15 ms each and more), so on a thread, over a socket of its own."""
    with Links.open() as host:
        for name in names:
            with contextlib.suppress(OSError):  # gone with its namespace meanwhile
                host.apply([links.delete_request(name)])


def _firewall(config: NetworkConfig) -> Firewall | None:
    """Open the firewall for the families that are wanted and that the host has; None for none at all."""
    families = [NFPROTO_IPV4] if config.iptables else []
    if config.ip6tables and sysctls.read("net.ipv6.conf.all.forwarding") is not None:
        families.append(NFPROTO_IPV6)
    try:
        return Firewall(config.table_name, families)
    except Unsupported:
        if families:
            raise
        return None
