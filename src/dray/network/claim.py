"""One daemon to a bridge: a claim on its name that no second daemon of the same host can make.

Two daemons that kept one bridge would each remove the other's interfaces and rules as left over. A claim is a
netlink socket whose port id is made from the owner's name: the kernel gives a port id to one socket of a network
namespace, and takes it back when its holder dies, however that happens. No file, no path, nothing to clean up.

The claim tells daemons apart that live; the alias of a bridge (`<owner>/<network id>`) tells whose containers are
still on it.
"""

from __future__ import annotations

import errno
import socket
import zlib

from dray.base.errors import Conflict
from dray.linux.links import Links

_NETLINK_USERSOCK = 2


class Claim:
    """The right to keep a bridge; owns its socket."""

    def __init__(self, owner: str, bridge: str) -> None:
        """Claim. Conflict, saying what to do, if another daemon of this network namespace has the claim."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_USERSOCK)
        try:
            self._socket.bind((zlib.crc32(b"dray " + owner.encode()) | 1 << 31, 0))
        except OSError as error:
            self._socket.close()
            if error.errno != errno.EADDRINUSE:
                raise
            raise Conflict(
                f"another daemon keeps the bridge {bridge} on this host: give this one a bridge of its own with "
                "--bridge NAME"
            ) from None

    def close(self) -> None:
        """Give the claim back."""
        self._socket.close()


def check_bridge(host: Links, owner: str, name: str, network_id: str) -> None:
    """Raise Conflict if the bridge still carries the containers of a daemon with other records."""
    link = host.find(name)
    if link is None or not link.alias.startswith(f"{owner}/") or link.alias == f"{owner}/{network_id}":
        return
    if any(other.master == link.index and other.alias.startswith(f"{owner}/") for other in host.links()):
        raise Conflict(
            f"the bridge {name} carries containers of a daemon with another --data-root: stop them, or give this "
            "daemon a bridge of its own with --bridge NAME"
        )
