"""Networks and addresses of plugins, beside the built-in drivers: what is asynchronous about them.

The built-in drivers run straight on the event loop, with nothing of ours in between. A plugin is a program that may
take its time or never answer, so that everything of it is awaited here, before or after that part, and only for
networks that have one (`concerns`): nobody else's start waits for it or passes through here.

    attach   RequestAddress → CreateEndpoint → Join ─▶ move, addresses, routes ─▶ ProgramExternalConnectivity
    detach   RevokeExternalConnectivity → Leave → DeleteEndpoint → ReleaseAddress

What a plugin holds for an endpoint is written down (kind `plugin-endpoint`, key the endpoint's id) before it is asked
for, and forgotten when it was given back. Giving back goes on by itself, and nobody waits for it longer than PATIENCE:
a plugin that hangs keeps no container from ending. What could not be given back, or is left of a daemon that was
killed, is given back when the next daemon starts.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import msgspec

from dray.base import digest
from dray.base.errors import DrayError
from dray.base.records import Change, Records
from dray.linux.links import Links, mac_bytes
from dray.network import bridge, endpoints
from dray.network.ipam import Ipam
from dray.network.model import OPTION, Endpoint, EndpointAsk, Network, SandboxAsk
from dray.network.plugin_pools import PluginPools
from dray.network.remote import RemoteNetworks
from dray.network.remote_ipam import RemoteIpam
from dray.network.rules import PROTOCOLS
from dray.plugins.registry import PluginFailed, PluginRefused, Plugins

log = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds that the end of a run waits for plugins
_KIND = "plugin-endpoint"


class Held(msgspec.Struct, kw_only=True):
    """What plugins hold for an endpoint: addresses as (pool, address); `endpoint` has its ids.

    external: it was told to be the way out; options: what it was told then
    """

    endpoint: Endpoint
    driver: str = ""
    ipam: str = ""
    addresses: list[tuple[str, str]] = []
    created: bool = False
    joined: bool = False
    external: bool = False
    options: dict[str, Any] = {}


class Plugged:
    """Plugins' part of networking. Borrows the host's rtnetlink socket; owns the tasks that give back."""

    def __init__(self, plugins: Plugins | None, records: Records, host: Links) -> None:
        self._plugins = plugins or Plugins()
        self._records = records
        self._host = host
        self._held: dict[str, Held] = {}  # by endpoint id
        self._leaving: dict[str, asyncio.Task[None]] = {}  # by endpoint id
        self.pools = PluginPools(self._plugins)

    def is_plugin(self, name: str) -> bool:
        """Whether there is a plugin of that name that could be asked."""
        return self._plugins.is_known(name)

    # -- the daemon's life

    def start(self, networks: Iterable[Network], running: Collection[Endpoint]) -> None:
        """Take over what plugins hold for running containers; give back the rest, without waiting for it."""
        alive = {endpoint.id for endpoint in running}
        for key, value in self._records.scan(_KIND):
            self._held[key] = msgspec.json.decode(value, type=Held)
        self._give_back([key for key in self._held if key not in alive])
        taken = {
            network_id: [at for held in self._held.values() if held.endpoint.network_id == network_id
                         and held.endpoint.id in alive for at in held.addresses]
            for network_id in {held.endpoint.network_id for held in self._held.values()}
        }  # fmt: skip
        self.pools.replay([network for network in networks if network.remote_ipam], taken)

    async def close(self) -> None:
        """Wait a moment for what is being given back; the next daemon does what is left."""
        tasks = [*self._leaving.values(), *self.pools.tasks()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=PATIENCE)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # -- networks

    async def prepare(self, network: Network, undo: AsyncExitStack) -> tuple[Network, dict[int, str]]:
        """Ask the plugins of a new network what they have to say before it is stored: its scope, its subnets.

        Returns the network and the address spaces of its subnets. NotFound if there is no such plugin.
        """
        gateways = {4: True, 6: True}
        if network.remote:
            driver = await RemoteNetworks.of(self._plugins, network.driver)
            scope, checks = await driver.capabilities()
            network = msgspec.structs.replace(network, scope=scope)
            if checks:
                skips = await driver.skips_gateway(network)
                gateways = {4: not skips[0], 6: not skips[1]}
        if network.remote_ipam:
            return await self.pools.take(network, gateways, undo)
        return network, {4: "LocalDefault", 6: "LocalDefault"}

    async def create(self, network: Network, spaces: Mapping[int, str]) -> None:
        """Have a stored network made."""
        driver = await RemoteNetworks.of(self._plugins, network.driver)
        try:
            await driver.create(network, spaces)
        except PluginFailed:
            with contextlib.suppress(DrayError):  # it may have been made nevertheless
                await driver.delete(network.id)
            raise

    def busy(self, network: Network) -> list[str]:
        """Return the names of containers that plugins are just connecting to a network."""
        return [
            held.endpoint.container_name
            for key, held in self._held.items()
            if held.endpoint.network_id == network.id and key not in self._leaving
        ]

    async def delete(self, network: Network) -> None:
        """Have a network removed, and its subnets given back. A plugin that refuses is overruled, as Docker does; one
        that cannot be asked is an error, and the network stays."""
        leaving = [
            task for key, task in self._leaving.items() if self._held[key].endpoint.network_id == network.id
        ]
        if leaving:
            await asyncio.wait(leaving, timeout=PATIENCE)
        if network.remote:
            try:
                await (await RemoteNetworks.of(self._plugins, network.driver)).delete(network.id)
            except PluginRefused as error:
                log.warning("network %s is removed, but: %s", network.name, error)
            except DrayError as error:
                raise PluginFailed(
                    f"network {network.name} cannot be removed without its plugin: {error}"
                ) from error
        if network.remote_ipam:
            await self.pools.give_back(network)

    # -- endpoints

    async def settled(self, container_id: str) -> None:
        """Wait a moment for what an earlier run of a container is giving back."""
        leaving = [
            task for key, task in self._leaving.items() if self._held[key].endpoint.container_id == container_id
        ]
        if leaving:
            await asyncio.wait(leaving, timeout=PATIENCE)

    @contextlib.asynccontextmanager
    async def joining(self, sandbox: str) -> AsyncIterator[Joining]:
        """Join endpoints to a sandbox (a path of its namespace). If the block fails, all is given back."""
        made = Joining(self, sandbox)
        try:
            yield made
        except BaseException:
            self._give_back(made.ids)
            raise

    def held(self, endpoint_id: str) -> Held | None:
        """Return what plugins hold for an endpoint."""
        return self._held.get(endpoint_id)

    def keep(self, held: Held) -> None:
        """Write down what plugins hold for an endpoint."""
        self._held[held.endpoint.id] = held
        self._records.write([Change(_KIND, held.endpoint.id, msgspec.json.encode(held))])

    async def route(self, after: Sequence[Endpoint]) -> None:
        """Tell the plugins which of a sandbox's endpoints is the way out now, and which is no longer."""
        for endpoint in after:
            held = self._held.get(endpoint.id)
            if held is None or not held.driver:
                continue
            out = endpoint.default4 or endpoint.default6
            if out == held.external:
                continue
            driver = await RemoteNetworks.of(self._plugins, held.driver)
            if out:
                held.external = True
                self.keep(held)
                await driver.program(endpoint, held.options)
            else:
                await driver.revoke(endpoint)
                held.external = False
                self.keep(held)

    async def rerouted(self, after: Sequence[Endpoint]) -> None:
        """The same after an endpoint left: what a plugin has against it is logged, for the rest has happened."""
        try:
            await self.route(after)
        except DrayError as error:
            log.warning("the way out of a container has moved, but: %s", error)

    async def leave(self, gone: Iterable[Endpoint]) -> None:
        """Give back what plugins hold for endpoints; wait a moment for it."""
        tasks = self._give_back([endpoint.id for endpoint in gone if endpoint.id in self._held])
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE)

    def _give_back(self, ids: Iterable[str]) -> list[asyncio.Task[None]]:
        tasks = []
        for key in ids:
            if key in self._held and key not in self._leaving:
                task = asyncio.get_running_loop().create_task(self._leave(key, self._held[key]))
                self._leaving[key] = task
                task.add_done_callback(lambda _, key=key: self._leaving.pop(key, None))  # type: ignore[misc]
                tasks.append(task)
        return tasks

    async def _leave(self, key: str, held: Held) -> None:
        whole = True
        if held.driver and held.created:
            whole = await self._tell(held, lambda: self._steps(held))
        for pool, address in held.addresses:
            whole &= await self._tell(held, lambda pool=pool, at=address: self._release(held, pool, at))  # type: ignore[misc]
        if whole:
            self._records.write([Change(_KIND, key, None)])
        self._held.pop(key, None)

    async def _tell(self, held: Held, step: Callable[[], Awaitable[None]]) -> bool:
        """Do a step of giving back; False if it has to be done again by the next daemon."""
        try:
            await step()
        except PluginRefused as error:
            log.warning("endpoint of %s is gone, but: %s", held.endpoint.container_name, error)
        except DrayError as error:
            log.warning("endpoint of %s could not be given back yet: %s", held.endpoint.container_name, error)
            return False
        return True

    async def _steps(self, held: Held) -> None:
        driver = await RemoteNetworks.of(self._plugins, held.driver)
        steps = [driver.revoke] if held.external else []
        steps += [driver.leave] if held.joined else []
        for step in steps:
            try:
                await step(held.endpoint)
            except PluginRefused as error:
                log.warning("endpoint of %s: %s", held.endpoint.container_name, error)
        await driver.delete_endpoint(held.endpoint)

    async def _release(self, held: Held, pool: str, address: str) -> None:
        await (await RemoteIpam.of(self._plugins, held.ipam)).release_address(pool, address)

    async def joined(self, held: Held, sandbox: str, options: Mapping[str, Any]) -> tuple[Endpoint, str]:
        """Have an endpoint made and joined; return it, and the prefix that its interface's name is to have."""
        driver = await RemoteNetworks.of(self._plugins, held.driver)
        held.created = True
        self.keep(held)
        endpoint = await driver.create_endpoint(held.endpoint, options)
        held.joined = True
        self.keep(held)
        said = await driver.join(endpoint, sandbox, options)
        link = self._host.find(said.source) if said.source else None
        if said.source and link is None:
            raise PluginFailed(
                f'plugin "{held.driver}": NetworkDriver.Join: this host has no interface {said.source}'
            )
        internal = endpoint.internal
        endpoint = msgspec.structs.replace(
            endpoint,
            source=said.source,
            mac=endpoint.mac or (link.mac if link is not None else ""),
            gateway4="" if internal else said.gateways[4],
            gateway6="" if internal else said.gateways[6],
            routes=said.routes,
            driver_opts=endpoint.driver_opts
            | ({endpoints.INTERFACE_NAME: said.name} if said.name and said.source else {}),
        )
        held.endpoint = endpoint
        self.keep(held)
        return endpoint, said.prefix


