"""DNS messages: reading queries, writing answers (RFC 1035 section 4; EDNS0: RFC 6891).

    header     id, flags, counts of questions, answers, authorities, further records: six 16-bit numbers
    question   name, type, class
    answer     name, type, class, TTL (32 bits), length, data; here the name is always a pointer to the question's

A compression pointer is never followed: a question has none by itself (nothing stands before it), and of records
only the length matters. So no chain of pointers can be a loop.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

A, PTR, MX, AAAA, OPT, ANY = 1, 12, 15, 28, 41, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
TTL = 600  # seconds, as Docker's

UDP_LIMIT = 512  # without EDNS
TCP_LIMIT = 65535
HEADER = 12

_QR, _TC, _RD, _RA = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_RCODE = 0x000F
_counts = struct.Struct("!6H")
_record = struct.Struct("!HHHIH")  # pointer, type, class, TTL, length
_pair = struct.Struct("!HH")
_POINTER = 0xC000 | HEADER
_NAME_LIMIT = 255
_OPT_SIZE = 1232  # what is announced as our own limit: fits every path without fragments (DNS flag day 2020)


class Malformed(Exception):
    """Not a message that can be read."""


class Query(NamedTuple):
    """A question. `name` is in lower case without the final dot, and a dot inside a label is written `\\.`;
    `question` are its bytes as they came; `udp_limit` is the longest datagram that the client takes."""

    id: int
    flags: int
    name: str
    type: int
    klass: int
    question: bytes
    edns: bool
    edns_version: int
    udp_limit: int


def parse_query(data: bytes) -> Query:
    """Read a query with one question; Malformed otherwise."""
    if len(data) < HEADER:
        raise Malformed("shorter than a header")
    ident, flags, questions, answers, authorities, extras = _counts.unpack_from(data)
    if flags & _QR:
        raise Malformed("an answer, not a question")
    if questions != 1:
        raise Malformed(f"{questions} questions")
    name, position = _read_name(data, HEADER)
    if len(data) < position + 4:
        raise Malformed("ends inside the question")
    kind, klass = _pair.unpack_from(data, position)
    position += 4
    question = data[HEADER:position]
    edns, version, limit = False, 0, UDP_LIMIT
    for _ in range(answers + authorities + extras):
        start = position
        position = _skip_name(data, position)
        if len(data) < position + 10:
            raise Malformed("ends inside a record")
        of, size, extended, length = struct.unpack_from("!HHIH", data, position)
        if of == OPT and data[start] == 0:
            if edns:
                raise Malformed("two OPT records")
            edns, version, limit = True, extended >> 16 & 0xFF, max(UDP_LIMIT, size)
        position += 10 + length
        if position > len(data):
            raise Malformed("ends inside a record")
    return Query(ident, flags, name, kind, klass, question, edns, version, limit)


def _read_name(data: bytes, position: int) -> tuple[str, int]:
    labels: list[str] = []
    start = position
    while True:
        if position >= len(data):
            raise Malformed("ends inside a name")
        length = data[position]
        position += 1
        if length == 0:
            return ".".join(labels), position
        if length > 63:
            raise Malformed("a pointer in a question")
        label = data[position : position + length]
        position += length
        if len(label) < length or position - start >= _NAME_LIMIT:
            raise Malformed("a name that is too long")
        labels.append(label.lower().decode("latin-1").replace(".", "\\."))


def _skip_name(data: bytes, position: int) -> int:
    while True:
        if position >= len(data):
            raise Malformed("ends inside a name")
        length = data[position]
        if length == 0:
            return position + 1
        if length & 0xC0 == 0xC0:
            return position + 2
        if length > 63:
            raise Malformed("an unknown kind of label")
        position += 1 + length


def encode_name(name: str) -> bytes:
    """Write a name of labels between dots; Malformed if a label or the whole is too long."""
    parts: list[bytes] = []
    for label in name.rstrip(".").split("."):
        data = label.encode()
        if not 0 < len(data) < 64:
            raise Malformed(f"not a name: {name!r}")
        parts.append(bytes((len(data),)) + data)
    encoded = b"".join(parts) + b"\0"
    if len(encoded) > _NAME_LIMIT:
        raise Malformed(f"not a name: {name!r}")
    return encoded


def answer(query: Query, *, rcode: int = NOERROR, records: Sequence[bytes] = (), limit: int = TCP_LIMIT) -> bytes:
    """Write the answer: `records` are the data of records of the type and class that were asked for.

    What does not fit into `limit` bytes is left out, and the answer marked as truncated.
    """
    opt = b""
    if query.edns:
        opt = b"\0" + struct.pack("!HHIH", OPT, _OPT_SIZE, (rcode >> 4) << 24, 0)
    flags = _QR | _RA | query.flags & (_OPCODE | _RD) | rcode & _RCODE
    body: list[bytes] = []
    size = HEADER + len(query.question) + len(opt)
    for data in records:
        size += 12 + len(data)
        if size > limit:
            flags |= _TC
            break
        body.append(_record.pack(_POINTER, query.type, query.klass, TTL, len(data)) + data)
    header = _counts.pack(query.id, flags, 1, len(body), 0, 1 if opt else 0)
    return header + query.question + b"".join(body) + opt


def refusal(data: bytes, rcode: int) -> bytes:
    """Answer what could not be read (at least a header's length) with an error and nothing else."""
    ident, flags = _pair.unpack_from(data)
    return _counts.pack(ident, _QR | _RA | flags & (_OPCODE | _RD) | rcode, 0, 0, 0, 0)


def is_query(data: bytes) -> bool:
    """Whether it has a header that may be answered: to answer answers would go round in circles."""
    return len(data) >= HEADER and not data[2] & 0x80


def opcode(query: Query) -> int:
    """Return the operation: 0 is a plain query."""
    return (query.flags & _OPCODE) >> 11


def matches(response: bytes, ident: bytes, question: bytes) -> bool:
    """Whether a datagram is the answer to our question: the id, QR, and the question (names have no case).

    A server that cannot read the question may leave it out, and then has only an error to tell.
    """
    if len(response) < HEADER or response[:2] != ident or not response[2] & 0x80:
        return False
    if response[4:6] == b"\0\0":
        return rcode(response) != NOERROR and response[6:8] == b"\0\0"
    asked = response[HEADER : HEADER + len(question)]
    return response[4:6] == b"\0\1" and asked.lower() == question.lower()


def rcode(response: bytes) -> int:
    """Return the low four bits of an answer's result."""
    return response[3] & _RCODE


def truncated(response: bytes, question: bytes) -> bytes:
    """Return the same answer without its records, marked as truncated: the client comes again by TCP."""
    ident, flags = _pair.unpack_from(response)
    return _counts.pack(ident, flags | _TC, 1, 0, 0, 0) + question
