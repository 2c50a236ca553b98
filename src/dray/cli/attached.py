"""What `run`, `start -a` and `attach` have in common: an attached container from stream to exit status."""

from __future__ import annotations

import os

from dray.base.errors import DrayError
from dray.cli import signals, terminal
from dray.cli.command import Failure, StatusError
from dray.cli.streams import Detached, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dray.cli.app import App
    from dray.client.http1 import Connection, Response

STDIN = 0


def detach_keys(app: App, given: str) -> tuple[str | None, bytes]:
    """Return the keys for the daemon (None: its default) and as bytes for ourselves."""
    text = given or app.config.text("detachKeys")
    return text or None, terminal.parse_detach_keys(text or terminal.DEFAULT_DETACH_KEYS)


def check_tty(attach_stdin: bool, tty: bool) -> None:
    """Refuse to connect something that is no terminal to a container's terminal."""
    if attach_stdin and tty and not os.isatty(STDIN):
        raise Failure("the input device is not a TTY")


class Waiting:
    """A wait that the daemon has registered, on a connection of its own. Close it."""

    def __init__(self, app: App, container: str, condition: str = "") -> None:
        self._client = app.client.clone()
        self._response: Response = self._client.containers.wait(container, condition=condition)

    def status(self) -> int:
        """Return the container's exit status once it has one; StatusError 125 when waiting failed."""
        answer = self._response.json() or {}
        error = (answer.get("Error") or {}).get("Message")
        if error:
            raise StatusError(125, str(error))
        return int(answer.get("StatusCode", 0))

    def close(self) -> None:
        """Give up the wait."""
        self._response.close()
        self._client.close()


class Attachment:
    """A container's attached stream with the terminal's modes and signals around it."""

    def __init__(
        self,
        app: App,
        container: str,
        connection: Connection,
        *,
        tty: bool,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        keys: bytes = b"",
    ) -> None:
        self._client = app.client
        self._container = container
        self._connection = connection
        self._tty = tty
        self._stdin = stdin
        self._session = Session(
            connection,
            tty=tty,
            stdin=STDIN if stdin else None,
            stdout=1 if stdout else None,
            stderr=2 if stderr else None,
            detach_keys=keys,
        )

    def _resize(self, height: int, width: int) -> None:
        side = self._client.clone()
        try:
            side.containers.resize(self._container, height, width)
        finally:
            side.close()

    def kill(self, name: str) -> None:
        """Send a signal to the container, by name, over a connection of its own."""
        side = self._client.clone()
        try:
            side.containers.kill(self._container, signal=name)
        finally:
            side.close()

    def run(self, handlers: signals.SignalHandlers, *, resize: bool = True) -> None:
        """Copy the streams until they end; Detached when the user leaves."""
        try:
            if self._tty and resize:
                signals.follow_size(handlers, self._resize)
            with terminal.RawMode(STDIN if self._stdin and self._tty else -1):
                self._session.run()
        finally:
            self._connection.close()

    def redraw(self) -> None:
        """Make a program that is already running draw its screen, by a size that differs and then the real one."""
        height, width = terminal.size()
        if not height and not width:
            return
        try:
            self._resize(height + 1, width + 1)
        except DrayError:
            # A program without a terminal yet, or gone; attaching tells.
            return

    def drain(self) -> None:
        """Give up the stream."""
        self._connection.close()


__all__ = ["Attachment", "Detached", "Waiting", "check_tty", "detach_keys"]