class Joining:
    """The endpoints that are being made for one sandbox."""

    def __init__(self, plugged: Plugged, sandbox: str) -> None:
        self._plugged = plugged
        self._sandbox = sandbox
        self.ids: list[str] = []
        self.prefixes: dict[str, str] = {}  # endpoint → what begins its interface's name

    async def build(
        self,
        network: Network,
        ask: EndpointAsk,
        sandbox: SandboxAsk,
        container_id: str,
        *,
        pools: Ipam,
        undo: ExitStack,
    ) -> Endpoint:
        """Make an endpoint as `endpoints.build` does, with the plugins' part if the network has one."""
        endpoint_id, given = digest.new_id(), None
        if network.remote_ipam:
            ask, given = await self._addresses(network, ask, sandbox, container_id, endpoint_id)
        made = {"pools": pools, "undo": undo, "given": given, "endpoint_id": endpoint_id}
        endpoint = endpoints.build(network, ask, sandbox, container_id, **made)  # type: ignore[arg-type]
        if not network.remote:
            return endpoint
        self.ids.append(endpoint_id)
        before = self._plugged.held(endpoint_id)
        held = Held(
            endpoint=endpoint,
            driver=network.driver,
            ipam=before.ipam if before else "",
            addresses=before.addresses if before else [],
            options=_options(ask, sandbox, endpoint.mac),
        )
        endpoint, prefix = await self._plugged.joined(held, self._sandbox, held.options)
        if prefix:
            self.prefixes[endpoint.id] = prefix
        return endpoint

    async def _addresses(
        self, network: Network, ask: EndpointAsk, sandbox: SandboxAsk, container_id: str, endpoint_id: str
    ) -> tuple[EndpointAsk, dict[int, tuple[str, int]]]:
        shell = Endpoint(
            id=endpoint_id,
            network_id=network.id,
            network_name=network.name,
            driver=network.driver,
            container_id=container_id,
            container_name=sandbox.name,
        )
        held = Held(endpoint=shell, ipam=network.ipam_driver)
        self.ids.append(endpoint_id)
        if not ask.mac and await self._plugged.pools.wants_mac(network):
            ask = msgspec.structs.replace(ask, mac=bridge.endpoint_mac(""))
        given: dict[int, tuple[str, int]] = {}
        async for version, pool_id, address, prefix in self._plugged.pools.addresses(network, ask):
            held.addresses.append((pool_id, address))
            self._plugged.keep(held)
            given[version] = address, prefix
        return ask, given


