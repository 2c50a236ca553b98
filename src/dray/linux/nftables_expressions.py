"""The expressions that an nf_tables rule is made of (linux/netfilter/nf_tables.h, `nft --debug=netlink`).

A rule is a row of small instructions that load packet data into registers, compare them, and end in a verdict or
in NAT. Registers are four of 16 bytes (`REG_1`…), or the same space as sixteen of 4 bytes (`REG32` + n).
Each function returns one encoded expression.
"""

from __future__ import annotations

import struct

from dray.linux import netlink

REG_VERDICT, REG_1, REG_2 = 0, 1, 2
REG32 = 8

META_MARK, META_IIFNAME, META_OIFNAME, META_L4PROTO, META_SECPATH = 3, 6, 7, 16, 25
NETWORK, TRANSPORT = 1, 2
EQUAL, NOT_EQUAL = 0, 1
CT_STATE, CT_STATUS = 0, 2
CT_ESTABLISHED, CT_RELATED, CT_NEW = 2, 4, 8
CT_DST_NAT = 1 << 5  # IPS_DST_NAT
RTN_LOCAL = 2

VERDICT_DROP, VERDICT_ACCEPT, VERDICT_RETURN, VERDICT_JUMP, VERDICT_GOTO = 0, 1, -5, -3, -4

_NAME, _DATA = 1, 2
_CHECKSUM_INTERNET = 1  # NFT_PAYLOAD_CSUM_INET
_VALUE, _VERDICT = 1, 2


def _expression(name: str, *attributes: bytes) -> bytes:
    return netlink.nested(1, netlink.text(_NAME, name), netlink.nested(_DATA, *attributes))


def _value(kind: int, data: bytes) -> bytes:
    return netlink.nested(kind, netlink.attribute(_VALUE, data))


def meta(key: int, register: int = REG_1) -> bytes:
    """Load packet metadata: META_*."""
    return _expression("meta", netlink.be32(2, key), netlink.be32(1, register))


def is_encrypted() -> bytes:
    """Load whether the packet's route leads through IPsec: one byte (nft_rt, `rt ipsec`)."""
    return _expression("rt", netlink.be32(1, REG_1), netlink.be32(2, 4))


def payload(base: int, offset: int, length: int, register: int = REG_1) -> bytes:
    """Load `length` bytes of a header: NETWORK or TRANSPORT."""
    return _expression(
        "payload",
        netlink.be32(1, register),
        netlink.be32(2, base),
        netlink.be32(3, offset),
        netlink.be32(4, length),
    )


def rewrite(base: int, offset: int, data: bytes, *, checksum: int, register: int = REG_1) -> bytes:
    """Write constant bytes into a header (NETWORK or TRANSPORT), and put the header's checksum, which stands at
    `checksum`, right."""
    store = _expression(
        "payload",
        netlink.be32(5, register),
        netlink.be32(2, base),
        netlink.be32(3, offset),
        netlink.be32(4, len(data)),
        netlink.be32(6, _CHECKSUM_INTERNET),
        netlink.be32(7, checksum),
    )
    return immediate(data, register) + store


def compare(data: bytes, *, operator: int = EQUAL, register: int = REG_1) -> bytes:
    """Go on only if the register compares so with `data`."""
    return _expression("cmp", netlink.be32(1, register), netlink.be32(2, operator), _value(3, data))


def mask(data: bytes, register: int = REG_1) -> bytes:
    """Keep only the bits of `data` in the register."""
    return _expression(
        "bitwise",
        netlink.be32(1, register),
        netlink.be32(2, register),
        netlink.be32(3, len(data)),
        _value(4, data),
        _value(5, bytes(len(data))),
    )


def lookup(set_name: str, *, inverted: bool = False, into: int | None = None, register: int = REG_1) -> bytes:
    """Go on only if the register's value is in the set (or is not); of a map, load the value into `into`."""
    attributes = [netlink.text(1, set_name), netlink.be32(2, register)]
    if into is not None:
        attributes.append(netlink.be32(3, into))
    if inverted:
        attributes.append(netlink.be32(5, 1))
    return _expression("lookup", *attributes)


def immediate(data: bytes, register: int = REG_1) -> bytes:
    """Load a constant."""
    return _expression("immediate", netlink.be32(1, register), _value(2, data))


def verdict(code: int, chain: str = "") -> bytes:
    """End the rule: VERDICT_*, with the chain that a jump goes to."""
    parts = [netlink.be32(1, code)] + ([netlink.text(2, chain)] if chain else [])
    return _expression(
        "immediate", netlink.be32(1, REG_VERDICT), netlink.nested(2, netlink.nested(_VERDICT, *parts))
    )


def conntrack(key: int, register: int = REG_1) -> bytes:
    """Load CT_STATE or CT_STATUS."""
    return _expression("ct", netlink.be32(2, key), netlink.be32(1, register))


def conntrack_any(key: int, bits: int) -> bytes:
    """Go on only if one of the bits of CT_STATE or CT_STATUS is set."""
    word = struct.pack("=I", bits)
    return conntrack(key) + mask(word) + compare(bytes(4), operator=NOT_EQUAL)


def destination_is_local() -> bytes:
    """Go on only if the packet is for one of this host's own addresses."""
    return _expression("fib", netlink.be32(1, REG_1), netlink.be32(2, 3), netlink.be32(3, 2)) + compare(
        struct.pack("=I", RTN_LOCAL)
    )


def dnat(family: int, address: int, port: int) -> bytes:
    """Send the packet elsewhere: to the address and port in these registers."""
    return _nat(1, family, address, port)


def snat(family: int, address: int) -> bytes:
    """Let the packet come from the address in this register."""
    return _nat(0, family, address, None)


def _nat(kind: int, family: int, address: int, port: int | None) -> bytes:
    attributes = [netlink.be32(1, kind), netlink.be32(2, family), netlink.be32(3, address)]
    if port is not None:
        attributes.append(netlink.be32(5, port))
    return _expression("nat", *attributes)


def masquerade() -> bytes:
    """Let the packet come from the address of the interface it leaves by."""
    return _expression("masq")


def duplicate(address: int, device: int) -> bytes:
    """Send a copy, with no flow of its own, to the neighbour and the interface index in these registers."""
    return _expression("dup", netlink.be32(1, address), netlink.be32(2, device))


def no_tracking() -> bytes:
    """Let the packet belong to no flow (before the flows are looked up: priority raw)."""
    return _expression("notrack")


def counter() -> bytes:
    """Count packets and bytes."""
    return _expression("counter", netlink.be64(1, 0), netlink.be64(2, 0))
