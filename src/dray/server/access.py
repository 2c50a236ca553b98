"""Who may speak to the API.

A path socket is reachable for those whom its mode and group admit; credentials of the peer are compared again, so
that a descriptor or a renamed file does not widen that. A TCP socket is reachable for every page in a browser on
the host: what a browser sends (an Origin of another host) is refused, and so is a Host header that is a domain name we
were not told of, which is how DNS rebinding looks.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Mapping
from urllib.parse import urlsplit

from dray.base.errors import Forbidden

_UCRED = struct.Struct("3i")
_SO_PEERGROUPS = 59  # asm-generic/socket.h


def peer_may_connect(sock: socket.socket) -> bool:
    """Tell whether the process at the other end of a path socket is one that its file's mode admits."""
    try:
        _pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError:
        return False
    if uid in {0, os.geteuid()}:
        return True
    path = sock.getsockname()
    try:
        status = os.stat(path)
    except (OSError, TypeError, ValueError):
        return False
    if uid == status.st_uid and status.st_mode & stat.S_IWUSR:
        return True
    if status.st_mode & stat.S_IWGRP and status.st_gid in {gid, *_peer_groups(sock)}:
        return True
    return bool(status.st_mode & stat.S_IWOTH)


def _peer_groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * 1024)
    except OSError:
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def check_browser(headers: Mapping[str, str], allowed_hosts: frozenset[str], *, check_host: bool) -> None:
    """Refuse a request over TCP that a web page may have caused."""
    host = headers.get("Host", "")
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise Forbidden(f"requests of web pages are refused (Origin {origin})")
    if headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
        raise Forbidden("requests of web pages are refused")
    if check_host and not _is_own(host, allowed_hosts):
        raise Forbidden(
            f"the Host header {host!r} is not a name of this engine; use an address, or a name of this machine"
        )


def _is_own(host: str, allowed_hosts: frozenset[str]) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        # A single label is no public domain name, so no page can have resolved it.
        return "." not in name or name.endswith(".localhost") or name in allowed_hosts
    return True
