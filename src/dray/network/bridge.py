"""The bridge driver: a Linux bridge per network, a veth pair per endpoint.

    host                                     sandbox
    dray0 (gateway address) ── veth1a2b3c4 ═══ eth0 (endpoint's address)

Bridges carry the alias `<owner>/<network id>` and host ends `<owner>/<container id>`, so that a restarted daemon
knows its own among all interfaces.
An endpoint's MAC address is made from its IPv4 address (02:42: and the four bytes), as Docker did for ten years:
an address that moves to another container keeps its MAC, so that no neighbour's ARP entry goes stale.

A bridge that is full of endpoints gets another beneath it (`network/extensions.py`).

Bridges without traffic between their containers (`enable_icc=false`) isolate their ports in the bridge itself,
which needs no br_netfilter.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_interface

from dray.base.errors import Forbidden, Internal, InvalidParameter
from dray.linux import links
from dray.linux.links import Link, Links
from dray.linux.netlink import Request
from dray.network import bandwidth, options, sysctls
from dray.network.extensions import Extensions
from dray.network.model import Endpoint, Network, parse_flag

_FLAGS = (options.ICC, options.MASQUERADE, options.DEFAULT_BRIDGE, options.INHIBIT_IPV4)
_OPTIONS = (
    *_FLAGS,
    *options.GATEWAY_MODE.values(),
    *options.HOST_ADDRESS.values(),
    options.NAME,
    options.HOST_BINDING,
    options.TRUSTED,
    options.MTU,
    options.INTERFACE_PREFIX,
    *bandwidth.OPTIONS,
)


class BridgeDriver:
    """Driver of bridge networks. Borrows the host's rtnetlink socket; `owner` marks its interfaces."""

    name = "bridge"

    def __init__(self, host: Links, *, owner: str) -> None:
        self._host = host
        self._owner = owner
        self._indices: dict[str, int] = {}
        self._extensions = Extensions(host, owner=owner)

    def interface(self, network: Network) -> str:
        """Return the bridge's name: the asked one, else from the network's id, as Docker's."""
        return network.options.get(options.NAME) or f"br-{network.id[:12]}"

    def share(self, network: Network, other: Network) -> None:
        """Two networks never share a bridge."""
        raise Forbidden(
            f"cannot create network {network.id} ({network.interface}): conflicts with network {other.id} "
            f"({other.interface}): networks have same bridge name"
        )

    def validate(self, network: Network) -> None:
        """Check every option; an unknown one is refused by name."""
        for option, value in network.options.items():
            if option not in _OPTIONS:
                raise InvalidParameter(f"unknown option {option} of the bridge network driver")
            if option in _FLAGS and parse_flag(value, True) != parse_flag(value, False):
                raise InvalidParameter(f"invalid value {value!r} of option {option}: it is true or false")
            if option in options.GATEWAY_MODE.values() and value not in ("", *options.GATEWAY_MODES):
                raise InvalidParameter(
                    f"unknown gateway mode {value!r} in {option}: it is {', '.join(options.GATEWAY_MODES)}"
                )
            if value == "isolated" and option in options.GATEWAY_MODE.values() and not network.internal:
                raise InvalidParameter(
                    f"gateway mode 'isolated' can only be used for an internal network: {option}"
                )
            if option in bandwidth.OPTIONS:
                bandwidth.parse(option, value)
        options.check_mtu(network)
        for version, option in options.HOST_ADDRESS.items():
            _check_address(network, option, version)
        _check_address(network, options.HOST_BINDING, 4)
        for name in options.trusted_interfaces(network):
            if len(name) > 15:
                raise InvalidParameter(f"invalid interface name {name!r} in option {options.TRUSTED}")
        if not 0 < len(network.interface) <= 15 or any(c in "/: \t\n" for c in network.interface):
            raise InvalidParameter(
                f"invalid interface name {network.interface!r}: 1 to 15 characters, no / or space"
            )

    def up(self, network: Network) -> None:
        """Make the bridge with its addresses and settings, or adopt it and put it right."""
        name, mtu = network.interface, options.mtu(network)
        link = self._host.find(name)
        if link is None:
            self._host.apply([links.bridge_request(name, mac=_random_mac(), mtu=mtu)])
            link = self._host.find(name)
            if link is None:
                raise Internal(f"bridge {name} vanished while it was made")
        elif link.kind != "bridge":
            raise InvalidParameter(f"interface {name} exists and is not a bridge: choose another name")
        self._indices[name] = link.index
        self._extensions.adopt(network)
        wanted = set() if network.flag(options.INHIBIT_IPV4, False) else _gateways(network, 4)
        wanted |= _gateways(network, 6) | ({"fe80::1/64"} if network.ipv6 else set())
        present = {str(found) for _, found in self._host.addresses(link.index)}
        self._settings(network)
        requests = [links.up_request(link.index, alias=f"{self._owner}/{network.id}")]
        if mtu and link.mtu != mtu:
            requests.append(links.mtu_request(link.index, mtu))
        requests += [links.address_request(link.index, ip_interface(text)) for text in sorted(wanted - present)]
        stale = [text for text in present - wanted if not text.startswith("fe80:")]
        requests += [links.address_request(link.index, ip_interface(text), remove=True) for text in stale]
        self._host.apply(requests)

    def down(self, network: Network) -> None:
        """Delete the bridge."""
        self._indices.pop(network.interface, None)
        for name in [*self._extensions.forget(network), network.interface]:
            try:
                self._host.apply([links.delete_request(name)])
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise

    def plug(self, network: Network, endpoint: Endpoint, netns: int) -> None:
        """Make the veth pair, one end a port of the bridge, the other in the sandbox."""
        try:
            self._plug(network, endpoint, netns)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL):
                raise
            self.up(network)  # somebody deleted the bridge under us: make it again, once
            self._plug(network, endpoint, netns)

    def _plug(self, network: Network, endpoint: Endpoint, netns: int) -> None:
        index = self._indices.get(network.interface)
        if index is None:
            self.up(network)
            index = self._indices[network.interface]
        master = self._extensions.choose(network, index)
        self._host.apply(self._pair(network, endpoint, netns, master))
        self._extensions.plugged(master, endpoint.veth)

    def _pair(self, network: Network, endpoint: Endpoint, netns: int, master: int) -> list[Request]:
        mtu = options.mtu(network)
        return [
            links.veth_request(
                endpoint.veth, endpoint.interface, peer_netns=netns, master=master, mac=endpoint.mac, mtu=mtu
            ),
            self._port(network, endpoint.veth, f"{self._owner}/{endpoint.container_id}"),
        ]

    def _port(self, network: Network, name: str, alias: str) -> Request:
        return links.port_request(
            name,
            hairpin=True,  # br_netfilter redirects inside the bridge: a container's own published port needs it
            isolated=not network.flag(options.ICC, True),
            alias=alias,
            ipv6=sysctls.has_ipv6(),
        )

    def replug(self, network: Network, endpoint: Endpoint, link: Link) -> None:
        """Put a running container's host end right after a restart of the daemon, if it is not."""
        index = self._indices[network.interface]
        right = link.master in (index, *self._extensions.indices(network))
        self._extensions.plugged(link.master if right else index, endpoint.veth)
        if not right or not link.up:
            alias = f"{self._owner}/{endpoint.container_id}"
            master = link.master if right else index
            self._host.apply(
                [links.enslave_request(endpoint.veth, master), self._port(network, endpoint.veth, alias)]
            )

    def kept(self) -> set[str]:
        """Return the names of interfaces that are the driver's own, beside its networks' and endpoints'."""
        return self._extensions.names()

    def sweep(self, keep: Collection[str]) -> list[str]:
        """Cut off the interfaces that are ours and not to `keep` (by name); return their names for deletion."""
        wanted = {*keep, *self.kept()}
        found = [
            link.name
            for link in self._host.links()
            if link.alias.startswith(f"{self._owner}/") and link.name not in wanted
        ]
        if found:
            self._host.apply([links.release_request(name) for name in found])
        return found

    def ready(self, network: Network, endpoint: Endpoint) -> None:
        """Let port and bridge carry packets now: what a container sent before would be lost, and sent again
        after a second."""
        self._host.apply([links.settle_request(endpoint.veth), links.settle_request(network.interface)])

    def unplug(self, network: Network, endpoint: Endpoint) -> None:
        """Take the host's end off the bridge and down. The pair goes with its namespace, or by `delete`."""
        self._extensions.unplugged(endpoint.veth)
        try:
            self._host.apply([links.release_request(endpoint.veth)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def _settings(self, network: Network) -> None:
        name = network.interface.replace(".", "/")
        # Replies to connections from 127.0.0.1 that were redirected into the bridge come back addressed to it;
        # the firewall's raw chain keeps containers from using that for anything else.
        sysctls.write(f"net.ipv4.conf.{name}.route_localnet", "1")
        if sysctls.read(f"net.ipv6.conf.{name}.disable_ipv6") is None:
            return
        sysctls.write(f"net.ipv6.conf.{name}.accept_ra", "0")
        sysctls.write(f"net.ipv6.conf.{name}.disable_ipv6", "0" if network.ipv6 else "1")


def endpoint_mac(ipv4: str) -> str:
    """Return the MAC address that belongs to an IPv4 address; a random local one without."""
    return "02:42:" + IPv4Address(ipv4).packed.hex(":") if ipv4 else _random_mac()


def _random_mac() -> str:
    return "02:42:" + secrets.token_bytes(4).hex(":")


def _gateways(network: Network, version: int) -> set[str]:
    found: set[str] = set()
    if options.gateway_mode(network, version) == "isolated":
        return found  # the host has no address there: containers reach one another and nothing else
    for pool in network.pools:
        subnet = ip_interface(pool.subnet).network
        if subnet.version == version and pool.gateway:
            found.add(f"{pool.gateway}/{subnet.prefixlen}")
    return found


def _check_address(network: Network, option: str, version: int) -> None:
    text = network.options.get(option)
    if not text:
        return
    try:
        IPv4Address(text) if version == 4 else IPv6Address(text)
    except ValueError:
        raise InvalidParameter(f"invalid value {text!r} of option {option}: not an IPv{version} address") from None
