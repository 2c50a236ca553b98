"""Driver options of networks, by their documented names, and how they are read. Pure."""

from __future__ import annotations

from dray.base.errors import InvalidParameter
from dray.network.model import BRIDGE_OPTION, OPTION, Network

NAME = BRIDGE_OPTION + "name"
ICC = BRIDGE_OPTION + "enable_icc"
MASQUERADE = BRIDGE_OPTION + "enable_ip_masquerade"
DEFAULT_BRIDGE = BRIDGE_OPTION + "default_bridge"
HOST_BINDING = BRIDGE_OPTION + "host_binding_ipv4"
INHIBIT_IPV4 = BRIDGE_OPTION + "inhibit_ipv4"
TRUSTED = BRIDGE_OPTION + "trusted_host_interfaces"
GATEWAY_MODE = {4: BRIDGE_OPTION + "gateway_mode_ipv4", 6: BRIDGE_OPTION + "gateway_mode_ipv6"}
HOST_ADDRESS = {4: OPTION + "host_ipv4", 6: OPTION + "host_ipv6"}
MTU = OPTION + "driver.mtu"
INTERFACE_PREFIX = OPTION + "container_iface_prefix"
BELOW = "drayx"  # begins the names of bridges beneath a full one
PARENT = "parent"
MACVLAN_MODE = "macvlan_mode"
IPVLAN_MODE = "ipvlan_mode"
IPVLAN_FLAG = "ipvlan_flag"

GATEWAY_MODES = ("nat", "nat-unprotected", "routed", "isolated")


def gateway_mode(network: Network, version: int) -> str:
    """Return how a bridge network's addresses of an IP version meet the world: one of GATEWAY_MODES."""
    return network.options.get(GATEWAY_MODE[version]) or "nat"


def trusted_interfaces(network: Network) -> list[str]:
    """Return the host's interfaces from which a bridge's published ports may be reached directly."""
    return [name for name in network.options.get(TRUSTED, "").split(":") if name]


def mtu(network: Network) -> int:
    """Return the MTU that was asked for, 0 for none."""
    return int(network.options.get(MTU) or 0)


def check_mtu(network: Network) -> None:
    """Raise InvalidParameter for an MTU that is none."""
    value = network.options.get(MTU, "0")
    if not (value.isdecimal() and (value == "0" or 68 <= int(value) <= 65535)):
        raise InvalidParameter(f"invalid value {value!r} of option {MTU}: an MTU is 68 to 65535")
