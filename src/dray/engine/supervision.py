"""What happens to containers without being asked: exits, out-of-memory kills, lost shims, and a daemon's start.

A daemon that starts reads every record and asks the shims what became of the containers meanwhile. Nothing is
guessed: a shim that lives says what runs, an exit.json says what ended and how, and only where both are gone (the
machine was restarted) the container is shown exited 255, as dockerd does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

import msgspec

from dray.base.errors import DrayError
from dray.base.files import remove_tree
from dray.engine import clock, restart, shm
from dray.engine.events import Events
from dray.engine.execs import ExecTable
from dray.engine.health import HealthChecks
from dray.engine.layout import Layout
from dray.engine.lifecycle import Lifecycle
from dray.engine.model import Container, event_attributes
from dray.engine.registry import Registry
from dray.shim.model import ExitStatus
from dray.shim.tasks import Task, Tasks

log = logging.getLogger(__name__)

KILLED = 137
MACHINE_RESTARTED = 255


class Supervisor:
    """The listener of all tasks (`shim.tasks.TaskListener`)."""

    def __init__(
        self,
        registry: Registry,
        lifecycle: Lifecycle,
        execs: ExecTable,
        health: HealthChecks,
        events: Events,
        layout: Layout,
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._execs = execs
        self._health = health
        self._events = events
        self._layout = layout
        self._ready = asyncio.Event()  # set once the daemon's start is over: until then no exit is acted on

    # -- what shims report ---------------------------------------------------------------------------------

    def exited(self, task: Task, status: ExitStatus) -> None:
        """A container's run is over."""
        self._lifecycle.later(self._ended(task, status))

    def lost(self, task: Task) -> None:
        """A shim died before its container: what was left of it has been killed."""
        status = ExitStatus(
            exit_code=KILLED,
            finished_at=clock.now(),
            error="the container's shim was killed, and the container with it",
        )
        self._lifecycle.later(self._ended(task, status))

    async def _ended(self, task: Task, status: ExitStatus) -> None:
        await self._ready.wait()
        container = self._registry.get(task.id)
        if container is None:
            return
        async with container.lock:  # a start that is still being written down comes first
            known = container.task
        if known is not task:
            return
        self._health.stop(container)
        await self._lifecycle.ended(container, status)
        self._execs.forget(container)

    def exec_exited(self, task: Task, exec_id: str, status: ExitStatus) -> None:
        """An exec's process ended."""
        if container := self._registry.get(task.id):
            self._execs.ended(container, exec_id, status.exit_code)

    def oom(self, task: Task) -> None:
        """The kernel's OOM killer struck in the container."""
        if container := self._registry.get(task.id):
            container.state.oom_killed = True
            self._registry.save(container)
            self._events.publish("container", "oom", container.id, event_attributes(container))

    def detached(self, task: Task, exec_id: str) -> None:
        """A client left with the detach keys."""
        container = self._registry.get(task.id)
        if container is None:
            return
        if exec_id:
            self._execs.detached(container, exec_id)
        else:
            self._events.publish("container", "detach", container.id, event_attributes(container))

    # -- the daemon starts ---------------------------------------------------------------------------------

    async def reattach(self, tasks: Tasks) -> list[tuple[Container, ExitStatus]]:
        """Find what runs, and return the containers whose run ended while no daemon watched.

        Called before networks are reconciled; `settle` afterwards acts on the result.
        """
        ended: list[tuple[Container, ExitStatus]] = []
        known = set[str]()
        for container in self._registry:
            known.add(container.id)
            state = container.state
            if not state.running:
                await self._kill_unacknowledged(tasks, container)
                continue
            container.settled.clear()
            task = await tasks.reattach(Path(self._layout.task(container.id)))
            if task is not None:
                container.task = task
                state.pid = task.pid
            else:
                ended.append((container, self._how_it_ended(container)))
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._layout.tasks):
                if name not in known:
                    await self._kill_leftover(tasks, name)
        return ended

    async def _kill_unacknowledged(self, tasks: Tasks, container: Container) -> None:
        """End a run whose start was never acknowledged (the daemon died in the middle of it)."""
        if os.path.isdir(self._layout.task(container.id)):
            await self._kill_leftover(tasks, container.id)

    async def _kill_leftover(self, tasks: Tasks, container_id: str) -> None:
        run_dir = Path(self._layout.task(container_id))
        with contextlib.suppress(DrayError, OSError):
            task = await tasks.reattach(run_dir)
            if task is not None:
                await task.kill(9, all_processes=True)
                await asyncio.wait_for(task.wait(), 10)
                await task.release()
        shm.unmount(str(run_dir))
        remove_tree(run_dir)

    def _how_it_ended(self, container: Container) -> ExitStatus:
        try:
            status = msgspec.json.decode(
                Path(self._layout.container(container.id), "exit.json").read_bytes(), type=ExitStatus
            )
            if status.finished_at >= container.state.started_at:
                return status
        except (FileNotFoundError, msgspec.DecodeError):
            pass
        if os.path.isdir(self._layout.task(container.id)):
            return ExitStatus(exit_code=KILLED, finished_at=clock.now(), error="the container's shim was killed")
        return ExitStatus(exit_code=MACHINE_RESTARTED, finished_at=clock.now())

    async def settle(self, ended: list[tuple[Container, ExitStatus]]) -> None:
        """Finish what was interrupted, and start what its restart policy wants started."""
        for container, status in ended:
            shm.unmount(self._layout.task(container.id))
            remove_tree(self._layout.task(container.id))
            await self._lifecycle.ended(container, status, at_boot=True)
        self._ready.set()
        for container in self._registry:
            state = container.state
            if state.running:
                self._health.start(container, found=True)
            elif state.status == "removing":
                await self._finish_removal(container)
            elif container.record.host_config.auto_remove and state.started_at and not container.record.resume:
                with contextlib.suppress(DrayError):
                    await self._lifecycle.remove(container)
            elif self._wants_start(container):
                self._lifecycle.later(self._start_at_boot(container))

    async def _finish_removal(self, container: Container) -> None:
        """Finish an interrupted removal; one that cannot be finished must not keep the daemon from starting."""
        try:
            await self._lifecycle.finish_removal(container)
        except Exception as error:
            log.error("container %s cannot be removed: %s", container.name, error)
            container.state.status, container.state.error = "dead", str(error)

    @staticmethod
    def _wants_start(container: Container) -> bool:
        record, state = container.record, container.state
        if container.restart_timer is not None or state.started_at == 0:
            return False
        if state.status == "restarting" or record.resume:
            return True
        return state.status == "exited" and restart.should_restart(
            record.host_config.restart_policy,
            exit_code=state.exit_code,
            restart_count=record.restart_count,
            manually_stopped=record.manually_stopped,
            at_boot=True,
        )

    async def _start_at_boot(self, container: Container) -> None:
        try:
            if container.state.status == "restarting":
                container.state.status = "exited"
            await self._lifecycle.start(container)
        except DrayError as error:
            log.warning("container %s could not be restarted: %s", container.name, error)

    async def stop(self) -> None:
        """The daemon goes: leave shims and containers as they are, and act on nothing more."""
        for container in self._registry:
            self._health.stop(container)
            if container.restart_timer is not None:
                container.restart_timer.cancel()
            if container.task is not None:
                container.task.disconnect()
