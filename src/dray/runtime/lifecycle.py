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
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dray.base.errors import Conflict, Internal, NotFound
from dray.linux import cgroups, libc, namespaces, processes
from dray.runtime import document, init, state, tenant, validate
from dray.runtime.handshake import Channel, Mapped, Message, Prepared, Proceed, Ready, Staged, Start
from dray.runtime.hooks import hooks_of, run_hooks
from dray.runtime.model import CreateRequest, ExecRequest, Started
from dray.runtime.program import limits_of, set_limits
from dray.runtime.served import attachable
from dray.runtime.state import Container, Saved
from dray.runtime.validate import Namespaces


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
            creation = _Creation(request, self._state_dir, undo, pivot=self._pivot)
            container, console = creation.run()
            undo.pop_all()
        self._containers[request.id] = container
        return Started(container.saved.pid, console)

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
            message, _ = container.channel.receive()
        finally:
            container.channel.close()
            container.channel = None
        if message is not None:
            raise Internal(f"the container's init said {message} instead of running its program")
        container.saved.started = True
        if container.directory is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(container.directory / "start.sock")
        container.save()
        hooks = hooks_of(container.saved.spec, "poststart")
        if hooks:
            run_hooks(hooks, container.oci_state())

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
            with _as_errors(f"kill {id}"):
                libc.pidfd_send_signal(container.pidfd, signal)
            return
        for pid in container.cgroup.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal)

    def pause(self, id: str) -> None:
        """See `Runtime.pause`."""
        container = self._find(id)
        container.require_alive()
        with _as_errors(f"pause {id}"):
            container.cgroup.freeze()
        container.paused = True

    def resume(self, id: str) -> None:
        """See `Runtime.resume`."""
        container = self._find(id)
        with _as_errors(f"resume {id}"):
            container.cgroup.thaw()
        container.paused = False

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """See `Runtime.update`."""
        container = self._find(id)
        with _as_errors(f"update {id}"):
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
        with _as_errors(f"delete {id}"):
            if force:
                container.cgroup.kill()
            container.cgroup.delete()
        container.close()
        state.remove_directory(container.directory)
        self._containers.pop(id, None)
        hooks = hooks_of(container.saved.spec, "poststop")
        if hooks:
            run_hooks(hooks, container.oci_state())

    def _find(self, id: str) -> Container:
        container = self._containers.get(id)
        if container is None:
            if self._state_dir is None:
                raise NotFound(f"container {id} does not exist")
            container = self._containers[id] = state.load(self._state_dir, id)
        return container


@contextlib.contextmanager
def _as_errors(what: str) -> Iterator[None]:
    """Turn an OSError into Internal, with its syscall and path in the message."""
    try:
        yield
    except OSError as error:
        raise Internal(f"{what}: {error}") from error


def _delete_cgroup(cgroup: cgroups.Cgroup) -> None:
    """Undo the making of a cgroup, whoever is in it."""
    cgroup.kill()
    cgroup.delete()


