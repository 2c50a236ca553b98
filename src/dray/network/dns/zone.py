"""The names of all networks, and what a sandbox gets for a name: pure.

Docker's rules: names have no case; a sandbox finds the names of the networks it is in, the first network that knows
the name answers with all addresses that the name has there; `name.network` finds it in that network alone; what a
sandbox calls others by `--link` comes first. Source: Docker's documentation on networking and what its own resolver
answers.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from dray.network.dns.model import Member, Membership, Sandbox

_V4, _V6 = ".in-addr.arpa", ".ip6.arpa"


class _Network:
    __slots__ = ("addresses", "names")

    def __init__(self) -> None:
        self.names: dict[str, dict[str, tuple[bytes, bytes]]] = {}  # name → endpoint → (IPv4, IPv6)
        self.addresses: dict[bytes, str] = {}


class Zone:
    """All names. `version` changes with every change, so that answers can be kept while it does not."""

    def __init__(self) -> None:
        self._networks: dict[str, _Network] = {}
        self._members: dict[str, Member] = {}
        self.version = 0

    def __len__(self) -> int:
        return len(self._members)

    def clear(self) -> None:
        """Forget everything."""
        self._networks.clear()
        self._members.clear()
        self.version += 1

    def add(self, member: Member) -> None:
        """An endpoint has come, or has other names."""
        self.remove(member.id)
        self.version += 1
        self._members[member.id] = member
        network = self._networks.setdefault(member.network, _Network())
        packed = _packed(member.ipv4), _packed(member.ipv6)
        for name in member.names:
            network.names.setdefault(name.lower(), {})[member.id] = packed
        if member.names:
            for address in filter(None, packed):
                network.addresses[address] = member.names[0]

    def remove(self, endpoint_id: str) -> None:
        """An endpoint is gone; unknown ones are no error."""
        member = self._members.pop(endpoint_id, None)
        if member is None:
            return
        self.version += 1
        network = self._networks[member.network]
        for name in {name.lower() for name in member.names}:
            found = network.names[name]
            del found[member.id]
            if not found:
                del network.names[name]
        for address in filter(None, (_packed(member.ipv4), _packed(member.ipv6))):
            if network.addresses.get(address) == (member.names or [""])[0]:
                del network.addresses[address]
        if not network.names:
            del self._networks[member.network]

    def lookup(self, sandbox: Sandbox, name: str, version: int) -> list[bytes] | None:
        """Return the addresses (packed) that a name has for a sandbox; [] if it has only ones of the other version,
        None if it is not known."""
        other = False
        for host, membership in _splits(sandbox, name):
            for target in _targets(sandbox, membership, host):
                found = self._addresses(membership.network, target)
                addresses = [address for pair in found if (address := pair[version == 6])]
                if addresses:
                    return addresses
                other = other or bool(found)
        return [] if other else None

    def _addresses(self, network_id: str, name: str) -> list[tuple[bytes, bytes]]:
        network = self._networks.get(network_id)
        return list(network.names.get(name, {}).values()) if network is not None else []

    def reverse(self, sandbox: Sandbox, name: str) -> str | None:
        """Return what the address in a name such as `2.0.18.172.in-addr.arpa` is called (`name.network`)."""
        address = _address_of(name)
        for membership in sandbox.networks if address else ():
            network = self._networks.get(membership.network)
            found = network.addresses.get(address) if network is not None else None
            if found:
                return f"{found}.{membership.name}"
        return None


def _splits(sandbox: Sandbox, name: str) -> Iterator[tuple[str, Membership]]:
    """Yield (host name, where to look): the whole name anywhere, then as host and network's name."""
    for membership in sandbox.networks:
        yield name, membership
    for membership in sandbox.networks:
        suffix = "." + membership.name.lower()
        if name.endswith(suffix) and len(name) > len(suffix):
            yield name[: -len(suffix)], membership


def _targets(sandbox: Sandbox, membership: Membership, name: str) -> list[str]:
    """Return what a name stands for: a link's target, or itself unless it is linked in this network."""
    for alias, target in membership.links.items():
        if alias.lower() == name:
            return [target.lower()]
    return [name]


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address) if address else b""


def _address_of(name: str) -> bytes:
    """Return the packed address that a name below in-addr.arpa or ip6.arpa is of; b"" if it is none."""
    try:
        if name.endswith(_V4):
            return socket.inet_pton(socket.AF_INET, ".".join(reversed(name.removesuffix(_V4).split("."))))
        if name.endswith(_V6):
            digits = name.removesuffix(_V6).split(".")
            if len(digits) == 32 and all(len(digit) == 1 for digit in digits):
                return bytes.fromhex("".join(reversed(digits)))
    except (OSError, ValueError):
        pass
    return b""
