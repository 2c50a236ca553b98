"""Where the API listens: `unix:///path`, `tcp://host:port` (with or without TLS), `fd://`.

A path socket is only its owner's from the first moment; its group is let in afterwards. A socket that somebody
listens on already is never taken away.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
import ssl
import stat
from collections.abc import Iterable

from msgspec import Struct

from dray.base.errors import Conflict, InvalidParameter
from dray.server import access
from dray.server.app import Api
from dray.server.backends import Backends
from dray.server.hijack import EngineConnection

BACKLOG = 1024
_SYSTEMD_FIRST_FD = 3  # sd_listen_fds(3)


class Listener(Struct, frozen=True, kw_only=True):
    """One address. `group` (a name or a number) may use a path socket besides root; `tls` applies to tcp."""

    url: str
    group: str = ""
    tls: ssl.SSLContext | None = None
    allowed_hosts: frozenset[str] = frozenset()


class _GuardedApi(Api):
    """Serves path sockets: drops connections of peers that the socket's file does not admit."""

    def __call__(self) -> EngineConnection:
        return _GuardedConnection(self, loop=asyncio.get_running_loop(), **self.options)


class _GuardedConnection(EngineConnection):
    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if not access.peer_may_connect(sock):
            assert isinstance(transport, asyncio.Transport)
            transport.abort()


class Servers:
    """All listeners of a daemon. `close` stops listening and ends idle connections; hijacked ones go on."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._stack = contextlib.AsyncExitStack()
        self._grace = 5.0
        self.addresses: list[str] = []

    async def listen(self, listeners: Iterable[Listener]) -> None:
        """Open all listeners, or none: a failure closes those opened before it."""
        async with contextlib.AsyncExitStack() as stack:
            for listener in listeners:
                await self._open(listener, stack)
            self._stack = stack.pop_all()

    async def close(self, *, grace: float = 5.0) -> None:
        """Stop listening; requests in progress get `grace` seconds."""
        self._grace = grace
        await self._stack.aclose()

    async def _open(self, listener: Listener, stack: contextlib.AsyncExitStack) -> None:
        scheme, separator, address = listener.url.partition("://")
        if not separator:
            raise InvalidParameter(f"invalid address {listener.url!r}: expected unix://, tcp:// or fd://")
        if scheme == "unix":
            sock = bind_path(address, listener.group)
            stack.callback(_unlink_own, address, os.stat(address).st_ino)
            await self._serve(sock, _GuardedApi(self._backends), stack)
            self.addresses.append(listener.url)
        elif scheme == "tcp":
            for sock in bind_tcp(address):
                host, port = sock.getsockname()[:2]
                await self._serve_tcp(sock, listener, stack)
                self.addresses.append(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
        elif scheme == "fd":
            for sock in inherited(address):
                if sock.family == socket.AF_UNIX:
                    await self._serve(sock, _GuardedApi(self._backends), stack)
                else:
                    await self._serve_tcp(sock, listener, stack)
                self.addresses.append(listener.url)
        else:
            raise InvalidParameter(f"invalid address {listener.url!r}: unknown protocol {scheme}")

    async def _serve(self, sock: socket.socket, api: Api, stack: contextlib.AsyncExitStack) -> None:
        server = await asyncio.get_running_loop().create_server(api, sock=sock, backlog=BACKLOG)

        async def close() -> None:
            server.close()
            api.pre_shutdown()
            await api.shutdown(self._grace)

        stack.push_async_callback(close)

    async def _serve_tcp(self, sock: socket.socket, listener: Listener, stack: contextlib.AsyncExitStack) -> None:
        proven = listener.tls is not None and listener.tls.verify_mode == ssl.CERT_REQUIRED
        api = Api(self._backends, browsers_reach=True, check_host=not proven, allowed_hosts=listener.allowed_hosts)
        if listener.tls is None:
            await self._serve(sock, api, stack)
            return
        from dray.server.tls import TlsListener

        loop = asyncio.get_running_loop()

        async def serve(inner: socket.socket) -> None:
            await loop.connect_accepted_socket(api, inner)

        sock.listen(BACKLOG)
        front = TlsListener(sock, listener.tls, serve)

        async def close() -> None:
            api.pre_shutdown()
            await api.shutdown(self._grace)
            await front.close()

        stack.push_async_callback(close)


def refuse_taken(listeners: Iterable[Listener]) -> None:
    """Raise Conflict if somebody listens on one of the paths: to be asked before a daemon touches anything."""
    for listener in listeners:
        scheme, _, path = listener.url.partition("://")
        if scheme == "unix" and os.path.exists(path) and _is_alive(path):
            raise _taken(path)


def _taken(path: str) -> Conflict:
    return Conflict(f"cannot listen on {path}: another daemon does; choose another address with -H")


def bind_path(path: str, group: str = "") -> socket.socket:
    """Return a socket bound to `path`, mode 0600, or 0660 and owned by `group`.

    Conflict if somebody listens there; a stale socket is replaced, any other file is not.
    """
    if not path.startswith("/"):
        raise InvalidParameter(f"invalid socket path {path!r}: an absolute path is needed")
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    else:
        if not stat.S_ISSOCK(status.st_mode):
            raise Conflict(f"cannot listen on {path}: the file exists and is no socket")
        if _is_alive(path):
            raise _taken(path)
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        sock.bind(path)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(previous)
    if group:
        try:
            os.chown(path, 0, _group_id(group))
            os.chmod(path, 0o660)
        except BaseException:
            sock.close()
            os.unlink(path)
            raise
    return sock


def _is_alive(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def _group_id(group: str) -> int:
    if group.isascii() and group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise InvalidParameter(f"group {group} not found: create it, or name another for the API socket") from None


def _unlink_own(path: str, inode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)


def bind_tcp(address: str) -> list[socket.socket]:
    """Return sockets bound to `host:port`; an empty host is 127.0.0.1, port 0 a free one."""
    host, separator, port = address.rstrip("/").rpartition(":")
    if not separator or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise InvalidParameter(f"invalid address tcp://{address}: expected host:port")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    sockets = []
    try:
        for family, kind, protocol, _, target in socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(target)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def inherited(name: str) -> list[socket.socket]:
    """Return the sockets that systemd passed: all, or those named `name` (or numbered from 3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        raise InvalidParameter("no sockets were passed to this process: fd:// needs socket activation by systemd")
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    numbered = {str(_SYSTEMD_FIRST_FD + index): index for index in range(count)}
    wanted = [
        index
        for index in range(count)
        if name in {"", "*"} or numbered.get(name) == index or (index < len(names) and names[index] == name)
    ]
    if not wanted:
        raise InvalidParameter(f"no socket named {name!r} was passed to this process")
    found = [socket.socket(fileno=_SYSTEMD_FIRST_FD + index) for index in wanted]
    for sock in found:
        os.set_inheritable(sock.fileno(), False)
    return found
