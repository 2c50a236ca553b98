"""A program at a pseudo terminal, driven as a person would: expect text, type, resize, interrupt."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence


class Terminal:
    """Runs `argv` with a new pty as its controlling terminal and its three standard streams.

    Everything the program wrote is kept in `seen` (bytes). Use it in a `with` block: leaving kills the program
    if it is still there, and closes the pty.
    """

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, rows: int = 24, columns: int = 80
    ) -> None:
        self.master, slave = os.openpty()
        self.seen = b""
        self._mark = 0
        self.resize(rows, columns)
        try:
            self.process = subprocess.Popen(
                argv,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=env,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - nothing is locked there
            )
        finally:
            os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *unused: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    def resize(self, rows: int, columns: int) -> None:
        """Set the window's size, as a terminal emulator does; the foreground program gets SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text: str | bytes) -> None:
        """Type `text`."""
        data = text.encode() if isinstance(text, str) else text
        while data:
            data = data[os.write(self.master, data) :]

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0.0, seconds))
        if not ready:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: the last program has closed its side
            return False
        self.seen += data
        return bool(data)

    def expect(self, pattern: str, *, timeout: float = 20) -> re.Match[bytes]:
        """Wait until `pattern` (a regular expression) appears in what came since the last match.

        Raises AssertionError with all output when the time is over or the program has gone.
        """
        compiled = re.compile(pattern.encode())
        deadline = time.monotonic() + timeout
        alive = True
        while True:
            match = compiled.search(self.seen, self._mark)
            if match is not None:
                self._mark = match.end()
                return match
            if not alive or time.monotonic() > deadline:
                raise AssertionError(f"{pattern!r} did not appear; the terminal shows {self.seen!r}")
            alive = self._read(min(0.2, deadline - time.monotonic()))

    def wait(self, *, timeout: float = 20) -> int:
        """Wait for the program's end, reading on; returns its exit status."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"the program did not end; the terminal shows {self.seen!r}")
            if not self._read(0.05):
                time.sleep(0.01)
        with contextlib.suppress(OSError):
            while select.select([self.master], [], [], 0)[0] and self._read(0):
                pass
        return self.process.returncode

    def interrupt(self) -> None:
        """What a closed window does: SIGHUP to the program."""
        self.process.send_signal(signal.SIGHUP)
