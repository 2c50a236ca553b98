"""Bridges beneath a bridge, for networks of more endpoints than a bridge has ports.

A Linux bridge has 1,023 ports; before that, a broadcast (each ARP request is one) to more than 1,000 veth ports
overruns a processor's backlog (net.core.netdev_max_backlog) and is lost for the last of them. So a bridge takes
PORTS endpoints, and the next ones get another bridge, joined to it by a veth pair:

    dray0 (addresses, firewall) ── drayu<tag>1 ═══ drayd<tag>1 ── drayx<tag>1 ── endpoints 513 to 1,024

The bridge beneath only switches: it has no address, and whatever leaves it for the host or the world enters by the
network's own bridge, so that rules, addresses and names of interfaces are as before. To make room for the uplink,
one endpoint moves below. Where bridged frames pass the packet filter (`bridge-nf-call-iptables`), those on a bridge
beneath are not tracked, so that none is taken for a packet that leaves by a foreign interface. A network whose endpoints may not talk to each other keeps to that: the uplink is an
isolated port too.

The bridge and the uplink bear the alias `<owner>/<network id>/below`; a restarted daemon finds them by name.
"""

from __future__ import annotations

import secrets
import zlib

from dray.base.errors import Internal
from dray.linux import links
from dray.linux.links import Links
from dray.network import options, sysctls
from dray.network.model import Network

PORTS = 512


class Extensions:
    """The bridges beneath the bridges of one driver. Borrows the host's rtnetlink socket."""

    def __init__(self, host: Links, *, owner: str) -> None:
        self._host = host
        self._owner = owner
        self._ports: dict[int, set[str]] = {}  # bridge → host ends of its endpoints
        self._indices: dict[str, list[int]] = {}  # a network's bridge → the bridges beneath

    def indices(self, network: Network) -> list[int]:
        """Return the interface indices of the bridges beneath, oldest first."""
        return self._indices.get(network.interface, [])

    def names(self) -> set[str]:
        """Return the names of all interfaces that are kept here."""
        return {
            name
            for interface, made in self._indices.items()
            for number in range(1, len(made) + 1)
            for name in _names(interface, number)
        }

    def adopt(self, network: Network) -> None:
        """Find what was made in an earlier life of the daemon."""
        found: list[int] = []
        while (link := self._host.find(_names(network.interface, len(found) + 1)[0])) is not None:
            found.append(link.index)
        if found:
            self._indices[network.interface] = found

    def forget(self, network: Network) -> list[str]:
        """Forget a network's; return the names of the bridges and uplinks to be deleted."""
        gone = self._indices.pop(network.interface, [])
        for index in gone:
            self._ports.pop(index, None)
        count = len(gone)
        names = [_names(network.interface, number)[:2] for number in range(1, count + 1)]
        return [name for pair in names for name in pair]

    def choose(self, network: Network, top: int) -> int:
        """Return the index of a bridge with room, a new one if there is none; `top` is the network's own."""
        for index in (top, *self.indices(network)):
            if len(self._ports.get(index, ())) < PORTS:
                return index
        return self._extend(network, top)

    def plugged(self, index: int, name: str) -> None:
        """Count an endpoint's host end on a bridge."""
        self._ports.setdefault(index, set()).add(name)

    def unplugged(self, name: str) -> None:
        """Count it no longer."""
        for names in self._ports.values():
            names.discard(name)

    def _extend(self, network: Network, top: int) -> int:
        number = len(self.indices(network)) + 1
        below, up, down = _names(network.interface, number)
        mtu, isolated = options.mtu(network), not network.flag(options.ICC, True)
        self._host.apply([links.bridge_request(below, mac=_mac(), mtu=mtu)])
        made = self._host.find(below)
        if made is None:
            raise Internal(f"bridge {below} vanished while it was made")
        if sysctls.read(f"net.ipv6.conf.{below}.disable_ipv6") is not None:
            sysctls.write(f"net.ipv6.conf.{below}.disable_ipv6", "1")
        alias, ipv6 = f"{self._owner}/{network.id}/below", sysctls.has_ipv6()
        requests = [
            links.up_request(made.index, alias=alias),
            links.pair_request(up, down, mac=_mac(), peer_mac=_mac(), master=top),
            links.enslave_request(down, made.index),
            links.port_request(up, hairpin=False, isolated=isolated, alias=alias, ipv6=ipv6),
            links.port_request(down, hairpin=False, isolated=False, alias=alias, ipv6=ipv6),
            *(links.mtu_request_of(name, mtu) for name in (up, down) if mtu),
        ]
        self._host.apply([*requests, *(links.settle_request(name) for name in (below, up, down))])
        self._indices.setdefault(network.interface, []).append(made.index)
        return made.index


def _names(interface: str, number: int) -> tuple[str, str, str]:
    tag = f"{zlib.crc32(interface.encode()):08x}{number}"
    return f"{options.BELOW}{tag}", f"drayu{tag}", f"drayd{tag}"


def _mac() -> str:
    return "02:42:" + secrets.token_bytes(4).hex(":")
