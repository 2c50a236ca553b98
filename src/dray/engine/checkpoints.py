"""Checkpoints of containers: written by criu, listed, removed, started from.

    <data-root>/containers/<id>/checkpoints/<name>/      or <dir>/<name>/ with --checkpoint-dir
        dray.json, *.img                                 see `runtime.checkpoint`; without dray.json it is a broken one

A checkpoint is of processes. Files in the container's root and volumes stay where they are and go on changing. An
experimental verb of Docker's: the daemon has to be told `experimental`.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from dray.base.errors import Conflict, DrayError, InvalidParameter, NotFound, Unsupported
from dray.base.files import remove_tree
from dray.base.patterns import pattern
from dray.engine.events import Events
from dray.engine.layout import Layout
from dray.engine.lifecycle import Lifecycle
from dray.engine.model import Container, event_attributes
from dray.engine.registry import Registry

_NAME = pattern(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
_DESCRIPTION = "dray.json"


class Caller(Protocol):
    """Runs functions in processes of their own (the zygote)."""

    async def call(self, function: str, arguments: dict[str, object]) -> object:
        """See `shim.spawn.Zygote.call`."""


class Checkpoints:
    """The `Checkpoints` backend of the server."""

    def __init__(
        self,
        registry: Registry,
        lifecycle: Lifecycle,
        events: Events,
        layout: Layout,
        caller: Caller,
        experimental: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._events = events
        self._layout = layout
        self._caller = caller
        self._experimental = experimental
        self._possible = False

    async def create(self, ref: str, name: str, *, directory: str, leave_running: bool) -> None:
        """Write a running container down; it is stopped, and stays so, unless `leave_running`."""
        self._require_experimental()
        container = self._registry.find(ref)
        _check_name(name)
        self._check(container, directory, leave_running=leave_running)
        await self.require_criu()
        async with container.lock:
            task = container.task
            if task is None or container.state.status != "running":
                raise Conflict(f"Container {ref} not running")
            place = Path(self._directory(container, directory), name)
            await asyncio.to_thread(_make, place, container.name)
            if not leave_running:
                self._lifecycle.note_stopped_by_hand(container)
            try:
                await self._caller.call(
                    "dray.runtime.checkpoint:write",
                    {
                        "pid": task.pid,
                        "bundle": self._layout.task(container.id),
                        "images": str(place),
                        "leave_running": leave_running,
                    },
                )
            except DrayError as error:
                await asyncio.to_thread(remove_tree, place)
                if not leave_running:
                    container.record.manually_stopped = False
                    self._registry.save(container)
                raise type(error)(f"Cannot checkpoint container {ref}: {error.message}") from error
        self._events.publish("container", "checkpoint", container.id, event_attributes(container))
        if not leave_running:
            await self._lifecycle.wait_until_settled(container)

    def _check(self, container: Container, directory: str, *, leave_running: bool) -> None:
        if container.record.host_config.runtime != "dray":
            raise Unsupported(
                f"checkpoints: not with runtime {container.record.host_config.runtime}, only with the built-in one"
            )
        if container.record.config.tty:
            raise Unsupported("checkpoint not supported on containers with tty")
        if container.record.host_config.auto_remove and not leave_running and not directory:
            raise Conflict(
                f"container {container.name} removes itself when it stops (--rm), its checkpoints with it: use "
                "--leave-running or --checkpoint-dir"
            )

    def list_checkpoints(self, ref: str, *, directory: str) -> list[str]:
        """Return the names of a container's checkpoints, sorted."""
        self._require_experimental()
        place = self._directory(self._registry.find(ref), directory)
        try:
            names = os.listdir(place)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if os.path.exists(f"{place}/{name}/{_DESCRIPTION}"))

    async def remove(self, ref: str, name: str, *, directory: str) -> None:
        """Remove a checkpoint."""
        self._require_experimental()
        await asyncio.to_thread(remove_tree, self.find(self._registry.find(ref), name, directory=directory))

    async def start(self, ref: str, name: str, *, directory: str) -> None:
        """Start a container from a checkpoint."""
        self._require_experimental()
        container = self._registry.find(ref)
        place = self.find(container, name, directory=directory)
        await self.require_criu()
        await self._lifecycle.start(container, checkpoint=str(place))

    def find(self, container: Container, name: str, *, directory: str) -> Path:
        """Return a checkpoint's folder; NotFound."""
        _check_name(name)
        place = Path(self._directory(container, directory), name)
        if not (place / _DESCRIPTION).exists():
            raise NotFound(f"checkpoint {name} does not exist for container {container.name}")
        return place

    async def require_criu(self) -> None:
        """Raise Unsupported, in criu's words, where there can be no checkpoints."""
        if self._possible:
            return
        reason = str(await self._caller.call("dray.runtime.checkpoint:check", {}))
        if reason:
            raise Unsupported(f"checkpoints are not possible on this host: {reason}")
        self._possible = True

    def _require_experimental(self) -> None:
        if not self._experimental():
            raise Unsupported(
                "this experimental feature is disabled by default. Start the daemon with --experimental, or with "
                '"experimental": true in its configuration'
            )

    def _directory(self, container: Container, directory: str) -> str:
        if directory and not os.path.isabs(directory):
            raise InvalidParameter(f"checkpoint-dir {directory!r}: give an absolute path")
        return directory or f"{self._layout.container(container.id)}/checkpoints"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidParameter(f"Invalid checkpoint ID ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")


def _make(place: Path, container: str) -> None:
    """Make a checkpoint's folder; what a daemon that was killed has left there goes first."""
    if (place / _DESCRIPTION).exists():
        raise Conflict(f"checkpoint with name {place.name} already exists for container {container}")
    if place.exists():
        if not place.is_dir():
            raise Conflict(f"{place} exists and is not a directory")
        if not all(name.endswith((".img", ".tmp", "stats-dump")) for name in os.listdir(place)):
            raise Conflict(f"{place} exists and is no checkpoint")
        remove_tree(place)
    os.makedirs(place, 0o700)
