"""Names in user-defined networks: every member's /etc/hosts names the other members.

There is no DNS server yet; until there is, a container finds its peers by name, alias and short id through a block of
its /etc/hosts that is kept up to date while containers come and go:

    # names in networks, kept by dray
    172.18.0.2	db database 0123456789ab
    # end of names in networks

The file is rewritten in place (it is bound into the container), and only between the marks: what a program has
written elsewhere in it stays. The default bridge has no names, as in Docker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable

from dray.engine.layout import Layout
from dray.engine.model import Container
from dray.engine.registry import Registry
from dray.network.model import PREDEFINED, Endpoint

BEGIN = "# names in networks, kept by dray\n"
END = "# end of names in networks\n"
_DELAY = 0.005  # seconds in which changes are gathered: many containers may start at once
_LARGEST = 1 << 20


def block(own: Iterable[Endpoint], members: Iterable[Endpoint]) -> str:
    """Return the block of a container with the endpoints `own`, of all endpoints `members`; "" without a name."""
    networks = {endpoint.network_id for endpoint in own if endpoint.network_name not in PREDEFINED}
    lines = []
    for endpoint in members:
        if endpoint.network_id not in networks or not endpoint.names:
            continue
        names = " ".join(dict.fromkeys(endpoint.names))
        lines += [f"{address}\t{names}\n" for address in (endpoint.ipv4, endpoint.ipv6) if address]
    return BEGIN + "".join(sorted(lines)) + END if lines else ""


def with_block(text: str, new: str) -> str:
    """Return a hosts file's text with its block replaced (or added, or taken out)."""
    before, begin, rest = text.partition(BEGIN)
    if not begin:
        return text + new
    _, end, after = rest.partition(END)
    return before + new + (after if end else "")


class Peers:
    """Keeps the blocks of running containers. Belongs to the event loop."""

    def __init__(self, registry: Registry, layout: Layout) -> None:
        self._registry = registry
        self._layout = layout
        self._changed: set[str] = set()

    def block_of(self, own: Iterable[Endpoint]) -> str:
        """Return the block of a container that is about to start with these endpoints."""
        own = list(own)
        return block(own, [*own, *self._members()])

    def _members(self) -> list[Endpoint]:
        return [endpoint for one in self._registry if one.state.running for endpoint in one.record.endpoints]

    def changed(self, endpoints: Iterable[Endpoint]) -> None:
        """Some endpoints came or went: tell the members of their networks soon."""
        found = {endpoint.network_id for endpoint in endpoints if endpoint.network_name not in PREDEFINED}
        if not found:
            return
        if not self._changed:
            asyncio.get_running_loop().call_later(_DELAY, self._tell)
        self._changed |= found

    def _tell(self) -> None:
        networks, self._changed = self._changed, set()
        members = self._members()
        for container in self._registry:
            own = container.record.endpoints
            if container.state.running and any(endpoint.network_id in networks for endpoint in own):
                with contextlib.suppress(OSError):  # a removal under way
                    self._rewrite(container, block(own, members))

    def _rewrite(self, container: Container, new: str) -> None:
        path = f"{self._layout.container(container.id)}/hosts"
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            old = os.pread(fd, _LARGEST, 0)
            text = with_block(old.decode(errors="surrogateescape"), new).encode(errors="surrogateescape")
            if text != old:
                os.pwrite(fd, text, 0)
                os.ftruncate(fd, len(text))
        finally:
            os.close(fd)
