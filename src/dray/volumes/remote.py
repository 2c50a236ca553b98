"""Volumes of a plugin: the calls of Docker's volume plugin protocol (`VolumeDriver.*`), one function each.

    Create {Name, Opts}            Remove {Name}            List {} → {Volumes: [{Name, Mountpoint, Status}]}
    Mount {Name, ID} → {Mountpoint}   Unmount {Name, ID}    Path {Name} → {Mountpoint}
    Get {Name} → {Volume: {Name, Mountpoint, CreatedAt, Status}}      Capabilities {} → {Capabilities: {Scope}}

Nothing is kept here but a plugin's capabilities. What a plugin answers is not trusted: a mount point that is no
absolute path is refused, and never shown to a container.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

import msgspec

from dray.plugins.registry import VOLUME, Plugin, PluginFailed, PluginRefused, Plugins


class RemoteVolume(msgspec.Struct, frozen=True, rename="pascal"):
    """A volume as its plugin describes it. `status` is the plugin's own, shown by inspect."""

    name: str
    mountpoint: str = ""
    created_at: str = ""
    status: dict[str, Any] = {}


class RemoteDriver:
    """A volume plugin. Errors are the plugin's (`plugins.registry`)."""

    def __init__(self, plugin: Plugin, plugins: Plugins) -> None:
        self.name = plugin.name
        self._plugin = plugin
        self._limits = plugins.limits

    @classmethod
    async def of(cls, plugins: Plugins, name: str) -> RemoteDriver:
        """Return the driver of a plugin by name; NotFound if there is no such volume plugin."""
        return cls(await plugins.get(name, VOLUME), plugins)

    async def create(self, name: str, options: Mapping[str, str]) -> None:
        """Make a volume known to the plugin; one that it knows already is no error."""
        await self._plugin.call("VolumeDriver.Create", {"Name": name, "Opts": dict(options)})

    async def remove(self, name: str) -> None:
        """Delete a volume from disk."""
        await self._plugin.call("VolumeDriver.Remove", {"Name": name}, timeout=self._limits.short)

    async def mount(self, name: str, identity: str) -> str:
        """Mount a volume for one user (`identity`); return where on the host it is."""
        said = await self._plugin.call("VolumeDriver.Mount", {"Name": name, "ID": identity})
        return self._path(said, "VolumeDriver.Mount")

    async def unmount(self, name: str, identity: str) -> None:
        """Tell that one user is done with it."""
        arguments = {"Name": name, "ID": identity}
        await self._plugin.call("VolumeDriver.Unmount", arguments, timeout=self._limits.short)

    def _path(self, said: Mapping[str, Any], method: str) -> str:
        path = said.get("Mountpoint")
        if (
            not isinstance(path, str)
            or not path.startswith("/")
            or "\0" in path
            or posixpath.normpath(path) == "/"
        ):
            raise PluginFailed(f'plugin "{self.name}": {method}: Mountpoint {path!r} is not an absolute path')
        return posixpath.normpath(path)

    async def get(self, name: str) -> RemoteVolume:
        """Describe one volume; PluginRefused if the plugin does not know it."""
        said = await self._plugin.call("VolumeDriver.Get", {"Name": name}, timeout=self._limits.short, patience=0)
        return self._volume(said.get("Volume"), "VolumeDriver.Get")

    async def list(self) -> list[RemoteVolume]:
        """Describe all volumes, without their status."""
        said = await self._plugin.call("VolumeDriver.List", timeout=self._limits.glance, patience=0)
        return [self._volume(one, "VolumeDriver.List") for one in said.get("Volumes") or []]

    def _volume(self, said: object, method: str) -> RemoteVolume:
        try:
            if isinstance(said, dict):
                said = {key: value for key, value in said.items() if value is not None}
            return msgspec.convert(said, RemoteVolume)
        except msgspec.ValidationError as error:
            raise PluginFailed(f'plugin "{self.name}": {method}: {error}') from error

    async def scope(self) -> str:
        """Return `local` or `global`: whether other hosts have the same volumes. `local` for a plugin that does not say."""
        try:
            said = await self._plugin.call("VolumeDriver.Capabilities", timeout=self._limits.glance, patience=0)
        except PluginRefused:
            return "local"  # the call is younger than the protocol
        capabilities = said.get("Capabilities")
        scope = capabilities.get("Scope") if isinstance(capabilities, dict) else ""
        return "global" if str(scope).lower() == "global" else "local"
