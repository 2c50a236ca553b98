"""Address management: subnets for networks, addresses for endpoints.

Everything lives in memory and is derived from records at start: pools from the stored networks, addresses in use
from the stored endpoints of running containers. Nothing here touches the kernel or a disk.

Addresses are handed out lowest first, as Docker does. The network's own address, an IPv4 broadcast address, the
gateway and the auxiliary addresses are never handed out, and no address is handed out twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

import msgspec

from dray.base.errors import Conflict, Forbidden, Internal, InvalidParameter, NotFound
from dray.network.model import Pool

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network

# Docker's own defaults (moby libnetwork/ipamutils): 172.17–172.31 as /16, 192.168 as /20.
DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    ("172.17.0.0/16", 16),
    ("172.18.0.0/16", 16),
    ("172.19.0.0/16", 16),
    ("172.20.0.0/14", 16),
    ("172.24.0.0/14", 16),
    ("172.28.0.0/14", 16),
    ("192.168.0.0/16", 20),
)


def parse_subnet(text: str) -> Subnet:
    """Read a CIDR whose host bits are zero; InvalidParameter in Docker's words otherwise."""
    try:
        subnet = ip_network(text, strict=False)
    except ValueError:
        raise InvalidParameter(f"invalid subnet {text}: it is not a CIDR such as 172.28.0.0/16") from None
    if text.partition("/")[0] != str(subnet.network_address) and ip_address(text.partition("/")[0]) != (
        subnet.network_address
    ):
        raise InvalidParameter(f"invalid subnet {text}: it should be {subnet}")
    return subnet


def parse_address(text: str, what: str) -> Address:
    """Read an address; InvalidParameter naming `what` otherwise."""
    try:
        return ip_address(text)
    except ValueError:
        raise InvalidParameter(f"invalid {what}: {text} is not an IP address") from None


class AddressPool:
    """The addresses of one subnet."""

    def __init__(self, subnet: Subnet, *, ip_range: Subnet | None = None, kept: Iterable[Address] = ()) -> None:
        self.subnet = subnet
        span = ip_range or subnet
        self._first, self._last = int(span.network_address), int(span.broadcast_address)
        self._cursor = self._first
        self._used: set[int] = set()
        if subnet.prefixlen < subnet.max_prefixlen - 1:
            self._used.add(int(subnet.network_address))
            if subnet.version == 4:
                self._used.add(int(subnet.broadcast_address))
        self._kept = self._used | {int(address) for address in kept}
        self._used |= self._kept

    def take(self) -> Address | None:
        """Hand out the lowest free address, or None when there is none."""
        at = self._cursor
        while at in self._used:
            at += 1
        if at > self._last:
            self._cursor = at
            return None
        self._used.add(at)
        self._cursor = at + 1
        return IPv4Address(at) if self.subnet.version == 4 else IPv6Address(at)

    def reserve(self, address: Address) -> None:
        """Take a particular address; Forbidden if it is in use, InvalidParameter if it lies outside."""
        if address not in self.subnet:
            raise InvalidParameter(
                f"invalid endpoint settings: no configured subnet contains IP address {address}"
            )
        if int(address) in self._used:
            raise Forbidden("Address already in use")
        self._used.add(int(address))

    def release(self, address: Address) -> None:
        """Give an address back; one that was not handed out stays as it is."""
        number = int(address)
        if number in self._used and number not in self._kept:
            self._used.discard(number)
            if self._first <= number < self._cursor:
                self._cursor = number

    def __contains__(self, address: Address) -> bool:
        return int(address) in self._used


