"""nf_tables over netlink: tables, chains, sets, maps, elements and rules, without the nft program or library.

Everything is a message in a batch (`NFNL_MSG_BATCH_BEGIN` … `NFNL_MSG_BATCH_END`); a batch is one transaction:
all of it or none. Numbers are in network byte order, except inside registers and set keys, where every value
has the byte order that the kernel compares in (addresses and ports: network; packet metadata: host).

Source: linux/netfilter/nf_tables.h. Type numbers of set keys are nft's own (they only tell `nft list` how to
print a key): a concatenation is `(a << 6 | b) << 6 | c`, and each of its fields is padded to four bytes.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

from msgspec import Struct

from dray.base.errors import Unsupported
from dray.linux import netlink
from dray.linux.netlink import Netlink, Request

NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 = 1, 2, 10

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 16, 17
NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14

_NAME, _TABLE_HANDLE = 1, 4  # NFTA_TABLE_*
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 4, 7
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LENGTH = 1, 2, 3, 4, 5
_SET_DATA_TYPE, _SET_DATA_LENGTH, _SET_ID, _SET_USERDATA = 6, 7, 10, 13
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS_LIST = 1, 2, 3
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_USERDATA = 1, 2, 6
_LIST_ELEMENT = 1
_DATA_VALUE = 1
_MAP = 0x8  # NFT_SET_MAP
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT and NFTNL_UDATA_SET_ELEM_COMMENT
_NOTIFY_NFTABLES = 7  # NFNLGRP_NFTABLES
_HOST_BYTE_ORDER = struct.pack("=BBI", 0, 4, 1)  # NFTNL_UDATA_SET_KEYBYTEORDER: nft reads names only so
_ELEMENTS_PER_MESSAGE = 400  # a nested attribute's length has 16 bits

TYPE_IPV4, TYPE_IPV6, TYPE_PROTOCOL, TYPE_SERVICE, TYPE_MARK, TYPE_INTERFACE = 7, 8, 12, 13, 19, 41

HOOK_PREROUTING, HOOK_INPUT, HOOK_FORWARD, HOOK_OUTPUT, HOOK_POSTROUTING = 0, 1, 2, 3, 4
PRIORITY_RAW, PRIORITY_DSTNAT, PRIORITY_FILTER, PRIORITY_SRCNAT = -300, -100, 0, 100
PRIORITY_LAST = 1000  # behind whatever a firewall writes, before the flow is confirmed
DROP, ACCEPT = 0, 1


class Hook(Struct, frozen=True):
    """Where a base chain sits: `kind` is `filter` or `nat`; `policy` what it does with what no rule judged."""

    kind: str
    number: int
    priority: int
    policy: int = ACCEPT


class BaseChain(Struct, frozen=True):
    """A base chain as the kernel lists it, of any table."""

    family: int
    table: str
    name: str
    hook: Hook


class Set(Struct, frozen=True):
    """A set, or a map when `data_types` are given; `types` and `data_types` are the fields of key and value."""

    name: str
    types: tuple[int, ...]
    data_types: tuple[int, ...] = ()


class Element(Struct, frozen=True):
    """A set's member: key and value as the kernel holds them, and a comment that `nft list` shows."""

    key: bytes
    value: bytes = b""
    comment: str = ""


_LENGTHS = {TYPE_IPV4: 4, TYPE_IPV6: 16, TYPE_PROTOCOL: 4, TYPE_SERVICE: 4, TYPE_MARK: 4, TYPE_INTERFACE: 16}
_PLAIN_LENGTHS = {TYPE_PROTOCOL: 1, TYPE_SERVICE: 2}


def _layout(types: Sequence[int]) -> tuple[int, int]:
    """Return (nft's type number, length in bytes) of a key or value with these fields."""
    if len(types) == 1:
        return types[0], _PLAIN_LENGTHS.get(types[0], _LENGTHS[types[0]])
    number = 0
    for kind in types:
        number = number << 6 | kind
    return number, sum(_LENGTHS[kind] for kind in types)


def field(value: bytes) -> bytes:
    """Pad a value to the width it has inside a concatenation."""
    return value + b"\0" * (-len(value) & 3)


def interface(name: str) -> bytes:
    """Encode an interface's name as a register holds it."""
    return name.encode().ljust(16, b"\0")


def comment(words: str) -> bytes:
    """Encode a comment as nft's user data (type, length, text with NUL), cut to what fits."""
    data = words.encode()[:127] + b"\0"
    return bytes((_COMMENT, len(data))) + data


