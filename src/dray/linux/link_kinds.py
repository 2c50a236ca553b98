"""Interfaces that ride on another: macvlan, ipvlan, 802.1Q VLAN, VXLAN, and the dummy (rtnetlink(7), if_link.h).

One builder of a message for each kind; `dray.linux.links` sends them. A kernel without the kind answers
EOPNOTSUPP, which `missing` turns into words that name the module.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address

from dray.base.errors import Unsupported
from dray.linux import netlink
from dray.linux.links import (
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    NDA_DST,
    NDA_LLADDR,
    NUD_PERMANENT,
    RTM_DELNEIGH,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    link_message,
    mac_bytes,
    neighbour_message,
)
from dray.linux.netlink import Request

MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
IPVLAN_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}

_MACVLAN_MODE = 1
_IPVLAN_MODE, _IPVLAN_FLAGS = 1, 2
_VLAN_ID = 1
_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_LOCAL6 = 1, 4, 7, 15, 17
_NTF_SELF = 0x02
_MODULES = {"vlan": "8021q"}


def missing(error: OSError, kind: str) -> Exception:
    """Return what to raise when an interface of this kind could not be made: Unsupported, naming the kernel's
    module, where the kernel lacks it; else the error itself."""
    if error.errno != errno.EOPNOTSUPP:
        return error
    module = _MODULES.get(kind, kind)
    return Unsupported(
        f"this kernel has no {kind} interfaces: load its module with 'modprobe {module}', or use a kernel that has it"
    )


def _create(
    name: str, kind: str, data: bytes, *, netns: int = -1, link: int = 0, mac: str = "", mtu: int = 0
) -> Request:
    body = link_message() + netlink.text(IFLA_IFNAME, name)
    if link:
        body += netlink.u32(IFLA_LINK, link)
    if netns >= 0:
        body += netlink.u32(IFLA_NET_NS_FD, netns)
    if mac:
        body += netlink.attribute(IFLA_ADDRESS, mac_bytes(mac))
    if mtu:
        body += netlink.u32(IFLA_MTU, mtu)
    info = netlink.text(IFLA_INFO_KIND, kind) + (netlink.nested(IFLA_INFO_DATA, data) if data else b"")
    body += netlink.nested(IFLA_LINKINFO, info)
    return Request(f"create {kind} {name}", RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)


def macvlan_request(name: str, parent: int, *, netns: int, mac: str, mode: str, mtu: int = 0) -> Request:
    """Create a macvlan on the interface of index `parent`, straight in the namespace of descriptor `netns`."""
    data = netlink.u32(_MACVLAN_MODE, MACVLAN_MODES[mode])
    return _create(name, "macvlan", data, netns=netns, link=parent, mac=mac, mtu=mtu)


def ipvlan_request(name: str, parent: int, *, netns: int, mode: str, flag: str, mtu: int = 0) -> Request:
    """Create an ipvlan on the interface of index `parent`, straight in the namespace of descriptor `netns`."""
    data = netlink.attribute(_IPVLAN_MODE, struct.pack("=H", IPVLAN_MODES[mode]))
    data += netlink.attribute(_IPVLAN_FLAGS, struct.pack("=H", IPVLAN_FLAGS[flag]))
    return _create(name, "ipvlan", data, netns=netns, link=parent, mtu=mtu)


def vlan_request(name: str, parent: int, number: int) -> Request:
    """Create the 802.1Q sub-interface of a VLAN number."""
    return _create(name, "vlan", netlink.attribute(_VLAN_ID, struct.pack("=H", number)), link=parent)


def dummy_request(name: str) -> Request:
    """Create an interface that leads nowhere."""
    return _create(name, "dummy", b"")


def vxlan_request(name: str, *, vni: int, local: str, port: int, mtu: int) -> Request:
    """Create a VXLAN interface. It learns which peer an address is behind; whom it asks at first is what
    `forwarding_request` adds."""
    address = ip_address(local)
    data = (
        netlink.u32(_VXLAN_ID, vni)
        + netlink.attribute(_VXLAN_LOCAL if address.version == 4 else _VXLAN_LOCAL6, address.packed)
        + netlink.u8(_VXLAN_LEARNING, 1)
        + netlink.be16(_VXLAN_PORT, port)
    )
    return _create(name, "vxlan", data, mtu=mtu)


def forwarding_request(index: int, mac: str, peer: str, *, remove: bool = False) -> Request:
    """Add (or remove) a VXLAN forwarding entry: frames to `mac` go to the host `peer`. The MAC address of zeros
    stands for broadcasts and unknown ones; it may have several peers."""
    body = neighbour_message(socket.AF_BRIDGE, index, NUD_PERMANENT, _NTF_SELF)
    body += netlink.attribute(NDA_LLADDR, mac_bytes(mac)) + netlink.attribute(NDA_DST, ip_address(peer).packed)
    if remove:
        return Request(f"remove forwarding of {mac} to {peer}", RTM_DELNEIGH, 0, body)
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_APPEND
    return Request(f"forward {mac} to {peer}", RTM_NEWNEIGH, flags, body)
