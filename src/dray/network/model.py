"""Networks, endpoints, and what a driver of networks does.

Vocabulary (libnetwork's): a *network* is what containers join; a *sandbox* is a container's network namespace; an
*endpoint* is a sandbox's membership in a network, with its interface, addresses and published ports.

`Network` is stored in `Records` (kind "network", key its id). `Endpoint` is stored by the engine in the
container's record: together they are all that a restarted daemon needs to know; addresses in use are derived from
them, never stored apart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Protocol

import msgspec
from msgspec import Struct, field

KIND = "network"
PREDEFINED = ("bridge", "host", "none")
OPTION = "com.docker.network."
BRIDGE_OPTION = OPTION + "bridge."
DRIVERS = frozenset({"bridge", "host", "ipvlan", "macvlan", "null", "overlay"})
IPAM_DRIVERS = frozenset({"", "default", "null"})


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A subnet of a network (CIDR), the part of it that addresses are handed out from, its gateway, and named
    addresses that are kept out. `configured`: the user chose the subnet, so that fixed addresses make sense.
    `pool_id`: what the IPAM plugin that gave the subnet calls it."""

    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    auxiliary: dict[str, str] = {}
    configured: bool = False
    pool_id: str = ""


class NetworkTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What an ask for a network and the network itself have in common, under the API's names."""

    name: str
    ipv4: bool = True
    ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: str = ""
    ipam_options: dict[str, str] = {}
    pools: list[Pool] = []
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


class Network(NetworkTerms, frozen=True, kw_only=True):
    """A network. `created` is unix nanoseconds; `interface` the host's interface behind it (a bridge's name)."""

    id: str
    driver: str
    created: int = 0
    scope: str = "local"
    ipam_driver: str = "default"
    interface: str = ""

    @property
    def predefined(self) -> bool:
        """Whether it is one of `bridge`, `host` and `none`, which cannot be removed."""
        return self.name in PREDEFINED

    @property
    def remote(self) -> bool:
        """Whether its driver is a plugin."""
        return self.driver not in DRIVERS

    @property
    def remote_ipam(self) -> bool:
        """Whether its addresses are a plugin's."""
        return self.ipam_driver not in IPAM_DRIVERS

    def flag(self, option: str, default: bool) -> bool:
        """Read a boolean driver option."""
        return parse_flag(self.options.get(option, ""), default)


class PortBinding(msgspec.Struct, frozen=True, kw_only=True):
    """A published port. `host_ip` is the address it is bound to, `0.0.0.0` or `::` for all of a family.
    `host_port` 0: on no address of the host, but open at the container's own (a routed network)."""

    protocol: str
    container_port: int
    host_ip: str
    host_port: int


