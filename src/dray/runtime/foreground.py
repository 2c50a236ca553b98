"""A process in the foreground of `dray-runtime run` and `exec`: signals forwarded, the terminal relayed, reaped."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType

from dray.base.errors import Internal, InvalidParameter
from dray.linux import libc, processes
from dray.runtime.console import set_size
from dray.runtime.model import Started

_FORWARDED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGCONT")


def send_console(path: str, master: int) -> None:
    """Send a pty's master to a console socket, as runc does, and close it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
            socket.send_fds(connection, [b"/dev/ptmx"], [master])
        except OSError as error:
            raise Internal(f"console socket {path}: {error.strerror}") from error
        finally:
            os.close(master)


def check_console_socket(path: str | None, *, terminal: bool, detach: bool) -> None:
    """Refuse combinations that would leave a terminal without a reader, in runc's words."""
    if path and not terminal:
        raise InvalidParameter("cannot use console socket if the process has no terminal")
    if path and not detach:
        raise InvalidParameter("cannot use console socket if the container is not detached")
    if terminal and detach and not path:
        raise InvalidParameter("cannot allocate tty if the container is detached without setting console socket")


def wait(process: Started) -> int:
    """Wait for a child in the foreground; its exit code."""
    pidfd = libc.pidfd_open(process.pid)

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            libc.pidfd_send_signal(pidfd, number)

    for name in _FORWARDED:
        signal.signal(getattr(signal, name), forward)
    try:
        if process.console is None:
            return processes.reap(process.pid)
        with _relayed_terminal(process.console):
            _relay(process.console, pidfd)
        return processes.reap(process.pid)
    finally:
        os.close(pidfd)
        if process.console is not None:
            os.close(process.console)


@contextlib.contextmanager
def _relayed_terminal(master: int) -> Iterator[None]:
    """Put our own terminal, if there is one, into raw mode, and keep the container's as large."""
    if not os.isatty(0):
        yield
        return

    def resize(*_: object) -> None:
        size = os.get_terminal_size(0)
        set_size(master, (size.lines, size.columns))

    before = termios.tcgetattr(0)
    resize()
    signal.signal(signal.SIGWINCH, resize)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _relay(master: int, pidfd: int) -> None:
    """Copy between our stdio and the pty until the process has ended and its output is read."""
    sys.stdout.flush()
    poll = select.poll()
    poll.register(master, select.POLLIN)
    poll.register(0, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    ended = False
    while True:
        events = dict(poll.poll(0 if ended else None))
        if 0 in events:
            data = os.read(0, 65536)
            if data:
                _write_all(master, data)
            else:
                poll.unregister(0)
        if master in events:
            try:
                data = os.read(master, 65536)
            except OSError:  # EIO: the last slave is closed
                return
            _write_all(1, data)
        elif ended:
            return
        if pidfd in events:
            ended = True
            poll.unregister(pidfd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
