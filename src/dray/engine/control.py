"""The `Lifecycle` backend of the server: the verbs of `lifecycle` by a container's name or id, and wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from dray.api import models as api
from dray.base.errors import Conflict, InvalidParameter, NotFound
from dray.engine.checkpoints import Checkpoints
from dray.engine.events import Events
from dray.engine.lifecycle import Lifecycle
from dray.engine.model import Container, event_attributes
from dray.engine.registry import Registry
from dray.shim.model import ExitStatus


class Control:
    """Containers as processes."""

    def __init__(self, registry: Registry, lifecycle: Lifecycle, events: Events, checkpoints: Checkpoints) -> None:
        self._registry = registry
        self._checkpoints = checkpoints
        self._lifecycle = lifecycle
        self._events = events

    async def start(self, ref: str, *, checkpoint: str, checkpoint_dir: str, detach_keys: str) -> None:
        """Start; NotModified if it runs already."""
        del detach_keys  # only a hint for clients that attach: the attach request brings its own
        if checkpoint or checkpoint_dir:
            await self._checkpoints.start(ref, checkpoint, directory=checkpoint_dir)
            return
        container = self._registry.find(ref)
        await self._lifecycle.start(container)

    async def stop(self, ref: str, *, signal: str, timeout: int | None) -> None:
        """Stop; NotModified if it does not run."""
        await self._lifecycle.stop(self._registry.find(ref), signal_name=signal, timeout=timeout)

    async def restart(self, ref: str, *, signal: str, timeout: int | None) -> None:
        """Stop if it runs, then start."""
        container = self._registry.find(ref)
        await self._lifecycle.restart(container, signal_name=signal, timeout=timeout)

    async def kill(self, ref: str, *, signal: str) -> None:
        """Send a signal."""
        await self._lifecycle.kill(self._registry.find(ref), signal)

    async def pause(self, ref: str) -> None:
        """Freeze."""
        await self._lifecycle.pause(self._registry.find(ref))

    async def unpause(self, ref: str) -> None:
        """Thaw."""
        await self._lifecycle.unpause(self._registry.find(ref))

    async def wait(self, ref: str, condition: str) -> Awaitable[api.ContainerWaitResponse]:
        """Register for the end of the container; see `backends.Lifecycle.wait`."""
        container = self._registry.find(ref)
        if condition not in ("", "not-running", "next-exit", "removed"):
            raise InvalidParameter(f"invalid condition: {condition!r}")
        waiter: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        if condition == "removed":
            container.removal_waiters.add(waiter)
        elif condition == "next-exit" or container.state.running or container.state.status == "restarting":
            container.exit_waiters.add(waiter)
        else:
            state = container.state
            waiter.set_result(
                ExitStatus(exit_code=state.exit_code, finished_at=state.finished_at, error=state.error)
            )
        return self._answer(container, waiter)

    @staticmethod
    async def _answer(container: Container, waiter: asyncio.Future[ExitStatus]) -> api.ContainerWaitResponse:
        try:
            status = await waiter
        finally:
            container.exit_waiters.discard(waiter)
            container.removal_waiters.discard(waiter)
        error = api.ContainerWaitExitError(message=status.error) if status.error else None
        return api.ContainerWaitResponse(status_code=status.exit_code, error=error)

    async def resize(self, ref: str, height: int, width: int) -> None:
        """Set the size of the terminal."""
        container = self._registry.find(ref)
        if container.task is None or not container.state.running:
            raise Conflict(f"container {container.id} is not running")
        try:
            await container.task.resize(height, width)
        except NotFound:  # it ended this very moment
            raise Conflict(f"container {container.id} is not running") from None
        self._events.publish(
            "container",
            "resize",
            container.id,
            event_attributes(container) | {"height": str(height), "width": str(width)},
        )
