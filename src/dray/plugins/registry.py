"""The plugins of this host: found, activated when first needed, called.

A plugin is activated (`/Plugin.Activate`) by the first call that needs it, and again after it was not to be reached:
it may have been replaced by another program meanwhile. Calls that cannot connect are repeated with growing pauses,
since plugins are often started beside the daemon, for `Limits.patience` seconds in all. A call that has reached the
plugin is never repeated: it may have had its effect.

Every error names the plugin and the call. A plugin that is dead or hangs costs those who need it a bounded time, and
nobody else anything: no thread and no lock is held while it is waited for.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from dray.base.errors import DrayError, Internal, NotFound
from dray.base.malformed import MALFORMED
from dray.plugins import transport
from dray.plugins.discovery import NAME, Address, Folders
from dray.plugins.transport import BadAnswer

log = logging.getLogger(__name__)

VOLUME, NETWORK, IPAM, AUTHORIZATION = "VolumeDriver", "NetworkDriver", "IpamDriver", "authz"


class Limits(Struct, frozen=True):
    """Seconds: `long` for calls that do work (create, mount), `short` for questions, `glance` for questions to all
    plugins at once, `patience` for connecting to one that is not there yet."""

    long: float = 120.0
    short: float = 60.0
    glance: float = 5.0
    patience: float = 10.0


class PluginFailed(Internal):
    """A plugin could not be reached, did not answer in time, or answered nonsense."""


class PluginRefused(Internal):
    """A plugin answered with an error of its own."""


class PluginLacks(PluginRefused):
    """A plugin does not know the call: it is older than the call, or does without."""


class Plugin:
    """One activated plugin: `implements` are the kinds of driver that it said it has."""

    def __init__(self, name: str, address: Address, limits: Limits) -> None:
        self.name = name
        self.implements: tuple[str, ...] = ()
        self.stale = False  # was not to be reached since it was activated
        self.address = address
        self._limits = limits

    async def call(
        self,
        method: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        patience: float | None = None,
    ) -> dict[str, Any]:
        """Call `/<method>` and return the answer's object.

        timeout: seconds for one attempt (`Limits.long`); patience: for connecting (`Limits.patience`)
        PluginRefused with the plugin's own words (PluginLacks: it has no such call); PluginFailed if it is dead, hangs, or answers nonsense.
        """
        body = msgspec.json.encode(arguments if arguments is not None else {})
        answer = await self._post(method, body, timeout or self._limits.long, patience)
        said: Any = None
        try:
            said = _first(answer.body) if answer.body.strip() else None
        except MALFORMED:
            if answer.status == 200:
                raise PluginFailed(f'plugin "{self.name}": {method}: the answer is not JSON') from None
        reason = said.get("Err") if isinstance(said, dict) else None
        if answer.status != 200:
            text = str(reason or answer.body[:500].decode(errors="replace").strip() or f"status {answer.status}")
            raise (PluginLacks if answer.status == 404 else PluginRefused)(f"{method}: {text}")
        if said is None:  # an empty body, or null: what many plugins say when there is nothing to say
            return {}
        if not isinstance(said, dict):
            raise PluginFailed(f'plugin "{self.name}": {method}: the answer is not a JSON object')
        if reason:
            raise PluginRefused(f"{method}: {reason}")
        return said

    async def _post(self, method: str, body: bytes, timeout: float, patience: float | None) -> transport.Answer:
        clock = asyncio.get_running_loop().time
        patience = self._limits.patience if patience is None else patience
        deadline, pause = clock() + patience, 0.1
        while True:
            try:
                return await transport.post(self.address, f"/{method}", body, timeout=timeout)
            except TimeoutError:
                self.stale = True
                raise PluginFailed(
                    f'plugin "{self.name}": {method}: no answer within {timeout:g} s: is the plugin well?'
                ) from None
            except BadAnswer as error:
                raise PluginFailed(f'plugin "{self.name}": {method}: {error}') from error
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if clock() + pause > deadline:
                    self.stale = True
                    raise PluginFailed(
                        f'plugin "{self.name}": {method}: cannot be reached: {error.strerror or error}: is it running?'
                    ) from error
                log.debug("plugin %s is not there, trying again in %.1f s", self.name, pause)
            except OSError as error:
                raise PluginFailed(f'plugin "{self.name}": {method}: {error.strerror or error}') from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)

    async def activate(self, *, timeout: float, patience: float | None) -> None:
        """Ask what it implements."""
        said = await self.call("Plugin.Activate", timeout=timeout, patience=patience)
        kinds = said.get("Implements")
        if not isinstance(kinds, list):
            raise PluginFailed(f'plugin "{self.name}": Plugin.Activate: the answer names no Implements')
        self.implements = tuple(str(kind) for kind in kinds)


class Plugins:
    """All plugins of the host, by name. Belongs to the event loop."""

    def __init__(self, folders: Folders | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._folders = folders or Folders()
        self._active: dict[str, Plugin] = {}

    async def get(self, name: str, kind: str, *, glance: bool = False) -> Plugin:
        """Return an activated plugin that implements `kind`; NotFound if there is none of that name or kind.

        glance: do not wait for one that is not there or slow
        """
        address = self._folders.find(name)
        plugin = self._active.get(name)
        if plugin is None or plugin.stale or plugin.address != address:
            plugin = Plugin(name, address, self.limits)
            if glance:
                await plugin.activate(timeout=self.limits.glance, patience=0)
            else:
                await plugin.activate(timeout=self.limits.short, patience=None)
            self._active[name] = plugin
        if kind not in plugin.implements:
            raise NotFound(f'plugin "{name}" does not implement {kind} (it has: {", ".join(plugin.implements)})')
        return plugin

    def is_known(self, name: str) -> bool:
        """Tell whether there is something of that name that could be asked."""
        if not NAME.fullmatch(name):
            return False
        try:
            self._folders.find(name)
        except NotFound:
            return False
        except DrayError:
            return True
        return True

    def active(self, kind: str) -> list[str]:
        """Return the names of the activated plugins that implement `kind`."""
        return [name for name, plugin in self._active.items() if kind in plugin.implements]

    async def all(self, kind: str) -> tuple[list[Plugin], list[str]]:
        """Return every plugin that implements `kind`, and a warning for each that could not be asked."""
        names = self._folders.names()
        if not names:
            return [], []
        asked = await asyncio.gather(
            *(self.get(name, kind, glance=True) for name in names), return_exceptions=True
        )
        found, warnings = [], []
        for answer in asked:
            if isinstance(answer, Plugin):
                found.append(answer)
            elif isinstance(answer, NotFound):
                continue  # of another kind
            elif isinstance(answer, DrayError):
                warnings.append(str(answer))
            else:
                raise answer
        return found, warnings


def _first(body: bytes) -> Any:
    """Decode the first JSON value of an answer: what follows it nobody has ever read, and some plugins send more."""
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        if "trailing characters" not in str(error):
            raise
    return json.JSONDecoder().raw_decode(body.decode().lstrip())[0]
