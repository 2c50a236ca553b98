"""IP forwarding of the host: switched on for our bridges, and not for anybody else's sake.

A host that forwards is a router between all its interfaces. Docker answers that with a FORWARD policy of drop,
which breaks whatever else runs on the host; we drop only what would pass between the interfaces that were there
when we switched forwarding on (`Firewall.guard`). Interfaces made later belong to somebody who wants forwarding.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from dray.linux.links import IFF_LOOPBACK, Links
from dray.linux.nftables import NFPROTO_IPV4, NFPROTO_IPV6
from dray.network import sysctls
from dray.network.firewall import Firewall
from dray.network.model import Network

_SWITCHES = {
    NFPROTO_IPV4: ("net.ipv4.ip_forward",),
    NFPROTO_IPV6: ("net.ipv6.conf.default.forwarding", "net.ipv6.conf.all.forwarding"),
}


def follow(
    bridges: Sequence[Network], host: Links, firewall: Firewall | None, veths: Collection[str], *, drop: bool
) -> None:
    """Switch forwarding on for the families that these bridges use; `veths` are the host ends of endpoints."""
    ours = {network.interface for network in bridges} | set(veths)
    routed = [network for network in bridges if not network.internal]
    for family, used in (
        (NFPROTO_IPV4, any(network.ipv4 for network in routed)),
        (NFPROTO_IPV6, any(network.ipv6 for network in routed)),
    ):
        if used:
            enable(family, host, firewall, ours, drop=drop)


def enable(family: int, host: Links, firewall: Firewall | None, ours: Collection[str], *, drop: bool) -> None:
    """Switch forwarding on for a family if it is off; with `drop`, guard the interfaces that are there."""
    if sysctls.read(_SWITCHES[family][-1]) != "0":
        return
    if drop and firewall is not None and family in firewall.families:
        others = [link.name for link in host.links() if not link.flags & IFF_LOOPBACK and link.name not in ours]
        firewall.guard(family, others)
    if family == NFPROTO_IPV6:
        _keep_autoconfiguration()
    for name in _SWITCHES[family]:
        sysctls.write(name, "1")


def disable(family: int) -> None:
    """Switch forwarding off again."""
    for name in reversed(_SWITCHES[family]):
        sysctls.write(name, "0")


def _keep_autoconfiguration() -> None:
    """Forwarding interfaces ignore router advertisements unless accept_ra is 2: a host that got its own address
    or default route from one would lose it."""
    for name in os.listdir("/proc/sys/net/ipv6/conf"):
        setting = f"net.ipv6.conf.{name.replace('.', '/')}.accept_ra"
        if name not in ("all", "lo") and sysctls.read(setting) == "1":
            sysctls.write(setting, "2")
