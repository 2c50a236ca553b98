"""The built-in OCI runtime.

`create` forks the container's init straight into its new namespaces and returns when init stands one step before
`execve`. No daemon, no thread, no file but the cgroup's: what is needed later is held in memory by the caller's
`BuiltinRuntime`, or, given a `state_dir`, on disk as well, for the `dray-runtime` command.

The caller reads an outline of the spec; what only init needs, init computes itself, after the fork: its memory goes
with `execve`, the caller's stays (see `document` and docs/flows/start-of-init.md).

Ownership: the caller reaps every process whose pid it was given; helpers that this module forks it reaps itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal as signals
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from dray.base.errors import Conflict, DrayError, NotFound
from dray.linux import libc
from dray.runtime import notify, state, tenant
from dray.runtime.creation import Creation, as_errors
from dray.runtime.handshake import Start
from dray.runtime.hooks import hooks_of, run_hooks, warn_of_hooks
from dray.runtime.model import CreateRequest, ExecRequest, Started
from dray.runtime.served import attachable
from dray.runtime.state import Container


class BuiltinRuntime:
    """The `Runtime` protocol on the kernel itself.

    state_dir: None: containers live as long as the calling process (their init dies with it); else they are
        remembered there, and other processes may go on with them.
    pivot: False on a ramdisk, whose root cannot be pivoted away from: MS_MOVE and chroot instead
    """

    def __init__(self, state_dir: Path | None = None, *, pivot: bool = True) -> None:
        self._state_dir = state_dir
        self._pivot = pivot
        self._containers: dict[str, Container] = {}

    def create(self, request: CreateRequest) -> Started:
        """See `Runtime.create`."""
        state.check_id(request.id)
        if request.id in self._containers:
            raise Conflict(f"container with id exists: {request.id}")
        with attachable(request.rootfs) as layers, contextlib.ExitStack() as undo:
            request = replace(request, rootfs=layers)
            creation = Creation(request, self._state_dir, undo, pivot=self._pivot)
            container, console = creation.run()
            undo.pop_all()
        self._containers[request.id] = container
        return Started(container.saved.pid, console)

    def checkpoint(self, id: str, images: Path, *, leave_running: bool = False) -> None:
        """Write the processes down into an empty folder; they are killed afterwards unless `leave_running`. See
        `checkpoint.dump` for who may not call this."""
        from dray.runtime import checkpoint

        container = self._find(id)
        container.require_alive()
        if container.paused:
            raise Conflict(f"container {id} is paused: resume it first")
        checkpoint.dump(container.saved.pid, Path(container.saved.bundle), images, leave_running=leave_running)

    def restore(self, request: CreateRequest, images: Path) -> Started:
        """See `Restoring.restore`."""
        from dray.runtime.restoration import Restoration

        state.check_id(request.id)
        if request.id in self._containers:
            raise Conflict(f"container with id exists: {request.id}")
        with attachable(request.rootfs) as layers, contextlib.ExitStack() as undo:
            request = replace(request, rootfs=layers)
            container = Restoration(request, images, self._state_dir, undo).run()
            undo.pop_all()
        self._containers[request.id] = container
        return Started(container.saved.pid)

    def start(self, id: str) -> None:
        """See `Runtime.start`."""
        container = self._find(id)
        container.require_alive()
        if container.saved.started:
            raise Conflict(f"container {id} is already started")
        if container.channel is None:
            assert container.directory is not None
            container.channel = state.connect(container.directory)
        container.channel.send(Start())
        try:
            with as_errors(f"start {id}"):
                notify.serve(container.channel, container.saved.pid, container.pidfd, container.oci_state)
        finally:
            container.channel.close()
            container.channel = None
        container.saved.started = True
        if container.directory is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(container.directory / "start.sock")
        container.save()
        hooks = hooks_of(container.saved.spec, "poststart")
        if hooks:
            try:
                run_hooks(hooks, container.oci_state())
            except DrayError:
                container.cgroup.kill()
                raise

    def exec(self, request: ExecRequest) -> Started:
        """See `Runtime.exec`."""
        container = self._find(request.id)
        container.require_alive()
        return tenant.run(container, request, die_with_parent=self._state_dir is None)

    def kill(self, id: str, signal: int, *, all_processes: bool = False) -> None:
        """See `Runtime.kill`."""
        container = self._find(id)
        if all_processes and signal == signals.SIGKILL:
            container.cgroup.kill()
            return
        if not all_processes:
            container.require_alive()
            with as_errors(f"kill {id}"):
                libc.pidfd_send_signal(container.pidfd, signal)
            return
        for pid in container.cgroup.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal)

    def pause(self, id: str) -> None:
        """See `Runtime.pause`."""
        container = self._find(id)
        container.require_alive()
        with as_errors(f"pause {id}"):
            container.cgroup.freeze()
        container.paused = True

    def resume(self, id: str) -> None:
        """See `Runtime.resume`."""
        container = self._find(id)
        with as_errors(f"resume {id}"):
            container.cgroup.thaw()
        container.paused = False

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """See `Runtime.update`."""
        container = self._find(id)
        with as_errors(f"update {id}"):
            container.cgroup.apply(resources)

    def pids(self, id: str) -> list[int]:
        """See `Runtime.pids`."""
        return self._find(id).cgroup.pids()

    def oom_kills(self, id: str) -> int:
        """See `Runtime.oom_kills`."""
        return self._find(id).cgroup.oom_kills()

    def state(self, id: str) -> dict[str, Any]:
        """Return the state object of runtime-spec."""
        return self._find(id).oci_state()

    def delete(self, id: str, *, force: bool = False) -> None:
        """See `Runtime.delete`."""
        container = self._find(id)
        if container.alive:
            if not force and container.status != "created":
                raise Conflict(f"cannot delete container {id} that is not stopped: {container.status}")
            container.cgroup.kill()
            libc.pidfd_send_signal(container.pidfd, signals.SIGKILL)
            poll = select.poll()
            poll.register(container.pidfd, select.POLLIN)
            poll.poll(10_000)
        with as_errors(f"delete {id}"):
            if force:
                container.cgroup.kill()
            container.cgroup.delete()
        container.close()
        state.remove_directory(container.directory)
        self._containers.pop(id, None)
        hooks = hooks_of(container.saved.spec, "poststop")
        if hooks:
            warn_of_hooks(hooks, container.oci_state())

    def _find(self, id: str) -> Container:
        container = self._containers.get(id)
        if container is None:
            if self._state_dir is None:
                raise NotFound(f"container {id} does not exist")
            container = self._containers[id] = state.load(self._state_dir, id)
        return container
