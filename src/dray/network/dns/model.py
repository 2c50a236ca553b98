"""What the daemon tells the resolver's process (SOCK_SEQPACKET messages, see `wire.rpc`).

    hello                       → {"version", "pid", "sandboxes": [ids that have their sockets]}
    reset     Snapshot          everything there is; what is not named in it is given up
    open      Opening + [netns] make the sockets inside the namespace, and answer from then on
    update    Sandbox           the same sandbox, with other networks
    started   {id, pid}         its first process: while no daemon is there, the sandbox ends with it
    close     {id}              the sandbox ends
    members   Members           names that came and went
    stop                        end the process

Every request is answered; they are obeyed in their order.
"""

from __future__ import annotations

import msgspec

VERSION = 1  # of this protocol: a process of another version is replaced
ADDRESS = "127.0.0.11"
PORT = 53
SOCKET_NAME = "dns.sock"
PROCESS_NAME = "dray-dns"


class Server(msgspec.Struct, frozen=True):
    """A name server to forward to. `host`: it is reached from the host's namespace, not the container's."""

    address: str
    host: bool = False


class Membership(msgspec.Struct, frozen=True):
    """A network that a sandbox is in, and what it alone calls others there (`--link`): alias → name."""

    network: str
    name: str
    links: dict[str, str] = {}


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """What one container may ask.

    networks: those with names (no predefined ones), in the order in which they are searched
    servers: where other names are asked, in this order
    forward: it is in a network that is not internal (CVE-2024-29018)
    ndots: names without a dot are its search domains' business and never forwarded (`ndots` above 0 was asked for)
    """

    id: str
    networks: list[Membership] = []
    servers: list[Server] = []
    forward: bool = False
    ndots: bool = False


class Member(msgspec.Struct, frozen=True):
    """An endpoint that has names in a network; `names[0]` is what its address is called (PTR)."""

    id: str
    network: str
    names: list[str]
    ipv4: str = ""
    ipv6: str = ""


class Members(msgspec.Struct, frozen=True):
    """Endpoints that came (or have other names now), and ids of those that went."""

    come: list[Member] = []
    gone: list[str] = []


class Opening(msgspec.Struct, frozen=True):
    """A sandbox that begins, and the names that come with it."""

    sandbox: Sandbox
    come: list[Member] = []


class Snapshot(msgspec.Struct, frozen=True):
    """All there is."""

    sandboxes: list[Sandbox]
    members: list[Member]