class _Creation:
    """One `create`: every step registers its own undoing on the exit stack."""

    def __init__(
        self, request: CreateRequest, state_dir: Path | None, undo: contextlib.ExitStack, *, pivot: bool
    ) -> None:
        self.pivot = pivot
        self.request, self.undo, self.state_dir = request, undo, state_dir
        self.spec = document.outline(request.spec)  # init reads the rest
        self.linux: dict[str, Any] = self.spec.get("linux") or {}
        self.directory: Path | None = None
        self.pid = self.pidfd = -1
        self.ready = False

    def run(self) -> tuple[Container, int | None]:
        """Make the container; (container, pty master)."""
        request, spec, linux = self.request, self.spec, self.linux
        spaces = validate.namespaces_of(spec, request.namespace_fds)
        limits = limits_of(spec.get("process") or {})
        self.hooks = hooks_of(spec, "prestart", "createRuntime")
        if self.state_dir is not None:
            self.directory = state.make_directory(self.state_dir, request.id)
            self.undo.callback(state.remove_directory, self.directory)
        cgroup = cgroups.load(linux.get("cgroupsPath") or "", request.id)
        order = init.Order(
            request=request,
            own=spaces.own,
            cgroup=cgroup,
            makes_cgroup=False,
            user_namespace="new" if "user" in spaces.new else "joined" if "user" in spaces.own else "",
            join={},
            wants_hooks=bool(self.hooks),
            die_with_parent=self.state_dir is None,
            pivot=self.pivot,
            starts=None,
        )
        console = self._fork(order, spaces)
        with _as_errors("create"):
            set_limits(self.pid, limits)
            begun = 0 if self.directory is None else processes.start_time(self.pid)
        saved = Saved(
            id=request.id,
            pid=self.pid,
            start_time=begun,
            bundle=str(request.bundle),
            created="" if self.directory is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            spec=spec,
            namespaces=sorted(spaces.own),
        )
        channel: Channel | None = self.channel
        if self.directory is not None:
            self.channel.close()  # init listens on its socket now
            channel = None
        container = Container(saved, self.pidfd, cgroup, channel, self.directory)
        container.save()
        return container, console

    def _fork(self, order: init.Order, spaces: Namespaces) -> int | None:
        """Fork init and lead it to Ready; returns the pty's master."""
        with contextlib.ExitStack() as scope, _as_errors("create"):
            ours, theirs = Channel.pair()
            scope.callback(theirs.close)
            self.channel = ours
            self.undo.callback(ours.close)
            starts = None
            if self.directory is not None:
                listener = scope.enter_context(state.listen(self.directory))
                starts = listener.fileno()
            self._clone(replace(order, starts=starts), spaces, scope, theirs)
            theirs.close()
            return self._lead(order)

    def _clone(self, order: init.Order, spaces: Namespaces, scope: contextlib.ExitStack, theirs: Channel) -> None:
        fds = dict(spaces.descriptors)
        for kind, path in spaces.paths.items():
            fds[kind] = namespaces.open_path(path)
            scope.callback(os.close, fds[kind])
        mount = {kind: fd for kind, fd in fds.items() if kind == "mount"}
        staged = "user" in fds
        # With a new user namespace the others are joined here: inside, this process has no rights over them.
        outside = {
            kind: fd
            for kind, fd in fds.items()
            if kind in ("pid", "time") or (order.user_namespace == "new" and kind != "mount")
        }
        inside = {kind: fd for kind, fd in fds.items() if kind not in outside and kind not in ("mount", "user")}
        # v1: init makes its cgroup and enters it by itself, which is far cheaper than being moved; not in a user
        # namespace, where it may not. v2: init is born inside.
        alone = cgroups.layout.current().version == 1 and not order.user_namespace
        cgroup_fd = None
        if not alone:
            self._make_cgroup()
            cgroup_fd = order.cgroup.clone_fd()
            if cgroup_fd is not None:
                scope.callback(os.close, cgroup_fd)
        before = libc.prctl(libc.PR_GET_DUMPABLE)
        libc.prctl(libc.PR_SET_DUMPABLE, 0)  # inherited: nobody in the namespaces can open the child's /proc files
        try:
            if staged or (order.user_namespace and cgroup_fd is None):
                order = replace(order, join=mount)
                join = {kind: fd for kind, fd in fds.items() if kind != "mount"} if staged else outside
                self.pid = self._clone_staged(order, spaces.new_flags, join, theirs, cgroup_fd)
                self.pidfd = libc.pidfd_open(self.pid)
            else:
                order = replace(order, join={**inside, **mount}, makes_cgroup=alone)
                with namespaces.joined(outside):
                    self.pid, self.pidfd = libc.clone3(
                        spaces.new_flags, cgroup=-1 if cgroup_fd is None else cgroup_fd
                    )  # fmt: skip
                    if self.pid == 0:  # in here: the child cannot come back from those namespaces
                        init.run(order, theirs)
        finally:
            libc.prctl(libc.PR_SET_DUMPABLE, before)
        if alone:
            self.undo.callback(self._delete_made, order.cgroup)
        self.undo.callback(self._kill)

    def _delete_made(self, cgroup: cgroups.Cgroup) -> None:
        """Undo what init made; one that it met there, with processes in it, is another container's."""
        failure = self.channel.failure
        if self.ready or (failure is not None and failure.grouped):
            _delete_cgroup(cgroup)
        elif failure is None:  # killed: it may have come this far, and nobody else is in there then
            with contextlib.suppress(OSError):
                cgroup.delete()

    def _make_cgroup(self) -> None:
        path, resources = self.linux.get("cgroupsPath") or "", document.resources(self.request.spec)
        with _as_errors("cgroup"):
            cgroup = cgroups.create(path, self.request.id, resources)
        self.undo.callback(_delete_cgroup, cgroup)

    def _clone_staged(
        self, order: init.Order, flags: int, join: dict[str, int], theirs: Channel, cgroup_fd: int | None
    ) -> int:
        """Fork a process that enters cgroup and namespaces and forks init in its turn, as this process's child.

        A user namespace that is joined must own the new ones, so they are made after it was entered; and one that
        is new must be made inside the cgroup, which init could not enter by itself.
        """
        stage, pidfd = libc.clone3(cgroup=-1 if cgroup_fd is None else cgroup_fd)
        if stage == 0:
            init.run_stage(order, flags, join, theirs)
        os.close(pidfd)
        try:
            message, _ = self.channel.receive()
        finally:
            os.waitpid(stage, 0)
        if not isinstance(message, Staged):
            raise Internal(f"the first process of the container ended before it forked: {message}")
        return message.pid

    def _lead(self, order: init.Order) -> int | None:
        if order.user_namespace == "new":
            uids = validate.id_map(self.linux.get("uidMappings"), "uidMappings")
            gids = validate.id_map(self.linux.get("gidMappings"), "gidMappings")
            namespaces.map_ids(self.pid, uids, gids)
            self.channel.send(Mapped())
        expected: type[Message] = Ready
        if order.wants_hooks:
            self.channel.expect(Prepared)
            self.ready = True
            bundle = str(self.request.bundle)
            run_hooks(self.hooks, state.state_object(self.request.id, "creating", self.pid, bundle, self.spec))
            self.channel.send(Proceed())
        fds = self.channel.expect(expected)
        self.ready = True
        return fds[0] if fds else None

    def _kill(self) -> None:
        """Undo the fork: kill and reap."""
        with contextlib.suppress(ProcessLookupError):
            libc.pidfd_send_signal(self.pidfd, signals.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)
