"""The addresses that the API listens at, as `hosts` and the TLS keys of a configuration name them."""

from __future__ import annotations

import ssl

from dray.base.errors import InvalidParameter
from dray.daemon.config import DaemonConfig
from dray.server.listeners import Listener
from dray.server.tls import server_context


def _tls(config: DaemonConfig) -> ssl.SSLContext | None:
    if not (config["tls"] or config["tlsverify"]):
        return None
    if not config["tlscert"] or not config["tlskey"]:
        raise InvalidParameter("TLS needs --tlscert and --tlskey")
    if config["tlsverify"] and not config["tlscacert"]:
        raise InvalidParameter("--tlsverify needs --tlscacert: the CA that signs the clients' certificates")
    ca = config["tlscacert"] if config["tlsverify"] else None
    return server_context(config["tlscert"], config["tlskey"], client_ca=ca)


def listeners_of(config: DaemonConfig) -> list[Listener]:
    """Return where the API listens; InvalidParameter for TLS files that do not make a whole."""
    tls = _tls(config)
    return [Listener(url=_url(host, tls is not None), group=config["group"], tls=tls) for host in config["hosts"]]


def _url(host: str, tls: bool) -> str:
    """Complete an address as dockerd does: `-H :2375`, `-H tcp://`, `-H /path`."""
    if "://" not in host:
        host = f"unix://{host}" if host.startswith("/") else f"tcp://{host}"
    scheme, _, address = host.partition("://")
    if scheme == "tcp":
        name, _, port = address.rpartition(":") if ":" in address else (address, "", "")
        address = f"{name or 'localhost'}:{port or (2376 if tls else 2375)}"
    elif scheme == "unix" and not address:
        address = "/var/run/docker.sock"
    return f"{scheme}://{address}"
