"""firewalld: our bridges are put in a zone that lets containers out.

firewalld rejects what it forwards from interfaces that are in none of its zones (its default zone's answer). It is told
of our bridges over D-Bus, in its `trusted` zone, as dockerd does with a zone of its own; only for as long as it runs,
so that nothing stays in its configuration. It is told again when it has started or reloaded. A bridge that somebody has
put in a zone stays there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dray.base.errors import DrayError
from dray.network.dbus import Bus, CallFailed

log = logging.getLogger(__name__)

_SERVICE, _PATH = "org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1"
_ZONES = f"{_SERVICE}.zone"
_ZONE = "trusted"
_RULES = (
    f"type='signal',sender='{_SERVICE}',interface='{_SERVICE}',member='Reloaded'",
    f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{_SERVICE}'",
)


class Firewalld:
    """Keeps firewalld informed, if there is one. `bridges` tells which interfaces need it."""

    def __init__(self, bridges: Callable[[], list[str]]) -> None:
        self._bridges = bridges
        self._known: set[str] = set()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow; without a bus on this host that ends at once."""
        self._task = asyncio.get_running_loop().create_task(self._follow())

    def changed(self) -> None:
        """A bridge has come or gone."""
        self._changed.set()
        if self._task is not None and self._task.done():  # there was no bus then
            self.start()

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        try:
            bus = await Bus.open(self._changed.set)
        except (OSError, ValueError) as error:
            log.debug("firewalld is not asked: %s", error)
            return
        try:
            for rule in _RULES:
                await bus.listen(rule)
            while True:
                self._changed.clear()
                await self._tell(bus)
                await self._changed.wait()
        except (OSError, DrayError) as error:
            log.warning("firewalld is not told of bridges any more: %s", error)
        finally:
            await bus.close()

    async def _tell(self, bus: Bus) -> None:
        wanted = self._bridges()
        try:
            for name in [*wanted, *sorted(self._known - set(wanted))]:
                (zone,) = await bus.call(_SERVICE, _PATH, _ZONES, "getZoneOfInterface", name)
                if name in wanted and not zone:
                    await bus.call(_SERVICE, _PATH, _ZONES, "addInterface", _ZONE, name)
                    log.info("bridge %s is in firewalld's zone %s", name, _ZONE)
                    self._known.add(name)
                elif name not in wanted:
                    if zone == _ZONE:
                        await bus.call(_SERVICE, _PATH, _ZONES, "removeInterface", _ZONE, name)
                    self._known.discard(name)
        except CallFailed as error:
            if "ServiceUnknown" not in error.name and "NameHasNoOwner" not in error.name:
                log.warning("firewalld does not take our bridges: %s", error)
