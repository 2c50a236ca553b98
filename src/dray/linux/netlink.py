"""Netlink (netlink(7)): a codec for attributes and messages, and a socket that sends a batch in one call.

On the wire every message is `struct nlmsghdr` (length, type, flags, sequence, port id; host byte order), a
family header, and attributes, each `struct nlattr` (length, type) padded to four bytes, possibly nested.

A batch costs one sendmsg(2) and one recv(2): only its last message asks for an acknowledgement. The kernel
handles the messages in order and reports errors in order, so that when the last one's answer arrives, every
error has arrived before it. rtnetlink goes on after a message that failed; nf_tables undoes the whole batch.

A `Netlink` owns its socket. It is not thread-safe: one caller at a time.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSGERR_ATTR_MSG = 1

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 1 << 17
_DEFAULT_BUFFER = 1 << 17


class Request(NamedTuple):
    """One message: `operation` names it in errors; `flags` beside NLM_F_REQUEST."""

    operation: str
    type: int
    flags: int
    body: bytes


class Message(NamedTuple):
    """A message received: its type and what follows the header."""

    type: int
    body: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute, padded."""
    length = 4 + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length & 3)


def nested(kind: int, *parts: bytes) -> bytes:
    """Encode an attribute made of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def u8(kind: int, value: int) -> bytes:
    """Encode an 8-bit attribute."""
    return attribute(kind, value.to_bytes(1, "big"))


def u32(kind: int, value: int) -> bytes:
    """Encode a 32-bit attribute in host byte order (rtnetlink)."""
    return attribute(kind, struct.pack("=I", value))


def be16(kind: int, value: int) -> bytes:
    """Encode a 16-bit attribute in network byte order (conntrack's ports)."""
    return attribute(kind, value.to_bytes(2, "big"))


def be32(kind: int, value: int) -> bytes:
    """Encode a 32-bit attribute in network byte order (nfnetlink)."""
    return attribute(kind, value.to_bytes(4, "big", signed=value < 0))


def be64(kind: int, value: int) -> bytes:
    """Encode a 64-bit attribute in network byte order (nfnetlink)."""
    return attribute(kind, value.to_bytes(8, "big"))


def text(kind: int, value: str) -> bytes:
    """Encode a NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def each(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type without flags, value) of each attribute in `data`."""
    offset, end = 0, len(data)
    while end - offset >= 4:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise OSError(errno.EBADMSG, "malformed netlink attribute")
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def parse(data: bytes) -> dict[int, bytes]:
    """Return the attributes in `data` by type (the last of a type wins)."""
    return dict(each(data))


def as_text(value: bytes) -> str:
    """Decode a NUL-terminated string."""
    return value.rstrip(b"\0").decode(errors="replace")


class Netlink:
    """An open netlink socket of one protocol, in whichever network namespace it was opened."""

    def __init__(self, sock: socket.socket) -> None:
        if sock.family == socket.AF_NETLINK and not sock.getsockname()[0]:
            sock.bind((0, 0))  # the kernel chooses an address, which notifications name
        self._sock = sock
        self._sequence = 0
        self._buffer = _DEFAULT_BUFFER
        for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK):
            try:
                sock.setsockopt(SOL_NETLINK, option, 1)
            except OSError:  # kernels before 4.12/4.3/4.20: errors without text, dumps unfiltered
                pass

    @classmethod
    def open(cls, protocol: int) -> Netlink:
        """Open a socket in the calling thread's network namespace."""
        return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol))

    @classmethod
    def adopt(cls, fd: int, protocol: int = NETLINK_ROUTE) -> Netlink:
        """Take over an open socket descriptor (it may belong to another network namespace)."""
        return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol, fileno=fd))

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The socket's address (port id): who made a change, in a notification."""
        return int(self._sock.getsockname()[0])

    def subscribe(self, group: int) -> None:
        """Receive the notifications of a multicast group from now on; reading never blocks."""
        self._sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._sock.setblocking(False)

    def notifications(self) -> list[tuple[int, Message]] | None:
        """Return what has been notified, each with the port id of who did it; None if some were lost."""
        found: list[tuple[int, Message]] = []
        while True:
            try:
                data = self._sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return None
                raise
            found += [(sender, Message(kind, body)) for kind, _, _, sender, body in _messages(data)]

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def transact(self, requests: Sequence[Request], *, trailer: Request | None = None) -> None:
        """Send all requests at once and wait until the kernel has handled them.

        A `trailer` follows them unanswered (the end of an nf_tables batch). The first failure is raised as OSError with the operation's name and the kernel's own explanation. The
        requests behind it have been handled all the same (rtnetlink) or undone all together (nf_tables batch).
        """
        if not requests:
            return
        first = self._sequence + 1
        last = self._send(requests, acknowledge=True, trailer=trailer)
        failure: OSError | None = None
        while True:
            for kind, flags, sequence, body in self._receive():
                if kind != NLMSG_ERROR or not first <= sequence <= last:
                    continue  # an answer that an earlier failed transaction left behind
                error = _error(body, flags, requests[sequence - first].operation)
                failure = failure or error
                # A refused nf_tables batch is answered on its first message alone (no permission, commit failed).
                if sequence == last or (sequence == first and error is not None):
                    if failure is not None:
                        raise failure
                    return

    def ask(self, request: Request) -> Message:
        """Send a request that has one answer and return it."""
        sequence = self._send([request], acknowledge=False)
        while True:
            for kind, flags, answered, body in self._receive():
                if answered != sequence:
                    continue
                if kind == NLMSG_ERROR:
                    error = _error(body, flags, request.operation)
                    if error is not None:
                        raise error
                    continue
                return Message(kind, body)

    def dump(self, request: Request) -> list[Message]:
        """Send a dump request and return everything it lists; an interrupted dump is asked again."""
        while True:
            found = self._dump_once(request)
            if found is not None:
                return found

    def _dump_once(self, request: Request) -> list[Message] | None:
        sequence = self._send([request._replace(flags=request.flags | NLM_F_DUMP)], acknowledge=False)
        found: list[Message] = []
        interrupted = False
        while True:
            for kind, flags, answered, body in self._receive():
                if answered != sequence:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_ERROR or (kind == NLMSG_DONE and len(body) >= 4):
                    error = _error(body, flags, request.operation)
                    if error is not None:
                        raise error
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return None if interrupted else found
                found.append(Message(kind, body))

    def _send(self, requests: Sequence[Request], *, acknowledge: bool, trailer: Request | None = None) -> int:
        """Send, and return the last request's sequence number (not the trailer's)."""
        parts: list[bytes] = []
        last = self._sequence + len(requests)
        for sequence, request in enumerate([*requests, *((trailer,) if trailer else ())], self._sequence + 1):
            flags = request.flags | NLM_F_REQUEST
            if acknowledge and sequence == last:
                flags |= NLM_F_ACK
            parts.append(_HEADER.pack(16 + len(request.body), request.type, flags, sequence, 0))
            parts.append(request.body + b"\0" * (-len(request.body) & 3))
        data = b"".join(parts)
        self._sequence = last + bool(trailer)
        self._make_room(len(data))
        self._sock.send(data)
        return last

    def _make_room(self, length: int) -> None:
        if length <= self._buffer // 2:
            return
        self._buffer = 4 * length
        self._sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, self._buffer)
        self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, self._buffer)

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        for kind, flags, sequence, _, body in _messages(self._sock.recv(_RECEIVE_BYTES)):
            yield kind, flags, sequence, body


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, sender = _HEADER.unpack_from(data, offset)
        if length < 16:
            raise OSError(errno.EBADMSG, "malformed netlink message")
        yield kind, flags, sequence, sender, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _error(body: bytes, flags: int, operation: str) -> OSError | None:
    """Decode an NLMSG_ERROR (or a dump's NLMSG_DONE) into an OSError; None for success.

    Layout: int32 negative errno, the request's header (whole request unless capped), then attributes with the
    kernel's explanation (NLM_F_ACK_TLVS).
    """
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    explanation = ""
    if flags & NLM_F_ACK_TLVS and len(body) >= 20:
        length = 16 if flags & NLM_F_CAPPED else struct.unpack_from("=I", body, 4)[0]
        explanation = as_text(parse(body[4 + length :]).get(NLMSGERR_ATTR_MSG, b""))
    words = os.strerror(-code) + (f" ({explanation})" if explanation else "")
    return OSError(-code, words, operation)
