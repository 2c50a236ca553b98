"""Daemon addresses (`DOCKER_HOST`, `-H`): unix, tcp and ssh; parsing only, no I/O.

Forms: `unix:///path`, `tcp://host[:port]`, `ssh://[user@]host[:port][/path]`, and `host:port` as short for tcp.
"""

from __future__ import annotations

from dray.base.errors import InvalidParameter

DEFAULT_SOCKET = "/var/run/docker.sock"
DEFAULT_HOST = f"unix://{DEFAULT_SOCKET}"
PLAIN_PORT, TLS_PORT = 2375, 2376


class Address:
    """A parsed daemon address. `path` is the unix socket, or the remote socket of an ssh address."""

    __slots__ = ("host", "path", "port", "scheme", "text", "user")

    def __init__(
        self, text: str, scheme: str, *, host: str = "", port: int = 0, path: str = "", user: str = ""
    ) -> None:
        self.text = text
        self.scheme = scheme
        self.host = host
        self.port = port
        self.path = path
        self.user = user


def _split_port(text: str, original: str, default: int) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidParameter(f"invalid bind address format: {original}")
        port = rest[1:]
    else:
        host, _, port = text.partition(":")
    if not port:
        return host, default
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidParameter(f"invalid bind address format: {original}")
    return host, int(port)


def parse(text: str, *, tls: bool = False) -> Address:
    """Parse an address; InvalidParameter names the text when it has no known form."""
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "tcp", text
    if scheme == "unix":
        return Address(f"unix://{rest or DEFAULT_SOCKET}", "unix", path=rest or DEFAULT_SOCKET)
    if scheme in ("tcp", "http", "https"):
        place = rest.partition("/")[0]
        host, port = _split_port(place, text, TLS_PORT if tls else PLAIN_PORT)
        if not separator and (not host or ":" not in text):
            raise InvalidParameter(f"invalid bind address format: {text}")
        shown = f"[{host}]" if ":" in host else host
        return Address(f"tcp://{shown or '127.0.0.1'}:{port}", "tcp", host=host or "127.0.0.1", port=port)
    if scheme == "ssh":
        place, _, path = rest.partition("/")
        user, at, place = place.rpartition("@")
        host, port = _split_port(place, text, 0)
        if not host or host.startswith("-") or user.startswith("-"):
            raise InvalidParameter(f"invalid ssh address: {text}: it must be ssh://[user@]host[:port]")
        if ":" in user:
            raise InvalidParameter("plain-text password is not supported in an ssh address")
        return Address(text, "ssh", host=host, port=port, path=f"/{path}" if path else "", user=user if at else "")
    raise InvalidParameter(f"invalid bind address format: {text}")
