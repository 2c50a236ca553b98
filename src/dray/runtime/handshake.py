"""Every message between a runtime verb (the parent) and the process it forked, over one SOCK_SEQPACKET pair.

    create:  parent                          init
             ── Mapped ───────────────────▶  (new user namespace only) id maps are written
             ◀─────────────────── Prepared   (runtime hooks only) mounts done, before pivot_root
             ── Proceed ──────────────────▶  the hooks have run
             ◀── Ready [console master] ──   everything is done but execve (rlimits are set now, from outside)
    start:   ── Start ────────────────────▶
             ◀─────────────────── Listening   (SCMP_ACT_NOTIFY only) fetch my listener and hand it to its agent
             ── Proceed ──────────────────▶
             ◀─────────────── end of file    execve succeeded: the descriptor was close-on-exec

    exec:    the same without Prepared; Start follows Ready at once
    a user namespace that is joined: the forked process forks again and tells Staged(pid of the real one)

At any time the child may say Failed and exit; end of file before Ready means that it was killed.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import msgspec

from dray.base.errors import DrayError, Internal, StartError, by_status


class Mapped(msgspec.Struct, frozen=True, tag="mapped"):
    """Parent: the id maps of the new user namespace are written."""


class Staged(msgspec.Struct, frozen=True, tag="staged"):
    """Child: the process that goes on is `pid` (in the parent's pid namespace, and its child)."""

    pid: int


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """Child: the mounts are made, the hooks of the runtime's namespace may run."""


class Proceed(msgspec.Struct, frozen=True, tag="proceed"):
    """Parent: go on."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Child: one step before execve. With a terminal, the pty's master is beside the message."""


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Parent: execve."""


class Listening(msgspec.Struct, frozen=True, tag="listening"):
    """Child: its filter is installed and notifies; `fd` is the child's own descriptor of the listener, for the agent
    at `path`. Said and answered (Proceed) with read and write alone: the filter is in force."""

    fd: int
    path: str
    metadata: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Child: gives up. `status` is the error's kind (`base.errors`), `exit_code` that of a StartError, else 0;
    `grouped`: the child has made the container's cgroup, which is the parent's to remove."""

    message: str
    status: int = 500
    exit_code: int = 0
    grouped: bool = False

    @classmethod
    def of(cls, error: BaseException, *, grouped: bool = False) -> Failed:
        """Return the message for an exception."""
        if isinstance(error, StartError):
            return cls(error.message, error.status, error.exit_code, grouped)
        if isinstance(error, DrayError):
            return cls(error.message, error.status, grouped=grouped)
        text = _said(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        return cls(text, grouped=grouped)

    def error(self) -> DrayError:
        """Return the exception for the parent to raise."""
        return StartError(self.message, self.exit_code) if self.exit_code else by_status(self.status, self.message)


def _said(error: OSError) -> str:
    """Return an OSError as a sentence: its reason and its file."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.strerror}: {os.fsdecode(error.filename)}"


Message = Mapped | Staged | Prepared | Proceed | Ready | Start | Listening | Failed

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


@dataclass(slots=True)
class Channel:
    """One end; owns its socket. `failure` is the Failed that was received, if one was."""

    socket: socket.socket
    failure: Failed | None = None

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return (parent's end, child's end)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Send a message with descriptors beside it. A peer that is gone is found out by `receive`."""
        try:
            if fds:
                socket.send_fds(self.socket, [msgspec.json.encode(message)], fds, socket.MSG_NOSIGNAL)
            else:
                self.socket.send(msgspec.json.encode(message), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self) -> tuple[Message | None, list[int]]:
        """Return the next message and its descriptors; (None, []) at the end of file. A Failed is raised."""
        try:
            data, fds, _, _ = socket.recv_fds(self.socket, 1 << 16, 4, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None, []
        if not data:
            return None, []
        message = _decoder.decode(data)
        if isinstance(message, Failed):
            self.failure = message
            for fd in fds:
                os.close(fd)
            raise message.error()
        return message, fds

    def expect(self, kind: type[Message]) -> list[int]:
        """Return the descriptors of the next message, which must be of `kind`; Internal otherwise."""
        message, fds = self.receive()
        if not isinstance(message, kind):
            for fd in fds:
                os.close(fd)
            said = "it was killed" if message is None else f"it said {message}"
            raise Internal(f"the container's init ended before it was {kind.__name__.lower()}: {said}")
        return fds

    def close(self) -> None:
        """Close this end."""
        self.socket.close()
