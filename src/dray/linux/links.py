"""Network interfaces, addresses and routes over rtnetlink (rtnetlink(7)).

Functions named `*_request` build one message, so that a caller can send several in one batch; `Links` is a
socket with the questions and the verbs. All work on whatever network namespace the socket was opened in.
Addresses are `ipaddress` objects; indices are the kernel's interface indices; MAC addresses are `02:42:…` text.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_network

from msgspec import Struct

from dray.linux import netlink
from dray.linux.netlink import Netlink, Request

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_NOARP = 0x80
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_EXT_MASK = 18, 20, 26, 28, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_NONE = 1
VETH_INFO_PEER = 1
RTEXT_FILTER_SKIP_STATS = 1 << 3

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD = 0x02
IFA_F_PERMANENT = 0x80

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTN_UNICAST = 1

_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change mask
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_NEIGHBOUR = struct.Struct("=B3xiHBB")  # struct ndmsg: family, index, state, flags, type
_ROUTE = struct.Struct(
    "=BBBBBBBBI"
)  # struct rtmsg: family, dst len, src len, tos, table, protocol, scope, type, flags


class Link(Struct, frozen=True):
    """An interface as the kernel lists it. `master` is 0 without one; `kind` is `bridge`, `veth`, … or empty."""

    index: int
    name: str
    flags: int
    mac: str
    mtu: int
    master: int
    kind: str
    alias: str

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)


class Route(Struct, frozen=True):
    """A unicast route of the main table. `destination` is `0.0.0.0/0` or `::/0` for a default route."""

    destination: str
    gateway: str
    index: int


def mac_bytes(mac: str) -> bytes:
    """Encode a MAC address given as six hexadecimal pairs."""
    return bytes.fromhex(mac.replace(":", "").replace("-", ""))


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def link_message(index: int = 0, *, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    """Return the head of a message about an interface."""
    return _LINK.pack(family, 0, index, flags, change)


def neighbour_message(family: int, index: int, state: int, flags: int) -> bytes:
    """Return the head of a message about a neighbour or a forwarding entry."""
    return _NEIGHBOUR.pack(family, index, state, flags, 0)


def _no_link_local() -> bytes:
    return netlink.nested(
        IFLA_AF_SPEC,
        netlink.nested(socket.AF_INET6, netlink.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)),
    )


def _named(name: str) -> bytes:
    return link_message() + netlink.text(IFLA_IFNAME, name) + netlink.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)


def bridge_request(name: str, *, mac: str, mtu: int = 0) -> Request:
    """Create a bridge. A fixed MAC address keeps it from changing as ports come and go."""
    body = link_message() + netlink.text(IFLA_IFNAME, name) + netlink.attribute(IFLA_ADDRESS, mac_bytes(mac))
    if mtu:
        body += netlink.u32(IFLA_MTU, mtu)
    body += netlink.nested(IFLA_LINKINFO, netlink.text(IFLA_INFO_KIND, "bridge"))
    return Request(f"create bridge {name}", RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)


def veth_request(name: str, peer: str, *, peer_netns: int, master: int, mac: str, mtu: int = 0) -> Request:
    """Create a veth pair: `name` here, a port of bridge index `master`; `peer`, with `mac`, in the namespace of
    descriptor `peer_netns` from its first moment on."""
    size = netlink.u32(IFLA_MTU, mtu) if mtu else b""
    far = (
        link_message()
        + netlink.text(IFLA_IFNAME, peer)
        + netlink.attribute(IFLA_ADDRESS, mac_bytes(mac))
        + netlink.u32(IFLA_NET_NS_FD, peer_netns)
        + size
    )
    body = (
        link_message()
        + netlink.text(IFLA_IFNAME, name)
        + netlink.u32(IFLA_MASTER, master)
        + size
        + netlink.nested(
            IFLA_LINKINFO,
            netlink.text(IFLA_INFO_KIND, "veth"),
            netlink.nested(IFLA_INFO_DATA, netlink.attribute(VETH_INFO_PEER | netlink.NLA_F_NESTED, far)),
        )
    )
    return Request(f"create veth {name}", RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)


def pair_request(name: str, peer: str, *, mac: str, peer_mac: str, master: int = 0) -> Request:
    """Create a veth pair with both ends here, each with its MAC address; `name` a port of bridge index `master`."""

    def end(called: str, address: str) -> bytes:
        body = link_message() + netlink.text(IFLA_IFNAME, called)
        return body + netlink.attribute(IFLA_ADDRESS, mac_bytes(address))

    far = netlink.attribute(VETH_INFO_PEER | netlink.NLA_F_NESTED, end(peer, peer_mac))
    kind = netlink.text(IFLA_INFO_KIND, "veth") + netlink.nested(IFLA_INFO_DATA, far)
    body = end(name, mac) + (netlink.u32(IFLA_MASTER, master) if master else b"")
    body += netlink.nested(IFLA_LINKINFO, kind)
    return Request(f"create veth {name}", RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)


def enslave_request(name: str, master: int) -> Request:
    """Make an interface a port of the bridge of index `master`."""
    body = link_message() + netlink.text(IFLA_IFNAME, name) + netlink.u32(IFLA_MASTER, master)
    return Request(f"put {name} on its bridge", RTM_NEWLINK, 0, body)


def port_request(name: str, *, hairpin: bool, isolated: bool, alias: str, ipv6: bool = True) -> Request:
    """Set up a bridge port by name and bring it up.

    hairpin: frames may leave by the port they came in on
    isolated: no frames between two isolated ports
    alias: what `ip link` shows beside the name
    ipv6: the kernel has IPv6, so keep the port from making itself an address (it only carries frames)
    """
    body = link_message(flags=IFF_UP, change=IFF_UP) + netlink.text(IFLA_IFNAME, name)
    body += netlink.attribute(IFLA_IFALIAS, alias.encode())
    if ipv6:
        body += _no_link_local()
    body += netlink.nested(
        IFLA_LINKINFO,
        netlink.text(IFLA_INFO_SLAVE_KIND, "bridge"),
        netlink.nested(
            IFLA_INFO_SLAVE_DATA,
            netlink.u8(IFLA_BRPORT_MODE, hairpin),
            netlink.u8(IFLA_BRPORT_ISOLATED, isolated),
        ),
    )
    return Request(f"set up bridge port {name}", RTM_NEWLINK, 0, body)


def up_request(index: int, *, link_local: bool = True, alias: str = "", silent: bool = False) -> Request:
    """Bring an interface up.

    link_local: False keeps it from making itself an IPv6 link-local address
    silent: it asks for nobody's MAC address and sends to its own
    """
    flags = IFF_UP | (IFF_NOARP if silent else 0)
    body = link_message(index, flags=flags, change=flags)
    if alias:
        body += netlink.attribute(IFLA_IFALIAS, alias.encode())
    if not link_local:
        body += _no_link_local()
    return Request(f"bring up interface {index}", RTM_NEWLINK, 0, body)


def down_request(index: int) -> Request:
    """Take an interface down."""
    return Request(f"take down interface {index}", RTM_NEWLINK, 0, link_message(index, change=IFF_UP))


def release_request(name: str) -> Request:
    """Take a bridge port off its bridge and down: 0.2 ms, where deleting a veth pair takes 15 ms and more."""
    body = link_message(change=IFF_UP) + netlink.text(IFLA_IFNAME, name) + netlink.u32(IFLA_MASTER, 0)
    return Request(f"release bridge port {name}", RTM_NEWLINK, 0, body)


def rename_request(index: int, name: str) -> Request:
    """Rename an interface (it must be down on kernels before 6.3)."""
    return Request(f"rename to {name}", RTM_NEWLINK, 0, link_message(index) + netlink.text(IFLA_IFNAME, name))


def move_request(index: int, name: str, namespace: int) -> Request:
    """Move an interface into the network namespace of a descriptor, under a new name."""
    body = link_message(index) + netlink.text(IFLA_IFNAME, name) + netlink.u32(IFLA_NET_NS_FD, namespace)
    return Request(f"move an interface to {name}", RTM_NEWLINK, 0, body)


def mac_request(index: int, mac: str) -> Request:
    """Give an interface that is down another MAC address."""
    body = link_message(index) + netlink.attribute(IFLA_ADDRESS, mac_bytes(mac))
    return Request(f"set MAC address {mac}", RTM_NEWLINK, 0, body)


def mtu_request(index: int, mtu: int) -> Request:
    """Set an interface's MTU."""
    return Request(f"set MTU {mtu}", RTM_NEWLINK, 0, link_message(index) + netlink.u32(IFLA_MTU, mtu))


