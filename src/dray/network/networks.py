"""The networks there are: stored, resolved, created, removed.

A network is written to the records before anything is made in the kernel, and removed from them after: whatever
the moment of a crash, every bridge of ours has a record, and start-up makes the kernel follow the records.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_interface, ip_network

import msgspec

from dray.base import digest, failpoints
from dray.base.errors import Conflict, Forbidden, InvalidParameter, NotFound
from dray.base.records import Change, Records
from dray.linux.links import Interface, Links
from dray.network import asks, ipam, options
from dray.network.asks import NetworkAsk
from dray.network.ipam import Ipam, Subnet
from dray.network.model import KIND, PREDEFINED, Driver, Network, NetworkConfig, Pool
from dray.network.plugin_driver import PluginDriver

DEFAULT_GATEWAY = {4: "DefaultGatewayIPv4", 6: "DefaultGatewayIPv6"}


class Networks:
    """The table of networks, by id and by name. Borrows everything it is given."""

    def __init__(
        self,
        records: Records,
        config: NetworkConfig,
        host: Links,
        pools: Ipam,
        drivers: Mapping[str, Driver],
        is_plugin: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._records = records
        self._config = config
        self._host = host
        self._ipam = pools
        self._drivers = drivers
        self._is_plugin = is_plugin
        self._by_id: dict[str, Network] = {}
        self._busy: set[str] = set()  # names of networks that plugins are making or removing

    def load(self) -> None:
        """Read the stored networks and make sure that the predefined ones exist as configured."""
        stored = [msgspec.json.decode(value, type=Network) for _, value in self._records.scan(KIND)]
        old = {network.name: network for network in stored if network.predefined}
        for network in stored:
            if not network.predefined:
                self._by_id[network.id] = network
                self._take_pools(network)
        for name, driver in (("host", "host"), ("none", "null")):
            before = old.get(name)
            self._keep(
                before or Network(id=digest.new_id(), name=name, driver=driver, created=time.time_ns()), before
            )
        before = old.get("bridge")
        if self._config.bridge == "none":
            if before is not None:
                self._records.write([Change(KIND, before.id, None)])
            return
        network = self._default_bridge(before)
        self._drivers["bridge"].validate(network)
        self._ipam.add(network.id, network.pools)
        self._keep(network, before)

    def all(self) -> list[Network]:
        """Return all networks, by name."""
        return sorted(self._by_id.values(), key=lambda network: network.name)

    def get(self, network_id: str) -> Network | None:
        """Return the network of exactly that id, or None."""
        return self._by_id.get(network_id)

    def resolve(self, name_or_id: str) -> Network:
        """Find a network by full id, name or unique id prefix, in this order; NotFound otherwise."""
        if name_or_id in self._by_id:
            return self._by_id[name_or_id]
        for network in self._by_id.values():
            if network.name == name_or_id:
                return network
        found = [network for network in self._by_id.values() if name_or_id and network.id.startswith(name_or_id)]
        if len(found) > 1:
            raise InvalidParameter(
                f"network {name_or_id} is ambiguous ({len(found)} matches found based on ID prefix)"
            )
        if not found:
            raise NotFound(f"network {name_or_id} not found")
        return found[0]

    def driver(self, network: Network) -> Driver:
        """Return the driver of a network."""
        return self._drivers.get(network.driver) or PluginDriver(network.driver, self._host)

    def create(self, ask: NetworkAsk) -> Network:
        """Check an ask, choose its subnets and store the network. The kernel's side is the caller's next step;
        `forget` undoes this one. A network that plugins have a part in is not stored yet: `settle` does so."""
        asks.check(ask, self._is_plugin)
        if ask.name in PREDEFINED:
            raise Forbidden(f"operation is not permitted on predefined {ask.name} network ")
        if ask.name in self._busy or any(network.name == ask.name for network in self._by_id.values()):
            raise Conflict(f"network with name {ask.name} already exists")
        network = self._from_ask(ask)
        if network.config_only:
            self._keep(network, None)
            return network
        self.driver(network).validate(network)
        return network if network.remote or network.remote_ipam else self.settle(network)

    def settle(self, network: Network) -> Network:
        """Choose the subnets of a checked network, unless a plugin has, and store it."""
        for other in self._by_id.values():
            if other.interface and other.interface == network.interface:
                self.driver(network).share(network, other)
        if not network.remote_ipam:
            network = msgspec.structs.replace(network, pools=self._choose_pools(network))
        self._take_pools(network)
        failpoints.reach("network-create.chosen")
        self._keep(network, None)
        return network

    @contextlib.contextmanager
    def hidden(self, network: Network) -> Iterator[None]:
        """Keep a network out of everybody's sight while plugins make or remove it; its name stays taken. If the
        block fails it is seen again, provided that it was stored."""
        if network.name in self._busy:
            raise Conflict(f"network {network.name} is being made or removed")
        self._busy.add(network.name)
        stored = self._by_id.pop(network.id, None)
        try:
            yield
        except BaseException:
            if stored is not None:
                self._by_id[network.id] = stored
            raise
        finally:
            self._busy.discard(network.name)

    def hide(self, network: Network) -> None:
        """Let nobody see a network (within `hidden`)."""
        self._by_id.pop(network.id, None)

    def show(self, network: Network) -> None:
        """Let everybody see a network that is stored."""
        self._by_id[network.id] = network

    def _take_pools(self, network: Network) -> None:
        """Take a network's subnets, so that no other gets them. A plugin network's with a plugin's addresses are on
        no wire of ours: they may be others' as well."""
        if not (network.remote and network.remote_ipam):
            self._ipam.add(network.id, network.pools)

    def forget(self, network: Network) -> None:
        """Remove a network from the records and give its subnets back."""
        self._records.write([Change(KIND, network.id, None)])
        self._by_id.pop(network.id, None)
        self._ipam.remove(network.id)

    def _keep(self, network: Network, before: Network | None) -> None:
        if network != before:
            self._records.write([Change(KIND, network.id, msgspec.json.encode(network))])
        self._by_id[network.id] = network

    def _from_ask(self, ask: NetworkAsk) -> Network:
        driver = ask.driver or "bridge"
        if driver not in self._drivers and not self._is_plugin(driver):
            known = ", ".join(sorted(self._drivers))
            raise NotFound(
                f'network driver "{driver}" not found: this engine has {known}, and no plugin of that name'
            )
        network_id = digest.new_id()
        opts = dict(self._config.default_network_opts.get(driver, {})) | ask.options
        network = Network(
            **ask.terms() | {"options": ask.options if ask.config_only else opts},
            id=network_id,
            driver="null" if ask.config_only else driver,
            created=time.time_ns(),
            ipam_driver=ask.ipam_driver or "default",
        )
        if not ask.config_from:
            return self._named(network)
        source = self.resolve(ask.config_from)
        if not source.config_only:
            raise Forbidden(
                f'"{source.name}" is not a configuration-only network: it cannot be named by --config-from'
            )
        if ask.pools or ask.options or ask.ipv6 or ask.internal:
            raise Forbidden(
                "user specified configurations are not supported if the network depends on a configuration network"
            )
        network = msgspec.structs.replace(
            network,
            ipam_driver=source.ipam_driver,
            ipv4=source.ipv4,
            ipv6=source.ipv6,
            internal=source.internal,
            pools=source.pools,
            options=source.options,
            labels=source.labels | ask.labels,
        )
        return self._named(network)

    def _named(self, network: Network) -> Network:
        """Return a network with the name of the host's interface that will be behind it."""
        if network.config_only:
            return network
        return msgspec.structs.replace(network, interface=self.driver(network).interface(network))

    def _choose_pools(self, network: Network) -> list[Pool]:
        if network.ipam_driver == "null" or network.driver in ("host", "null"):
            return []
        pools: list[Pool] = []
        versions: set[int] = set()
        for pool in network.pools:
            if not pool.subnet:
                if pool.ip_range or pool.gateway or pool.auxiliary:
                    raise InvalidParameter(
                        "invalid network config: a subnet is needed beside an ip-range or gateway"
                    )
                continue
            version = ipam.parse_subnet(pool.subnet).version
            if not (network.ipv4 if version == 4 else network.ipv6):
                raise InvalidParameter(
                    f"invalid subnet {pool.subnet}: IPv{version} is not enabled on this network"
                )
            versions.add(version)
            pools.append(ipam.complete(msgspec.structs.replace(pool, configured=True)))
        for version, wanted in ((4, network.ipv4), (6, network.ipv6)):
            if wanted and version not in versions:
                subnet = self._ipam.choose(version, self._routed())
                pools.append(ipam.complete(Pool(subnet=str(subnet))))
        return pools

    def _routed(self, except_index: int = 0) -> list[Subnet]:
        """Return what is routed on the host, to keep new subnets out of everybody's way."""
        routes = [ip_network(route.destination) for route in self._host.routes() if route.index != except_index]
        own = [found.network for index, found in self._host.addresses() if index != except_index]
        return [subnet for subnet in routes + own if subnet.prefixlen]

    def _default_bridge(self, before: Network | None) -> Network:
        config = self._config
        pools = [self._default_pool(4, config.bip, config.fixed_cidr, config.default_gateway, before)]
        if config.ipv6:
            pools.append(
                self._default_pool(6, config.bip6, config.fixed_cidr_v6, config.default_gateway_v6, before)
            )
        opts = {
            options.DEFAULT_BRIDGE: "true",
            options.ICC: str(config.icc).lower(),
            options.MASQUERADE: str(config.ip_masq).lower(),
            options.HOST_BINDING: config.default_binding,
            options.NAME: config.bridge,
            options.MTU: str(config.mtu or 1500),
        }
        return Network(
            id=before.id if before else digest.new_id(),
            name="bridge",
            driver="bridge",
            created=before.created if before else time.time_ns(),
            ipv6=config.ipv6,
            pools=pools,
            options=opts,
            interface=config.bridge,
        )

    def _default_pool(self, version: int, bip: str, fixed: str, gateway: str, before: Network | None) -> Pool:
        link = self._host.find(self._config.bridge)
        index = link.index if link else 0
        if not bip and index:
            present = [found for of, found in self._host.addresses(index) if found.version == version]
            bip = next((str(found) for found in present if not found.is_link_local), "")
        if not bip and before is not None:
            bip = _previous(before, version, self._routed(index))
        auxiliary = {DEFAULT_GATEWAY[version]: gateway} if gateway else {}
        if bip:
            interface = _interface(bip, version)
            pool = Pool(
                subnet=str(interface.network), gateway=str(interface.ip), ip_range=fixed, auxiliary=auxiliary
            )
        elif fixed:
            pool = Pool(subnet=str(ipam.parse_subnet(fixed)), ip_range=fixed, auxiliary=auxiliary)
        else:
            pool = Pool(subnet=str(self._ipam.choose(version, self._routed(index))), auxiliary=auxiliary)
        return ipam.complete(pool)


def _previous(before: Network, version: int, routed: list[Subnet]) -> str:
    """Return the default bridge's address of last time, unless its subnet is somebody else's by now."""
    for pool in before.pools:
        subnet = ip_network(pool.subnet)
        busy = any(other.version == version and other.overlaps(subnet) for other in routed)
        if subnet.version == version and not busy:
            return f"{pool.gateway}/{subnet.prefixlen}"
    return ""


def _interface(text: str, version: int) -> Interface:
    try:
        interface = ip_interface(text)
    except ValueError:
        raise InvalidParameter(
            f"invalid bridge address {text}: it is an address with prefix, such as 10.0.0.1/24"
        ) from None
    if interface.version != version or "/" not in text:
        raise InvalidParameter(f"invalid bridge address {text}: it is an IPv{version} address with prefix length")
    if (
        interface.ip == interface.network.network_address
        and interface.network.prefixlen < interface.max_prefixlen - 1
    ):
        raise InvalidParameter(f"invalid bridge address {text}: it is the network's own address")
    return interface