class Batch:
    """A transaction on one table, under construction. `family` is NFPROTO_*."""

    def __init__(self, family: int, table: str) -> None:
        self.family = family
        self.table = table
        self.requests: list[Request] = []
        self._sets = 0

    def add_table(self) -> None:
        """Make the table; one that exists stays."""
        self._add(NEWTABLE, "add table", netlink.text(_NAME, self.table), create=True)

    def delete_table(self) -> None:
        """Delete the table with everything in it."""
        self._add(DELTABLE, "delete table", netlink.text(_NAME, self.table))

    def add_chain(self, name: str, hook: Hook | None = None) -> None:
        """Make a chain: a base chain if it has a hook."""
        body = netlink.text(_CHAIN_TABLE, self.table) + netlink.text(_CHAIN_NAME, name)
        if hook is not None:
            body += netlink.nested(
                _CHAIN_HOOK, netlink.be32(_HOOK_NUMBER, hook.number), netlink.be32(_HOOK_PRIORITY, hook.priority)
            )
            body += netlink.be32(_CHAIN_POLICY, hook.policy) + netlink.text(_CHAIN_TYPE, hook.kind)
        self._add(NEWCHAIN, f"add chain {name}", body, create=True)

    def add_set(self, made: Set) -> None:
        """Make a set or map."""
        self._sets += 1
        number, length = _layout(made.types)
        body = (
            netlink.text(_SET_TABLE, self.table)
            + netlink.text(_SET_NAME, made.name)
            + netlink.be32(_SET_FLAGS, _MAP if made.data_types else 0)
            + netlink.be32(_SET_KEY_TYPE, number)
            + netlink.be32(_SET_KEY_LENGTH, length)
            + netlink.be32(_SET_ID, self._sets)
        )
        if made.types == (TYPE_INTERFACE,):
            body += netlink.attribute(_SET_USERDATA, _HOST_BYTE_ORDER)
        if made.data_types:
            number, length = _layout(made.data_types)
            body += netlink.be32(_SET_DATA_TYPE, number) + netlink.be32(_SET_DATA_LENGTH, length)
        self._add(NEWSET, f"add set {made.name}", body, create=True)

    def add_rule(self, chain: str, expressions: Sequence[bytes], words: str = "") -> None:
        """Append a rule (see `nftables_expressions`) with a comment."""
        body = netlink.text(_RULE_TABLE, self.table) + netlink.text(_RULE_CHAIN, chain)
        body += netlink.nested(_RULE_EXPRESSIONS, *expressions)
        if words:
            body += netlink.attribute(_RULE_USERDATA, comment(words))
        self._add(NEWRULE, f"add rule to {chain}", body, create=True, flags=netlink.NLM_F_APPEND)

    def flush_rules(self) -> None:
        """Delete the rules of all chains of the table."""
        self._add(DELRULE, "flush rules", netlink.text(_RULE_TABLE, self.table))

    def add_elements(self, set_name: str, elements: Sequence[Element]) -> None:
        """Put elements into a set."""
        self._elements(NEWSETELEM, "add elements to", set_name, elements, create=True)

    def delete_elements(self, set_name: str, elements: Sequence[Element]) -> None:
        """Take elements out of a set; one that is missing fails the batch with ENOENT."""
        self._elements(DELSETELEM, "delete elements of", set_name, elements)

    def flush_set(self, set_name: str) -> None:
        """Take all elements out of a set."""
        body = netlink.text(_ELEMENTS_TABLE, self.table) + netlink.text(_ELEMENTS_SET, set_name)
        self._add(DELSETELEM, f"flush set {set_name}", body)

    def _elements(
        self, kind: int, verb: str, set_name: str, elements: Sequence[Element], *, create: bool = False
    ) -> None:
        for start in range(0, len(elements), _ELEMENTS_PER_MESSAGE):
            body = netlink.text(_ELEMENTS_TABLE, self.table) + netlink.text(_ELEMENTS_SET, set_name)
            chunk = [_encode(element, create) for element in elements[start : start + _ELEMENTS_PER_MESSAGE]]
            body += netlink.nested(_ELEMENTS_LIST, *chunk)
            self._add(kind, f"{verb} {set_name}", body, create=create)

    def _add(self, kind: int, operation: str, body: bytes, *, create: bool = False, flags: int = 0) -> None:
        if create:
            flags |= netlink.NLM_F_CREATE
        words = f"nftables {_family_name(self.family)} {self.table}: {operation}"
        self.requests.append(Request(words, _SUBSYSTEM | kind, flags, _header(self.family) + body))


def _encode(element: Element, create: bool) -> bytes:
    parts = [netlink.nested(_ELEMENT_KEY, netlink.attribute(_DATA_VALUE, element.key))]
    if create and element.value:
        parts.append(netlink.nested(_ELEMENT_DATA, netlink.attribute(_DATA_VALUE, element.value)))
    if create and element.comment:
        parts.append(netlink.attribute(_ELEMENT_USERDATA, comment(element.comment)))
    return netlink.nested(_LIST_ELEMENT, *parts)


def _header(family: int, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 0, resource)  # struct nfgenmsg


