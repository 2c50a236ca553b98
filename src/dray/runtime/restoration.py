"""Bringing a container's processes back from a checkpoint (see `checkpoint`).

A child in a mount namespace of its own mounts the root, enters cgroup, cgroup namespace and session keyring, which
the restored processes inherit from it, and becomes criu. Init is forked as criu's sibling, so as the caller's child;
it dies with the caller, as one that was started.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal as signals
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dray.base.errors import Internal, InvalidParameter
from dray.linux import cgroups, libc, namespaces, privileges, processes
from dray.runtime import document, operations, state, validate
from dray.runtime.checkpoint import LOG, NETWORK, PROGRAM, binds_of, described, reason, refuse
from dray.runtime.handshake import Channel, Failed
from dray.runtime.model import CreateRequest
from dray.runtime.stage import Stage
from dray.runtime.state import Container, Saved
from dray.runtime.validate import Namespaces

PATIENCE = 600  # seconds, for containers with much memory


class Restoration:
    """One `restore`; every step registers its own undoing on the exit stack (see `creation.Creation`)."""

    def __init__(
        self, request: CreateRequest, images: Path, state_dir: Path | None, undo: contextlib.ExitStack
    ) -> None:
        self.request, self.images, self.undo, self.state_dir = request, images, undo, state_dir
        self.spec = document.parsed(request.spec)
        self.outside = described(images)
        self.directory: Path | None = None

    def run(self) -> Container:
        """Bring the processes back; they run when this returns."""
        refuse(self.spec)
        request, linux = self.request, self.spec.get("linux") or {}
        spaces = validate.namespaces_of(self.spec, request.namespace_fds)
        if self.state_dir is not None:
            self.directory = state.make_directory(self.state_dir, request.id)
            self.undo.callback(state.remove_directory, self.directory)
        cgroup = cgroups.create(linux.get("cgroupsPath") or "", request.id, linux.get("resources"))
        self.undo.callback(_delete_cgroup, cgroup)
        pid = self._restored(cgroup, spaces)
        pidfd = libc.pidfd_open(pid)
        self.undo.callback(os.close, pidfd)
        saved = Saved(
            id=request.id,
            pid=pid,
            start_time=processes.start_time(pid),
            bundle=str(request.bundle),
            created="",
            spec=document.outline(request.spec),
            namespaces=sorted(spaces.own),
            started=True,
            keyring=request.new_keyring,
        )
        container = Container(saved, pidfd, cgroup, None, self.directory)
        container.save()
        return container

    def _restored(self, cgroup: cgroups.Cgroup, spaces: Namespaces) -> int:
        bundle = self.request.bundle
        pid_file, log = bundle / "restored.pid", bundle / LOG
        pid_file.unlink(missing_ok=True)
        words = ["restore", "--images-dir", str(self.images), "--root", str(self._root)]
        words += ["--restore-detached", "--restore-sibling", "--pidfile", str(pid_file)]
        words += ["--manage-cgroups=ignore", "--tcp-close", "--file-locks", "--link-remap"]
        words += self._mount_words()
        with contextlib.ExitStack() as scope:
            given = self._descriptors(spaces, scope)
            words += [word for fd, key in given.items() for word in ("--inherit-fd", f"fd[{fd}]:{key}")]
            words += ["--log-file", str(log), "-v2"]
            ours, theirs = Channel.pair()
            scope.callback(ours.close)
            with theirs.socket:
                criu, criu_fd = libc.clone3(libc.CLONE_NEWNS)
                if criu == 0:
                    self._become_criu(words, set(given), theirs, cgroup, spaces)
            try:
                ours.receive()
                _wait(criu_fd)
            finally:
                libc.pidfd_send_signal(criu_fd, signals.SIGKILL)
                code = processes.reap(criu)
                os.close(criu_fd)
        try:
            pid = int(pid_file.read_text())
        except (FileNotFoundError, ValueError):
            raise Internal(f"criu could not restore the container: {reason(log, code)}") from None
        self.undo.callback(_kill, pid)
        if code:
            raise Internal(f"criu could not restore the container: {reason(log, code)}")
        pid_file.unlink()
        return pid

    @property
    def _root(self) -> str:
        path = (self.spec.get("root") or {}).get("path") or ""
        return os.path.normpath(os.path.join(self.request.bundle, path))

    def _mount_words(self) -> list[str]:
        sources, words = binds_of(self.spec), []
        for entry in self.outside.mounts:
            source = sources.get(entry.destination)
            if source is None:
                raise InvalidParameter(
                    f"the checkpoint has something mounted at {entry.destination}, which this container has not"
                )
            words += ["--external", f"mnt[{entry.key}]:{source}{entry.below}"]
        return words

    def _descriptors(self, spaces: Namespaces, scope: contextlib.ExitStack) -> dict[int, str]:
        """Return descriptor → criu's name of it; numbers from 3 on, open for as long as the scope."""
        given: dict[int, str] = {}

        def give(fd: int, key: str) -> None:
            if key in given.values():  # two of 0, 1, 2 are one pipe
                return
            copy = os.dup(fd)
            scope.callback(os.close, copy)
            given[copy] = key

        stdio = self.request.stdio
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        scope.callback(os.close, null)
        for key, fd in zip(self.outside.stdio, (stdio.stdin, stdio.stdout, stdio.stderr), strict=True):
            if key:
                give(null if fd < 0 else fd, key)
        if self.outside.network != ("network" in spaces.own):
            raise InvalidParameter("the checkpoint is of a container with another kind of network (--network)")
        if self.outside.network:
            network = spaces.descriptors.get("network", -1)
            if network < 0 and spaces.paths.get("network"):
                network = namespaces.open_path(spaces.paths["network"])
                scope.callback(os.close, network)
            if network < 0:
                network = _new_network(scope)
            give(network, NETWORK)
        return given

    def _become_criu(
        self, words: Sequence[str], keep: set[int], channel: Channel, cgroup: cgroups.Cgroup, spaces: Namespaces
    ) -> NoReturn:
        """Set the scene in this child, and exec; an error is told."""
        try:
            layers = self.request.rootfs
            stage = Stage(cgroup_paths={}, enter_cgroup=lambda: None)
            operations.Propagate(libc.MS_SLAVE | libc.MS_REC).execute(stage)
            operations.MountRoot(self._root, tuple(layers)).execute(stage)
            os.close(stage.root)
            cgroup.add(0)
            if "cgroup" in spaces.own:
                libc.unshare(libc.CLONE_NEWCGROUP)
            if self.request.new_keyring:
                privileges.new_session_keyring(f"_ses.{self.request.id}")
            privileges.write_proc("/proc/self/oom_score_adj", "0")  # criu restores those that are not 0
            processes.close_others({*keep, channel.socket.fileno()})
            for fd in keep:
                os.set_inheritable(fd, True)
            null = os.open("/dev/null", os.O_RDWR)
            for number in range(3):
                os.dup2(null, number, inheritable=True)
            processes.reset_signals()
            libc.prctl(libc.PR_SET_DUMPABLE, 1)
            os.execvp(PROGRAM, [PROGRAM, *words])  # noqa: S606 - see the module's docstring
        except BaseException as error:
            channel.send(Failed.of(error))
        finally:
            os._exit(1)


def _new_network(scope: contextlib.ExitStack) -> int:
    """Return a new network namespace, which nobody is in; for bundles that ask for one without a path."""
    home = os.open(namespaces.file("network"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.unshare(libc.CLONE_NEWNET)
        made = os.open(namespaces.file("network"), os.O_RDONLY | os.O_CLOEXEC)
        scope.callback(os.close, made)
        libc.setns(home, libc.CLONE_NEWNET)
    finally:
        os.close(home)
    return made


def _wait(criu: int) -> None:
    """Wait until criu has ended, or has had its time: its own child it would notice to die, ours it may not."""
    poll = select.poll()
    poll.register(criu, select.POLLIN)
    poll.poll(PATIENCE * 1000)


def _delete_cgroup(cgroup: cgroups.Cgroup) -> None:
    cgroup.kill()
    cgroup.delete()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signals.SIGKILL)
        os.waitpid(pid, 0)
