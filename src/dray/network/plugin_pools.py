"""Subnets and addresses of IPAM plugins, for networks of whatever driver.

A network's pools remember what the plugin calls them (`Pool.pool_id`). Nothing else is kept: which addresses an
endpoint has is in what plugins hold for it (`plugged.Held`). A plugin that forgets when it ends and says so
(`RequiresRequestReplay`) is asked for all of it again when the daemon starts, before it is asked for anything new.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_network

import msgspec

from dray.base.errors import DrayError, Internal, InvalidParameter
from dray.network.model import EndpointAsk, Network, Pool
from dray.network.remote_ipam import GivenPool, RemoteIpam
from dray.plugins.registry import PluginRefused, Plugins

log = logging.getLogger(__name__)
Addresses = Sequence[tuple[str, str]]


class PluginPools:
    """IPAM plugins, by name. Belongs to the event loop."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._replays: dict[str, asyncio.Task[None]] = {}

    async def _of(self, name: str) -> RemoteIpam:
        if (replay := self._replays.get(name)) is not None:
            await asyncio.shield(replay)
        return await RemoteIpam.of(self._plugins, name)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return what is still under way."""
        return [task for task in self._replays.values() if not task.done()]

    async def take(
        self, network: Network, gateways: Mapping[int, bool], undo: AsyncExitStack
    ) -> tuple[Network, dict[int, str]]:
        """Take a new network's subnets with their gateways (IP version → whether it is to have one) and the addresses
        that are kept out. Returns the network and its address spaces; `undo` gives everything back."""
        plugin = await self._of(network.ipam_driver)
        space = await plugin.space(network.scope)
        asked: dict[int, list[Pool]] = {4: [], 6: []}
        for pool in network.pools:
            if not pool.subnet and (pool.ip_range or pool.gateway or pool.auxiliary):
                raise InvalidParameter("invalid network config: a subnet is needed beside an ip-range or gateway")
            if pool.subnet:
                version = _version(pool)
                if not (network.ipv4 if version == 4 else network.ipv6):
                    raise InvalidParameter(
                        f"invalid subnet {pool.subnet}: IPv{version} is not enabled on this network"
                    )
                asked[version].append(msgspec.structs.replace(pool, configured=True))
        pools = []
        for version, wanted in ((4, network.ipv4), (6, network.ipv6)):
            for pool in asked[version] or ([Pool()] if wanted else []):
                given = await plugin.request_pool(
                    space, version=version, subnet=pool.subnet, part=pool.ip_range, options=network.ipam_options
                )
                undo.push_async_callback(_quietly, plugin, given.pool_id, "")
                pools.append(await self._fill(plugin, pool, given, undo, wanted=gateways[version]))
        return msgspec.structs.replace(network, pools=pools), {4: space, 6: space}

    async def _fill(
        self, plugin: RemoteIpam, pool: Pool, given: GivenPool, undo: AsyncExitStack, *, wanted: bool
    ) -> Pool:
        """Take a pool's gateway (one that the user named, or if one is `wanted`) and the addresses to keep out."""
        gateway = given.gateway if wanted else ""
        if pool.gateway or (wanted and not given.gateway):
            gateway = await plugin.request_address(given.pool_id, given.subnet, address=pool.gateway, gateway=True)
            undo.push_async_callback(_quietly, plugin, given.pool_id, gateway)
        for address in pool.auxiliary.values():
            await plugin.request_address(given.pool_id, given.subnet, address=address)
            undo.push_async_callback(_quietly, plugin, given.pool_id, address)
        return msgspec.structs.replace(pool, subnet=given.subnet, pool_id=given.pool_id, gateway=gateway)

    async def give_back(self, network: Network) -> None:
        """Give a network's subnets back. A plugin that fails is logged, no more: nobody could give them back later."""
        try:
            plugin = await self._of(network.ipam_driver)
        except DrayError as error:
            log.warning("network %s is removed, but its subnets could not be given back: %s", network.name, error)
            return
        for pool in network.pools:
            for address in (*pool.auxiliary.values(), pool.gateway, ""):
                if address or pool.pool_id:
                    await _quietly(plugin, pool.pool_id, address)

    async def wants_mac(self, network: Network) -> bool:
        """Return whether addresses are chosen by MAC address."""
        return (await (await self._of(network.ipam_driver)).capabilities())[0]

    async def addresses(self, network: Network, ask: EndpointAsk) -> AsyncIterator[tuple[int, str, str, int]]:
        """Take an endpoint's addresses: (IP version, pool, address, prefix length), each as it is taken."""
        plugin = await self._of(network.ipam_driver)
        for version, enabled, asked in ((4, network.ipv4, ask.ipv4), (6, network.ipv6, ask.ipv6)):
            pools = [pool for pool in network.pools if _version(pool) == version]
            if not enabled or not pools:
                continue
            refused: DrayError | None = None
            for pool in pools:
                try:
                    at = await plugin.request_address(pool.pool_id, pool.subnet, address=asked, mac=ask.mac)
                except PluginRefused as error:
                    refused = error  # the next subnet may have room
                    continue
                yield version, pool.pool_id, at, ip_network(pool.subnet).prefixlen
                break
            else:
                raise refused or Internal(f"network {network.name} has no subnet for IPv{version}")

    def replay(self, networks: Sequence[Network], taken: Mapping[str, Addresses]) -> None:
        """Ask plugins that forget for everything again, without waiting for it. `taken`: network → (pool, address)."""
        for name in {network.ipam_driver for network in networks}:
            theirs = [network for network in networks if network.ipam_driver == name]
            self._replays[name] = asyncio.get_running_loop().create_task(self._replay(name, theirs, taken))

    async def _replay(self, name: str, networks: Sequence[Network], taken: Mapping[str, Addresses]) -> None:
        try:
            plugin = await RemoteIpam.of(self._plugins, name)
            if not (await plugin.capabilities())[1]:
                return
            for network in networks:
                space = await plugin.space(network.scope)
                for pool in network.pools:
                    await self._again(plugin, space, network, pool, taken.get(network.id, ()))
        except DrayError as error:
            log.warning("the addresses of containers could not be told to their plugin again: %s", error)

    async def _again(self, plugin: RemoteIpam, space: str, network: Network, pool: Pool, taken: Addresses) -> None:
        try:
            await plugin.request_pool(
                space, version=_version(pool), subnet=pool.subnet, part=pool.ip_range, options=network.ipam_options
            )
            if pool.gateway:
                await plugin.request_address(pool.pool_id, pool.subnet, address=pool.gateway, gateway=True)
            for address in [*pool.auxiliary.values(), *(at for of, at in taken if of == pool.pool_id)]:
                await plugin.request_address(pool.pool_id, pool.subnet, address=address)
        except PluginRefused as error:
            log.warning("network %s: %s", network.name, error)


def _version(pool: Pool) -> int:
    return 6 if ":" in pool.subnet else 4


async def _quietly(plugin: RemoteIpam, pool_id: str, address: str) -> None:
    """Give an address or, without one, a subnet back; what the plugin has against it is logged."""
    try:
        if address:
            await plugin.release_address(pool_id, address)
        else:
            await plugin.release_pool(pool_id)
    except DrayError as error:
        log.warning("%s", error)