def _family_name(family: int) -> str:
    return {NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6"}.get(family, str(family))


class Nftables:
    """An nf_tables socket of the namespace it was opened in. Owns its socket."""

    def __init__(self, sock: Netlink) -> None:
        self._netlink = sock

    @classmethod
    def open(cls) -> Nftables:
        """Open in the calling thread's network namespace; Unsupported if the kernel has no netfilter netlink."""
        try:
            return cls(Netlink.open(netlink.NETLINK_NETFILTER))
        except OSError as error:
            raise Unsupported(
                f"this kernel has no nf_tables ({error}): load it with 'modprobe nf_tables'"
            ) from None

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    @property
    def port(self) -> int:
        """The socket's netlink port id."""
        return self._netlink.port

    def commit(self, *batches: Batch) -> None:
        """Do all batches as one transaction. OSError names the step that failed; nothing is changed then.

        Unsupported where this kernel or container forbids nf_tables altogether.
        """
        requests = [request for batch in batches for request in batch.requests]
        if not requests:
            return
        begin = Request("nftables: begin", _BATCH_BEGIN, 0, _header(0, 10))
        end = Request("nftables: commit", _BATCH_END, 0, _header(0, 10))
        try:
            self._netlink.transact([begin, *requests], trailer=end)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
                raise Unsupported(
                    f"this host does not let us use nf_tables ({error}): it needs CAP_NET_ADMIN and a kernel with "
                    "nf_tables and NAT; run with --iptables=false to publish ports without it"
                ) from None
            raise

    def has_table(self, family: int, table: str) -> bool:
        """Tell whether a table exists."""
        return self.table_handle(family, table) is not None

    def table_handle(self, family: int, table: str) -> int | None:
        """Return the number of a table, which no later table of that name bears; None if there is no such table."""
        body = _header(family) + netlink.text(_NAME, table)
        try:
            found = self._netlink.ask(Request("nftables: look up table", _SUBSYSTEM | GETTABLE, 0, body))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return int.from_bytes(netlink.parse(found.body[4:]).get(_TABLE_HANDLE, b""), "big")

    def elements(self, family: int, table: str, set_name: str) -> list[Element]:
        """List the elements of a set; none if there is no such table or set."""
        body = _header(family) + netlink.text(_ELEMENTS_TABLE, table) + netlink.text(_ELEMENTS_SET, set_name)
        try:
            messages = self._netlink.dump(Request(f"nftables: list {set_name}", _SUBSYSTEM | GETSETELEM, 0, body))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        found: list[Element] = []
        for message in messages:
            for _, element in netlink.each(netlink.parse(message.body[4:]).get(_ELEMENTS_LIST, b"")):
                found.append(_decode(element))
        return found

    def rules_name(self, family: int, table: str, word: str) -> bool:
        """Tell whether a rule of a table has a word (of an interface, say) in what it compares with."""
        body = _header(family) + netlink.text(_RULE_TABLE, table)
        request = Request("nftables: list rules", _SUBSYSTEM | GETRULE, 0, body)
        return any(word.encode() in message.body for message in self._netlink.dump(request))

    def base_chains(self) -> list[BaseChain]:
        """List the base chains of all tables."""
        found: list[BaseChain] = []
        for message in self._netlink.dump(Request("nftables: list chains", _SUBSYSTEM | GETCHAIN, 0, _header(0))):
            attributes = netlink.parse(message.body[4:])
            if _CHAIN_HOOK not in attributes:
                continue
            hook = netlink.parse(attributes[_CHAIN_HOOK])
            found.append(
                BaseChain(
                    family=message.body[0],
                    table=netlink.as_text(attributes[_CHAIN_TABLE]),
                    name=netlink.as_text(attributes[_CHAIN_NAME]),
                    hook=Hook(
                        kind=netlink.as_text(attributes.get(_CHAIN_TYPE, b"")),
                        number=int.from_bytes(hook.get(_HOOK_NUMBER, b""), "big"),
                        priority=int.from_bytes(hook.get(_HOOK_PRIORITY, b""), "big", signed=True),
                        policy=int.from_bytes(attributes.get(_CHAIN_POLICY, b"\1"), "big"),
                    ),
                )
            )
        return found


class Watch:
    """Tells of tables that others delete (a firewall's reload). Owns its socket."""

    def __init__(self, ours: Nftables) -> None:
        self._ours = ours.port
        self._netlink = Netlink.open(netlink.NETLINK_NETFILTER)
        self._netlink.subscribe(_NOTIFY_NFTABLES)

    def fileno(self) -> int:
        """Return the descriptor to wait on for reading."""
        return self._netlink.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def deleted(self, table: str) -> bool | None:
        """Read what happened; tell whether somebody else deleted a table of that name; None: too much happened."""
        happened = self._netlink.notifications()
        if happened is None:
            return None
        return any(
            sender != self._ours
            and message.type == _SUBSYSTEM | DELTABLE
            and netlink.as_text(netlink.parse(message.body[4:]).get(_NAME, b"")) == table
            for sender, message in happened
        )


def _decode(element: bytes) -> Element:
    attributes = netlink.parse(element)
    words = attributes.get(_ELEMENT_USERDATA, b"")
    return Element(
        key=netlink.parse(attributes.get(_ELEMENT_KEY, b"")).get(_DATA_VALUE, b""),
        value=netlink.parse(attributes.get(_ELEMENT_DATA, b"")).get(_DATA_VALUE, b""),
        comment=netlink.as_text(words[2 : 2 + words[1]]) if len(words) > 2 and words[0] == _COMMENT else "",
    )
