"""The nftables tables of this daemon: NAT for published ports, masquerading, and who may reach whom.

One table per IP family, named like the bridge's owner (`dray`), nobody else's rules are touched. The rules are a
pure function of the networks (`rules`), written anew in one transaction whenever a network comes or goes; a
published port is one element of a map, so that its cost does not grow with their number. In nft's words, for IPv4:

    map published     { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service }  # on one address
    map published_any { type inet_proto . inet_service : ipv4_addr . inet_service }              # on all
    set bridges, internal, unprotected, guarded { type ifname }
    set icc { type ifname . ifname }

    chain raw         iifname @bridges ip saddr/daddr 127.0.0.0/8 drop
    chain prerouting  fib daddr type local jump publish
    chain output      fib daddr type local jump publish
    chain publish     dnat to meta l4proto . ip daddr . th dport map @published, then … @published_any
    chain postrouting masquerade: a bridge's subnet leaving by another interface; loopback sources and a
                      bridge's own containers (hairpin) that were redirected into it
    chain forward     see `_forward`

`raw` guards what `route_localnet` on the bridges opens: containers can neither reach services on the host's
127.0.0.1 nor pretend to come from there. A packet that other tables drop stays dropped, whatever is accepted here:
a host whose own FORWARD policy is drop needs a rule for the bridge (`blocking_chains` finds such chains).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from dray.linux import nftables_expressions as nft
from dray.linux.nftables import (
    DROP,
    HOOK_FORWARD,
    HOOK_OUTPUT,
    HOOK_POSTROUTING,
    HOOK_PREROUTING,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    PRIORITY_DSTNAT,
    PRIORITY_FILTER,
    PRIORITY_RAW,
    PRIORITY_SRCNAT,
    TYPE_INTERFACE,
    TYPE_IPV4,
    TYPE_IPV6,
    TYPE_PROTOCOL,
    TYPE_SERVICE,
    Batch,
    Element,
    Hook,
    Nftables,
    Set,
    Watch,
    interface,
)
from dray.linux.nftables import field as padded
from dray.network import bridge
from dray.network.model import Network

FAMILIES = (NFPROTO_IPV4, NFPROTO_IPV6)
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}
_VERSION = {NFPROTO_IPV4: 4, NFPROTO_IPV6: 6}
_ADDRESS_TYPE = {NFPROTO_IPV4: TYPE_IPV4, NFPROTO_IPV6: TYPE_IPV6}
# Offset and length of the source and destination address in the header.
_SOURCE = {NFPROTO_IPV4: (12, 4), NFPROTO_IPV6: (8, 16)}
_DESTINATION = {NFPROTO_IPV4: (16, 4), NFPROTO_IPV6: (24, 16)}
_CHAINS = {
    "raw": Hook("filter", HOOK_PREROUTING, PRIORITY_RAW),
    "prerouting": Hook("nat", HOOK_PREROUTING, PRIORITY_DSTNAT),
    "output": Hook("nat", HOOK_OUTPUT, PRIORITY_DSTNAT),
    "postrouting": Hook("nat", HOOK_POSTROUTING, PRIORITY_SRCNAT),
    "forward": Hook("filter", HOOK_FORWARD, PRIORITY_FILTER),
}
_NETWORK_SETS = ("bridges", "internal", "unprotected", "icc", "guarded")


@dataclass(frozen=True, slots=True)
class Published:
    """Host address and port that lead to a container's; `host_ip` unspecified (0.0.0.0, ::) means all."""

    protocol: str
    host_ip: str
    host_port: int
    address: str
    port: int
    comment: str = field(default="", compare=False)

    @property
    def family(self) -> int:
        """The NFPROTO_* of its table."""
        return NFPROTO_IPV6 if ":" in self.host_ip else NFPROTO_IPV4


