"""The shim's side of its connections with daemons: a queue that never blocks, and the door for one that returns."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from dray.shim.loop import HANGUP, IN, OUT, Loop
from dray.wire import rpc

SOCKET_NAME = "shim.sock"


class Connection:
    """One daemon; owns the socket. A daemon that does not read makes messages wait here, never the container."""

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        handle: Callable[[Connection, rpc.Received], None],
        closed: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self._channel = rpc.Channel(connection)
        self._handle = handle
        self._closed = closed
        self._queue: deque[Any] = deque()
        connection.setblocking(False)
        loop.watch(connection.fileno(), IN, self._ready)

    @property
    def pending(self) -> bool:
        """Whether messages wait to be sent."""
        return bool(self._queue)

    def send(self, message: Any) -> None:
        """Send a message now or as soon as the daemon reads."""
        self._queue.append(message)
        if len(self._queue) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._queue:
            try:
                self._channel.send(self._queue[0])
            except BlockingIOError:
                self._loop.watch(self._channel.fileno(), IN | OUT, self._ready)
                return
            except OSError:
                self.close()
                return
            self._queue.popleft()
        if self._channel.fileno() >= 0:
            self._loop.watch(self._channel.fileno(), IN, self._ready)

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
        if events & (IN | HANGUP) and self._channel.fileno() >= 0:
            try:
                message = self._channel.receive()
            except BlockingIOError:
                return
            except OSError:
                message = None
            if message is None:
                self.close()
            else:
                self._handle(self, message)

    def close(self) -> None:
        """Close the connection."""
        if self._channel.fileno() < 0:
            return
        self._loop.forget(self._channel.fileno())
        self._channel.close()
        self._queue.clear()
        self._closed(self)


class Listener:
    """A socket in a directory (`shim.sock` in the run directory), for the same user only; owns it and its name."""

    def __init__(
        self, loop: Loop, run_dir: str, accepted: Callable[[socket.socket], None], name: str = SOCKET_NAME
    ) -> None:
        self._loop = loop
        self._accepted = accepted
        self._path = os.path.join(run_dir, name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            umask = os.umask(0o177)
            try:
                with short_path(run_dir) as directory:
                    self._socket.bind(f"{directory}/{name}")
            finally:
                os.umask(umask)
            self._socket.listen(8)
        except BaseException:
            self._socket.close()
            raise
        loop.watch(self._socket.fileno(), IN, self._ready)

    def _ready(self, _events: int) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        _pid, uid, _gid = rpc.peer_credentials(connection)
        if uid not in (0, os.geteuid()):
            connection.close()
            return
        self._accepted(connection)

    def close(self) -> None:
        """Stop listening and remove the name."""
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


@contextlib.contextmanager
def short_path(directory: str) -> Any:
    """Yield a name of the directory that fits into a socket address (108 bytes, unix(7))."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
