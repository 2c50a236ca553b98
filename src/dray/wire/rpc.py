"""JSON messages with descriptors between the daemon, the zygote and the shims.

One message is one SOCK_SEQPACKET datagram:

    "J" JSON                    the message
    "M"                         the message stands in a memfd, the first of the descriptors beside it
                                (what is longer than a datagram may be: an exec with megabytes of environment)
    "j", "m"                    the same, but the descriptors (thousands of published ports) are queued in a socket,
                                which is the only one beside it

Descriptors travel as SCM_RIGHTS and arrive close-on-exec. A channel owns its socket. Requests carry a number
(`id`) that their reply repeats; events carry none:

    {"id": 1, "method": "kill", "params": {…}}     {"id": 1, "result": …}
    {"event": "exited", …}                         {"id": 1, "error": {"status": 404, "message": "…"}}
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from dray.base.errors import DrayError, Internal, InvalidParameter, StartError, by_status

INLINE_LIMIT = 64 << 10
MAX_DESCRIPTORS = 64  # beside a message; the kernel's SCM_MAX_FD is 253
_QUEUED_DESCRIPTORS = 250  # in one datagram of a queue
MAX_MESSAGE = 64 << 20

_FD_SIZE = array.array("i").itemsize
_CREDENTIALS = struct.Struct("3i")
# Plain numbers: an IntFlag's operators run Python code of the enum module, in every freshly forked process.
_TRUNCATED = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)
_SPACE = socket.CMSG_SPACE((MAX_DESCRIPTORS + 1) * _FD_SIZE)
_encode = msgspec.json.encode


class Error(msgspec.Struct, frozen=True, omit_defaults=True):
    """A DrayError on its way to another process."""

    status: int
    message: str
    exit_code: int | None = None

    def exception(self) -> DrayError:
        """Return the error to raise on this side."""
        if self.exit_code is not None:
            return StartError(self.message, self.exit_code)
        return by_status(self.status, self.message)


def describe(error: BaseException) -> Error:
    """Turn an exception into its message; what nobody raised on purpose is Internal."""
    if isinstance(error, StartError):
        return Error(error.status, error.message, error.exit_code)
    if isinstance(error, DrayError):
        return Error(error.status, error.message)
    return Error(Internal.status, str(error) or type(error).__name__)


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends for two channels."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def peer_credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Return the peer's (pid, uid, gid) as the kernel knows them (unix(7), SO_PEERCRED)."""
    pid, uid, gid = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return pid, uid, gid


class Received:
    """A message and the descriptors beside it: take them, or `close` closes them."""

    __slots__ = ("data", "fds")

    def __init__(self, data: bytes, fds: list[int]) -> None:
        self.data = data
        self.fds = fds

    def json(self) -> Any:
        """Return the message as plain Python values."""
        return msgspec.json.decode(self.data)

    def take(self, count: int | None = None) -> list[int]:
        """Hand over the first `count` descriptors (None: all); the caller owns them from here on."""
        count = len(self.fds) if count is None else count
        taken, self.fds = self.fds[:count], self.fds[count:]
        if len(taken) < count:
            for fd in taken:
                os.close(fd)
            raise InvalidParameter(f"the message came with {len(taken)} descriptors instead of {count}")
        return taken

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Channel:
    """One end of a connection. Non-blocking sockets raise BlockingIOError from both verbs."""

    __slots__ = ("socket",)

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def fileno(self) -> int:
        """Return the socket's descriptor, for polling."""
        return self.socket.fileno()

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Send one message. The descriptors are duplicated by the kernel and stay the caller's."""
        data = _encode(message)
        if len(data) <= INLINE_LIMIT:
            self._send(b"J" + data, fds)
            return
        body = _in_memory(data)
        try:
            self._send(b"M", [body, *fds])
        finally:
            os.close(body)

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        if len(fds) > MAX_DESCRIPTORS:
            queue = _queued(fds)
            try:
                self._send(data[:1].lower() + data[1:], [queue])
            finally:
                os.close(queue)
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], rights, _NO_SIGNAL)

    def receive(self) -> Received | None:
        """Return the next message; None when the peer is gone."""
        try:
            data, ancillary, flags, _ = self.socket.recvmsg(INLINE_LIMIT + 1, _SPACE, _CLOSE_ON_EXEC)
        except ConnectionResetError:
            return None
        message = Received(data, _rights(ancillary))
        if not data:
            message.close()
            return None
        try:
            if flags & _TRUNCATED:
                raise Internal("a message between our processes arrived truncated")
            if data[:1] in (b"j", b"m"):
                [queue] = message.take(1)
                message.fds = _unqueued(queue)
            if data[:1] in (b"M", b"m"):
                [body] = message.take(1)
                message.data = _from_memory(body)
            else:
                message.data = data[1:]
        except BaseException:
            message.close()
            raise
        return message

    def close(self) -> None:
        """Close the socket."""
        with contextlib.suppress(OSError):
            self.socket.close()


def _rights(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            rights = array.array("i")
            rights.frombytes(payload[: len(payload) - len(payload) % _FD_SIZE])
            found.extend(rights)
    return found


def _queued(fds: Sequence[int]) -> int:
    """Return a socket in whose queue these descriptors wait (a queue of the usual size takes some 40,000)."""
    inner, outer = pair()
    with inner, outer:
        inner.setblocking(False)
        for start in range(0, len(fds), _QUEUED_DESCRIPTORS):
            part = array.array("i", fds[start : start + _QUEUED_DESCRIPTORS])
            inner.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, part)], _NO_SIGNAL)
        return outer.detach()


def _unqueued(queue: int) -> list[int]:
    """Take all descriptors out of a socket's queue, and close it. Internal if this process may not have so many."""
    found = Received(b"", [])
    space = socket.CMSG_SPACE(_QUEUED_DESCRIPTORS * _FD_SIZE)
    with socket.socket(fileno=queue) as source:
        while True:
            data, ancillary, flags, _ = source.recvmsg(1, space, _CLOSE_ON_EXEC)
            found.fds += _rights(ancillary)
            if flags & _TRUNCATED:
                found.close()
                raise Internal(
                    "too many descriptors for one process: raise its limit of open files (RLIMIT_NOFILE)"
                )
            if not data:
                return found.fds


def _in_memory(data: bytes) -> int:
    fd = os.memfd_create("dray-message", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def _from_memory(fd: int) -> bytes:
    try:
        size = os.fstat(fd).st_size
        if size > MAX_MESSAGE:
            raise InvalidParameter(f"a message of {size} bytes is longer than the {MAX_MESSAGE} that are taken")
        parts: list[bytes] = []
        position = 0
        while position < size and (part := os.pread(fd, size - position, position)):
            parts.append(part)
            position += len(part)
        return b"".join(parts)
    finally:
        os.close(fd)