class Firewall:
    """Keeps the tables as wanted. Owns its netlink sockets; remembers everything it put there, and puts it back
    when somebody flushes it. `families` are those it may keep rules for."""

    def __init__(self, table: str, families: Collection[int]) -> None:
        self._nft = Nftables.open()
        self._watch = Watch(self._nft)
        self._table = table
        self.families = tuple(family for family in FAMILIES if family in families)
        self._networks: list[Network] = []
        self._published: dict[Published, None] = {}
        self._guarded: dict[int, set[str]] = {family: set() for family in FAMILIES}

    def close(self) -> None:
        """Close the sockets; the rules stay."""
        self._watch.close()
        self._nft.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when rules have changed: then call `check`."""
        return self._watch.fileno()

    def check(self) -> None:
        """Put our tables back if somebody else deleted them."""
        if self._watch.deleted(self._table) and self._networks:
            self.restore()

    def start(self, networks: Sequence[Network], published: Iterable[Published]) -> None:
        """Make the tables as wanted in one transaction, whatever they were. Established flows go on."""
        for family in self.families:
            found = self._nft.elements(family, self._table, "guarded")
            self._guarded[family] = {element.key.rstrip(b"\0").decode() for element in found}
        self._networks = _bridges(networks)
        self._published = dict.fromkeys(published)
        self.restore()

    def restore(self) -> None:
        """Replace the tables by what is wanted."""
        batches: list[Batch] = []
        for family in FAMILIES:
            batch = Batch(family, self._table)
            if family in self.families:
                self._build(batch)
            elif self._nft.has_table(family, self._table):
                batch.delete_table()
            batches.append(batch)
        self._nft.commit(*batches)

    def remove(self) -> None:
        """Delete the tables."""
        batches = [Batch(family, self._table) for family in FAMILIES if self._nft.has_table(family, self._table)]
        for batch in batches:
            batch.delete_table()
        self._nft.commit(*batches)

    def set_networks(self, networks: Sequence[Network]) -> None:
        """Rewrite the rules for these networks; published ports stay untouched."""
        self._networks = _bridges(networks)
        batches: list[Batch] = []
        for family in self.families:
            batch = Batch(family, self._table)
            batch.flush_rules()
            for name in _NETWORK_SETS:
                batch.flush_set(name)
            self._fill(batch)
            batches.append(batch)
        self._commit(*batches)

    def guard(self, family: int, interfaces: Iterable[str]) -> None:
        """Drop what would be forwarded between these interfaces: they were there before we made the host
        forward packets at all, which was for our bridges only."""
        self._guarded[family] = set(interfaces)
        self.set_networks(self._networks)

    def guarded(self, family: int) -> set[str]:
        """Return the guarded interfaces."""
        return set(self._guarded[family])

    def publish(self, ports: Iterable[Published]) -> None:
        """Redirect these host ports."""
        new = [port for port in ports if port.family in self.families]
        self._published.update(dict.fromkeys(new))
        self._commit(*self._port_batches(new, add=True))

    def unpublish(self, ports: Iterable[Published]) -> None:
        """Stop redirecting these host ports; unknown ones are no error."""
        old = [port for port in ports if port in self._published]
        for port in old:
            del self._published[port]
        self._commit(*self._port_batches(old, add=False))

    def blocking_chains(self) -> list[str]:
        """Return the chains of others that drop forwarded packets by policy, as `family table chain`."""
        names = {NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6", 1: "inet"}
        return [
            f"{names[chain.family]} {chain.table} {chain.name}"
            for chain in self._nft.base_chains()
            if chain.family in names
            and chain.table != self._table
            and chain.hook.number == HOOK_FORWARD
            and chain.hook.policy == DROP
        ]

    def _commit(self, *batches: Batch) -> None:
        try:
            self._nft.commit(*batches)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EEXIST):
                raise
            self.restore()  # somebody flushed or changed our table: what is wanted now includes this change

    def _build(self, batch: Batch) -> None:
        batch.add_table()
        batch.delete_table()  # in the same transaction: no packet ever meets a host without our rules
        batch.add_table()
        address = _ADDRESS_TYPE[batch.family]
        target = (address, TYPE_SERVICE)
        batch.add_set(Set("published", (TYPE_PROTOCOL, address, TYPE_SERVICE), target))
        batch.add_set(Set("published_any", (TYPE_PROTOCOL, TYPE_SERVICE), target))
        for name in _NETWORK_SETS:
            batch.add_set(Set(name, (TYPE_INTERFACE, TYPE_INTERFACE) if name == "icc" else (TYPE_INTERFACE,)))
        for name, hook in _CHAINS.items():
            batch.add_chain(name, hook)
        batch.add_chain("publish")
        self._fill(batch)
        ports = [port for port in self._published if port.family == batch.family]
        for name, elements in _port_elements(ports).items():
            batch.add_elements(name, elements)

    def _fill(self, batch: Batch) -> None:
        for name, elements in network_elements(self._networks, self._guarded[batch.family]).items():
            batch.add_elements(name, elements)
        for chain, expressions, words in rules(batch.family, self._networks):
            batch.add_rule(chain, expressions, words)

    def _port_batches(self, ports: Sequence[Published], *, add: bool) -> list[Batch]:
        batches: list[Batch] = []
        for family in self.families:
            batch = Batch(family, self._table)
            for name, elements in _port_elements([port for port in ports if port.family == family]).items():
                if add:
                    batch.add_elements(name, elements)
                else:
                    batch.delete_elements(name, elements)
            batches.append(batch)
        return batches


def _bridges(networks: Sequence[Network]) -> list[Network]:
    return [network for network in networks if network.driver == "bridge" and not network.config_only]


def _port_elements(ports: Iterable[Published]) -> dict[str, list[Element]]:
    found: dict[str, list[Element]] = {"published": [], "published_any": []}
    for port in ports:
        host = ip_address(port.host_ip)
        protocol = padded(bytes((PROTOCOLS[port.protocol],)))
        service = padded(port.host_port.to_bytes(2, "big"))
        value = ip_address(port.address).packed + padded(port.port.to_bytes(2, "big"))
        if host.is_unspecified:
            found["published_any"].append(Element(protocol + service, value, port.comment))
        else:
            found["published"].append(Element(protocol + host.packed + service, value, port.comment))
    return found


def network_elements(networks: Sequence[Network], guarded: Iterable[str]) -> dict[str, list[Element]]:
    """Return what the sets hold for these networks."""
    found: dict[str, list[Element]] = {name: [] for name in _NETWORK_SETS}
    found["guarded"] = [Element(interface(name)) for name in sorted(guarded)]
    for network in networks:
        name = interface(network.interface)
        found["bridges"].append(Element(name, comment=network.name))
        if network.internal:
            found["internal"].append(Element(name, comment=network.name))
        if network.flag(bridge.ICC, True):
            found["icc"].append(Element(name + name, comment=network.name))
        if "nat-unprotected" in (network.options.get(mode) for mode in bridge.GATEWAY_MODES):
            found["unprotected"].append(Element(name, comment=network.name))
    return found


Rule = tuple[str, list[bytes], str]


def rules(family: int, networks: Sequence[Network]) -> list[Rule]:
    """Return (chain, expressions, comment) of every rule, in order."""
    local = [nft.destination_is_local()]
    if family == NFPROTO_IPV6:
        # ::1 cannot leave the host (RFC 4291, 2.5.3): connections to it are forwarded in user space.
        local = [_address(family, _DESTINATION, "::1/128", operator=nft.NOT_EQUAL), *local]
    jump = nft.verdict(nft.VERDICT_JUMP, "publish")
    found: list[Rule] = [
        ("prerouting", [nft.destination_is_local(), jump], "published ports"),
        ("output", [*local, jump], "published ports, from the host itself"),
        ("publish", _publish(family, exact=True), "published on one address"),
        ("publish", _publish(family, exact=False), "published on all addresses"),
    ]
    if family == NFPROTO_IPV4:
        for side, words in ((_SOURCE, "pretended"), (_DESTINATION, "not theirs")):
            loopback = _address(family, side, "127.0.0.0/8")
            expressions = [*_interface(nft.META_IIFNAME, "bridges"), loopback, nft.verdict(nft.VERDICT_DROP)]
            found.append(("raw", expressions, f"the host's loopback addresses: {words}"))
    found += _forward()
    return found + _postrouting(family, networks)


def _forward() -> list[Rule]:
    def rule(words: str, verdict: int, *expressions: bytes) -> Rule:
        return "forward", [*expressions, nft.verdict(verdict)], words

    entering = _interface(nft.META_OIFNAME, "bridges")
    pair = [nft.meta(nft.META_IIFNAME, nft.REG_1), nft.meta(nft.META_OIFNAME, nft.REG_2), nft.lookup("icc")]
    return [
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
            if network.flag(bridge.MASQUERADE, True) and not network.internal:
                away = [source, out, nft.compare(name, operator=nft.NOT_EQUAL), *_source_nat(family, network)]
                found.append(("postrouting", away, f"{network.name}: outbound"))
    return found


def _source_nat(family: int, network: Network) -> list[bytes]:
    address = network.options.get(bridge.HOST_ADDRESS[_VERSION[family]])
    if not address:
        return [nft.masquerade()]
    return [nft.immediate(ip_address(address).packed), nft.snat(family, nft.REG_1)]


def _publish(family: int, *, exact: bool) -> list[bytes]:
    """Look the packet's destination up in a map and redirect it; a packet that is not in it goes on."""
    offset, length = _DESTINATION[family]
    service = nft.REG32 + 1 + (length // 4 if exact else 0)
    load = [nft.meta(nft.META_L4PROTO, nft.REG32)]
    if exact:
        load.append(nft.payload(nft.NETWORK, offset, length, nft.REG32 + 1))
    return [
        *load,
        nft.payload(nft.TRANSPORT, 2, 2, service),
        nft.lookup("published" if exact else "published_any", into=nft.REG_1, register=nft.REG32),
        nft.dnat(family, nft.REG_1, nft.REG32 + length // 4),
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