class StaticRoute(msgspec.Struct, frozen=True):
    """A route of a sandbox: a CIDR, and the neighbour that leads there (empty: it is on the link)."""

    destination: str
    gateway: str = ""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A container's membership in a network. Addresses are plain text without prefix, empty when absent.

    `names` are what the network's DNS answers for it (container name, short id, aliases, hostname). `veth` is the
    host's end, empty where there is none. `link_local` are further addresses, with prefix. `on_link`: the default
    route has no gateway, the interface itself leads everywhere. `ingress_rate` and `egress_rate` are limits in
    bytes per second, 0 for none. `default4` and `default6` mark the endpoint that carries the sandbox's default route.
    `source`: what a plugin called the interface before it was moved into the sandbox; `routes` are the plugin's.
    """

    id: str
    network_id: str
    network_name: str
    driver: str
    container_id: str
    container_name: str
    interface: str = ""
    veth: str = ""
    mac: str = ""
    ipv4: str = ""
    prefix4: int = 0
    gateway4: str = ""
    ipv6: str = ""
    prefix6: int = 0
    gateway6: str = ""
    link_local: list[str] = []
    on_link: bool = False
    source: str = ""
    routes: list[StaticRoute] = []
    ingress_rate: int = 0
    egress_rate: int = 0
    internal: bool = False
    default4: bool = False
    default6: bool = False
    gw_priority: int = 0
    names: list[str] = []
    aliases: list[str] = []
    links: list[str] = []
    driver_opts: dict[str, str] = {}
    ports: list[PortBinding] = []

    def interfaces(self) -> list[IPv4Interface | IPv6Interface]:
        """Return its addresses with their prefixes."""
        found: list[IPv4Interface | IPv6Interface] = []
        if self.ipv4:
            found.append(ip_interface(f"{self.ipv4}/{self.prefix4}"))
        if self.ipv6:
            found.append(ip_interface(f"{self.ipv6}/{self.prefix6}"))
        return found


class PortAsk(msgspec.Struct, frozen=True, kw_only=True):
    """A port to publish: on `host_ip` ("" the network's default, on IPv4 and IPv6), on the first free host port
    from `first` to `last` (0, 0: any)."""

    protocol: str
    container_port: int
    host_ip: str = ""
    first: int = 0
    last: int = 0


class EndpointAsk(msgspec.Struct, frozen=True, kw_only=True):
    """A network to join (by name, id or id prefix) and with what."""

    network: str
    ipv4: str = ""
    ipv6: str = ""
    link_local: list[str] = []
    mac: str = ""
    aliases: list[str] = []
    links: list[str] = []
    driver_opts: dict[str, str] = {}
    gw_priority: int = 0


class SandboxAsk(msgspec.Struct, frozen=True, kw_only=True):
    """What a container wants of the network.

    mode: `bridge`, `default` or "" (the default network), `none`, `host`, a network's name or id, or
        `container:<id>` (joins another's sandbox: nothing to do here)
    name: the container's name, for messages and DNS
    endpoints: what is asked of particular networks; one that names `mode`'s network refines it, others are joined
        besides, in this order
    exposed: (protocol, port) that `publish_all` publishes on any host port
    mapped: the sandbox belongs to a new user namespace, of the maps that the daemon is configured with
    user_path: it belongs to the user namespace at this path
    """

    mode: str = ""
    name: str = ""
    hostname: str = ""
    endpoints: list[EndpointAsk] = []
    ports: list[PortAsk] = []
    publish_all: bool = False
    exposed: list[tuple[str, int]] = []
    mapped: bool = False
    user_path: str = ""


class Attachment(Struct):
    """A finished sandbox, owned by the caller: `close` it once the task holds its own descriptors.

    netns: the namespace's descriptor; None when the container uses the host's or another container's
    userns: that of the user namespace it belongs to, if not the host's
    endpoints: to be stored in the container's record
    hold_fds: sockets that reserve the published host ports while the container lives
    forwards: (protocol, index into hold_fds, container address, container port): published where the kernel's
        NAT does not reach, to be forwarded in user space (`shim.model.TaskCreate.forwards`, with the indices
        shifted to its `fds`)
    sysctls: to be set inside the sandbox before the program runs (beneath the user's own)
    """

    netns: int | None = None
    userns: int | None = None
    endpoints: list[Endpoint] = field(default_factory=list)
    hold_fds: list[int] = field(default_factory=list)
    forwards: list[tuple[str, int, str, int]] = field(default_factory=list)
    sysctls: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        """Close all descriptors. The namespace and the reservations end unless somebody else holds them."""
        if self.netns is not None:
            os.close(self.netns)
            self.netns = None
        if self.userns is not None:
            os.close(self.userns)
            self.userns = None
        while self.hold_fds:
            os.close(self.hold_fds.pop())


class NetworkConfig(Struct, frozen=True):
    """The daemon's networking settings, under dockerd's own names.

    bridge: name of the default bridge's interface (made when missing), `none` for no default network
    table: name of the nftables tables, of which each daemon of a host needs its own; empty: from the bridge's name
    default_binding: the address that ports are published on when none is named (`--ip`)
    address_pools: (CIDR, prefix length) that networks without a subnet are cut from; empty: Docker's defaults
    ipv6_pools: the same for IPv6; empty: a ULA prefix made from the machine's id
    iptables, ip6tables: keep firewall rules for IPv4, IPv6. Without them ports are published in user space
    userland_proxy: forward in user space where NAT does not reach
    default_network_opts: driver → options of new networks
    allow_direct_routing: published ports may be reached by the containers' own addresses from outside
    accept_fwmark: (value, mask) of packet marks that pass into every bridge
    user_maps: texts of uid_map and gid_map of the user namespaces that sandboxes belong to; None: the host's
    respect_host_firewall: the host's own INPUT rules hold for published ports
    host_gateway_ips: what `host-gateway` stands for in --add-host; empty: the default bridge's addresses
    """

    bridge: str = "dray0"
    table: str = ""
    bip: str = ""
    bip6: str = ""
    fixed_cidr: str = ""
    fixed_cidr_v6: str = ""
    default_gateway: str = ""
    default_gateway_v6: str = ""
    default_binding: str = "0.0.0.0"
    mtu: int = 1500
    icc: bool = True
    ip_masq: bool = True
    ip_forward: bool = True
    ip_forward_no_drop: bool = False
    ipv6: bool = False
    iptables: bool = True
    ip6tables: bool = True
    userland_proxy: bool = True
    address_pools: Sequence[tuple[str, int]] = ()
    ipv6_pools: Sequence[tuple[str, int]] = ()
    default_network_opts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    host_gateway_ips: Sequence[str] = ()
    allow_direct_routing: bool = False
    accept_fwmark: tuple[int, int] | None = None
    respect_host_firewall: bool = False
    user_maps: tuple[str, str] | None = None

    @property
    def table_name(self) -> str:
        """The nftables tables' name."""
        return self.table or ("dray" if self.bridge in ("dray0", "none") else f"dray-{self.bridge}")


class Driver(Protocol):
    """What a kind of network does to the kernel. Every verb may be repeated: it makes the state so."""

    name: str

    def interface(self, network: Network) -> str:
        """Return the name of the host's interface behind a new network; empty for none."""

    def share(self, network: Network, other: Network) -> None:
        """Raise Forbidden if a new network may not have the same host's interface as another network."""

    def validate(self, network: Network) -> None:
        """Raise InvalidParameter or Unsupported, naming it, for an option that this driver does not have."""

    def up(self, network: Network) -> None:
        """Make the network in the kernel, or adopt what is there."""

    def down(self, network: Network) -> None:
        """Remove it from the kernel."""

    def plug(self, network: Network, endpoint: Endpoint, netns: int) -> None:
        """Make `endpoint.interface` inside the namespace of descriptor `netns`; not yet up, no addresses."""

    def ready(self, network: Network, endpoint: Endpoint) -> None:
        """Make sure that packets pass, once the interface is up inside the sandbox."""

    def unplug(self, network: Network, endpoint: Endpoint) -> None:
        """Cut the endpoint off at once; a missing interface is no error."""


class NamespaceSource(Protocol):
    """Where new network namespaces come from (`shim.tasks.Zygote`)."""

    async def new_network_namespace(self) -> tuple[int, int]:
        """Return (namespace descriptor, NETLINK_ROUTE socket opened inside it), owned by the caller."""

    async def new_mapped_network_namespace(self, maps: tuple[str, str]) -> tuple[int, int, int]:
        """Return the same and the descriptor of a new user namespace that owns it (uid_map, gid_map)."""

    async def new_network_namespace_in(self, user: int) -> tuple[int, int]:
        """Return the same as `new_network_namespace`, owned by an existing user namespace."""


def parse_flag(text: str, default: bool) -> bool:
    """Read a boolean as Go's strconv.ParseBool does; anything else gives `default`."""
    if text in ("1", "t", "T", "true", "True", "TRUE"):
        return True
    if text in ("0", "f", "F", "false", "False", "FALSE"):
        return False
    return default
