"""Addresses of a plugin: the calls of Docker's IPAM plugin protocol (`IpamDriver.*`), one function each.

    GetCapabilities {} → {RequiresMACAddress, RequiresRequestReplay}
    GetDefaultAddressSpaces {} → {LocalDefaultAddressSpace, GlobalDefaultAddressSpace}
    RequestPool {AddressSpace, Pool, SubPool, Options, V6} → {PoolID, Pool, Data}        ReleasePool {PoolID}
    RequestAddress {PoolID, Address, Options} → {Address, Data}              ReleaseAddress {PoolID, Address}

Nothing is kept here. What a plugin answers is not trusted: a pool must be a subnet of the family that was asked for,
an address must lie in its pool and be the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from dray.network.model import OPTION
from dray.plugins.registry import IPAM, Plugin, PluginFailed, PluginLacks, PluginRefused, Plugins

GATEWAY = OPTION + "gateway"
MAC = OPTION + "endpoint.macaddress"
_TYPE = "RequestAddressType"
_CALLS = "IpamDriver."


@dataclass(frozen=True, slots=True)
class GivenPool:
    """A pool that a plugin gave: its name for it, the subnet, and a gateway if the plugin chose that as well."""

    pool_id: str
    subnet: str
    gateway: str = ""


class RemoteIpam:
    """An IPAM plugin. Errors are the plugin's (`plugins.registry`)."""

    def __init__(self, plugin: Plugin, plugins: Plugins) -> None:
        self.name = plugin.name
        self._plugin = plugin
        self._limits = plugins.limits

    @classmethod
    async def of(cls, plugins: Plugins, name: str) -> RemoteIpam:
        """Return the addresses of a plugin by name; NotFound if there is no such IPAM plugin."""
        return cls(await plugins.get(name, IPAM), plugins)

    async def capabilities(self) -> tuple[bool, bool]:
        """Return whether it must know MAC addresses, and whether it forgets when it ends."""
        try:
            said = await self._call("GetCapabilities", {})
        except PluginLacks:
            return False, False  # the call is younger than the protocol
        return said.get("RequiresMACAddress") is True, said.get("RequiresRequestReplay") is True

    async def space(self, scope: str) -> str:
        """Return the address space of networks of a scope (`local` or `global`)."""
        said = await self._call("GetDefaultAddressSpaces", {})
        return str(said.get(f"{scope.capitalize()}DefaultAddressSpace") or "")

    async def request_pool(
        self, space: str, *, version: int, subnet: str = "", part: str = "", options: Mapping[str, str]
    ) -> GivenPool:
        """Take a subnet, any of an IP version when none is named; `part`: where addresses are to come from."""
        arguments = {"AddressSpace": space, "Pool": subnet, "SubPool": part, "Options": dict(options)}
        said = await self._call("RequestPool", arguments | {"V6": version == 6})
        pool_id, text = said.get("PoolID"), said.get("Pool")
        try:
            found = ip_network(str(text), strict=False)
        except ValueError:
            raise self._wrong("RequestPool", f"Pool {text!r} is no subnet") from None
        if not isinstance(pool_id, str) or not pool_id:
            raise self._wrong("RequestPool", "the answer names no PoolID")
        if found.version != version or (subnet and found != ip_network(subnet)):
            raise self._wrong(
                "RequestPool", f"Pool {text} is not what was asked for ({subnet or f'IPv{version}'})"
            )
        data = said.get("Data")
        gateway = str(data.get(GATEWAY) or "") if isinstance(data, dict) else ""
        return GivenPool(pool_id, str(found), self._inside("RequestPool", gateway, str(found)) if gateway else "")

    async def release_pool(self, pool_id: str) -> None:
        """Give a subnet back."""
        await self._call("ReleasePool", {"PoolID": pool_id})

    async def request_address(
        self, pool_id: str, subnet: str, *, address: str = "", gateway: bool = False, mac: str = ""
    ) -> str:
        """Take an address of a subnet, a particular one if named. `gateway`: it is to be the subnet's gateway."""
        options = {_TYPE: GATEWAY} if gateway else {}
        if mac:
            options[MAC] = mac
        arguments = {"PoolID": pool_id, "Address": address, "Options": options}
        said = await self._call("RequestAddress", arguments)
        found = self._inside("RequestAddress", str(said.get("Address") or ""), subnet)
        if address and ip_address(address) != ip_address(found):
            raise self._wrong("RequestAddress", f"asked for {address}, it gave {found}")
        return found

    async def release_address(self, pool_id: str, address: str) -> None:
        """Give an address back."""
        await self._call("ReleaseAddress", {"PoolID": pool_id, "Address": address})

    def _inside(self, method: str, text: str, subnet: str) -> str:
        try:
            found = ip_interface(text).ip
            if found not in ip_network(subnet):
                raise ValueError
        except ValueError:
            raise self._wrong(method, f"{text!r} is no address of {subnet}") from None
        return str(found)

    async def _call(self, method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._plugin.call(_CALLS + method, arguments, timeout=self._limits.short)
        except PluginRefused as error:
            raise type(error)(f'plugin "{self.name}": {error}') from error

    def _wrong(self, method: str, words: str) -> PluginFailed:
        return PluginFailed(f'plugin "{self.name}": {_CALLS}{method}: {words}')
