"""The streams of an attached container or exec: stdin to the daemon, stdout and stderr from it.

One thread, one select loop, no unbounded buffer: stdin is read only while nothing waits to be sent, so a container
that reads slowly slows its writer down and nothing else. Frames of a multiplexed stream: one byte stream number
(1 stdout, 2 stderr, 3 error), three zeros, four bytes big-endian length, the data.
"""

from __future__ import annotations

import os
import select
import socket

from dray.base.errors import DrayError
from dray.cli.terminal import DetachFilter
from dray.client.errors import ApiError, ProtocolError
from dray.client.http1 import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_SIZE = 256 * 1024
_STDOUT, _STDERR, _ERROR = 1, 2, 3


class Detached(DrayError):
    """The user typed the detach sequence."""

    def __init__(self) -> None:
        super().__init__("read escape sequence")


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write everything; waits when the other side is a full non-blocking pipe."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


class Demultiplexer:
    """Cuts a multiplexed stream into writes to stdout and stderr."""

    def __init__(self, stdout: int | None, stderr: int | None) -> None:
        self._targets = {0: stdout, _STDOUT: stdout, _STDERR: stderr}
        self._buffer = bytearray()
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> None:
        """Take a piece of the stream; ApiError when it carries an error frame."""
        if self._left >= len(data) and not self._buffer and self._stream != _ERROR:
            # The common case: the piece lies wholly inside one frame.
            self._write(data)
            self._left -= len(data)
            return
        buffer = self._buffer
        buffer += data
        at = 0
        while True:
            if self._left:
                if self._stream == _ERROR:
                    if len(buffer) - at < self._left:
                        break
                    raise ApiError(500, bytes(buffer[at : at + self._left]).decode("utf-8", "replace"))
                piece = bytes(buffer[at : at + self._left])
                if not piece:
                    break
                self._write(piece)
                self._left -= len(piece)
                at += len(piece)
                continue
            if len(buffer) - at < 8:
                break
            self._stream = buffer[at]
            if self._stream > _ERROR:
                raise ProtocolError(f"Unrecognized stream: {self._stream}")
            self._left = int.from_bytes(buffer[at + 4 : at + 8], "big")
            at += 8
        del buffer[:at]

    def _write(self, data: bytes) -> None:
        target = self._targets.get(self._stream)
        if target is not None:
            write_all(target, data)


def copy_output(pieces: Iterable[bytes], *, tty: bool, stdout: int | None = 1, stderr: int | None = 2) -> None:
    """Write a one-way stream (logs, attach without stdin) to our streams."""
    if tty:
        for data in pieces:
            if stdout is not None:
                write_all(stdout, data)
        return
    demultiplexer = Demultiplexer(stdout, stderr)
    for data in pieces:
        demultiplexer.feed(data)


class Session:
    """An attached stream in both directions. The caller closes the connection."""

    def __init__(
        self,
        connection: Connection,
        *,
        tty: bool,
        stdin: int | None,
        stdout: int | None = 1,
        stderr: int | None = 2,
        detach_keys: bytes = b"",
    ) -> None:
        self._connection = connection
        self._socket = connection.sock
        self._stdin = stdin
        self._pending = memoryview(b"")
        self._filter = DetachFilter(detach_keys) if tty and detach_keys else None
        self._ended = False  # standard input is at its end, and the daemon has not been told
        if tty:
            self._deliver: Callable[[bytes], None] = lambda data: (
                write_all(stdout, data) if stdout is not None else None
            )
        else:
            self._deliver = Demultiplexer(stdout, stderr).feed

    def run(self) -> None:
        """Copy until the daemon ends the stream; Detached when the user leaves."""
        early = bytes(self._connection.buffer)
        self._connection.buffer.clear()
        if early:
            self._deliver(early)
        self._socket.setblocking(False)
        while True:
            readers: list[int] = [self._socket.fileno()]
            if self._stdin is not None and not self._pending:
                readers.append(self._stdin)
            writers = [self._socket.fileno()] if self._pending else []
            readable, writable, _ = select.select(readers, writers, [])
            if self._socket.fileno() in readable and not self._receive():
                return
            if self._stdin in readable:
                self._read_stdin()
            if self._pending and (writable or self._stdin in readable):
                self._send()
            if self._ended and not self._pending:
                self._close_write()

    def _receive(self) -> bool:
        while True:
            try:
                data = self._socket.recv(_SIZE)
            except (BlockingIOError, InterruptedError):
                return True
            except ConnectionResetError:
                return False
            except OSError as error:
                # SSLWantReadError and its kin: TLS has no whole record yet.
                if type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError"):
                    return True
                raise
            if not data:
                return False
            self._deliver(data)
            pending = getattr(self._socket, "pending", None)
            if pending is None or not pending():
                return True

    def _read_stdin(self) -> None:
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, _SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._stdin, self._ended = None, True
            return
        left = False
        if self._filter is not None:
            data, left = self._filter.feed(data)
        self._pending = memoryview(data)
        if left:
            if data:
                self._send()
            raise Detached

    def _send(self) -> None:
        try:
            self._pending = self._pending[self._socket.send(self._pending) :]
        except (BlockingIOError, InterruptedError):
            return
        except (BrokenPipeError, ConnectionResetError):
            # The container reads no more; its output may still come.
            self._pending = memoryview(b"")
            self._stdin = None
        except OSError as error:
            if type(error).__name__ not in ("SSLWantReadError", "SSLWantWriteError"):
                raise

    def _close_write(self) -> None:
        self._ended = False
        try:
            # Not SSLSocket.shutdown, which would end reading as well.
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
        except OSError:
            return
