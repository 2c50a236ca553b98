"""`respect-host-firewall`: the host's own INPUT rules hold for published ports.

Redirected packets never see INPUT: they are redirected in PREROUTING, before any filter, and forwarded. So, with
this setting, a packet from outside is not redirected on arrival. A first packet for a published port meets the
host's own input chains as it came (interface, addresses, port: whatever ufw, firewalld or an administrator
wrote), and only if they let it through, a last input chain of ours sends a copy round by a pair of interfaces:

    eth0 ─▶ prerouting ─▶ input: the host's chains ─▶ input: ours ─ copy ─▶ drayIxxxx ═ drayJxxxx ─┐
                                                        │                                          │
                                                       drop                prerouting: redirected ◀┘ ─▶ forward

The copy has no flow when it comes back, is redirected there, and becomes an established flow under the very same
addresses: all that follows takes the straight way through the kernel. Nothing is forwarded in user space, the
client's address stays, and the cost does not grow with the number of ports.

The host's connections to itself are redirected on their way out, as without this setting.
"""

from __future__ import annotations

import zlib

from dray.base.errors import Internal, Unsupported
from dray.linux import links
from dray.linux.links import Links
from dray.linux.nftables import NFPROTO_IPV4, NFPROTO_IPV6
from dray.network import sysctls
from dray.network.rules import Detour

# Both ends have this address, and the sending one asks nobody for a neighbour's (IFF_NOARP): it takes its own.
_MAC = "02:64:72:61:79:01"
# Where copies are sent; nobody has these addresses, they only have to be on the link.
_GATEWAY4, _GATEWAY6 = "169.254.64.2", "fe80::6472:6179:2"


def names(owner: str) -> tuple[str, str]:
    """Return the names of a daemon's pair of interfaces."""
    tag = f"{zlib.crc32(owner.encode()):08x}"
    return f"dray-o{tag}", f"dray-i{tag}"


def up(host: Links, owner: str) -> Detour:
    """Make the pair, or adopt it. Unsupported where the host's reverse path filter would drop what comes back."""
    if sysctls.read("net.ipv4.conf.all.rp_filter") == "1":
        raise Unsupported(
            "respect-host-firewall cannot work with net.ipv4.conf.all.rp_filter=1: set it to 2 (loose) or 0"
        )
    out, back = names(owner)
    if host.find(out) is None:
        host.apply([links.pair_request(out, back, mac=_MAC, peer_mac=_MAC)])
    ends = {name: host.find(name) for name in (out, back)}
    first, second = ends[out], ends[back]
    if first is None or second is None:
        raise Internal(f"the interfaces {out} and {back} vanished while they were made")
    for name in (out, back):
        sysctls.write(f"net.ipv4.conf.{name}.rp_filter", "0")
        if sysctls.read(f"net.ipv6.conf.{name}.disable_ipv6") is not None:
            sysctls.write(f"net.ipv6.conf.{name}.accept_ra", "0")
    alias = f"{owner}/detour"
    host.apply(
        [links.up_request(first.index, alias=alias, silent=True), links.up_request(second.index, alias=alias)]
    )
    gateways = [(NFPROTO_IPV4, _GATEWAY4)]
    if sysctls.has_ipv6():
        gateways.append((NFPROTO_IPV6, _GATEWAY6))
    return Detour(out=out, out_index=first.index, back=back, gateways=tuple(gateways))


def down(host: Links, owner: str) -> None:
    """Remove the pair if it is there."""
    out, _ = names(owner)
    if host.find(out) is not None:
        host.apply([links.delete_request(out)])
