"""Start, stop, kill, pause, restart, rename and remove: the verbs that change what a container does.

A start is a list of reversible steps on one exit stack (volumes → network → files → spec → task); a failure at
any step undoes the ones before it. What happens after a start is told by `supervision`, which calls `ended`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

from dray.base import failpoints
from dray.base.errors import Conflict, DrayError, Internal, NotFound, NotModified, StartError, Unavailable
from dray.base.files import remove_tree
from dray.engine import restart, signals
from dray.engine.events import Events
from dray.engine.launch import Launcher
from dray.engine.model import Container, ContainerRecord, event_attributes
from dray.engine.peers import Peers
from dray.engine.registry import Registry
from dray.linux import processes
from dray.network.controller import Controller
from dray.shim.model import ExitStatus
from dray.shim.tasks import Task
from dray.store.snapshots import Snapshots

log = logging.getLogger(__name__)

KILL_PATIENCE = 10.0  # seconds after SIGKILL before we say that the process cannot be killed
SETTLE_ROUNDS = 6  # times that patience, for what follows the end of a process

_ENDS_PATIENCE = 2.0  # seconds, until a daemon that stops leaves shims of dead containers to themselves
OPENING_PATIENCE = 5.0  # seconds that a removal waits for log readers to open their files


def _state_of(pid: int) -> str:
    """Return the state letter of proc(5), "" for a process that is gone."""
    try:
        return processes.state(pid)
    except ProcessLookupError:
        return ""


@contextlib.contextmanager
def _logged(container: Container, what: str) -> Iterator[None]:
    """Go on after a failure of one of the steps that end a run: whoever waits for the end must be told of it."""
    try:
        yield
    except Exception as error:
        log.error("container %s: %s: %s", container.name, what, error)


class Lifecycle:
    """The state changes of containers. Every public verb takes the container's lock for as long as it changes
    the record, and never while it waits for a process to end."""

    def __init__(
        self,
        registry: Registry,
        events: Events,
        launcher: Launcher,
        networks: Controller,
        snapshots: Snapshots,
        peers: Peers,
        *,
        default_stop_timeout: int = 10,
        removed: Callable[[ContainerRecord], None] = lambda record: None,
    ) -> None:
        self._registry = registry
        self._events = events
        self._launcher = launcher
        self._networks = networks
        self._snapshots = snapshots
        self._peers = peers
        self._default_stop_timeout = default_stop_timeout
        self._removed = removed
        self.started: Callable[[Container], None] = lambda container: None  # told of every start, whoever asked
        self._back_off: dict[str, restart.BackOff] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._shutting_down = False

    # -- start ---------------------------------------------------------------------------------------------

    async def start(self, container: Container, *, checkpoint: str = "") -> None:
        """Start a container, from a checkpoint's folder if one is named; NotModified if it runs already."""
        async with container.lock:
            state = container.state
            if state.status == "paused":
                raise Conflict("cannot start a paused container, try unpause instead")
            if state.running:
                raise NotModified(f"container {container.id} is already running")
            if state.status in ("removing", "dead"):
                raise Conflict("container is marked for removal and cannot be started")
            self._cancel_restart(container)
            container.record.restart_count = 0
            container.record.manually_stopped = False
            await self._start_locked(container, checkpoint=checkpoint)
        if container.record.host_config.restart_policy.name not in ("", "no"):
            await self._registry.sync()  # after a power loss its policy must find it started

    async def _start_locked(self, container: Container, *, checkpoint: str = "") -> None:
        record, state = container.record, container.state
        container.stop_requested = False
        before = "exited" if state.status == "restarting" else state.status
        try:
            async with AsyncExitStack() as undo:
                task, endpoints = await self._launcher.launch(container, undo, checkpoint=checkpoint)
                undo.push_async_callback(self._abandon, task)
                record.endpoints = list(endpoints)
                state.status, state.pid, record.resume = "running", task.pid, False
                state.started_at, state.error, state.exit_code, state.oom_killed = task.started_at, "", 0, False
                self._registry.save(container)
                failpoints.reach("start.recorded")
                undo.pop_all()
        except Exception as error:
            code = error.exit_code if isinstance(error, StartError) else 128
            state.status, state.pid, record.endpoints = before, 0, []
            state.error, state.exit_code = str(error), code
            with _logged(container, "why it did not start could not be written down"):
                self._registry.save(container)
            if record.host_config.auto_remove and not container.stop_requested:
                self.later(self._remove_quietly(container))
            if isinstance(error, DrayError):
                raise
            raise Internal(str(error)) from error
        container.task = task
        container.settled.clear()
        self._peers.started(container)
        self._events.publish("container", "start", container.id, event_attributes(container))
        self.started(container)

    @staticmethod
    async def _abandon(task: Task) -> None:
        """End a run that could not be written down."""
        with contextlib.suppress(DrayError):
            await task.kill(signal.SIGKILL, all_processes=True)
        await task.wait()
        await task.release()

    # -- the end of a run ----------------------------------------------------------------------------------

    async def ended(self, container: Container, status: ExitStatus, *, at_boot: bool = False) -> None:
        """Write down that a container's run is over, give back what it held, and restart or remove it if it asked
        for that. Called once per run, with the lock held by nobody."""
        async with container.lock:
            record, state = container.record, container.state
            task, container.task = container.task, None
            ran = max(0, status.finished_at - state.started_at) / 1e9
            asked = container.stop_requested  # whoever asked may go on as soon as the end is told
            final = asked or self._shutting_down
            again = not final and restart.should_restart(
                record.host_config.restart_policy,
                exit_code=status.exit_code,
                restart_count=record.restart_count,
                manually_stopped=record.manually_stopped,
                at_boot=at_boot,
            )
            sick = state.health is not None and state.health.status == "unhealthy"
            if sick and not final and not record.manually_stopped:
                again = again or restart.restarts_unhealthy(record.config)
            state.status = "restarting" if again else "exited"
            unheard = status.oom_killed and not state.oom_killed
            state.pid, state.exit_code, state.oom_killed = (
                0,
                status.exit_code,
                state.oom_killed or status.oom_killed,
            )
            state.finished_at = status.finished_at
            if status.error:
                state.error = status.error
            if state.health is not None:
                state.health.status = "unhealthy"
            for run in container.execs.values():
                run.lapsed = not run.started
                if run.running:
                    run.running, run.exit_code = False, 137
                    run.finished.set()
            endpoints, record.endpoints = record.endpoints, []
            with _logged(container, "its end could not be written down"):  # exit.json has it for the next daemon
                self._registry.save(container)
            failpoints.reach("stop.recorded")
            attributes = event_attributes(container)
            if unheard:
                self._events.publish("container", "oom", container.id, attributes)
            self._events.publish(
                "container",
                "die",
                container.id,
                attributes | {"exitCode": str(status.exit_code), "execDuration": str(int(ran))},
            )
            with _logged(container, "its network could not be given back"):
                await self._networks.detach(container.id, endpoints)
            with _logged(container, "its volumes could not be given back"):
                self._launcher.stopped(container, endpoints)
                self.later(self._launcher.release_volumes(record))
            with _logged(container, "its peers could not be told"):
                self._peers.gone(container.id, endpoints)
            failpoints.reach("stop.named")
            # Its processes, network and ports are gone: that is told now. What only the next run must wait for, the
            # shim with the cgroup, goes behind it, under the lock.
            container.settled.set()
            self._tell(container.exit_waiters, status)
            if task is not None:
                with _logged(container, "its shim could not be released"):
                    await task.release()
            failpoints.reach("stop.done")
        if again:
            delay = self._back_off.setdefault(container.id, restart.BackOff()).after_run_of(ran)
            container.restart_timer = asyncio.create_task(self._restart_after(container, delay))
        elif record.host_config.auto_remove and not asked:
            await self._remove_quietly(container)

    async def finish_ends(self) -> None:
        """Wait, for a moment, until the shims of runs that are over have been released."""
        ending = [one for one in self._registry if one.lock.locked() and not one.state.running]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDS_PATIENCE):
                for container in ending:
                    async with container.lock:
                        pass

    async def _restart_after(self, container: Container, delay: float) -> None:
        await asyncio.sleep(delay)
        async with container.lock:
            if container.state.status != "restarting":
                return
            container.restart_timer = None
            container.record.restart_count += 1
            with contextlib.suppress(DrayError):  # the error is in the record, as `inspect` shows
                await self._start_locked(container)

    def _cancel_restart(self, container: Container) -> None:
        timer, container.restart_timer = container.restart_timer, None
        if timer is not None:
            timer.cancel()
        self._back_off.pop(container.id, None)

    def later(self, work: object) -> None:
        """Run a coroutine in the background, kept from the garbage collector until it is done."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    @staticmethod
    def _tell(waiters: set[asyncio.Future[ExitStatus]], status: ExitStatus) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(status)
        waiters.clear()

    # -- stop, kill, restart -------------------------------------------------------------------------------

    async def kill(self, container: Container, signal_name: str) -> None:
        """Send a signal to init; SIGKILL (the default) returns when the container has ended."""
        number = signals.parse(signal_name) if signal_name else signal.SIGKILL
        terminal = number in (signal.SIGKILL, self._stop_signal(container))
        if terminal and await self._give_up_restarting(container):
            return
        if not container.state.running:
            raise Conflict(f"cannot kill container: {container.id}: container {container.id} is not running")
        await self._signal(container, number)
        if number == signal.SIGKILL:
            await self.wait_until_settled(container)

    async def _signal(self, container: Container, number: int) -> None:
        terminal = number in (signal.SIGKILL, self._stop_signal(container))
        if terminal:
            self.note_stopped_by_hand(container)
        task = container.task
        if task is not None:
            over: tuple[type[Exception], ...] = (NotFound, ProcessLookupError)
            if terminal:  # it has just ended by itself, or with its shim: all that was wanted
                over += (Conflict, Unavailable)
            with contextlib.suppress(*over):
                await task.kill(number)
            if terminal and container.state.status == "paused":
                await task.resume()
        self._events.publish(
            "container", "kill", container.id, event_attributes(container) | {"signal": str(int(number))}
        )

    def note_stopped_by_hand(self, container: Container) -> None:
        """Remember it for the restart policy. A disk that is full must not keep anybody from stopping a container."""
        if self._shutting_down:  # the daemon stops it, and its policy starts it again with the daemon
            return
        container.record.manually_stopped = True
        try:
            self._registry.save(container)
        except DrayError as error:
            log.error(
                "container %s is stopped by hand, which could not be written down: %s", container.name, error
            )

    @staticmethod
    def _stop_signal(container: Container) -> int:
        return signals.parse(container.record.config.stop_signal or "SIGTERM")

    async def _give_up_restarting(self, container: Container) -> bool:
        """Leave a container that waits for its next run exited; tell whether it did (its run may have begun)."""
        if container.state.status != "restarting":
            return False
        async with container.lock:
            if container.state.status != "restarting":
                return False
            self._cancel_restart(container)
            container.state.status = "exited"
            self.note_stopped_by_hand(container)
            return True

    async def stop(self, container: Container, *, signal_name: str = "", timeout: int | None = None) -> None:
        """Ask the container to end, and kill it after `timeout` seconds (-1: never); NotModified if it is not
        running."""
        if await self._give_up_restarting(container):
            pass
        elif not container.state.running:
            raise NotModified(f"container {container.id} is not running")
        else:
            await self._stop_running(container, signal_name, timeout)
        self._events.publish("container", "stop", container.id, event_attributes(container))

    async def _stop_running(self, container: Container, signal_name: str, timeout: int | None) -> None:
        number = signals.parse(signal_name) if signal_name else self._stop_signal(container)
        patience: int | None = timeout
        if patience is None:
            patience = container.record.config.stop_timeout
        if patience is None:
            patience = self._default_stop_timeout
        self.note_stopped_by_hand(container)
        await self._signal(container, number)
        if not await self._settled_within(container, None if patience < 0 else float(patience)):
            await self._signal(container, signal.SIGKILL)
            await self.wait_until_settled(container)
        if container.state.status == "restarting":  # it ended by itself just before it could be told to
            await self._give_up_restarting(container)

    async def shut_down(self, seconds: int) -> None:
        """Stop every running container because the daemon or its machine goes: each gets its stop signal, and is
        killed after `seconds` (-1: never). What a restart policy says of the next start of the daemon stays true."""
        self._shutting_down = True
        running = [one for one in self._registry if one.state.running]
        await asyncio.gather(*(self.stop(one, timeout=seconds) for one in running), return_exceptions=True)

    async def _settled_within(self, container: Container, seconds: float | None) -> bool:
        try:
            await asyncio.wait_for(container.settled.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def wait_until_settled(self, container: Container) -> None:
        """Wait for the end of a run that was killed; Internal when its process does not end.

        A process that has ended is waited for longer: on a machine that is busy, what comes behind its end (its last
        output, exit.json on disk, its network) may be what takes so long.
        """
        for _ in range(SETTLE_ROUNDS):
            if await self._settled_within(container, KILL_PATIENCE):
                return
            state = _state_of(container.state.pid)
            if state not in ("", "Z"):
                raise Internal(
                    f"container {container.id}: process {container.state.pid} did not end within {KILL_PATIENCE:g} s of "
                    f"SIGKILL; it hangs in the kernel, in state {state} (see /proc/{container.state.pid}/stack)"
                )
            log.warning("container %s was killed and is gone, but its end is not yet settled", container.name)
        raise Internal(
            f"container {container.id}: it was killed, but its shim does not say how it ended; kill the shim"
        )

    async def restart_unhealthy(self, container: Container) -> None:
        """End a run that its health check gave up, for a container that asked for that; its end is followed by the
        next run, as with a restart policy, after the same growing pause."""
        patience = container.record.config.stop_timeout
        patience = self._default_stop_timeout if patience is None else patience
        self._events.publish("container", "restart-unhealthy", container.id, event_attributes(container))
        for number in (self._stop_signal(container), signal.SIGKILL):
            if (task := container.task) is None:
                return
            with contextlib.suppress(NotFound, ProcessLookupError, Conflict, Unavailable):
                await task.kill(number)
            if await self._settled_within(container, None if patience < 0 else float(patience)):
                return
            patience = int(KILL_PATIENCE)
        log.error("container %s is unhealthy and cannot be killed", container.name)

    async def restart(self, container: Container, *, signal_name: str = "", timeout: int | None = None) -> None:
        """Stop the container if it runs, and start it."""
        container.stop_requested = True  # neither its restart policy nor --rm may act in between
        try:
            if container.state.running or container.state.status == "restarting":
                await self.stop(container, signal_name=signal_name, timeout=timeout)
        finally:
            container.stop_requested = False
        with contextlib.suppress(NotModified):
            await self.start(container)
        self._events.publish("container", "restart", container.id, event_attributes(container))

    # -- pause, rename -------------------------------------------------------------------------------------

    async def pause(self, container: Container) -> None:
        """Freeze all processes."""
        async with container.lock:
            status = container.state.status
            if status == "paused":
                raise Conflict(f"Container {container.id} is already paused")
            if status == "restarting":
                raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
            if status != "running" or container.task is None:
                raise Conflict(f"Container {container.id} is not running")
            await container.task.pause()
            container.state.status = "paused"
            self._registry.save(container)
        self._events.publish("container", "pause", container.id, event_attributes(container))

    async def unpause(self, container: Container) -> None:
        """Thaw all processes."""
        async with container.lock:
            if container.state.status != "paused" or container.task is None:
                raise Conflict(f"Container {container.id} is not paused")
            await container.task.resume()
            container.state.status = "running"
            self._registry.save(container)
        self._events.publish("container", "unpause", container.id, event_attributes(container))

    async def rename(self, container: Container, name: str) -> None:
        """Give the container another name."""
        async with container.lock:
            old = container.name
            if name.removeprefix("/") == old:
                raise Conflict("Renaming a container with the same name as its current name")
            self._registry.rename(container, name)
            if container.record.endpoints:
                container.record.endpoints = self._networks.rename(container.id, old, container.name)
                self._registry.save(container)
                self._peers.renamed(container)
            await self._registry.sync()
        self._events.publish(
            "container", "rename", container.id, event_attributes(container) | {"oldName": f"/{old}"}
        )

    # -- remove --------------------------------------------------------------------------------------------

    async def remove(self, container: Container, *, force: bool = False, volumes: bool = False) -> None:
        """Remove a container and, with `volumes`, the anonymous volumes made for it."""
        while True:
            if force:
                await self._end_for_removal(container)
            async with container.lock:
                status = container.state.status
                if self._registry.get(container.id) is None:
                    raise NotFound(f"No such container: {container.id}")
                if status == "removing":  # `dead` is a removal that failed: it may be tried again
                    raise Conflict(f"removal of container {container.id} is already in progress")
                if container.state.running or status == "restarting":
                    if force:
                        continue  # a start that was under way came first
                    hint = (
                        "container is paused and must be unpaused first"
                        if status == "paused"
                        else f"container is {status}: stop the container before removing or force remove"
                    )
                    raise Conflict(f'cannot remove container "{container.name}": {hint}')
                await self._remove_locked(container, volumes=volumes or container.record.host_config.auto_remove)
                return

    async def _end_for_removal(self, container: Container) -> None:
        if not await self._give_up_restarting(container) and container.state.running:
            container.stop_requested = True
            await self._signal(container, signal.SIGKILL)
            await self.wait_until_settled(container)

    async def _remove_quietly(self, container: Container) -> None:
        with contextlib.suppress(DrayError):
            await self.remove(container)

    async def _remove_locked(self, container: Container, *, volumes: bool) -> None:
        self._cancel_restart(container)
        exit_code = container.state.exit_code
        container.state.status, container.record.remove_volumes = "removing", volumes
        self._registry.save(container)  # a daemon killed from here on finishes the removal when it starts
        if not container.record.host_config.auto_remove:  # else its end is reason enough to remove it
            await self._registry.sync()  # so does one after a power loss: what was removed does not come back
        for opening in list(container.opening):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(opening.wait(), OPENING_PATIENCE)
        attributes = event_attributes(container)
        try:
            await self.finish_removal(container)
        except Exception as error:
            container.state.status, container.state.error = "dead", str(error)
            raise
        self._events.publish("container", "destroy", container.id, attributes)
        status = ExitStatus(exit_code=exit_code, finished_at=container.state.finished_at)
        self._tell(container.removal_waiters, status)
        self._tell(container.exit_waiters, status)

    async def finish_removal(self, container: Container) -> None:
        """Remove what a container marked `removing` has on disk, and forget it."""
        for _, fd in container.pending:
            os.close(fd)
        container.pending.clear()
        if self._snapshots.exists(container.id):
            self._snapshots.remove(container.id)
        self._launcher.forget(container)
        if container.record.remove_volumes:
            await self._launcher.remove_anonymous_volumes(container)
        self._registry.remove(container)  # last: until then a daemon that is killed finishes it when it starts
        self._removed(container.record)
        self.later(asyncio.to_thread(remove_tree, self._launcher.layout.container_trash(container.id)))
