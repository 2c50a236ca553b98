"""Which daemon to talk to: `-H`, `DOCKER_HOST`, `-c`, `DOCKER_CONTEXT`, `currentContext`, or the default socket.

The order is Docker's: an explicit `-H` wins over everything, an explicit context over `DOCKER_HOST`, and that
over the configured context.
"""

from __future__ import annotations

import os

from dray.base.errors import InvalidParameter, NotFound
from dray.client import address as addresses
from dray.client.api import Client
from dray.client.transport import TlsFiles, Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dray.cli.app import App

DEFAULT_CONTEXT = "default"


def context_name(app: App) -> str:
    """Return the name of the context in force (`default` when a host is named directly)."""
    if app.context and app.hosts:
        raise InvalidParameter("conflicting options: cannot specify both --host and --context")
    if app.context:
        return app.context
    if app.hosts or os.environ.get("DOCKER_HOST"):
        return DEFAULT_CONTEXT
    return os.environ.get("DOCKER_CONTEXT") or app.config.text("currentContext") or DEFAULT_CONTEXT


def default_tls(app: App) -> TlsFiles | None:
    """Return the TLS material that the options and the environment name; None without TLS."""
    verify = app.tls_verify or bool(os.environ.get("DOCKER_TLS_VERIFY"))
    if not (app.tls or verify):
        return None
    folder = (
        os.environ.get("DOCKER_CERT_PATH") or app.config_dir or os.path.join(os.path.expanduser("~"), ".docker")
    )

    def place(named: str, file: str) -> str:
        path = named or os.path.join(folder, file)
        return path if named or os.path.exists(path) else ""

    ca = (app.tls_ca or os.path.join(folder, "ca.pem")) if verify else ""
    for path in (ca, app.tls_cert, app.tls_key):
        if path and not os.path.exists(path):
            raise InvalidParameter(f"open {path}: no such file or directory")
    return TlsFiles(ca=ca, cert=place(app.tls_cert, "cert.pem"), key=place(app.tls_key, "key.pem"), verify=verify)


def default_host(app: App) -> str:
    """Return the address without a context: `-H`, `DOCKER_HOST` or the default socket."""
    if len(app.hosts) > 1:
        raise InvalidParameter("Specify only one -H")
    return (app.hosts[0] if app.hosts else os.environ.get("DOCKER_HOST", "")) or addresses.DEFAULT_HOST


def resolve(app: App) -> tuple[str, TlsFiles | None]:
    """Return the daemon's address and TLS material."""
    name = context_name(app)
    if name == DEFAULT_CONTEXT:
        return default_host(app), default_tls(app)
    from dray.cli.contexts import Store

    context = Store(app.config.folder).load(name)
    return context.host or addresses.DEFAULT_HOST, context.tls()


def make_client(app: App) -> Client:
    """Return a client; InvalidParameter when the address or the context is wrong."""
    try:
        host, tls = resolve(app)
        headers = {}
        # The file is only looked at for extra headers when there is one: most users have none.
        for name, value in app.config.mapping("HttpHeaders").items():
            if name.lower() != "user-agent":
                headers[name] = str(value)
        transport = Transport(
            host,
            tls=tls,
            version=os.environ.get("DOCKER_API_VERSION", "").removeprefix("v") or None,
            headers=headers,
            user_agent="Dray-Client (linux)",
        )
    except (InvalidParameter, NotFound) as error:
        raise InvalidParameter(f"Failed to initialize: unable to resolve docker endpoint: {error}") from None
    return Client(transport)
