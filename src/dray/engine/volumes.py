"""The `Volumes` backend of the server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import partial
from typing import Any

from dray.api import models as api
from dray.api.filters import Filters
from dray.base.errors import DrayError
from dray.engine import clock
from dray.engine.events import Events
from dray.engine.registry import Registry
from dray.volumes.local import Volume
from dray.volumes.table import VolumeTable


class VolumeVerbs:
    """Create, list, inspect, remove and prune volumes; who uses them is known from the containers' records."""

    def __init__(self, volumes: VolumeTable, registry: Registry, events: Events) -> None:
        self._volumes = volumes
        self._registry = registry
        self._events = events

    def _users(self, name: str) -> list[str]:
        return [
            container.id
            for container in self._registry
            if any(point.type == "volume" and point.name == name for point in container.record.mounts)
        ]

    def _shown(self, volume: Volume, status: dict[str, Any] | None = None) -> api.Volume:
        created = clock.rfc3339(volume.created).partition(".")[0].removesuffix("Z") + "Z" if volume.created else ""
        return api.Volume(
            name=volume.name,
            driver=volume.driver,
            mountpoint=volume.mountpoint,
            created_at=created,
            status=status or {},
            labels=volume.labels or None,
            scope=self._volumes.scope(volume.driver),
            options=volume.options or None,
        )

    async def create(self, request: api.VolumeCreateRequest) -> api.Volume:
        """Create a volume, or return the one of that name."""
        volume, made = await self._volumes.create(
            request.name,
            driver=request.driver,
            options=dict(request.driver_opts or {}),
            labels=dict(request.labels or {}),
        )
        await self._registry.sync()
        if made:
            self._events.publish("volume", "create", volume.name, {"driver": volume.driver})
        return self._shown(volume)

    async def list_volumes(self, filters: Filters) -> api.VolumeListResponse:
        """List volumes."""
        filters.boolean("dangling", True)  # a bad value is an error though there be no volumes
        found, warnings = await self._volumes.list()
        chosen = [self._shown(volume) for volume in found if self._matches(volume, filters)]
        return api.VolumeListResponse(volumes=chosen, warnings=warnings or None)

    def _matches(self, volume: Volume, filters: Filters) -> bool:
        if "dangling" in filters and filters.boolean("dangling", True) == bool(self._users(volume.name)):
            return False
        return (
            filters.matches_text("name", volume.name)
            and filters.matches_exactly("driver", volume.driver)
            and filters.matches_labels(volume.labels)
        )

    async def inspect(self, name: str) -> api.Volume:
        """Return one volume."""
        return self._shown(*await self._volumes.inspect(name))

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove a volume."""
        volume = await self._volumes.remove(name, force=force, users=lambda: self._users(name))
        if volume is not None:
            await self._registry.sync()
            self._events.publish("volume", "destroy", name, {"driver": volume.driver})

    async def prune(self, filters: Filters) -> api.VolumePruneReport:
        """Remove unused anonymous volumes, or all unused ones with the filter `all`."""
        everything = filters.boolean("all", False)
        deleted: list[str] = []
        reclaimed = 0
        for volume in self._volumes.local.list():
            name = volume.name
            if not (everything or self._volumes.is_anonymous(name)) or not filters.matches_labels(volume.labels):
                continue
            if self._users(name) or self._volumes.holders(name):
                continue
            with contextlib.suppress(DrayError):  # taken or removed by somebody else meanwhile
                size = await self._volumes.size(name)
                await self._volumes.remove(name, users=partial(self._users, name))
                self._events.publish("volume", "destroy", name, {"driver": volume.driver})
                deleted.append(name)
                reclaimed += size
        await self._registry.sync()
        self._events.publish("volume", "prune", "", {"reclaimed": str(reclaimed)})
        return api.VolumePruneReport(volumes_deleted=deleted, space_reclaimed=reclaimed)

    async def disk_usage(self, *, verbose: bool) -> api.VolumesDiskUsage:
        """Return what volumes take, for `system df`."""
        items = []
        found, _ = await self._volumes.list()
        for volume in found:
            shown = self._shown(volume)
            try:
                size = await self._volumes.size(volume.name)
            except DrayError:
                continue  # removed meanwhile
            shown.usage_data = api.VolumeUsage(size=size, ref_count=len(self._users(volume.name)))
            items.append(shown)
        return api.VolumesDiskUsage(
            active_count=sum(1 for item in items if item.usage_data and item.usage_data.ref_count),
            total_count=len(items),
            reclaimable=_sum(item for item in items if item.usage_data and not item.usage_data.ref_count),
            total_size=_sum(items),
            items=items if verbose else [],
        )


def _sum(volumes: Iterable[api.Volume]) -> int:
    return sum(max(0, volume.usage_data.size) for volume in volumes if volume.usage_data)
