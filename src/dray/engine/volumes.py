"""The `Volumes` backend of the server."""

from __future__ import annotations

import asyncio

import msgspec

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
