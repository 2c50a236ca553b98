"""The `Volumes` backend of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from dray.api import models as api
from dray.api.filters import Filters
from dray.base.errors import Conflict
from dray.engine import clock
from dray.engine.events import Events
from dray.engine.registry import Registry
from dray.volumes.local import Volume, Volumes


class VolumeVerbs:
    """Create, list, inspect, remove and prune volumes; who uses them is known from the containers' records."""

    def __init__(self, volumes: Volumes, registry: Registry, events: Events) -> None:
        self._volumes = volumes
        self._registry = registry
        self._events = events

    def _users(self, name: str) -> list[str]:
        return [
            container.id
            for container in self._registry
            if any(point.type == "volume" and point.name == name for point in container.record.mounts)
        ]

    @staticmethod
    def _shown(volume: Volume) -> api.Volume:
        return api.Volume(
            name=volume.name,
            driver=volume.driver,
            mountpoint=volume.mountpoint,
            created_at=clock.rfc3339(volume.created).partition(".")[0].removesuffix("Z") + "Z",
            labels=volume.labels or None,
            scope="local",
            options=volume.options or None,
        )

    async def create(self, request: api.VolumeCreateRequest) -> api.Volume:
        """Create a volume, or return the one of that name."""
        existed = bool(request.name) and self._volumes.exists(request.name)
        volume = await asyncio.to_thread(
            self._volumes.create,
            request.name,
            driver=request.driver or "local",
            options=dict(request.driver_opts or {}),
            labels=dict(request.labels or {}),
        )
        await self._registry.sync()
        if not existed:
            self._events.publish("volume", "create", volume.name, {"driver": volume.driver})
        return self._shown(volume)

    async def list_volumes(self, filters: Filters) -> api.VolumeListResponse:
        """List volumes."""
        chosen = [volume for volume in self._volumes.list() if self._matches(volume, filters)]
        return api.VolumeListResponse(volumes=[self._shown(volume) for volume in chosen], warnings=None)

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
        return self._shown(self._volumes.inspect(name))

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove a volume."""
        users = self._users(name)
        if users:
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        driver = self._volumes.inspect(name).driver if self._volumes.exists(name) else "local"
        await asyncio.to_thread(self._volumes.remove, name, force=force)
        await self._registry.sync()
        self._events.publish("volume", "destroy", name, {"driver": driver})

    async def prune(self, filters: Filters) -> api.VolumePruneReport:
        """Remove unused anonymous volumes, or all unused ones with the filter `all`."""
        everything = filters.boolean("all", False)
        deleted: list[str] = []
        reclaimed = 0
        for volume in self._volumes.list():
            if self._users(volume.name) or not (everything or self._volumes.is_anonymous(volume.name)):
                continue
            if not filters.matches_labels(volume.labels):
                continue
            size = await asyncio.to_thread(self._volumes.size, volume.name)
            await asyncio.to_thread(self._volumes.remove, volume.name)
            self._events.publish("volume", "destroy", volume.name, {"driver": volume.driver})
            deleted.append(volume.name)
            reclaimed += size
        self._events.publish("volume", "prune", "", {"reclaimed": str(reclaimed)})
        return api.VolumePruneReport(volumes_deleted=deleted, space_reclaimed=reclaimed)

    async def disk_usage(self, *, verbose: bool) -> api.VolumesDiskUsage:
        """Return what volumes take, for `system df`."""
        items = []
        for volume in self._volumes.list():
            shown = self._shown(volume)
            size = await asyncio.to_thread(self._volumes.size, volume.name)
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
    return sum(volume.usage_data.size for volume in volumes if volume.usage_data)
