"""From asks to endpoints: which networks a container joins, with which names, addresses and default routes.

Pure but for the addresses, which are taken from `Ipam`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from ipaddress import ip_address

import msgspec

from dray.base import digest
from dray.base.errors import Conflict, InvalidParameter, Unsupported
from dray.base.patterns import pattern
from dray.network import bandwidth, bridge, options
from dray.network.ipam import Ipam, parse_address
from dray.network.model import OPTION, Endpoint, EndpointAsk, Network, SandboxAsk
from dray.network.networks import DEFAULT_GATEWAY

INTERFACE_NAME = OPTION + "endpoint.ifname"
SYSCTLS = OPTION + "endpoint.sysctls"
WITH_HOST_END = ("bridge", "overlay")  # drivers whose endpoints are veth pairs
_MAC = pattern(r"(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}", re.ASCII)


def plan(ask: SandboxAsk, resolve: Callable[[str], Network]) -> list[tuple[Network, EndpointAsk]]:
    """Return the networks to join, the mode's first, each with what is asked of it.

    NotFound for an unknown network; InvalidParameter or Conflict for a combination that makes no sense.
    """
    first = resolve(ask.mode if ask.mode not in ("", "default") else "bridge")
    wanted: dict[str, tuple[Network, EndpointAsk]] = {first.id: (first, EndpointAsk(network=first.name))}
    for endpoint in ask.endpoints:
        name = endpoint.network if endpoint.network not in ("", "default") else "bridge"
        network = resolve(name)
        wanted[network.id] = (network, endpoint)
    if first.driver in ("host", "null") and len(wanted) > 1:
        raise InvalidParameter(
            f"conflicting options: cannot attach both user-defined and {first.name} network-modes"
        )
    for network, endpoint in wanted.values():
        check(network, endpoint, alone=network is first)
    return list(wanted.values())


def check(network: Network, ask: EndpointAsk, *, alone: bool) -> None:
    """Refuse, in Docker's words, what this network cannot give. `alone`: it is the container's own mode."""
    if network.config_only:
        raise InvalidParameter(f"{network.name} is a configuration-only network: containers cannot join it")
    if network.driver in ("host", "null") and not alone:
        raise InvalidParameter(f"container cannot join network {network.name} beside others")
    fixed = bool(ask.ipv4 or ask.ipv6)
    if network.predefined and fixed:
        raise InvalidParameter("user specified IP address is supported on user defined networks only")
    if network.predefined and ask.aliases:
        raise InvalidParameter("network-scoped alias is supported only for containers in user defined networks")
    for text, version in ((ask.ipv4, 4), (ask.ipv6, 6)):
        if not text:
            continue
        if parse_address(text, f"IPv{version} address").version != version:
            raise InvalidParameter(f"invalid IPv{version} address: {text}")
        if not any(pool.configured and _version(pool.subnet) == version for pool in network.pools):
            raise InvalidParameter(
                "user specified IP address is supported only when connecting to networks with user configured subnets"
            )
    if ask.mac and network.driver == "ipvlan":
        raise InvalidParameter("ipvlan endpoints have their parent's MAC address: it cannot be chosen")
    if ask.mac and not _MAC.fullmatch(ask.mac):
        raise InvalidParameter(f"invalid MAC address: {ask.mac}")
    for text in ask.link_local:
        if not parse_address(text, "link-local address").is_link_local:
            raise InvalidParameter(f"invalid link-local IP address: {text}")
    for option in ask.driver_opts:
        if option == bandwidth.INGRESS and network.driver not in WITH_HOST_END:
            raise Unsupported(
                f"{option} cannot be obeyed on a {network.driver} network: only {bandwidth.EGRESS} can"
            )
        if not network.remote and option not in (INTERFACE_NAME, SYSCTLS, *bandwidth.OPTIONS):
            raise InvalidParameter(f"unknown driver option {option} of an endpoint")


def _version(subnet: str) -> int:
    return 6 if ":" in subnet else 4


def build(
    network: Network,
    ask: EndpointAsk,
    sandbox: SandboxAsk,
    container_id: str,
    *,
    pools: Ipam,
    undo: ExitStack,
    given: Mapping[int, tuple[str, int]] | None = None,
    endpoint_id: str = "",
) -> Endpoint:
    """Make an endpoint with its addresses taken; `undo` gives them back. Interface name and default routes are
    still to be set (`name_interfaces`, `route`).

    given: the addresses of a network whose addresses are a plugin's: IP version → (address, prefix length)
    """
    endpoint = Endpoint(
        id=endpoint_id or digest.new_id(),
        network_id=network.id,
        network_name=network.name,
        driver=network.driver,
        container_id=container_id,
        container_name=sandbox.name,
        internal=network.internal,
        gw_priority=ask.gw_priority,
        aliases=ask.aliases,
        links=ask.links,
        driver_opts=ask.driver_opts,
        names=_names(ask, sandbox, container_id),
    )
    if network.driver in ("host", "null"):
        return endpoint
    changes: dict[str, object] = {"link_local": [_link_local(text) for text in ask.link_local]}
    network_limits = {} if network.remote else network.options  # a plugin's options are its own
    changes["ingress_rate"], changes["egress_rate"] = bandwidth.rates(ask.driver_opts, network_limits)
    if network.driver in WITH_HOST_END:
        changes["veth"] = "veth" + secrets.token_hex(4)[:7]
    if network.driver == "ipvlan" and network.options.get(options.IPVLAN_MODE) in ("l3", "l3s"):
        changes["on_link"] = not network.internal
    for version, enabled, asked in ((4, network.ipv4, ask.ipv4), (6, network.ipv6, ask.ipv6)):
        if not enabled or network.ipam_driver == "null":
            if asked:
                raise InvalidParameter(
                    f"network {network.name} has no IPv{version}: the address {asked} is not its own"
                )
            continue
        if given is not None:
            if version not in given:
                continue
            text, prefix = given[version]
            address = ip_address(text)
        elif asked:
            address = ip_address(asked)
            prefix = pools.reserve(network.id, address)
        else:
            address, prefix = pools.take(network.id, network.name, version)
        if given is None:
            undo.callback(pools.release, network.id, address)
        changes |= {f"ipv{version}": str(address), f"prefix{version}": prefix}
        plain = not network.internal and not changes.get("on_link") and network.driver != "overlay"
        plain = plain and not network.remote  # whose plugin names the gateway, when it is joined
        changes[f"gateway{version}"] = _gateway(network, version) if plain else ""
    # A host end is cut off at once. Others end with their namespace, a moment later: until then their MAC is taken.
    derived = str(changes.get("ipv4", "")) if network.driver in WITH_HOST_END else ""
    mac = ask.mac.lower().replace("-", ":") or ("" if network.remote else bridge.endpoint_mac(derived))
    if network.driver == "ipvlan":
        mac = ""  # its parent's
    return msgspec.structs.replace(endpoint, mac=mac, **changes)


def _link_local(text: str) -> str:
    return f"{text}/{64 if ':' in text else 16}"


def _gateway(network: Network, version: int) -> str:
    for pool in network.pools:
        if _version(pool.subnet) == version:
            return pool.auxiliary.get(DEFAULT_GATEWAY[version]) or pool.gateway
    return ""


def _names(ask: EndpointAsk, sandbox: SandboxAsk, container_id: str) -> list[str]:
    names = [sandbox.name, *ask.aliases, container_id[:12], sandbox.hostname]
    return [name for name in dict.fromkeys(names) if name]


def renamed(endpoint: Endpoint, old: str, new: str) -> Endpoint:
    """Return the endpoint of a container that has another name."""
    names = [name for name in endpoint.names if name != old or name in endpoint.aliases]
    return msgspec.structs.replace(endpoint, container_name=new, names=list(dict.fromkeys([new, *names])))


def name_interfaces(
    endpoints: Sequence[Endpoint],
    networks: Callable[[str], Network],
    taken: Sequence[str] = (),
    *,
    prefixes: Mapping[str, str] | None = None,
) -> list[Endpoint]:
    """Return the endpoints with interface names: the asked one, else eth0, eth1, … in order. `prefixes`: endpoint →
    what its plugin wants instead of `eth`."""
    used = set(taken)
    for endpoint in endpoints:
        asked = endpoint.driver_opts.get(INTERFACE_NAME)
        if asked is None:
            continue
        if not 0 < len(asked) <= 15 or any(c in "/: \t\n%" for c in asked) or asked in ("lo", "all", "default"):
            raise InvalidParameter(f"invalid interface name {asked!r} in {INTERFACE_NAME}")
        if asked in used:
            raise Conflict(f"interface name {asked} is used twice in container {endpoint.container_name}")
        used.add(asked)
    named: list[Endpoint] = []
    for endpoint in endpoints:
        name = endpoint.driver_opts.get(INTERFACE_NAME, "")
        network = networks(endpoint.network_id)
        if network.remote and not endpoint.source:
            name = ""  # its plugin makes no interface
        elif not name and endpoint.driver not in ("host", "null"):
            prefix = (prefixes or {}).get(endpoint.id) or network.options.get(options.INTERFACE_PREFIX) or "eth"
            name = next(name for n in range(len(used) + 1) if (name := f"{prefix}{n}") not in used)
            used.add(name)
        named.append(msgspec.structs.replace(endpoint, interface=name))
    return named


def route(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Return the endpoints with the default routes given out: of those that lead anywhere, the highest priority,
    then the first network name."""
    order = sorted(endpoints, key=lambda endpoint: (-endpoint.gw_priority, endpoint.network_name))
    first4 = next((end.id for end in order if end.gateway4 or (end.on_link and end.ipv4)), "")
    first6 = next((end.id for end in order if end.gateway6 or (end.on_link and end.ipv6)), "")
    return [
        msgspec.structs.replace(endpoint, default4=endpoint.id == first4, default6=endpoint.id == first6)
        for endpoint in endpoints
    ]


def sysctls(endpoints: Sequence[Endpoint], *, ipv6: bool) -> dict[str, str]:
    """Return the kernel settings that a sandbox with these endpoints needs: IPv6 is off, not merely without an
    address, on every interface of a network without it (if the kernel has `ipv6`); and the endpoints' own."""
    wanted: dict[str, str] = {}
    for endpoint in endpoints:
        if ipv6 and endpoint.interface and not endpoint.ipv6:
            wanted[f"net.ipv6.conf.{endpoint.interface}.disable_ipv6"] = "1"
        for setting in filter(None, endpoint.driver_opts.get(SYSCTLS, "").split(",")):
            name, equals, value = setting.partition("=")
            parts = name.strip().split(".")
            if (
                not equals or len(parts) < 5 or parts[0] != "net" or parts[3].upper() != "IFNAME"
            ):  # the client writes it small
                raise InvalidParameter(
                    f"invalid {SYSCTLS} {setting!r}: it reads net.X.Y.IFNAME.Z=value, with the word IFNAME"
                )
            wanted[".".join([*parts[:3], endpoint.interface, *parts[4:]])] = value.strip()
    return wanted
