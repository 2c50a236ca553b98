"""Networks of a plugin: the calls of Docker's network plugin protocol (`NetworkDriver.*`), one function each.

    GetCapabilities {} → {Scope: local|global, GwAllocChecker}
    CreateNetwork {NetworkID, Options, IPv4Data: [{AddressSpace, Pool, Gateway, AuxAddresses}], IPv6Data}
    DeleteNetwork {NetworkID}          GwAllocCheck {Options} → {SkipIPv4, SkipIPv6}
    CreateEndpoint {NetworkID, EndpointID, Options, Interface} → {Interface: {Address, AddressIPv6, MacAddress}}
    Join {NetworkID, EndpointID, SandboxKey, Options}
        → {InterfaceName: {SrcName, DstPrefix, DstName}, Gateway, GatewayIPv6, StaticRoutes, DisableGatewayService}
    ProgramExternalConnectivity, RevokeExternalConnectivity, Leave, DeleteEndpoint {NetworkID, EndpointID}

Options are nested as libnetwork nests them: what the user gave with `-o` is in `com.docker.network.generic`.

Nothing is kept here. What a plugin answers is not trusted: addresses, routes and names of interfaces are read and
checked before anything is made of them, and a plugin cannot change an address that was chosen elsewhere.

`DiscoverNew` and `DiscoverDelete` tell of a swarm's nodes, and there is no swarm. `DisableGatewayService` keeps
docker_gwbridge away, which is not there either: a container that needs a way out joins a bridge network as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, TypeVar

import msgspec

from dray.network.model import OPTION, Endpoint, Network, StaticRoute
from dray.plugins.registry import NETWORK, Plugin, PluginFailed, PluginLacks, PluginRefused, Plugins

T = TypeVar("T")

GENERIC = OPTION + "generic"
_CALLS = "NetworkDriver."
_CONNECTED = 1  # a StaticRoute's RouteType: on the link, without NextHop


class _Interface(msgspec.Struct, frozen=True, rename="pascal"):
    address: str = ""
    address_ipv6: str = msgspec.field(name="AddressIPv6", default="")
    mac_address: str = ""


class _Name(msgspec.Struct, frozen=True, rename="pascal"):
    src_name: str = ""
    dst_prefix: str = ""
    dst_name: str = ""


class _Route(msgspec.Struct, frozen=True, rename="pascal"):
    destination: str = ""
    route_type: int = 0
    next_hop: str = ""


class _Joined(msgspec.Struct, frozen=True, rename="pascal"):
    interface_name: _Name = _Name()
    gateway: str = ""
    gateway_ipv6: str = msgspec.field(name="GatewayIPv6", default="")
    static_routes: list[_Route] = []


@dataclass(frozen=True, slots=True)
class Joined:
    """What a plugin has made for an endpoint.

    source: the interface's name on the host, empty for none; name, prefix: what it is to be called in the sandbox
    gateways: by IP version, empty for none
    """

    source: str
    name: str
    prefix: str
    gateways: Mapping[int, str]
    routes: list[StaticRoute]


class RemoteNetworks:
    """A network plugin. Errors are the plugin's (`plugins.registry`)."""

    def __init__(self, plugin: Plugin, plugins: Plugins) -> None:
        self.name = plugin.name
        self._plugin = plugin
        self._limits = plugins.limits

    @classmethod
    async def of(cls, plugins: Plugins, name: str) -> RemoteNetworks:
        """Return the networks of a plugin by name; NotFound if there is no such network plugin."""
        return cls(await plugins.get(name, NETWORK), plugins)

    async def capabilities(self) -> tuple[str, bool]:
        """Return its scope (`local` or `global`) and whether it wants a say about gateways."""
        said = await self._call("GetCapabilities", {})
        scope = str(said.get("Scope", "")).lower()
        if scope not in ("local", "global"):
            raise self._wrong(
                "GetCapabilities", f'invalid capability: expecting "local" or "global", got {scope!r}'
            )
        return scope, said.get("GwAllocChecker") is True

    async def skips_gateway(self, network: Network) -> tuple[bool, bool]:
        """Return whether the network is to have no gateway, for IPv4 and for IPv6."""
        said = await self._call("GwAllocCheck", {"Options": network_options(network)})
        return said.get("SkipIPv4") is True, said.get("SkipIPv6") is True

    async def create(self, network: Network, spaces: Mapping[int, str]) -> None:
        """Have a network made. `spaces`: IP version → the address space of its pools."""
        data: dict[int, list[dict[str, Any]]] = {4: [], 6: []}
        for pool in network.pools:
            subnet = ip_network(pool.subnet)
            one: dict[str, Any] = {"AddressSpace": spaces.get(subnet.version, ""), "Pool": pool.subnet}
            if pool.gateway:
                one["Gateway"] = f"{pool.gateway}/{subnet.prefixlen}"
            if pool.auxiliary:
                one["AuxAddresses"] = {name: f"{at}/{subnet.prefixlen}" for name, at in pool.auxiliary.items()}
            data[subnet.version].append(one)
        arguments = {"Options": network_options(network), "IPv4Data": data[4], "IPv6Data": data[6]}
        await self._call("CreateNetwork", {"NetworkID": network.id, **arguments}, long=True)

    async def delete(self, network_id: str) -> None:
        """Have a network removed."""
        await self._call("DeleteNetwork", {"NetworkID": network_id})

    async def create_endpoint(self, endpoint: Endpoint, options: Mapping[str, Any]) -> Endpoint:
        """Have an endpoint made; return it with the addresses that the plugin chose where it had none."""
        interface = {"Address": "", "AddressIPv6": "", "MacAddress": endpoint.mac}
        for found in endpoint.interfaces():
            interface["Address" if found.version == 4 else "AddressIPv6"] = str(found)
        arguments = {**_names(endpoint), "Options": dict(options), "Interface": interface}
        said = self._read("CreateEndpoint", await self._call("CreateEndpoint", arguments, long=True), "Interface")
        given = self._convert("CreateEndpoint", said, _Interface)
        changes: dict[str, Any] = {}
        for version, text in ((4, given.address), (6, given.address_ipv6)):
            if not text:
                continue
            if getattr(endpoint, f"ipv{version}"):
                raise self._wrong("CreateEndpoint", f"the address {text} was not the plugin's to choose")
            changes |= self._address(version, text)
        if given.mac_address:
            if endpoint.mac and given.mac_address.lower() != endpoint.mac:
                raise self._wrong(
                    "CreateEndpoint", f"MacAddress {given.mac_address} was not the plugin's to choose"
                )
            changes["mac"] = self._mac(given.mac_address)
        return msgspec.structs.replace(endpoint, **changes)

    def _address(self, version: int, text: str) -> dict[str, Any]:
        try:
            found = ip_interface(text)
            if found.version != version or "/" not in text:
                raise ValueError
        except ValueError:
            raise self._wrong("CreateEndpoint", f"{text!r} is no IPv{version} address with prefix") from None
        return {f"ipv{version}": str(found.ip), f"prefix{version}": found.network.prefixlen}

    def _mac(self, text: str) -> str:
        try:
            packed = bytes.fromhex(text.replace(":", "").replace("-", ""))
        except ValueError:
            packed = b""
        if len(packed) != 6:
            raise self._wrong("CreateEndpoint", f"MacAddress {text!r} is no MAC address")
        return packed.hex(":")

    async def join(self, endpoint: Endpoint, sandbox: str, options: Mapping[str, Any]) -> Joined:
        """Have an endpoint's interface made ready to be moved. `sandbox`: a path of the network namespace."""
        arguments = {**_names(endpoint), "SandboxKey": sandbox, "Options": dict(options)}
        said = self._convert("Join", await self._call("Join", arguments, long=True), _Joined)
        name = said.interface_name
        for text in (name.src_name, name.dst_name, f"{name.dst_prefix}0" if name.dst_prefix else ""):
            if text and (len(text.encode()) > 15 or text in (".", "..", "lo") or set(text) & set("/: \t\n\0%")):
                raise self._wrong("Join", f"{text!r} is no name of an interface")
        gateways = {version: self._gateway(version, text) for version, text in _by_version(said)}
        return Joined(name.src_name, name.dst_name, name.dst_prefix, gateways, self._routes(said.static_routes))

    def _gateway(self, version: int, text: str) -> str:
        try:
            if text and ip_address(text).version != version:
                raise ValueError
        except ValueError:
            raise self._wrong("Join", f"gateway {text!r} is no IPv{version} address") from None
        return text

    def _routes(self, said: list[_Route]) -> list[StaticRoute]:
        found = []
        for route in said:
            hop = "" if route.route_type == _CONNECTED else route.next_hop
            try:
                network = ip_network(route.destination, strict=False)
                if route.route_type not in (0, _CONNECTED) or (hop and ip_address(hop).version != network.version):
                    raise ValueError
            except ValueError:
                raise self._wrong(
                    "Join", f"static route to {route.destination!r} by {hop!r} makes no sense"
                ) from None
            found.append(StaticRoute(str(network), hop))
        return found

    async def program(self, endpoint: Endpoint, options: Mapping[str, Any]) -> None:
        """Tell that the endpoint is the sandbox's way out, and which ports are to be published there."""
        arguments = {**_names(endpoint), "Options": dict(options)}
        await self._optional("ProgramExternalConnectivity", arguments)

    async def revoke(self, endpoint: Endpoint) -> None:
        """Tell that it is that no longer."""
        await self._optional("RevokeExternalConnectivity", _names(endpoint))

    async def leave(self, endpoint: Endpoint) -> None:
        """Tell that the interface is out of the sandbox, or gone with it."""
        await self._call("Leave", _names(endpoint))

    async def delete_endpoint(self, endpoint: Endpoint) -> None:
        """Have an endpoint removed."""
        await self._call("DeleteEndpoint", _names(endpoint))

    async def _optional(self, method: str, arguments: Mapping[str, Any]) -> None:
        try:
            await self._call(method, arguments)
        except PluginLacks:
            pass  # the call is younger than the protocol

    async def _call(self, method: str, arguments: Mapping[str, Any], *, long: bool = False) -> dict[str, Any]:
        timeout = self._limits.long if long else self._limits.short
        try:
            return await self._plugin.call(_CALLS + method, arguments, timeout=timeout)
        except PluginRefused as error:
            raise type(error)(f'plugin "{self.name}": {error}') from error

    def _read(self, method: str, said: Mapping[str, Any], key: str) -> dict[str, Any]:
        found = said.get(key)
        if found is not None and not isinstance(found, dict):
            raise self._wrong(method, f"{key} is not an object")
        return found or {}

    def _convert(self, method: str, said: Mapping[str, Any], kind: type[T]) -> T:
        try:
            return msgspec.convert(_without_null(said), kind)
        except msgspec.ValidationError as error:
            raise self._wrong(method, str(error)) from error

    def _wrong(self, method: str, words: str) -> PluginFailed:
        return PluginFailed(f'plugin "{self.name}": {_CALLS}{method}: {words}')


def _without_null(said: Any) -> Any:
    """Go writes an empty list or a missing object as null."""
    if isinstance(said, Mapping):
        return {key: _without_null(value) for key, value in said.items() if value is not None}
    return [_without_null(one) for one in said] if isinstance(said, list) else said


def _by_version(said: _Joined) -> tuple[tuple[int, str], tuple[int, str]]:
    return (4, said.gateway), (6, said.gateway_ipv6)


def _names(endpoint: Endpoint) -> dict[str, str]:
    return {"NetworkID": endpoint.network_id, "EndpointID": endpoint.id}


def network_options(network: Network) -> dict[str, Any]:
    """Return a network's options as libnetwork nests them."""
    found: dict[str, Any] = {
        OPTION + "enable_ipv4": network.ipv4,
        OPTION + "enable_ipv6": network.ipv6,
        GENERIC: dict(network.options),
    }
    if network.internal:
        found[OPTION + "internal"] = True
    return found
