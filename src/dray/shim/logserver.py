"""Writes a container's log to a client: a child of the zygote, one for each `logs` request.

The daemon has answered the request's head; the body (chunked, if HTTP/1.1) is written here, straight to the client's
socket. The process ends with the log, with the container (following), or as soon as the client is gone.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from typing import Any

import msgspec

from dray.linux import libc
from dray.logs import reader, registry
from dray.logs.model import Selection
from dray.logs.render import Renderer
from dray.shim.model import LogRequest
from dray.wire import stdcopy

_GONE = select.POLLHUP | select.POLLERR | select.POLLRDHUP


def serve(arguments: dict[str, Any], fds: list[int]) -> None:
    """Serve one LogRequest on the socket `fds[0]`; `fds[1]` is closed once the log's files are open."""
    request = msgspec.convert(arguments, LogRequest)
    fd, starting = fds
    closing = [starting]
    libc.set_process_name("dray-logs")
    os.set_blocking(fd, True)
    out = _Body(fd, chunked=request.chunked)
    try:
        try:
            _copy(request, out, fd, opened=lambda: os.close(closing.pop()))
        except (OSError, ValueError) as error:
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                return
            out.write(stdcopy.frame(stdcopy.SYSTEM_ERROR, f"Error grabbing logs: {error}\n".encode()))
        out.end()
    except OSError:
        pass  # the client is gone
    finally:
        os.close(fd)


def _copy(request: LogRequest, out: _Body, client: int, *, opened: Callable[[], object]) -> None:
    selection = Selection(
        tail=request.tail,
        since=request.since,
        until=request.until,
        stdout=request.stdout,
        stderr=request.stderr,
    )
    renderer = Renderer(framed=request.framed, timestamps=request.timestamps, details=request.details)
    follow = request.state_dir if request.follow and request.running else None

    def wait(inotify: int) -> bool:
        poll = select.poll()
        poll.register(inotify, select.POLLIN)
        poll.register(client, select.POLLRDHUP)
        return not any(ready == client and events & _GONE for ready, events in poll.poll())

    source = registry.format_of(request.driver)
    batches = reader.read(source, request.path, selection, follow=follow, waiter=wait, opened=opened)
    with contextlib.closing(batches):
        for some in batches:
            for batch in some:
                out.write(renderer.render(batch))


class _Body:
    """The response's body."""

    def __init__(self, fd: int, *, chunked: bool) -> None:
        self._fd = fd
        self._chunked = chunked

    def write(self, data: bytes) -> None:
        """Write one chunk."""
        if not data:
            return
        parts = [b"%x\r\n" % len(data), data, b"\r\n"] if self._chunked else [data]
        total = sum(map(len, parts))
        written = os.writev(self._fd, parts)
        if written < total:
            rest = memoryview(b"".join(parts))[written:]
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def end(self) -> None:
        """Write the end of the body."""
        if self._chunked:
            os.write(self._fd, b"0\r\n\r\n")
