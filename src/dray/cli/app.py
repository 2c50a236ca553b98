"""One run of the command line: its global options, and what is made of them when first needed.

The client, the configuration file and the context are made lazily, since most verbs need only the first and
start-up time is what a user feels.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dray.cli.config import Config
    from dray.client.api import Client

NAME = "dray"


class App:
    """The global options, the client, and the standard streams."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.context = ""
        self.debug = False
        self.config_dir = ""
        self.tls = False
        self.tls_verify = False
        self.tls_ca = ""
        self.tls_cert = ""
        self.tls_key = ""
        self.path = ""
        self._config: Config | None = None
        self._client: Client | None = None

    @property
    def config(self) -> Config:
        """The user's config.json (empty when there is none)."""
        if self._config is None:
            from dray.cli.config import load

            self._config = load(self.config_dir)
        return self._config

    @property
    def client(self) -> Client:
        """A client of the daemon that the options, the environment or the context name."""
        if self._client is None:
            from dray.cli.endpoint import make_client

            self._client = make_client(self)
        return self._client

    def close(self) -> None:
        """Drop the connection to the daemon."""
        if self._client is not None:
            self._client.close()

    # -- streams -----------------------------------------------------------------------------------------------

    def out(self, text: str) -> None:
        """Write to standard output."""
        sys.stdout.write(text)

    def line(self, text: str = "") -> None:
        """Write a line to standard output."""
        sys.stdout.write(text + "\n")

    def error(self, text: str) -> None:
        """Write a line to standard error, after what standard output holds back."""
        sys.stdout.flush()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    @staticmethod
    def colour() -> bool:
        """Whether output may be coloured (`NO_COLOR` unset, standard output a terminal)."""
        return not os.environ.get("NO_COLOR") and sys.stdout.isatty()


def is_terminal(descriptor: int) -> bool:
    """Whether a descriptor is a terminal; a closed one is not."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False