def _options(ask: EndpointAsk, sandbox: SandboxAsk, mac: str) -> dict[str, Any]:
    """Return an endpoint's options as libnetwork nests them (numbers of protocols, MAC addresses in base64)."""
    exposed = {(port.protocol, port.container_port) for port in sandbox.ports} | set(sandbox.exposed)
    numbers = [{"Proto": PROTOCOLS[name], "Port": port} for name, port in sorted(exposed)]
    ports = [
        {
            "Proto": PROTOCOLS[port.protocol],
            "IP": "",
            "Port": port.container_port,
            "HostIP": port.host_ip,
            "HostPort": port.first,
            "HostPortEnd": port.last,
        }
        for port in sandbox.ports
    ]
    if sandbox.publish_all:
        named = {(port.protocol, port.container_port) for port in sandbox.ports}
        rest = {"IP": "", "HostIP": "", "HostPort": 0, "HostPortEnd": 0}
        ports += [
            {"Proto": PROTOCOLS[name], "Port": port, **rest}
            for name, port in sandbox.exposed
            if (name, port) not in named
        ]
    found: dict[str, Any] = {
        OPTION + "endpoint.exposedports": numbers,
        OPTION + "portmap": ports,
        **ask.driver_opts,
    }
    if mac:
        found[OPTION + "endpoint.macaddress"] = base64.b64encode(mac_bytes(mac)).decode()
    return found


def sandbox_path(netns: int) -> str:
    """Return a path by which a plugin may open a namespace while we hold it."""
    return f"/proc/{os.getpid()}/fd/{netns}"
