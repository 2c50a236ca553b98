"""One process of a container as its shim sees it: the init, or an exec.

Its life: made with streams, `run` by a runtime's verb, `reaped` by the shim, complete when its output is.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from fcntl import F_SETPIPE_SZ, fcntl
from termios import TIOCSWINSZ

from dray.runtime.model import Started, Stdio
from dray.shim.model import ExitStatus
from dray.shim.stdio import PIPE_SIZE, Streams
from dray.wire import stdcopy


class Process:
    """A process with its streams; owns the pipes' or the terminal's descriptors."""

    def __init__(self, exec_id: str, streams: Streams, *, tty: bool) -> None:
        self.exec_id = exec_id
        self.streams = streams
        self.tty = tty
        self.pid = 0
        self.started_at = 0
        self.status: ExitStatus | None = None  # as reaped; told when the output is complete
        self.complete = False
        self._console = -1

    def run(
        self, verb: Callable[[Stdio], Started], *, stdin: bool, output: bool, owner: tuple[int, int] = (0, 0)
    ) -> None:
        """Make the pipes, call the runtime, close its ends of them.

        owner: whose the pipes are, so that the container's root may open them (/dev/stdout) and give them on
        """
        theirs: list[int] = []
        try:
            stdio = Stdio() if self.tty else self._pipes(theirs, stdin=stdin, output=output)
            if owner != (0, 0):
                for fd in theirs:
                    os.fchown(fd, *owner)
            started = verb(stdio)
        finally:
            for fd in theirs:
                os.close(fd)
        self.pid = started.pid
        self.started_at = time.time_ns()
        if started.console is not None:
            self._console = os.dup(started.console)
            self.streams.open_console(started.console)

    def _pipes(self, theirs: list[int], *, stdin: bool, output: bool) -> Stdio:
        ends = [-1, -1, -1]
        if stdin:
            ends[0], ours = os.pipe2(os.O_CLOEXEC)
            theirs.append(ends[0])
            self.streams.open_input(ours)
        if output:
            for stream in (stdcopy.STDOUT, stdcopy.STDERR):
                ours, ends[stream] = os.pipe2(os.O_CLOEXEC)
                theirs.append(ends[stream])
                _enlarge(ours)
                self.streams.open_output(ours, stream)
        return Stdio(*ends)

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal a size; no matter for a process without one."""
        if self._console >= 0:
            from fcntl import ioctl

            ioctl(self._console, TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def kill(self, signum: int) -> None:
        """Signal it unless it is over (its pid is not given out again before we have reaped it)."""
        if self.status is None:
            os.kill(self.pid, signum)

    def reaped(self, wait_status: int, complete: Callable[[], None]) -> None:
        """The process is gone: remember how, and call `complete` when its output is taken."""
        code = os.waitstatus_to_exitcode(wait_status)
        self.ended(code if code >= 0 else 128 - code, complete)

    def ended(self, exit_code: int, complete: Callable[[], None]) -> None:
        """The same with an exit code."""
        self.status = ExitStatus(exit_code=exit_code, finished_at=time.time_ns(), pid=self.pid)
        self.streams.when_ended(complete)

    def close(self) -> None:
        """Close the terminal's descriptor that resizing uses, and the streams."""
        self.streams.finish()
        if self._console >= 0:
            os.close(self._console)
            self._console = -1


def _enlarge(pipe: int) -> None:
    """A megabyte of pipe: fewer switches when output flows. The memory is only used while it is full."""
    try:
        fcntl(pipe, F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        pass  # the user's share of pipe memory is used up (pipe(7)): a small pipe is as correct
