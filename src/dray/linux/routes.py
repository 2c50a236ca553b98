"""Adding and removing routes over rtnetlink (rtnetlink(7)): one builder of a message, sent by `dray.linux.links`."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Network, IPv6Network

from dray.linux import netlink
from dray.linux.links import (
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    RTN_UNICAST,
    Address,
)
from dray.linux.netlink import Request

Subnet = IPv4Network | IPv6Network
RTPROT_BOOT = 3
_ANYWHERE: dict[int, Subnet] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg, as in `dray.linux.links`


def default_route_request(index: int, gateway: Address | None, version: int, *, remove: bool = False) -> Request:
    """Add (or remove) a default route by a gateway, or straight onto the link when `gateway` is None."""
    return route_request(index, _ANYWHERE[version], gateway, remove=remove)


def route_request(index: int, to: Subnet, gateway: Address | None, *, remove: bool = False) -> Request:
    """Add (or remove) a route to a subnet by a gateway, or straight onto the link when `gateway` is None."""
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    scope = RT_SCOPE_LINK if gateway is None and to.version == 4 else RT_SCOPE_UNIVERSE
    body = _ROUTE.pack(family, to.prefixlen, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)
    if to.prefixlen:
        body += netlink.attribute(RTA_DST, to.network_address.packed)
    if gateway is not None:
        body += netlink.attribute(RTA_GATEWAY, gateway.packed)
    body += netlink.u32(RTA_OIF, index)
    words = f"{f'route to {to}' if to.prefixlen else 'default route'} by {gateway or 'the link'}"
    if remove:
        return Request(f"remove {words}", RTM_DELROUTE, 0, body)
    return Request(f"add {words}", RTM_NEWROUTE, netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE, body)
