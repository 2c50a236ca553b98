"""Keeps overlay networks' forwarding entries and the firewall behind their peer tables."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from dray.base.errors import DrayError
from dray.network.firewall import Firewall
from dray.network.model import Network
from dray.network.overlay import OverlayDriver, is_encrypted

_log = logging.getLogger(__name__)
SECONDS = 1.0  # between two looks at the tables; none while there is no overlay network


class PeerFollower:
    """Looks at the peer tables while there are overlay networks. Borrows what it is given; owns a timer."""

    def __init__(
        self, driver: OverlayDriver, firewall: Firewall | None, networks: Callable[[], Iterable[Network]]
    ) -> None:
        self._driver = driver
        self._firewall = firewall
        self._networks = networks
        self._next: asyncio.TimerHandle | None = None
        self._told: dict[str, str] = {}  # network → what was wrong with its table at the last look

    def follow(self) -> None:
        """Bring entries and rules up to date, now and then every SECONDS."""
        self.close()
        overlays = [found for found in self._networks() if found.driver == "overlay" and not found.config_only]
        for network in overlays:
            self._refresh(network)
        if self._firewall is not None:
            self._firewall.set_overlays(
                dict(self._driver.peers(network) for network in overlays),
                encrypted=any(is_encrypted(network) for network in overlays),
            )
        if overlays:
            self._next = asyncio.get_running_loop().call_later(SECONDS, self.follow)

    def close(self) -> None:
        """Look no more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _refresh(self, network: Network) -> None:
        words = ""
        try:
            self._driver.refresh(network)
        except (DrayError, OSError) as error:
            words = str(error)
        if words and words != self._told.get(network.id):
            _log.warning("overlay network %s keeps its peers: %s", network.name, words)
        self._told[network.id] = words
