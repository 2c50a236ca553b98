"""The macvlan and ipvlan drivers: containers on the host's own wire, each with an interface on a parent.

    eth0 (parent) ═╦═ eth0 of a sandbox     its own MAC address (macvlan) or the parent's (ipvlan)
                   ╚═ eth0 of another

The parent is an interface of the host (`-o parent=eth0`), a VLAN of it (`-o parent=eth0.10`, made with the network
and removed with it), or, without the option or for an internal network, a dummy interface: its containers reach
one another and nothing else. Interfaces that this engine made bear the alias `<owner>/<network id>`.

As Docker does: the host itself does not reach its macvlan containers by the parent (the kernel's rule), ports are
not published, and nothing is filtered: the containers are hosts on that wire.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod

from dray.base.errors import Forbidden, Internal, InvalidParameter
from dray.linux import link_kinds, links
from dray.linux.links import IFF_LOOPBACK, Link, Links
from dray.linux.netlink import Request
from dray.network import bandwidth, options
from dray.network.model import Endpoint, Network


class ParentDriver(ABC):
    """What macvlan and ipvlan have in common: the parent. Borrows the host's rtnetlink socket."""

    name = ""
    short = ""  # begins a dummy parent's name
    modes: tuple[str, ...] = ()
    default_mode = ""
    mode_option = ""
    own_options: tuple[str, ...] = ()

    def __init__(self, host: Links, *, owner: str) -> None:
        self._host = host
        self._owner = owner
        self._users: dict[str, set[str]] = {}  # parent → networks on it

    def interface(self, network: Network) -> str:
        """Return the parent's name."""
        parent = "" if network.internal else network.options.get(options.PARENT, "")
        return parent or f"{self.short}-{network.id[:12]}"

    def share(self, network: Network, other: Network) -> None:
        """A parent serves several networks of one driver, unless one of them passes it through."""
        if other.driver != self.name or "passthru" in (self.mode(network), self.mode(other)):
            raise Forbidden(f"network {other.id} is already using parent interface {network.interface}")

    def mode(self, network: Network) -> str:
        """Return the network's mode."""
        return network.options.get(self.mode_option) or self.default_mode

    def validate(self, network: Network) -> None:
        """Check every option; an unknown one is refused by name."""
        known = (options.PARENT, self.mode_option, options.MTU, options.INTERFACE_PREFIX, bandwidth.EGRESS)
        for option, value in network.options.items():
            if option not in (*known, *self.own_options):
                raise InvalidParameter(f"unknown option {option} of the {self.name} network driver")
            if option == bandwidth.EGRESS:
                bandwidth.parse(option, value)
        options.check_mtu(network)
        if self.mode(network) not in self.modes:
            raise InvalidParameter(
                f"requested {self.name} mode {self.mode(network)!r} is not valid, {self.default_mode!r} mode is the "
                f"{self.name} driver default"
            )
        parent = self._host.find(network.interface)
        if parent is not None and parent.flags & IFF_LOOPBACK:
            raise InvalidParameter(f"loopback interface is not a valid {self.name} parent link")
        if parent is None and not self._is_dummy(network):
            _vlan(network.interface)

    def up(self, network: Network) -> None:
        """Find the parent, or make it: a VLAN's interface or a dummy."""
        self._users.setdefault(network.interface, set()).add(network.id)
        parent = self._parent(network)
        if self._ours(parent) and not parent.up:
            self._host.apply([links.up_request(parent.index)])

    def down(self, network: Network) -> None:
        """Delete the parent if we made it and no other network is on it."""
        users = self._users.get(network.interface, set())
        users.discard(network.id)
        if users:
            return
        self._users.pop(network.interface, None)
        found = self._host.find(network.interface)
        if found is not None and self._ours(found):
            self._host.apply([links.delete_request(network.interface)])

    def plug(self, network: Network, endpoint: Endpoint, netns: int) -> None:
        """Make the interface on the parent, straight in the sandbox."""
        try:
            self._host.apply([self._request(network, endpoint, self._parent(network), netns)])
        except OSError as error:
            if self.mode(network) == "passthru" and error.errno in (errno.EINVAL, errno.EBUSY):
                raise Forbidden(
                    f"network {network.name} passes {network.interface} through to one container, and it has one"
                ) from None
            raise link_kinds.missing(error, self.name) from None

    def ready(self, network: Network, endpoint: Endpoint) -> None:  # noqa: B027 - doing nothing is right
        """Nothing stands between the interface and the wire."""

    def unplug(self, network: Network, endpoint: Endpoint) -> None:  # noqa: B027 - as above
        """The interface is in the sandbox alone: it goes with it, or is deleted there."""

    @abstractmethod
    def _request(self, network: Network, endpoint: Endpoint, parent: Link, netns: int) -> Request:
        """Return the netlink request that makes an endpoint's interface in a namespace."""

    def _ours(self, link: Link) -> bool:
        return link.alias.startswith(f"{self._owner}/")

    def _is_dummy(self, network: Network) -> bool:
        return network.interface == f"{self.short}-{network.id[:12]}"

    def _parent(self, network: Network) -> Link:
        found = self._host.find(network.interface)
        if found is not None:
            return found
        if self._is_dummy(network):
            self._make(link_kinds.dummy_request(network.interface), "dummy", network)
        else:
            base, number = _vlan(network.interface)
            under = self._host.find(base)
            if under is None:
                raise InvalidParameter(
                    f"parent interface {base} of {network.interface} was not found on this host"
                )
            self._make(link_kinds.vlan_request(network.interface, under.index, number), "vlan", network)
        found = self._host.find(network.interface)
        if found is None:
            raise Internal(f"interface {network.interface} vanished while it was made")
        self._host.apply([links.up_request(found.index, alias=f"{self._owner}/{network.id}")])
        return self._parent(network)

    def _make(self, request: Request, kind: str, network: Network) -> None:
        try:
            self._host.apply([request])
        except OSError as error:
            raise link_kinds.missing(error, kind) from None