class Ipam:
    """The pools of all networks, and the defaults that new ones are cut from."""

    def __init__(
        self, defaults: Sequence[tuple[str, int]] = (), defaults6: Sequence[tuple[str, int]] = ()
    ) -> None:
        self._defaults = [(parse_subnet(base), size) for base, size in defaults or DEFAULT_POOLS]
        self._defaults6 = [(parse_subnet(base), size) for base, size in defaults6 or (_ula_pool(),)]
        for base, size in self._defaults + self._defaults6:
            if not base.prefixlen <= size <= base.max_prefixlen:
                raise InvalidParameter(f"invalid default address pool {base}: size /{size} does not fit in it")
        self._pools: dict[str, list[AddressPool]] = {}

    def choose(self, version: int, avoid: Iterable[Subnet]) -> Subnet:
        """Return the first default subnet that overlaps neither a network nor one of `avoid`."""
        taken = [subnet for subnet in avoid if subnet.version == version and subnet.prefixlen]
        taken += [
            pool.subnet for pools in self._pools.values() for pool in pools if pool.subnet.version == version
        ]
        for base, size in self._defaults if version == 4 else self._defaults6:
            free = _first_free(base, size, taken)
            if free is not None:
                return free
        raise NotFound("all predefined address pools have been fully subnetted")

    def add(self, network_id: str, pools: Sequence[Pool]) -> None:
        """Take the subnets of a network; Forbidden if one overlaps another network's."""
        made: list[AddressPool] = []
        for pool in pools:
            subnet = parse_subnet(pool.subnet)
            others = [other for held in self._pools.values() for other in held]
            for other in [*others, *made]:
                if other.subnet.version == subnet.version and other.subnet.overlaps(subnet):
                    raise Forbidden(
                        f"invalid pool request: Pool overlaps with other one on this address space: {subnet} and "
                        f"{other.subnet}"
                    )
            made.append(_address_pool(pool, subnet))
        self._pools[network_id] = made

    def remove(self, network_id: str) -> None:
        """Give the subnets of a network back."""
        self._pools.pop(network_id, None)

    def take(self, network_id: str, network_name: str, version: int) -> tuple[Address, int]:
        """Hand out an address of a network: (address, prefix length)."""
        for pool in self._pools.get(network_id, ()):
            if pool.subnet.version == version and (address := pool.take()) is not None:
                return address, pool.subnet.prefixlen
        raise Internal(
            f"no available IPv{version} addresses on this network's address pools: {network_name} ({network_id})"
        )

    def reserve(self, network_id: str, address: Address) -> int:
        """Take a particular address of a network; return its prefix length."""
        pools = [pool for pool in self._pools.get(network_id, ()) if pool.subnet.version == address.version]
        for pool in pools:
            if address in pool.subnet:
                pool.reserve(address)
                return pool.subnet.prefixlen
        raise InvalidParameter(f"invalid endpoint settings: no configured subnet contains IP address {address}")

    def release(self, network_id: str, address: Address) -> None:
        """Give an address back."""
        for pool in self._pools.get(network_id, ()):
            if address in pool.subnet:
                pool.release(address)


def complete(pool: Pool) -> Pool:
    """Return a pool with its gateway filled in (the first address of its range) and its words checked."""
    subnet = parse_subnet(pool.subnet)
    span = subnet
    if pool.ip_range:
        span = parse_subnet(pool.ip_range)
        if span.version != subnet.version or not _within(span, subnet):
            raise InvalidParameter(f"invalid ip-range {span}: it is not part of subnet {subnet}")
    for name, text in pool.auxiliary.items():
        if parse_address(text, f"auxiliary address {name}") not in subnet:
            raise InvalidParameter(f"invalid auxiliary address {name}: {text} is not in subnet {subnet}")
    if pool.gateway:
        if parse_address(pool.gateway, "gateway") not in subnet:
            raise InvalidParameter(f"invalid gateway address {pool.gateway}: it is not in subnet {subnet}")
        return pool
    taken = {ip_address(text) for text in pool.auxiliary.values()}
    gateway = span.network_address
    if gateway == subnet.network_address and subnet.prefixlen < subnet.max_prefixlen - 1:
        gateway += 1
    while gateway in taken:
        gateway += 1
    if gateway not in subnet:
        raise Conflict(f"subnet {subnet} has no address left for a gateway")
    return msgspec.structs.replace(pool, gateway=str(gateway))


def _within(inner: Subnet, outer: Subnet) -> bool:
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def _address_pool(pool: Pool, subnet: Subnet) -> AddressPool:
    kept = [ip_address(text) for text in pool.auxiliary.values()]
    if pool.gateway:
        kept.append(ip_address(pool.gateway))
    return AddressPool(subnet, ip_range=parse_subnet(pool.ip_range) if pool.ip_range else None, kept=kept)


def _first_free(base: Subnet, size: int, taken: Sequence[Subnet]) -> Subnet | None:
    """Return the first /size in `base` that overlaps none of `taken`, jumping over each obstacle at once."""
    step = 1 << (base.max_prefixlen - size)
    at, end = int(base.network_address), int(base.broadcast_address)
    spans = [(int(subnet.network_address), int(subnet.broadcast_address)) for subnet in taken]
    while at + step - 1 <= end:
        blocker = max((last for first, last in spans if first <= at + step - 1 and last >= at), default=None)
        if blocker is None:
            packed = at.to_bytes(base.max_prefixlen // 8, "big")
            return ip_network((packed, size))
        at = (blocker // step + 1) * step
    return None


def _ula_pool() -> tuple[str, int]:
    """Return a unique local prefix (RFC 4193) that is always the same on this machine, cut into /64."""
    try:
        with open("/etc/machine-id", "rb") as file:
            seed = file.read().strip()
    except FileNotFoundError:
        seed = b""
    packed = b"\xfd" + hashlib.sha256(b"dray ULA" + seed).digest()[:5] + bytes(10)
    return f"{IPv6Address(packed)}/48", 64
