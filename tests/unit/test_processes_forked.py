"""What a forked process sheds."""

from __future__ import annotations

import os
import signal
import socket

from dray.runtime import init


def test_a_signal_writes_into_nothing_that_was_opened_since() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    handler = signal.signal(signal.SIGCHLD, lambda *_: None)
    before = signal.set_wakeup_fd(writer)
    try:
        pid = os.fork()
        if pid == 0:
            init.settle(set(), die_with_parent=False, name="test")
            pairs = []
            while not any(writer in (a.fileno(), b.fileno()) for a, b in pairs):
                pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            os.kill(os.getpid(), signal.SIGCHLD)
            for one in pairs[-1]:
                one.setblocking(False)
                try:
                    one.recv(10)
                    os._exit(1)
                except BlockingIOError:
                    pass
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGCHLD, handler)
        os.close(reader)
        os.close(writer)
