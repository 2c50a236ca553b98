"""The standard streams of one process: from its pipes or terminal to the log and the attached clients, and back.

Rules
- Everything read goes to the log and to every client that wants the stream; clients may come and go.
- Memory is bounded. A client whose queue is full makes the process wait, as a full pipe would, so that a slow
  reader (a pager) loses nothing. But nobody waits for ever for somebody else: a client that takes not a single
  byte for STUCK seconds while other clients are attached is dropped.
- Several clients may type at once. With `stdin_once` the first of them to end its input ends the process's; else a
  client that ends its input is detached and the process's input stays open (as dockerd does).
- At the process's end its output is read until every writer has closed, at most DRAIN seconds (a daemonized
  grandchild may keep a pipe open for ever); what is in the pipe then is still taken.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable

from dray.linux import libc
from dray.logs.model import LogWriter
from dray.shim.clients import Client
from dray.shim.loop import IN, OUT, Loop, Timer
from dray.shim.model import AttachRequest
from dray.wire import stdcopy

READ_SIZE = 256 << 10
PIPE_SIZE = 1 << 20
INPUT_LIMIT = 256 << 10  # bytes of input that wait for the process before the clients have to
STUCK = 60.0
TRIM_AFTER = 4 << 20  # bytes of output that leave memory behind
TRIM_IDLE = 1.0  # seconds without output before it is given back
DRAIN = 2.0  # dockerd's own patience (moby daemon/monitor.go)

_NAMES = {stdcopy.STDOUT: "stdout", stdcopy.STDERR: "stderr"}


class Input:
    """The writing end of a process's stdin (a pipe, or a terminal's master); owns `fd`."""

    def __init__(self, loop: Loop, fd: int, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._changed = changed
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._closing = False
        os.set_blocking(fd, False)

    @property
    def full(self) -> bool:
        """Whether the clients have to wait."""
        return self._queued > INPUT_LIMIT

    def write(self, data: bytes) -> None:
        """Pass input on, now or when the process has read what is before it."""
        if self._fd < 0 or self._closing:
            return
        self._queue.append(memoryview(data))
        self._queued += len(data)
        self._flush()

    def close_after(self) -> None:
        """End the process's input behind what is queued."""
        self._closing = True
        if not self._queue:
            self.close()

    def close(self) -> None:
        """End the process's input now."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._loop.forget(fd)
            os.close(fd)
        self._queue.clear()
        self._queued = 0

    def _flush(self, _events: int = 0) -> None:
        was_full = self.full
        while self._queue:
            try:
                written = os.write(self._fd, self._queue[0])
            except BlockingIOError:
                break
            except OSError:  # the process has closed its stdin: nobody will read this
                self.close()
                break
            self._queued -= written
            if written < len(self._queue[0]):
                self._queue[0] = self._queue[0][written:]
            else:
                self._queue.popleft()
        if self._fd >= 0:
            if self._queue:
                self._loop.watch(self._fd, OUT, self._flush)
            else:
                self._loop.forget(self._fd)
                if self._closing:
                    self.close()
        if was_full != self.full:
            self._changed()


class Streams:
    """The streams of one process. Create, `open` its descriptors, `attach` clients, `finish` when it has ended."""

    def __init__(
        self,
        loop: Loop,
        *,
        tty: bool,
        stdin_once: bool = False,
        log: LogWriter | None = None,
        detached: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._tty = tty
        self._stdin_once = stdin_once and not tty
        self._log = log
        self._detached = detached
        self._outputs: dict[int, int] = {}  # descriptor -> stream
        self._input: Input | None = None
        self.clients: list[Client] = []
        self._stalled = False
        self._stuck: dict[Client, tuple[int, Timer]] = {}
        self._flowed = 0  # bytes read since memory was given back
        self._trimmed = 0
        self._trim: Timer | None = None
        self._ended: Callable[[], None] | None = None
        self._patience: Timer | None = None
        self.finished = False

    def open_output(self, fd: int, stream: int) -> None:
        """Read `fd` (owned from here on) as `stream`."""
        os.set_blocking(fd, False)
        self._outputs[fd] = stream
        if not self._stalled:
            self._watch(fd, stream)

    def open_input(self, fd: int) -> None:
        """Write the clients' input to `fd` (owned from here on)."""
        self._input = Input(self._loop, fd, self._input_changed)

    def open_console(self, master: int) -> None:
        """Use a terminal for everything; `master` is owned from here on."""
        self.open_input(os.dup(master))
        self.open_output(master, stdcopy.STDOUT)

    # --- output ---

    def _watch(self, fd: int, stream: int) -> None:
        self._loop.watch(fd, IN, lambda _events: self._read(fd, stream))

    def _read(self, fd: int, stream: int) -> int:
        """Take one chunk; return its length, 0 if there is no more for now or for ever."""
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if data:
            self._flowed += len(data)
            if self._flowed > TRIM_AFTER and self._trim is None:
                self._trim = self._loop.call_later(TRIM_IDLE, self._give_back)
            self._deliver(stream, data)
        else:
            self._close_output(fd)
        return len(data)

    def _give_back(self) -> None:
        """Return the memory of a burst of output when it is over."""
        if self._flowed > self._trimmed:
            self._trimmed = self._flowed
            self._trim = self._loop.call_later(TRIM_IDLE, self._give_back)
        else:
            self._flowed = self._trimmed = 0
            self._trim = None
            libc.malloc_trim()

    def _deliver(self, stream: int, data: bytes) -> None:
        for client in tuple(self.clients):
            if client.request.stdout if stream == stdcopy.STDOUT else client.request.stderr:
                client.send(stream, data)
                if client.full and client not in self._stuck:
                    self._watch_stuck(client)
        if self._log is not None:
            self._log.write(_NAMES[stream], data, time.time_ns())
        if self._stuck and not self._stalled and not self.finished:
            self._stalled = True
            for fd in self._outputs:
                self._loop.forget(fd)

    def _close_output(self, fd: int) -> None:
        stream = self._outputs.pop(fd)
        self._loop.forget(fd)
        os.close(fd)
        if self._log is not None:
            self._log.end(_NAMES[stream])
        if not self._outputs and self._ended is not None:
            self._end()

    def _watch_stuck(self, client: Client) -> None:
        self._stuck[client] = client.taken, self._loop.call_later(STUCK, lambda: self._check_stuck(client))

    def _check_stuck(self, client: Client) -> None:
        taken, _ = self._stuck[client]
        others = any(other is not client and not other.full for other in self.clients)
        if taken == client.taken and others:
            client.drop()
        else:
            self._watch_stuck(client)

    def client_relieved(self, client: Client) -> None:
        """A queue is short again: go on reading unless another one is full."""
        waiting = self._stuck.pop(client, None)
        if waiting is not None:
            waiting[1].cancel()
        if self._stalled and not self._stuck:
            self._stalled = False
            for fd, stream in self._outputs.items():
                self._watch(fd, stream)

    # --- input ---

    def client_input(self, client: Client, data: bytes) -> None:
        """Bytes from a client."""
        if self._input is not None:
            self._input.write(data)

    def _input_changed(self) -> None:
        full = self._input is not None and self._input.full
        for client in tuple(self.clients):
            if client.request.stdin:
                client.hold(full)

    def client_input_ended(self, client: Client) -> None:
        """A client ended its input, or is gone."""
        if not client.request.stdin or self._input is None:
            return
        if self._stdin_once:
            self._input.close_after()
        else:
            client.finish()

    def client_detached(self, client: Client) -> None:
        """A client left with the detach keys."""
        self._detached()

    # --- clients ---

    def attach(self, request: AttachRequest, fd: int) -> None:
        """Connect a client; `fd` is owned from here on."""
        client = Client(self._loop, self, fd, request, tty=self._tty)
        self.clients.append(client)
        if client.request.stdin and self._input is not None and self._input.full:
            client.hold(True)
        client.start()
        if self.finished:
            client.finish()

    def client_closed(self, client: Client) -> None:
        """A client's socket is closed."""
        if client in self.clients:
            self.clients.remove(client)
        self.client_relieved(client)

    # --- the end ---

    def when_ended(self, callback: Callable[[], None]) -> None:
        """The process is gone: call `callback` when its output is complete (see the rules above)."""
        self._ended = callback
        if self._outputs:
            self._patience = self._loop.call_later(DRAIN, self._end)
        else:
            self._end()

    def _end(self) -> None:
        callback, self._ended = self._ended, None
        if callback is not None:
            self.finish()
            callback()

    def finish(self) -> None:
        """Take what is left in the pipes, close them, and end the clients behind it."""
        if self.finished:
            return
        self.finished = True
        for timer in (self._patience, self._trim):
            if timer is not None:
                timer.cancel()
        for fd, stream in list(self._outputs.items()):
            left = 2 * PIPE_SIZE  # more than a pipe holds: a writer that never stops must not keep us here
            while left > 0 and (taken := self._read(fd, stream)):
                left -= taken
            if fd in self._outputs:
                self._close_output(fd)
        if self._input is not None:
            self._input.close()
            self._input = None
        if self._log is not None:
            self._log.close()
        for client in tuple(self.clients):
            client.finish()