def mtu_request_of(name: str, mtu: int) -> Request:
    """Set the MTU of an interface by name."""
    body = link_message() + netlink.text(IFLA_IFNAME, name) + netlink.u32(IFLA_MTU, mtu)
    return Request(f"set MTU {mtu} of {name}", RTM_NEWLINK, 0, body)


def settle_request(name: str) -> Request:
    """Ask for an interface's state, which makes the kernel (6.8 and later) act on carrier changes at once.

    Its link watch does so otherwise, milliseconds up to a second later: until then a bridge port does not
    forward, and IPv6 does not use the interface.
    """
    return Request(f"settle {name}", RTM_GETLINK, 0, _named(name))


def delete_request(name: str) -> Request:
    """Delete an interface by name (of a veth pair, both ends)."""
    return Request(f"delete interface {name}", RTM_DELLINK, 0, link_message() + netlink.text(IFLA_IFNAME, name))


def address_request(index: int, interface: Interface, *, remove: bool = False) -> Request:
    """Add (or remove) an address with its prefix. IPv6 addresses skip duplicate address detection: they are
    usable at once, and our allocator hands none out twice."""
    packed = interface.ip.packed
    flags = IFA_F_NODAD if interface.version == 6 else 0
    body = _ADDRESS.pack(_family(interface.ip), interface.network.prefixlen, flags, 0, index)
    body += netlink.attribute(IFA_LOCAL, packed) + netlink.attribute(IFA_ADDRESS, packed)
    if interface.version == 4 and interface.network.prefixlen < 31:
        body += netlink.attribute(IFA_BROADCAST, interface.network.broadcast_address.packed)
    if remove:
        return Request(f"remove address {interface}", RTM_DELADDR, 0, body)
    return Request(f"add address {interface}", RTM_NEWADDR, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)


