"""Connection tracking entries over ctnetlink (linux/netfilter/nfnetlink_conntrack.h).

NAT is decided by a flow's first packet. A UDP flow that goes on has no new first packet, so entries that were
made before a port was published, or lead to a container that is gone, must be forgotten by hand.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from dray.linux import netlink
from dray.linux.netlink import Netlink, Request

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = 1, 2
_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_SOURCE = {int(socket.AF_INET): 1, int(socket.AF_INET6): 3}
_DESTINATION = {int(socket.AF_INET): 2, int(socket.AF_INET6): 4}
_PROTOCOL_NUMBER, _DESTINATION_PORT = 1, 3
_FILTER_ORIGINAL, _FILTER_REPLY = 1, 2
_BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 3, 1 << 5


class Flow(NamedTuple):
    """A tracked flow: where its first packet went, and where the answers come from (another address after DNAT)."""

    destination: IPv4Address | IPv6Address
    port: int
    answered_from: IPv4Address | IPv6Address


def forget_udp(family: int, ports: Collection[int], unwanted: Callable[[Flow], bool]) -> int:
    """Delete the UDP flows to these destination ports that are `unwanted`; return how many. `family` is AF_*.

    A kernel without conntrack has none.
    """
    wanted = netlink.attribute(_PROTOCOL_NUMBER, bytes((socket.IPPROTO_UDP,)))
    fields = _BY_PROTOCOL
    if len(ports) == 1:
        wanted += netlink.be16(_DESTINATION_PORT, next(iter(ports)))
        fields |= _BY_DESTINATION_PORT
    tuples = netlink.nested(_TUPLE_ORIGINAL, netlink.nested(_TUPLE_PROTOCOL, wanted))
    # Kernels before 5.8 do not know the filter and list everything; we look at each flow again anyway.
    only = netlink.nested(_FILTER, netlink.u32(_FILTER_ORIGINAL, fields), netlink.u32(_FILTER_REPLY, 0))
    header = struct.pack("!BBH", family, 0, 0)
    with Netlink.open(netlink.NETLINK_NETFILTER) as sock:
        try:
            messages = sock.dump(Request("list tracked flows", _SUBSYSTEM | _GET, 0, header + tuples + only))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
                return 0
            raise
        gone = 0
        for message in messages:
            attributes = netlink.parse(message.body[4:])
            flow = _decode(family, attributes)
            if flow is None or flow.port not in ports or not unwanted(flow):
                continue
            body = header + netlink.attribute(_TUPLE_ORIGINAL | netlink.NLA_F_NESTED, attributes[_TUPLE_ORIGINAL])
            for kind in (_ID, _ZONE):
                if kind in attributes:
                    body += netlink.attribute(kind, attributes[kind])
            try:
                sock.transact([Request("forget tracked flow", _SUBSYSTEM | _DELETE, 0, body)])
                gone += 1
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
        return gone


def _decode(family: int, attributes: dict[int, bytes]) -> Flow | None:
    original = netlink.parse(attributes.get(_TUPLE_ORIGINAL, b""))
    reply = netlink.parse(attributes.get(_TUPLE_REPLY, b""))
    protocol = netlink.parse(original.get(_TUPLE_PROTOCOL, b""))
    target = netlink.parse(original.get(_TUPLE_IP, b"")).get(_DESTINATION[family])
    answered = netlink.parse(reply.get(_TUPLE_IP, b"")).get(_SOURCE[family])
    if protocol.get(_PROTOCOL_NUMBER) != bytes((socket.IPPROTO_UDP,)) or target is None or answered is None:
        return None
    port = int.from_bytes(protocol.get(_DESTINATION_PORT, b""), "big")
    return Flow(ip_address(target), port, ip_address(answered))