class MacvlanDriver(ParentDriver):
    """Driver of macvlan networks."""

    name = "macvlan"
    short = "dm"
    modes = tuple(link_kinds.MACVLAN_MODES)
    default_mode = "bridge"
    mode_option = options.MACVLAN_MODE

    def _request(self, network: Network, endpoint: Endpoint, parent: Link, netns: int) -> Request:
        return link_kinds.macvlan_request(
            endpoint.interface,
            parent.index,
            netns=netns,
            mac=endpoint.mac,
            mode=self.mode(network),
            mtu=options.mtu(network),
        )


class IpvlanDriver(ParentDriver):
    """Driver of ipvlan networks. Endpoints have the parent's MAC address, which cannot be chosen."""

    name = "ipvlan"
    short = "di"
    modes = tuple(link_kinds.IPVLAN_MODES)
    default_mode = "l2"
    mode_option = options.IPVLAN_MODE
    own_options = (options.IPVLAN_FLAG,)

    def validate(self, network: Network) -> None:
        """Check every option; an unknown one is refused by name."""
        super().validate(network)
        if self._flag(network) not in link_kinds.IPVLAN_FLAGS:
            raise InvalidParameter(
                f"requested ipvlan flag {self._flag(network)!r} is not valid, 'bridge' is the ipvlan driver default"
            )

    def _flag(self, network: Network) -> str:
        return network.options.get(options.IPVLAN_FLAG) or "bridge"

    def _request(self, network: Network, endpoint: Endpoint, parent: Link, netns: int) -> Request:
        return link_kinds.ipvlan_request(
            endpoint.interface,
            parent.index,
            netns=netns,
            mode=self.mode(network),
            flag=self._flag(network),
            mtu=options.mtu(network),
        )


def _vlan(name: str) -> tuple[str, int]:
    """Split `eth0.10` into (eth0, 10); InvalidParameter in Docker's words for a name that is not so made."""
    base, dot, number = name.rpartition(".")
    if not dot or not base or not number.isdecimal() or len(name) > 15:
        raise InvalidParameter(f"invalid subinterface vlan name {name}, example formatting is eth0.10")
    if not 1 <= int(number) <= 4094:
        raise InvalidParameter(f"vlan id must be between 1-4094, received: {number}")
    return base, int(number)
