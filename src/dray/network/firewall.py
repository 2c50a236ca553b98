"""The nftables tables of this daemon: NAT for published ports, masquerading, and who may reach whom.

One table per IP family, named like the bridge's owner (`dray`), nobody else's rules are touched. The rules are a
pure function of the networks (`network/rules.py`), written anew in one transaction whenever a network comes or goes; a
published port is one element of a map, so that its cost does not grow with their number. In nft's words, for IPv4:

    map published     { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service }  # on one address
    map published_any { type inet_proto . inet_service : ipv4_addr . inet_service }              # on all
    set direct        { type inet_proto . ipv4_addr . inet_service }  # containers' own, open from outside
    set bridges, internal, unprotected, routed, guarded { type ifname }
    set icc, trusted { type ifname . ifname }

    chain raw         iifname @bridges ip saddr/daddr 127.0.0.0/8 drop
    chain prerouting  fib daddr type local jump publish
    chain input       with `respect-host-firewall` alone: see `rules._admission`
    chain output      fib daddr type local jump publish
    chain publish     dnat to meta l4proto . ip daddr . th dport map @published, then … @published_any
    chain postrouting masquerade: a bridge's subnet leaving by another interface; loopback sources and a
                      bridge's own containers (hairpin) that were redirected into it
    chain forward     see `rules._forward`

`raw` guards what `route_localnet` on the bridges opens: containers can neither reach services on the host's
127.0.0.1 nor pretend to come from there. A packet that other tables drop stays dropped, whatever is accepted here:
a host whose own FORWARD policy is drop needs a rule for the bridge (`blocking_chains` finds such chains).
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping, Sequence

from dray.base.errors import Unsupported
from dray.linux.links import Links
from dray.linux.nftables import (
    DROP,
    HOOK_FORWARD,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    Batch,
    Nftables,
    Watch,
)
from dray.network import detour, rules, sysctls
from dray.network.model import Network, NetworkConfig
from dray.network.rules import Published, Settings

FAMILIES = (NFPROTO_IPV4, NFPROTO_IPV6)


class Firewall:
    """Keeps the tables as wanted. Owns its netlink sockets; remembers everything it put there, and puts it back
    when somebody flushes it. `families` are those it may keep rules for."""

    def __init__(self, table: str, families: Collection[int], settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._nft = Nftables.open()
        self._watch = Watch(self._nft)
        self._table = table
        self.families = tuple(family for family in FAMILIES if family in families)
        self._networks: list[Network] = []
        self._published: dict[Published, None] = {}
        self._overlays: dict[int, list[str]] = {}
        self._encrypted = False
        self._made: list[int | None] = []
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
        deleted = self._watch.deleted(self._table)
        if not self._networks and not self._overlays:
            return
        if deleted is None:  # thousands of ports of our own, usually
            deleted = self._numbers() != self._made
        if deleted:
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
        self._made = self._numbers()

    def _numbers(self) -> list[int | None]:
        return [self._nft.table_handle(family, self._table) for family in self.families]

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
            for name in rules.NETWORK_SETS:
                batch.flush_set(name)
            self._fill(batch)
            if family == NFPROTO_IPV4 and self._encrypted:
                self._close_port(batch)  # all rules were flushed
            batches.append(batch)
        self._commit(*batches)

    def set_overlays(self, overlays: Mapping[int, Sequence[str]], *, encrypted: bool = False) -> None:
        """Let frames of these overlay networks (by number) in from these hosts alone. `encrypted`: some are, and
        their port is closed for what is not."""
        wanted = {vni: list(hosts) for vni, hosts in overlays.items()}
        if encrypted != self._encrypted and NFPROTO_IPV4 in self.families:
            self._overlays, self._encrypted = wanted, encrypted
            self.restore()
            return
        if wanted == self._overlays or NFPROTO_IPV4 not in self.families:
            return
        self._overlays = wanted
        batch = Batch(NFPROTO_IPV4, self._table)
        for name in rules.OVERLAY_SETS:
            batch.flush_set(name)
        self._fill_overlays(batch)
        self._commit(batch)

    def _fill_overlays(self, batch: Batch) -> None:
        for name, elements in rules.overlay_elements(self._overlays).items():
            batch.add_elements(name, elements)

    def _close_port(self, batch: Batch) -> None:
        for chain, expressions, words in rules.encrypted_only():
            batch.add_rule(chain, expressions, words)

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

    def _left_open(self, family: int) -> set[bytes]:
        """Return the containers' own ports that some published port still opens."""
        ports = [port for port in self._published if port.direct and port.family == family]
        return {element.key for element in rules.port_elements(ports)["direct"]}

    def blocking_chains(self) -> list[str]:
        """Return the chains of others that drop forwarded packets by policy, as `family table chain`."""
        names = {NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6", NFPROTO_INET: "inet"}
        return [
            f"{names[chain.family]} {chain.table} {chain.name}"
            for chain in self._nft.base_chains()
            if chain.family in names
            and chain.table != self._table
            and chain.hook.number == HOOK_FORWARD
            and chain.hook.policy == DROP
        ]

    def rejected_by_firewalld(self) -> list[str]:
        """Return the bridges that firewalld does not know: it rejects what it forwards from unknown interfaces (and
        lets in what was redirected)."""
        if not self._nft.has_table(NFPROTO_INET, "firewalld"):
            return []
        bridges = [network.interface for network in self._networks if not network.internal]
        return [name for name in bridges if not self._nft.rules_name(NFPROTO_INET, "firewalld", name)]

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
        for made in rules.sets(batch.family):
            batch.add_set(made)
        for name, hook in rules.CHAINS.items():
            batch.add_chain(name, hook)
        batch.add_chain("publish")
        self._fill(batch)
        if batch.family == NFPROTO_IPV4:
            self._fill_overlays(batch)
        if batch.family == NFPROTO_IPV4 and self._encrypted:
            batch.add_chain("outgoing", rules.OUTGOING)
            self._close_port(batch)
        ports = [port for port in self._published if port.family == batch.family]
        for name, elements in rules.port_elements(ports).items():
            batch.add_elements(name, elements)

    def _fill(self, batch: Batch) -> None:
        found = rules.network_elements(batch.family, self._networks, self._guarded[batch.family])
        for name, elements in found.items():
            batch.add_elements(name, elements)
        for chain, expressions, words in rules.rules(batch.family, self._networks, self._settings):
            batch.add_rule(chain, expressions, words)

    def _port_batches(self, ports: Sequence[Published], *, add: bool) -> list[Batch]:
        batches: list[Batch] = []
        for family in self.families:
            batch = Batch(family, self._table)
            for name, elements in rules.port_elements([port for port in ports if port.family == family]).items():
                if add:
                    batch.add_elements(name, elements)
                    continue
                still = self._left_open(family) if name == "direct" and elements else set()
                batch.delete_elements(name, [element for element in elements if element.key not in still])
            batches.append(batch)
        return batches


def _bridges(networks: Sequence[Network]) -> list[Network]:
    return [network for network in networks if network.driver == "bridge" and not network.config_only]


def of_config(config: NetworkConfig, host: Links) -> Firewall | None:
    """Open the firewall for the families that are wanted and that the host has; None for none at all."""
    families = [NFPROTO_IPV4] if config.iptables else []
    if config.ip6tables and sysctls.read("net.ipv6.conf.all.forwarding") is not None:
        families.append(NFPROTO_IPV6)
    settings = Settings(
        allow_direct=config.allow_direct_routing,
        accept_mark=config.accept_fwmark,
        detour=detour.up(host, config.table_name) if config.respect_host_firewall else None,
    )
    if not config.respect_host_firewall:
        detour.down(host, config.table_name)
    try:
        return Firewall(config.table_name, families, settings)
    except Unsupported:
        if families:
            raise
        return None
