"""`create`: from a request to a container whose init stands one step before `execve`.

Every step registers its own undoing; the caller of `Creation.run` keeps the exit stack's content or lets it undo.
"""

from __future__ import annotations

import contextlib
import os
import signal as signals
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dray.base.errors import Internal, Unsupported
from dray.linux import cgroups, libc, mappedroots, namespaces, processes
from dray.linux.cgroups import delegation
from dray.runtime import document, idmaps, init, state, validate
from dray.runtime.handshake import Channel, Mapped, Message, Prepared, Proceed, Ready, Staged
from dray.runtime.hooks import hooks_of, run_hooks
from dray.runtime.model import CreateRequest, Mount
from dray.runtime.operations import ROOT
from dray.runtime.program import limits_of, set_limits
from dray.runtime.served import DETACHED
from dray.runtime.state import Container, Saved
from dray.runtime.validate import Namespaces


@contextlib.contextmanager
def as_errors(what: str) -> Iterator[None]:
    """Turn an OSError into Internal, with its syscall and path in the message."""
    try:
        yield
    except OSError as error:
        raise Internal(f"{what}: {error}") from error


def _delete_cgroup(cgroup: cgroups.Cgroup) -> None:
    """Undo the making of a cgroup, whoever is in it."""
    cgroup.kill()
    cgroup.delete()


