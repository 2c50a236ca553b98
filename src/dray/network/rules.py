"""What the tables of this daemon hold, as a pure function of the networks and the daemon's settings.

The words are those of `dray.network.firewall`, which keeps the tables so.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from dray.linux import nftables_expressions as nft
from dray.linux.nftables import (
    HOOK_FORWARD,
    HOOK_INPUT,
    HOOK_OUTPUT,
    HOOK_POSTROUTING,
    HOOK_PREROUTING,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    PRIORITY_DSTNAT,
    PRIORITY_FILTER,
    PRIORITY_LAST,
    PRIORITY_RAW,
    PRIORITY_SRCNAT,
    TYPE_INTERFACE,
    TYPE_IPV4,
    TYPE_IPV6,
    TYPE_MARK,
    TYPE_PROTOCOL,
    TYPE_SERVICE,
    Element,
    Hook,
    Set,
    interface,
)
from dray.linux.nftables import field as padded
from dray.network import encryption, options
from dray.network.model import Network

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}
VXLAN_PORT = 4789  # IANA
_VNI_OFFSET = 12  # behind UDP's eight bytes and VXLAN's flags
_VERSION = {NFPROTO_IPV4: 4, NFPROTO_IPV6: 6}
_ADDRESS_TYPE = {NFPROTO_IPV4: TYPE_IPV4, NFPROTO_IPV6: TYPE_IPV6}
_ICMP = {NFPROTO_IPV4: socket.IPPROTO_ICMP, NFPROTO_IPV6: socket.IPPROTO_ICMPV6}
# Offset and length of the source and destination address in the header.
_SOURCE = {NFPROTO_IPV4: (12, 4), NFPROTO_IPV6: (8, 16)}
_DESTINATION = {NFPROTO_IPV4: (16, 4), NFPROTO_IPV6: (24, 16)}
CHAINS = {
    "raw": Hook("filter", HOOK_PREROUTING, PRIORITY_RAW),
    "prerouting": Hook("nat", HOOK_PREROUTING, PRIORITY_DSTNAT),
    "input": Hook("filter", HOOK_INPUT, PRIORITY_LAST),
    "output": Hook("nat", HOOK_OUTPUT, PRIORITY_DSTNAT),
    "postrouting": Hook("nat", HOOK_POSTROUTING, PRIORITY_SRCNAT),
    "forward": Hook("filter", HOOK_FORWARD, PRIORITY_FILTER),
}
OUTGOING = Hook("filter", HOOK_OUTPUT, PRIORITY_FILTER)
NETWORK_SETS = ("bridges", "internal", "unprotected", "routed", "icc", "trusted", "guarded")
OVERLAY_SETS = ("overlays", "overlay_peers")
PORT_SETS = ("published", "published_any", "direct")
_PAIRS = ("icc", "trusted")


@dataclass(frozen=True, slots=True)
class Published:
    """Host address and port that lead to a container's; `host_ip` unspecified (0.0.0.0, ::) means all.

    `host_port` 0: not redirected at all (a routed network). `direct`: the container's own port may be reached
    from outside by the container's address, where the rules let anybody try.
    """

    protocol: str
    host_ip: str
    host_port: int
    address: str
    port: int
    comment: str = field(default="", compare=False)
    direct: bool = False

    @property
    def family(self) -> int:
        """The NFPROTO_* of its table."""
        return NFPROTO_IPV6 if ":" in self.host_ip else NFPROTO_IPV4


@dataclass(frozen=True, slots=True)
class Detour:
    """The pair of interfaces that a first packet takes once the host's own input chains have let it in."""

    out: str
    out_index: int
    back: str
    gateways: tuple[tuple[int, str], ...]  # (family, neighbour on `out`, which is `back`)

    def gateway(self, family: int) -> str:
        """Return the neighbour's address in a family, or nothing."""
        return dict(self.gateways).get(family, "")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon's configuration says of the rules.

    allow_direct: published ports of containers may be reached by the containers' own addresses from anywhere
    accept_mark: (value, mask) of packet marks that pass into every bridge
    detour: set where the host's own input chains have a say about published ports
    """

    allow_direct: bool = False
    accept_mark: tuple[int, int] | None = None
    detour: Detour | None = None


@lru_cache(maxsize=256)
def parsed(text: str) -> IPv4Address | IPv6Address:
    """Read an address; those of thousands of ports are few."""
    return ip_address(text)


def sets(family: int) -> list[Set]:
    """Return the sets and maps of a table."""
    address = _ADDRESS_TYPE[family]
    target = (address, TYPE_SERVICE)
    found = [
        Set("published", (TYPE_PROTOCOL, address, TYPE_SERVICE), target),
        Set("published_any", (TYPE_PROTOCOL, TYPE_SERVICE), target),
        Set("direct", (TYPE_PROTOCOL, address, TYPE_SERVICE)),
    ]
    if family == NFPROTO_IPV4:
        found += [Set("overlays", (TYPE_MARK,)), Set("overlay_peers", (TYPE_IPV4, TYPE_MARK))]
    for name in NETWORK_SETS:
        found.append(Set(name, (TYPE_INTERFACE, TYPE_INTERFACE) if name in _PAIRS else (TYPE_INTERFACE,)))
    return found


def port_elements(ports: Iterable[Published]) -> dict[str, list[Element]]:
    """Return what the maps and the set of ports hold for these."""
    found: dict[str, list[Element]] = {name: [] for name in PORT_SETS}
    direct: dict[bytes, Element] = {}
    for port in ports:
        host = parsed(port.host_ip)
        protocol = padded(bytes((PROTOCOLS[port.protocol],)))
        service = padded(port.host_port.to_bytes(2, "big"))
        value = parsed(port.address).packed + padded(port.port.to_bytes(2, "big"))
        if port.direct:
            direct.setdefault(protocol + value, Element(protocol + value, comment=port.comment))
        if not port.host_port:
            continue
        if host.is_unspecified:
            found["published_any"].append(Element(protocol + service, value, port.comment))
        else:
            found["published"].append(Element(protocol + host.packed + service, value, port.comment))
    found["direct"] = list(direct.values())
    return found


def network_elements(family: int, networks: Sequence[Network], guarded: Iterable[str]) -> dict[str, list[Element]]:
    """Return what the sets of a family hold for these networks."""
    found: dict[str, list[Element]] = {name: [] for name in NETWORK_SETS}
    found["guarded"] = [Element(interface(name)) for name in sorted(guarded)]
    for network in networks:
        name = interface(network.interface)
        found["bridges"].append(Element(name, comment=network.name))
        if network.internal:
            found["internal"].append(Element(name, comment=network.name))
        if network.flag(options.ICC, True):
            found["icc"].append(Element(name + name, comment=network.name))
        mode = options.gateway_mode(network, _VERSION[family])
        if mode == "nat-unprotected":
            found["unprotected"].append(Element(name, comment=network.name))
        elif mode == "routed":
            found["routed"].append(Element(name, comment=network.name))
        for other in options.trusted_interfaces(network):
            found["trusted"].append(Element(interface(other) + name, comment=network.name))
    return found


def overlay_elements(overlays: Mapping[int, Sequence[str]]) -> dict[str, list[Element]]:
    """Return what the sets hold for these overlay networks (number → hosts that may send its frames)."""
    numbers = {vni: padded(vni.to_bytes(3, "big")) for vni in overlays}
    return {
        "overlays": [Element(number) for number in numbers.values()],
        "overlay_peers": [
            Element(ip_address(host).packed + numbers[vni]) for vni, hosts in overlays.items() for host in hosts
        ],
    }


def _foreign_frames() -> list[bytes]:
    """Go on only with a frame of one of our overlay networks from a host that is not one of its peers."""
    offset, length = _SOURCE[NFPROTO_IPV4]
    return [
        nft.meta(nft.META_L4PROTO),
        nft.compare(bytes((socket.IPPROTO_UDP,))),
        nft.payload(nft.TRANSPORT, 2, 2),
        nft.compare(VXLAN_PORT.to_bytes(2, "big")),
        nft.payload(nft.TRANSPORT, _VNI_OFFSET, 3),
        nft.lookup("overlays"),
        nft.payload(nft.NETWORK, offset, length, nft.REG32),
        nft.payload(nft.TRANSPORT, _VNI_OFFSET, 3, nft.REG32 + 1),
        nft.lookup("overlay_peers", inverted=True, register=nft.REG32),
        nft.verdict(nft.VERDICT_DROP),
    ]


Rule = tuple[str, list[bytes], str]


def encrypted_only() -> list[Rule]:
    """Return the rules that drop what goes to the port of encrypted networks and is not encrypted, in or out. A policy
    of IPsec does the same; these hold if somebody flushes the policies, and the other way round."""
    port = [
        nft.meta(nft.META_L4PROTO),
        nft.compare(bytes((socket.IPPROTO_UDP,))),
        nft.payload(nft.TRANSPORT, 2, 2),
        nft.compare(encryption.PORT.to_bytes(2, "big")),
    ]
    no, drop = nft.compare(b"\0"), nft.verdict(nft.VERDICT_DROP)
    return [
        ("raw", [*port, nft.meta(nft.META_SECPATH), no, drop], "frames of an encrypted network, in the clear"),
        ("outgoing", [*port, nft.is_encrypted(), no, drop], "frames of an encrypted network, in the clear"),
    ]


def rules(family: int, networks: Sequence[Network], settings: Settings) -> list[Rule]:
    """Return (chain, expressions, comment) of every rule, in order."""
    local = [nft.destination_is_local()]
    if family == NFPROTO_IPV6:
        # ::1 cannot leave the host (RFC 4291, 2.5.3): connections to it are forwarded in user space.
        local = [_address(family, _DESTINATION, "::1/128", operator=nft.NOT_EQUAL), *local]
    jump = nft.verdict(nft.VERDICT_JUMP, "publish")
    detour = settings.detour if settings.detour is not None and settings.detour.gateway(family) else None
    entered = _from(detour.back) if detour is not None else []
    found: list[Rule] = [
        ("prerouting", [*entered, nft.destination_is_local(), jump], "published ports"),
        ("output", [*local, jump], "published ports, from the host itself"),
        ("publish", _publish(family, exact=True), "published on one address"),
        ("publish", _publish(family, exact=False), "published on all addresses"),
    ]
    below = [nft.meta(nft.META_IIFNAME), nft.compare(options.BELOW.encode()), nft.no_tracking()]
    found.append(("raw", below, "switched beneath a full bridge"))
    if family == NFPROTO_IPV4:
        found.append(("raw", _foreign_frames(), "overlay frames of hosts that are no peers"))
        for side, words in ((_SOURCE, "pretended"), (_DESTINATION, "not theirs")):
            loopback = _address(family, side, "127.0.0.0/8")
            expressions = [*_interface(nft.META_IIFNAME, "bridges"), loopback, nft.verdict(nft.VERDICT_DROP)]
            found.append(("raw", expressions, f"the host's loopback addresses: {words}"))
    if detour is not None:
        found += _admission(family, detour)
    found += _forward(family, settings)
    return found + _postrouting(family, networks)


def _admission(family: int, detour: Detour) -> list[Rule]:
    """Rules of the last input chain: whoever gets here was let in by the host's own. A first packet for a
    published port goes round by the detour and is redirected when it comes back; what follows is an established
    flow and takes the straight way. Loopback was redirected on its way out (`output`)."""
    gateway = nft.immediate(ip_address(detour.gateway(family)).packed, nft.REG_1)
    device = nft.immediate(struct.pack("=I", detour.out_index), nft.REG_2)
    send = [gateway, device, nft.duplicate(nft.REG_1, nft.REG_2), nft.verdict(nft.VERDICT_DROP)]
    fresh = [
        nft.meta(nft.META_IIFNAME),
        nft.compare(interface("lo"), operator=nft.NOT_EQUAL),
        nft.conntrack_any(nft.CT_STATE, nft.CT_NEW),
    ]
    return [
        ("input", [*fresh, *_find(family, exact=True), *send], "let in by this host: published on one address"),
        ("input", [*fresh, *_find(family, exact=False), *send], "let in by this host: published on all"),
    ]


def _from(name: str) -> list[bytes]:
    return [nft.meta(nft.META_IIFNAME), nft.compare(interface(name))]


def _direct(family: int) -> list[bytes]:
    """Go on only if the packet is for a container's own address and a port that it publishes."""
    offset, length = _DESTINATION[family]
    return [
        nft.meta(nft.META_L4PROTO, nft.REG32),
        nft.payload(nft.NETWORK, offset, length, nft.REG32 + 1),
        nft.payload(nft.TRANSPORT, 2, 2, nft.REG32 + 1 + length // 4),
        nft.lookup("direct", register=nft.REG32),
    ]


def _forward(family: int, settings: Settings) -> list[Rule]:
    def rule(words: str, verdict: int, *expressions: bytes) -> Rule:
        return "forward", [*expressions, nft.verdict(verdict)], words

    entering = _interface(nft.META_OIFNAME, "bridges")
    pair = [nft.meta(nft.META_IIFNAME, nft.REG_1), nft.meta(nft.META_OIFNAME, nft.REG_2), nft.lookup("icc")]
    trusted = [
        nft.meta(nft.META_IIFNAME, nft.REG_1),
        nft.meta(nft.META_OIFNAME, nft.REG_2),
        nft.lookup("trusted"),
    ]
    routed = _interface(nft.META_OIFNAME, "routed")
    icmp = [nft.meta(nft.META_L4PROTO), nft.compare(bytes((_ICMP[family],)))]
    marked: list[Rule] = []
    if settings.accept_mark is not None:
        value, bits = (struct.pack("=I", number) for number in settings.accept_mark)
        mark = [nft.meta(nft.META_MARK), nft.mask(bits), nft.compare(value)]
        marked = [rule("marked by this host", nft.VERDICT_ACCEPT, *entering, *mark)]
    anywhere = [rule("published, by its own address", nft.VERDICT_ACCEPT, *entering, *_direct(family))]
    return [
        *marked,
        rule("containers of one network", nft.VERDICT_ACCEPT, *pair),
        rule("out of an internal network", nft.VERDICT_DROP, *_interface(nft.META_IIFNAME, "internal")),
        rule("into an internal network", nft.VERDICT_DROP, *_interface(nft.META_OIFNAME, "internal")),
        rule(
            "not ours to judge, but we made this host forward",
            nft.VERDICT_DROP,
            *_interface(nft.META_IIFNAME, "guarded"),
            *_interface(nft.META_OIFNAME, "guarded"),
        ),
        rule(
            "outbound and foreign",
            nft.VERDICT_ACCEPT,
            nft.meta(nft.META_OIFNAME),
            nft.lookup("bridges", inverted=True),
        ),
        rule("replies", nft.VERDICT_ACCEPT, nft.conntrack_any(nft.CT_STATE, nft.CT_ESTABLISHED | nft.CT_RELATED)),
        rule("published ports", nft.VERDICT_ACCEPT, nft.conntrack_any(nft.CT_STATUS, nft.CT_DST_NAT)),
        rule("open networks", nft.VERDICT_ACCEPT, *_interface(nft.META_OIFNAME, "unprotected")),
        rule("routed networks: published ports", nft.VERDICT_ACCEPT, *routed, *_direct(family)),
        rule("routed networks: ping", nft.VERDICT_ACCEPT, *routed, *icmp),
        rule("trusted interfaces: published ports", nft.VERDICT_ACCEPT, *trusted, *_direct(family)),
        *(anywhere if settings.allow_direct else []),
        rule("not published", nft.VERDICT_DROP, *entering),
    ]


def _postrouting(family: int, networks: Sequence[Network]) -> list[Rule]:
    found: list[Rule] = []
    if family == NFPROTO_IPV4:
        loopback = [_address(family, _SOURCE, "127.0.0.0/8"), *_interface(nft.META_OIFNAME, "bridges")]
        found.append(("postrouting", [*loopback, nft.masquerade()], "published on loopback"))
    for network in networks:
        name = interface(network.interface)
        for pool in network.pools:
            if ip_network(pool.subnet).version != _VERSION[family]:
                continue
            source = _address(family, _SOURCE, pool.subnet)
            out = nft.meta(nft.META_OIFNAME)
            redirected = nft.conntrack_any(nft.CT_STATUS, nft.CT_DST_NAT)
            hairpin = [source, out, nft.compare(name), redirected, nft.masquerade()]
            found.append(("postrouting", hairpin, f"{network.name}: to itself by a published port"))
            masqueraded = network.flag(options.MASQUERADE, True) and not network.internal
            if masqueraded and options.gateway_mode(network, _VERSION[family]) != "routed":
                away = [source, out, nft.compare(name, operator=nft.NOT_EQUAL), *_source_nat(family, network)]
                found.append(("postrouting", away, f"{network.name}: outbound"))
    return found


def _source_nat(family: int, network: Network) -> list[bytes]:
    address = network.options.get(options.HOST_ADDRESS[_VERSION[family]])
    if not address:
        return [nft.masquerade()]
    return [nft.immediate(ip_address(address).packed), nft.snat(family, nft.REG_1)]


def _publish(family: int, *, exact: bool) -> list[bytes]:
    """Look the packet's destination up in a map and redirect it; a packet that is not in it goes on."""
    length = _DESTINATION[family][1]
    return [*_find(family, exact=exact), nft.dnat(family, nft.REG_1, nft.REG32 + length // 4)]


def _find(family: int, *, exact: bool) -> list[bytes]:
    """Go on only if the packet's destination is in a map of published ports; its value is in REG_1."""
    offset, length = _DESTINATION[family]
    service = nft.REG32 + 1 + (length // 4 if exact else 0)
    load = [nft.meta(nft.META_L4PROTO, nft.REG32)]
    if exact:
        load.append(nft.payload(nft.NETWORK, offset, length, nft.REG32 + 1))
    return [
        *load,
        nft.payload(nft.TRANSPORT, 2, 2, service),
        nft.lookup("published" if exact else "published_any", into=nft.REG_1, register=nft.REG32),
    ]


def _address(family: int, side: dict[int, tuple[int, int]], subnet: str, *, operator: int = nft.EQUAL) -> bytes:
    network = ip_network(subnet)
    offset, length = side[family]
    load = nft.payload(nft.NETWORK, offset, length)
    if network.prefixlen < network.max_prefixlen:
        load += nft.mask(network.netmask.packed)
    return load + nft.compare(network.network_address.packed, operator=operator)


def _interface(key: int, set_name: str) -> list[bytes]:
    return [nft.meta(key), nft.lookup(set_name)]
