"""SCMP_ACT_NOTIFY: the way of a filter's listener from the filtered process to its agent (config-linux.md "Seccomp").

The process may not be trusted with more than read(2) and write(2) once the filter is on: it tells its descriptor's
number (`tell`), and the runtime fetches the descriptor with pidfd_getfd(2) and sends it to the agent's socket, with
the ContainerProcessState of runtime-spec as the message (`serve`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from dray.base.errors import StartError
from dray.linux import libc
from dray.runtime.handshake import Channel, Listening, Proceed
from dray.runtime.program import Listener
from dray.runtime.state import OCI_VERSION


def teller(channel: Channel, listener: Listener | None) -> Callable[[int], None] | None:
    """Return what the process does with its listener's descriptor, None without a listener."""
    if listener is None:
        return None
    socket_fd = channel.socket.fileno()
    path, metadata = listener.path, listener.metadata

    def tell(fd: int) -> None:
        os.write(socket_fd, msgspec.json.encode(Listening(fd, path, metadata)))
        answer = os.read(socket_fd, 4096)
        os.close(fd)
        if not answer:
            raise StartError("the filter's listener could not be handed to its agent")

    return tell


def serve(channel: Channel, pid: int, pidfd: int, state: Callable[[], dict[str, Any]]) -> None:
    """Wait for execve, and hand a listener over when one is told of; StartError when its agent cannot be reached."""
    while True:
        message, _ = channel.receive()
        if not isinstance(message, Listening):
            return
        fd = libc.pidfd_getfd(pidfd, message.fd)
        try:
            _send(message, fd, pid, state())
        finally:
            os.close(fd)
        channel.send(Proceed())


def _send(message: Listening, fd: int, pid: int, state: dict[str, Any]) -> None:
    document = {
        "ociVersion": OCI_VERSION,
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": message.metadata,
        "state": state,
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        try:
            agent.connect(message.path)
            socket.send_fds(agent, [msgspec.json.encode(document)], [fd])
        except OSError as error:
            raise StartError(f"seccomp agent {message.path}: {error.strerror}") from error