class Creation:
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
        self.joins_pids = False
        self.ready = False

    def run(self) -> tuple[Container, int | None]:
        """Make the container; (container, pty master)."""
        request, spec, linux = self.request, self.spec, self.linux
        spaces = validate.namespaces_of(spec, request.namespace_fds)
        limits = limits_of(spec.get("process") or {})
        self.hooks = hooks_of(spec, "prestart", "createRuntime")
        self.net_devices: dict[str, Any] = linux.get("netDevices") or {}
        if self.net_devices:
            from dray.runtime import netdevices

            netdevices.check(self.net_devices)
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
            wants_hooks=bool(self.hooks or self.net_devices),
            die_with_parent=self.state_dir is None,
            pivot=self.pivot,
            starts=None,
        )
        console = self._fork(order, spaces)
        with as_errors("create"):
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
            keyring=request.new_keyring,
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
        with contextlib.ExitStack() as scope, as_errors("create"):
            ours, theirs = Channel.pair()
            scope.callback(theirs.close)
            self.channel = ours
            self.undo.callback(ours.close)
            starts = None
            if self.directory is not None:
                listener = scope.enter_context(state.listen(self.directory))
                starts = listener.fileno()
            order = replace(order, starts=starts, trees=self._trees(order, spaces, scope))
            self._clone(order, spaces, scope, theirs)
            theirs.close()
            return self._lead(order, spaces)

    def _trees(self, order: init.Order, spaces: Namespaces, scope: contextlib.ExitStack) -> dict[int, int]:
        """Make the mounts that init could not: those with mapped ids, and in a user namespace what lies where its
        root may not look."""
        trees: dict[int, int] = {}

        def own(made: dict[int, int]) -> None:
            for tree in made.values():
                scope.callback(os.close, tree)
            trees.update(made)

        if idmaps.wanted(self.request.spec):
            own(idmaps.trees(self.request.spec))
        if order.user_namespace:
            own(idmaps.binds(self.request.spec))
        layers = self.request.rootfs
        if len(layers) == 1 and {"idmap", "ridmap"}.intersection(layers[0].options):
            own({ROOT: self._mapped_root(layers[0], spaces)})
        elif order.user_namespace and len(layers) == 1 and layers[0].type == DETACHED:
            own({ROOT: os.dup(int(layers[0].source))})
        return trees

    def _owner(self) -> tuple[int, int]:
        """Return who the root of the user namespace is outside."""
        uid, gid = (
            next((int(m["hostID"]) for m in self.linux.get(name) or () if not m.get("containerID")), 0)
            for name in ("uidMappings", "gidMappings")
        )
        return uid, gid

    def _mapped_root(self, layer: Mount, spaces: Namespaces) -> int:
        if "user" in spaces.descriptors:
            user = os.dup(spaces.descriptors["user"])
        elif "user" in spaces.paths:
            user = namespaces.open_path(spaces.paths["user"])
        else:
            user = idmaps.namespace_of(self.linux)
        try:
            return mappedroots.tree(layer.type, layer.source, layer.options, user, self._owner())
        except OSError as error:
            raise Unsupported(
                f"the layers cannot be shown with mapped ids here ({error.strerror}): this needs Linux 5.19 and a data "
                "root on a file system such as ext4, xfs or btrfs; or run the container with --userns=host"
            ) from error
        finally:
            os.close(user)

    def _move_devices(self, spaces: Namespaces) -> None:
        from dray.runtime import netdevices  # links and addresses: nearly no container wants it

        if "network" in spaces.descriptors:
            netdevices.move(self.net_devices, spaces.descriptors["network"])
            return
        fd = namespaces.open_path(spaces.paths.get("network") or f"/proc/{self.pid}/ns/net")
        try:
            netdevices.move(self.net_devices, fd)
        finally:
            os.close(fd)

    def _clone(self, order: init.Order, spaces: Namespaces, scope: contextlib.ExitStack, theirs: Channel) -> None:
        fds = dict(spaces.descriptors)
        for kind, path in spaces.paths.items():
            fds[kind] = namespaces.open_path(path)
            scope.callback(os.close, fds[kind])
        mount = {kind: fd for kind, fd in fds.items() if kind == "mount"}
        staged = "user" in fds
        # With a new user namespace the others are joined here: inside, this process has no rights over them.
        # Without one, another container's pid namespace is joined last, by init itself (see `init.Order`).
        late = fds.pop("pid", -1) if not order.user_namespace else -1
        self.joins_pids = late >= 0
        order = replace(order, pid_namespace=late)
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
            self._make_cgroup(order)
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

    def _make_cgroup(self, order: init.Order) -> None:
        path, resources = self.linux.get("cgroupsPath") or "", document.resources(self.request.spec)
        with as_errors("cgroup"):
            cgroup = cgroups.create(path, self.request.id, resources)
        self.undo.callback(_delete_cgroup, cgroup)
        if order.user_namespace and "cgroup" in order.own and "" in cgroup.paths:
            with as_errors("cgroup"):
                delegation.delegate(cgroup.paths[""], self._owner())

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

    def _lead(self, order: init.Order, spaces: Namespaces) -> int | None:
        if order.user_namespace == "new":
            uids = validate.id_map(self.linux.get("uidMappings"), "uidMappings")
            gids = validate.id_map(self.linux.get("gidMappings"), "gidMappings")
            namespaces.map_ids(self.pid, uids, gids)
            self.channel.send(Mapped())
        expected: type[Message] = Ready
        if order.wants_hooks:
            self.channel.expect(Prepared)
            self.ready = True
            if self.net_devices:
                self._move_devices(spaces)
            bundle = str(self.request.bundle)
            run_hooks(self.hooks, state.state_object(self.request.id, "creating", self.pid, bundle, self.spec))
            self.channel.send(Proceed())
        if self.joins_pids:
            self._follow()
        fds = self.channel.expect(expected)
        self.ready = True
        return fds[0] if fds else None

    def _follow(self) -> None:
        """Go on with the process that init became when it joined a pid namespace."""
        message, _ = self.channel.receive()
        if not isinstance(message, Staged):
            raise Internal(f"the container's init ended before it joined its pid namespace: {message}")
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pid, self.pidfd = message.pid, -1
        self.pidfd = libc.pidfd_open(self.pid)

    def _kill(self) -> None:
        """Undo the fork: kill and reap."""
        with contextlib.suppress(ProcessLookupError):
            libc.pidfd_send_signal(self.pidfd, signals.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)