def _decode_link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = netlink.parse(body[_LINK.size :])
    info = netlink.parse(found.get(IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=netlink.as_text(found.get(IFLA_IFNAME, b"")),
        flags=flags,
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(found.get(IFLA_MTU)),
        master=_number(found.get(IFLA_MASTER)),
        kind=netlink.as_text(info.get(IFLA_INFO_KIND, b"")),
        alias=netlink.as_text(found.get(IFLA_IFALIAS, b"")),
    )


def _number(value: bytes | None) -> int:
    return struct.unpack("=I", value)[0] if value else 0


class Links:
    """Interfaces, addresses and routes of one network namespace. Owns its socket."""

    def __init__(self, sock: Netlink) -> None:
        self._netlink = sock

    @classmethod
    def open(cls) -> Links:
        """Open in the calling thread's network namespace."""
        return cls(Netlink.open(netlink.NETLINK_ROUTE))

    @classmethod
    def adopt(cls, fd: int) -> Links:
        """Take over a NETLINK_ROUTE descriptor, which may belong to another namespace."""
        return cls(Netlink.adopt(fd))

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def apply(self, requests: Sequence[Request]) -> None:
        """Send a batch; the first error is raised after all were tried."""
        self._netlink.transact(requests)

    def find(self, name: str) -> Link | None:
        """Return the interface of that name, or None."""
        request = Request(f"look up interface {name}", RTM_GETLINK, 0, _named(name))
        try:
            return _decode_link(self._netlink.ask(request).body)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def links(self) -> list[Link]:
        """List all interfaces."""
        body = link_message() + netlink.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        return [
            _decode_link(message.body)
            for message in self._netlink.dump(Request("list interfaces", RTM_GETLINK, 0, body))
            if message.type == RTM_NEWLINK
        ]

    def addresses(self, index: int | None = None, *, permanent: bool = False) -> list[tuple[int, Interface]]:
        """List (interface index, address with prefix), of one interface if `index` is given.

        permanent: only addresses of global scope without a lifetime
        """
        request = Request("list addresses", RTM_GETADDR, 0, _ADDRESS.pack(0, 0, 0, 0, 0))
        found: list[tuple[int, Interface]] = []
        for message in self._netlink.dump(request):
            family, prefix, flags, scope, of = _ADDRESS.unpack_from(message.body)
            attributes = netlink.parse(message.body[_ADDRESS.size :])
            packed = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS)
            if packed is None or index not in (None, of):
                continue
            if permanent and (scope != RT_SCOPE_UNIVERSE or not flags & IFA_F_PERMANENT):
                continue
            if family == socket.AF_INET:
                found.append((of, IPv4Interface((packed, prefix))))
            elif family == socket.AF_INET6:
                found.append((of, IPv6Interface((packed, prefix))))
        return found

    def routes(self) -> list[Route]:
        """List the unicast routes of the main table, both families."""
        request = Request("list routes", RTM_GETROUTE, 0, _ROUTE.pack(*[0] * 9))
        found: list[Route] = []
        for message in self._netlink.dump(request):
            family, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(message.body)
            attributes = netlink.parse(message.body[_ROUTE.size :])
            if kind != RTN_UNICAST or (_number(attributes.get(RTA_TABLE)) or table) != RT_TABLE_MAIN:
                continue
            if family not in (socket.AF_INET, socket.AF_INET6):
                continue
            size = 4 if family == socket.AF_INET else 16
            destination = ip_network((attributes.get(RTA_DST, bytes(size)), length), strict=False)
            gateway = attributes.get(RTA_GATEWAY)
            found.append(
                Route(
                    str(destination), str(ip_address(gateway)) if gateway else "", _number(attributes.get(RTA_OIF))
                )
            )
        return found
