"""The driver of a plugin's networks, as far as it is our part: moving the interface that the plugin has made.

    host                        sandbox
    vethl0 (Join's SrcName) ──▶ eth0 (DstPrefix, and the first free number)

Everything else is the plugin's, and asynchronous: `network/plugged.py`.
"""

from __future__ import annotations

import contextlib
import os

from dray.base import files
from dray.base.errors import Internal
from dray.linux import links
from dray.linux.links import Links
from dray.network.model import Endpoint, Network


class PluginDriver:
    """Driver of the networks of one plugin. Borrows the host's rtnetlink socket."""

    def __init__(self, name: str, host: Links) -> None:
        self.name = name
        self._host = host

    def interface(self, network: Network) -> str:
        """What is behind it on the host only the plugin knows."""
        return ""

    def share(self, network: Network, other: Network) -> None:
        """Nothing to share."""

    def validate(self, network: Network) -> None:
        """Options are the plugin's: it refuses those that it does not have."""

    def up(self, network: Network) -> None:
        """The plugin makes it."""

    def down(self, network: Network) -> None:
        """The plugin removes it."""

    def plug(self, network: Network, endpoint: Endpoint, netns: int) -> None:
        """Move the interface into the sandbox, under its name there."""
        if not endpoint.source:
            return
        link = self._host.find(endpoint.source)
        if link is None:
            raise Internal(f'plugin "{self.name}": interface {endpoint.source} of its endpoint is gone')
        requests = [links.down_request(link.index)]
        if endpoint.mac and endpoint.mac != link.mac:
            requests.append(links.mac_request(link.index, endpoint.mac))
        self._host.apply([*requests, links.move_request(link.index, endpoint.interface, netns)])

    def ready(self, network: Network, endpoint: Endpoint) -> None:
        """The plugin's side was ready when it was joined."""

    def unplug(self, network: Network, endpoint: Endpoint) -> None:
        """The interface goes with its sandbox, or is given back (`give_back`); the rest is the plugin's."""


def give_back(inside: Links, endpoint: Endpoint) -> None:
    """Move an interface out of a sandbox that lives on, to the host and under the name it had there."""
    link = inside.find(endpoint.interface) if endpoint.source else None
    if link is None:
        return
    with files.owned_fd(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as host:
        with contextlib.suppress(OSError):  # somebody in the container was faster
            inside.apply([links.down_request(link.index), links.move_request(link.index, endpoint.source, host)])
