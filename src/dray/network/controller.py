"""The engine's door to networking: networks, and containers' membership in them.

`attach` builds a container's whole network before any of its processes exist, `detach` takes it down; both are a
few netlink messages (about a millisecond), so they run straight on the event loop, and nothing else of ours runs
in between (but between every few of many published ports). Every step of `attach` has its undo on one stack.

What containers hold is known from their stored endpoints; `start` makes the kernel follow them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from types import MappingProxyType

from dray.base import failpoints
from dray.base.errors import DrayError, Forbidden, NotFound
from dray.base.records import Records
from dray.linux.links import Links
from dray.network import detour, endpoints, firewall, forwarding, hostfiles, live, repair, sandbox, sysctls
from dray.network.asks import NetworkAsk
from dray.network.bridge import BridgeDriver
from dray.network.claim import Claim, check_bridge
from dray.network.firewalld import Firewalld
from dray.network.host import HostDriver
from dray.network.ipam import Ipam
from dray.network.macvlan import IpvlanDriver, MacvlanDriver
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
from dray.network.overlay import OverlayDriver
from dray.network.peers import PeerFollower
from dray.network.plugged import Plugged, sandbox_path
from dray.network.ports import HostPorts
from dray.network.publisher import Publisher
from dray.network.sandbox import Sandboxes
from dray.network.wiring import Wiring
from dray.plugins.registry import Plugins

log = logging.getLogger(__name__)

_MAC_RETRIES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # seconds


class Controller:
    """Networking of one daemon. Owns the host's netlink sockets and the pool of namespaces."""

    def __init__(
        self,
        records: Records,
        config: NetworkConfig,
        namespaces: NamespaceSource,
        plugins: Plugins | None = None,
    ) -> None:
        self._config = config
        self._host = Links.open()
        self._ipam = Ipam(config.address_pools, config.ipv6_pools)
        self._bridge = BridgeDriver(self._host, owner=config.table_name)
        self._overlay = OverlayDriver(self._host, owner=config.table_name)
        self._drivers: dict[str, Driver] = {
            driver.name: driver
            for driver in (
                self._bridge,
                self._overlay,
                HostDriver(),
                NoneDriver(),
                MacvlanDriver(self._host, owner=config.table_name),
                IpvlanDriver(self._host, owner=config.table_name),
            )
        }
        self._plugged = Plugged(plugins, records, self._host)
        self._networks = Networks(records, config, self._host, self._ipam, self._drivers, self._plugged.is_plugin)
        with ExitStack() as undo:
            undo.callback(self._host.close)
            self._claim = Claim(config.table_name, config.bridge)
            undo.callback(self._claim.close)
            self._firewall = firewall.of_config(config, self._host)
            undo.pop_all()
        self._publisher = Publisher(config, self._firewall, HostPorts(), self._host, self._network)
        self._wiring = Wiring(self._host, self._publisher, self._network, self._networks.driver)
        self._pool = Sandboxes(namespaces, config.user_maps)
        self._endpoints: dict[str, dict[str, Endpoint]] = {}  # container id → network id → endpoint
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching = False
        self._peers = PeerFollower(self._overlay, self._firewall, self._networks.all)
        self._firewalld = Firewalld(lambda: [one.interface for one in self._bridges() if not one.internal])

    async def start(
        self, running: Mapping[str, Sequence[Endpoint]], *, pids: Mapping[str, int] = MappingProxyType({})
    ) -> list[str]:
        """Make the kernel follow the records; `running` are the stored endpoints of the containers that run, `pids`
        their first processes.

        What is missing is made, what is left over is removed, and established connections go on. Returns the ids of
        the containers that were half way into or out of a network. Unsupported, saying what to do, where the host
        forbids what is needed.
        """
        self._networks.load()
        for network in self._bridges():
            check_bridge(self._host, self._config.table_name, network.interface, network.id)
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
        halfway = self._reconcile(everything, pids)
        self._peers.follow()
        self._plugged.start(self._networks.all(), everything)
        if self._firewall is not None:
            asyncio.get_running_loop().add_reader(self._firewall, self._firewall.check)
            self._watching = True
            self._firewalld.start()
        self._pool.fill()
        return halfway

    async def close(self, *, wipe: bool = False) -> None:
        """Give up sockets and spare namespaces; networks and containers stay as they are.

        wipe: no container runs and the host shall be as before: bridges, tables and forwarding go too
        """
        self._peers.close()
        await self._firewalld.close()
        await self._plugged.close()
        await self._pool.close()
        await asyncio.gather(*self._tasks)
        if self._firewall is not None and self._watching:
            asyncio.get_running_loop().remove_reader(self._firewall)
            self._watching = False
        if wipe:
            for network in self._networks.all():
                if not network.config_only:
                    self._networks.driver(network).down(network)
            if self._firewall is not None:
                for family in self._firewall.families:
                    if self._firewall.guarded(family):
                        forwarding.disable(family)
                self._firewall.remove()
            detour.down(self._host, self._config.table_name)
        if self._firewall is not None:
            self._firewall.close()
        self._host.close()
        self._claim.close()

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
        for bridge in self._firewall.rejected_by_firewalld() if self._firewall is not None else ():
            found.append(
                f"WARNING: firewalld rejects what containers on {bridge} send beyond this host: run 'firewall-cmd "
                f"--permanent --zone=trusted --add-interface={bridge}' and 'firewall-cmd --reload'"
            )
        return found

    async def create(self, ask: NetworkAsk) -> Network:
        """Create a network; Conflict if the name is taken, Forbidden if its subnet is."""
        network = self._networks.create(ask)
        if network.config_only:
            return network
        if network.remote or network.remote_ipam:
            return await self._create_with_plugins(network)
        return self._make(network)

    def _make(self, network: Network) -> Network:
        failpoints.reach("network-create.recorded")
        with ExitStack() as undo:
            undo.callback(self._networks.forget, network)
            undo.callback(self._networks.driver(network).down, network)
            self._rules(undo)
            failpoints.reach("network-create.rules")
            self._networks.driver(network).up(network)
            failpoints.reach("network-create.interface")
            self._forward()
            self._peers.follow()
            undo.pop_all()
        return network

    async def _create_with_plugins(self, network: Network) -> Network:
        with self._networks.hidden(network):
            async with AsyncExitStack() as undo:
                network, spaces = await self._plugged.prepare(network, undo)
                network = self._networks.settle(network)
                if network.remote:
                    self._networks.hide(network)
                    undo.callback(self._networks.forget, network)
                    await self._plugged.create(network, spaces)
                    self._networks.show(network)
                else:
                    self._make(network)
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
        if network.remote or network.remote_ipam:
            if joining := self._plugged.busy(network):
                raise Forbidden(
                    f"error while removing network: network {network.name} is being joined by {', '.join(joining)}"
                )
            with self._networks.hidden(network):
                await self._plugged.delete(network)
        failpoints.reach("network-remove.begun")
        self._networks.driver(network).down(network)
        failpoints.reach("network-remove.interface")
        self._networks.forget(network)
        failpoints.reach("network-remove.forgotten")
        self._rules()
        self._peers.follow()
        return network

    async def attach(self, container_id: str, ask: SandboxAsk) -> Attachment:
        """Build a container's network: namespace, interfaces, addresses, routes, published ports.

        The caller owns the result. Whatever fails, nothing stays behind. Errors are Docker's: NotFound for an
        unknown network, InvalidParameter for what makes no sense, Forbidden for an address in use, Internal
        with the endpoint's name for a port that is taken.
        """
        if ask.mode.startswith("container:"):
            return Attachment()
        for delay in _MAC_RETRIES:
            try:
                return await self._attach(container_id, ask)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            await asyncio.sleep(delay)  # a chosen MAC on macvlan: its last sandbox is still being taken down
        return await self._attach(container_id, ask)

    async def _attach(self, container_id: str, ask: SandboxAsk) -> Attachment:
        planned = endpoints.plan(ask, self._networks.resolve)
        if container_id in self._endpoints:
            await self.detach(container_id, ())
        if any(network.remote or network.remote_ipam for network, _ in planned):
            return await self._attach_with_plugins(container_id, ask, planned)
        if planned[0][0].driver == "host":
            with ExitStack() as undo:
                built = self._build(container_id, ask, planned, undo)
            self._endpoints[container_id] = {endpoint.network_id: endpoint for endpoint in built}
            return Attachment(endpoints=built)
        namespace = await self._pool.take(ask)
        failpoints.reach("start.namespace")
        with ExitStack() as undo:
            undo.callback(namespace.close)
            built = self._build(container_id, ask, planned, undo)
            failpoints.reach("start.addressed")
            self._endpoints[container_id] = {endpoint.network_id: endpoint for endpoint in built}
            undo.callback(self._endpoints.pop, container_id, None)
            made = await self._wiring.wire(ask, built, namespace, undo)
            self._endpoints[container_id] = {endpoint.network_id: endpoint for endpoint in made.endpoints}
            undo.pop_all()
        made.netns, made.userns = namespace.detach()
        return made

    async def _attach_with_plugins(
        self, container_id: str, ask: SandboxAsk, planned: Sequence[tuple[Network, EndpointAsk]]
    ) -> Attachment:
        await self._plugged.settled(container_id)
        namespace = await self._pool.take(ask)
        with ExitStack() as undo:
            undo.callback(namespace.close)
            async with self._plugged.joining(sandbox_path(namespace.netns)) as joining:
                built = [
                    await joining.build(network, asked, ask, container_id, pools=self._ipam, undo=undo)
                    for network, asked in planned
                ]
                named = endpoints.name_interfaces(built, self._network, prefixes=joining.prefixes)
                built = endpoints.route(named)
                self._endpoints[container_id] = {endpoint.network_id: endpoint for endpoint in built}
                undo.callback(self._endpoints.pop, container_id, None)
                made = await self._wiring.wire(ask, built, namespace, undo)
                self._endpoints[container_id] = {endpoint.network_id: endpoint for endpoint in made.endpoints}
                await self._plugged.route(made.endpoints)
            undo.pop_all()
        made.netns, made.userns = namespace.detach()
        return made

    async def detach(self, container_id: str, held: Sequence[Endpoint]) -> None:
        """Take a container's network down. May be repeated; the container may be dead already."""
        known = self._endpoints.pop(container_id, {})
        gone = list({endpoint.id: endpoint for endpoint in [*held, *known.values()]}.values())
        for endpoint in gone:
            network = self._networks.get(endpoint.network_id)
            if network is not None:
                self._networks.driver(network).unplug(network, endpoint)
        await self._plugged.leave(gone)
        failpoints.reach("stop.unplugged")
        # Addresses and ports of a stale endpoint may be another container's by now: only what we know is freed.
        for endpoint in known.values():
            await self._publisher.withdraw(endpoint)
            self._release(endpoint)
        failpoints.reach("stop.released")

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
            if network.remote or network.remote_ipam:
                joining = self._plugged.joining(sandbox_path(netns))
                async with joining as plugins:
                    build = plugins.build(network, ask, sandbox_ask, container_id, pools=self._ipam, undo=undo)
                    after = await self._wiring.join(inside, netns, await build, held, plugins.prefixes, undo)
            else:
                built = endpoints.build(network, ask, sandbox_ask, container_id, pools=self._ipam, undo=undo)
                after = await self._wiring.join(inside, netns, built, held, {}, undo)
            self._endpoints[container_id] = {endpoint.network_id: endpoint for endpoint in after}
            undo.pop_all()
        try:
            await self._plugged.route(after)
        except DrayError:  # the plugin cannot be the way out: as if nothing had been asked
            await self.disconnect(container_id, self._endpoints[container_id][network.id], pid=pid)
            raise
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
            failpoints.reach("disconnect.unplugged")
            await asyncio.to_thread(live.forget, inside, known)  # 15 ms and more
            failpoints.reach("disconnect.released")
            after = await self._wiring.reroute(inside, list(held.values()), gone=known)
            failpoints.reach("disconnect.routed")
        self._endpoints[container_id] = {end.network_id: end for end in after}
        await self._plugged.leave([known])
        self._release(known)
        await self._plugged.rerouted(after)
        return after

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
        self._firewalld.changed()

    def _forward(self) -> None:
        """Let the host forward packets for the families that its bridges use."""
        if self._config.ip_forward:
            veths = {endpoint.veth for held in self._endpoints.values() for endpoint in held.values()}
            drop = not self._config.ip_forward_no_drop
            forwarding.follow(self._bridges(), self._host, self._firewall, veths, drop=drop)

    def _reconcile(self, everything: Sequence[Endpoint], pids: Mapping[str, int]) -> list[str]:
        """Put interfaces of running containers right, and remove those that nothing wants any more; return the ids
        of the containers that needed it."""
        present = {link.name: link for link in self._host.links()}
        for endpoint in everything:
            network = self._networks.get(endpoint.network_id)
            driver = self._networks.driver(network) if network is not None else None
            if network is not None and isinstance(driver, BridgeDriver) and endpoint.veth in present:
                driver.replug(network, endpoint, present[endpoint.veth])
        keep = {network.interface for network in self._networks.all()} | {endpoint.veth for endpoint in everything}
        keep |= self._overlay.kept() | set(detour.names(self._config.table_name))
        owner = self._config.table_name
        damaged = repair.damaged(self._endpoints, present.values(), owner=owner, keep=keep)
        for container_id in damaged:
            if container_id in pids:
                self._mend(container_id, pids[container_id])
        left = self._bridge.sweep(keep)
        if left:
            task = asyncio.get_running_loop().create_task(asyncio.to_thread(live.delete, left))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return damaged

    def _mend(self, container_id: str, pid: int) -> None:
        with ExitStack() as undo, contextlib.suppress(NotFound):  # it is ending
            held = list(self._endpoints[container_id].values())
            try:
                mended = repair.mend(pid, held, lambda endpoint, netns: self._wiring.plug(endpoint, netns, undo))
                self._wiring.ready(mended)
            except (DrayError, OSError) as error:
                log.error("the network of container %s could not be put right: %s", container_id[:12], error)
            undo.pop_all()
