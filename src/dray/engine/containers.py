"""The `Containers` backend of the server: containers as objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from dray.api import models as api
from dray.api.filters import Filters
from dray.api.requests import CreateOptions, RemoveOptions
from dray.base.errors import Conflict, NotFound
from dray.engine import clock, initfiles, links, listing, stats, top, updating, views
from dray.engine.creation import Creator
from dray.engine.events import Events
from dray.engine.images import ImageVerbs
from dray.engine.layout import Layout
from dray.engine.lifecycle import Lifecycle
from dray.engine.model import Container, event_attributes
from dray.engine.registry import Registry
from dray.store.snapshots import Snapshots


class Containers:
    """Create, list, inspect, update, remove, prune."""

    def __init__(
        self,
        registry: Registry,
        creator: Creator,
        lifecycle: Lifecycle,
        images: ImageVerbs,
        snapshots: Snapshots,
        events: Events,
        layout: Layout,
    ) -> None:
        self._registry = registry
        self._creator = creator
        self._lifecycle = lifecycle
        self._images = images
        self._snapshots = snapshots
        self._events = events
        self._layout = layout

    async def create(
        self,
        options: CreateOptions,
        config: api.ContainerConfig,
        host_config: api.HostConfig,
        networking_config: api.NetworkingConfig,
    ) -> api.ContainerCreateResponse:
        """Create a container."""
        container, warnings = await self._creator.create(options, config, host_config, networking_config)
        self._events.publish("container", "create", container.id, event_attributes(container))
        return api.ContainerCreateResponse(id=container.id, warnings=warnings)

    async def list_containers(
        self, *, all: bool, limit: int, size: bool, filters: Filters
    ) -> list[api.ContainerSummary]:
        """List containers, newest first."""
        chosen = listing.select(
            self._registry, show_all=all, limit=limit, filters=filters, ancestors=self._images.with_descendants
        )
        now = clock.now()
        further = links.further_names(self._registry)
        shown = [views.summary(container, now=now, further=further.get(container.id, ())) for container in chosen]
        for summary, container in zip(shown, chosen, strict=True):
            summary.image = self._images.shown_name(container.record)
        if size:
            sizes = await asyncio.to_thread(self._sizes, chosen)
            for summary, (writable, whole) in zip(shown, sizes, strict=True):
                summary.size_rw, summary.size_rootfs = writable or None, whole  # dockerd leaves a zero out
        return shown

    def _sizes(self, containers: list[Container]) -> list[tuple[int, int]]:
        sizes = []
        for container in containers:
            writable = self._snapshots.usage(container.id).size
            sizes.append((writable, writable + self._images.unpacked_size(container.record.image_id)))
        return sizes

    async def inspect(self, ref: str, *, size: bool) -> api.ContainerInspectResponse:
        """Return everything known of one container."""
        container = self._registry.find(ref)
        shown = views.inspect(container, self._layout, links=links.shown(container.record, self._registry.get))
        shown.image_manifest_descriptor = self._images.manifest_descriptor(container.record)
        shown.graph_driver = api.DriverData(
            name=container.record.driver, data=views.graph_data(self._snapshots.mounts(container.id))
        )
        if size:
            shown.size_rw, shown.size_rootfs = (await asyncio.to_thread(self._sizes, [container]))[0]
        return shown

    async def rename(self, ref: str, name: str) -> None:
        """Give a container another name."""
        await self._lifecycle.rename(self._registry.find(ref), name)

    async def update(self, ref: str, request: api.ContainerUpdateRequest) -> api.ContainerUpdateResponse:
        """Change resources and restart policy."""
        container = self._registry.find(ref)
        async with container.lock:
            if container.state.status in ("removing", "dead"):
                raise Conflict('Container is marked for removal and cannot be "update".')
            warnings = self._creator.check_update(request)
            changed = updating.apply(container.record.host_config, request)
            if container.task is not None and container.state.running:
                await container.task.update(updating.changed_resources(request, changed))
            container.record.host_config = changed
            self._registry.save(container)
            await self._registry.sync()
        self._events.publish("container", "update", container.id, event_attributes(container))
        return api.ContainerUpdateResponse(warnings=warnings or None)

    async def remove(self, ref: str, options: RemoveOptions) -> None:
        """Remove a container."""
        if options.link:
            await self._remove_link(ref)
            return
        await self._lifecycle.remove(self._registry.find(ref), force=options.force, volumes=options.volumes)

    async def _remove_link(self, path: str) -> None:
        """Forget the link `parent/alias`; both containers stay as they are."""
        found = links.find(path, self._registry)
        if found is None:
            raise NotFound(f"No such link: {path}: name it as parent/alias (docker ps --no-trunc shows them)")
        parent, _ = found
        async with parent.lock:
            host = parent.record.host_config
            remaining = links.without(parent.record, path.rpartition("/")[2])
            parent.record.host_config = msgspec.structs.replace(host, links=remaining)
            self._registry.save(parent)
            await self._registry.sync()

    async def prune(self, filters: Filters) -> api.ContainerPruneReport:
        """Remove stopped containers."""
        until = min((clock.parse_timestamp(text) for text in filters.values_of("until")), default=None)
        deleted: list[str] = []
        reclaimed = 0
        for container in self._registry:
            record, state = container.record, container.state
            if state.running or state.status in ("restarting", "removing"):
                continue
            if not filters.matches_labels(record.config.labels):
                continue
            if until is not None and record.created >= until:
                continue
            size = (await asyncio.to_thread(self._snapshots.usage, container.id)).size
            try:
                await self._lifecycle.remove(container)
            except (NotFound, Conflict):
                continue  # somebody else removed or started it
            deleted.append(container.id)
            reclaimed += size
        self._events.publish("container", "prune", "", {"reclaimed": str(reclaimed)})
        return api.ContainerPruneReport(containers_deleted=deleted, space_reclaimed=reclaimed)

    async def top(self, ref: str, ps_args: str) -> api.ContainerTopResponse:
        """List the processes of a running container."""
        container = self._running(ref)
        assert container.task is not None
        pids = await container.task.pids()
        response = await asyncio.to_thread(top.processes, pids, ps_args)
        self._events.publish("container", "top", container.id, event_attributes(container))
        return response

    def _running(self, ref: str) -> Container:
        container = self._registry.find(ref)
        if container.state.status == "restarting":
            raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
        if not container.state.running or container.task is None:
            raise Conflict(f"container {container.id} is not running")
        return container

    async def changes(self, ref: str) -> list[api.FilesystemChange]:
        """Compare a container's root file system with its image."""
        container = self._registry.find(ref)
        found = await asyncio.to_thread(self._snapshots.changes, container.id)
        kinds = {"C": 0, "A": 1, "D": 2}
        return [
            api.FilesystemChange(path=change.path, kind=kinds[change.kind]) for change in initfiles.without(found)
        ]

    def stats(self, ref: str, *, stream: bool, one_shot: bool) -> AsyncIterator[api.ContainerStatsResponse]:
        """Yield resource usage, once a second while streaming."""
        return stats.samples(self._registry, self._registry.find(ref), stream=stream, one_shot=one_shot)
