"""exec: a further process in a container's namespaces.

The parent enters the container's pid namespace for its children, forks once, and comes back; the child enters the
rest of init's namespaces with one setns(2) on init's pidfd. It is born undumpable: between its arrival and execve
it is a Python process that the container's processes can see.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from typing import NoReturn

from dray.base.errors import Conflict, Internal
from dray.linux import libc, namespaces, privileges
from dray.runtime import console, init, program
from dray.runtime.handshake import Channel, Failed, Ready, Start
from dray.runtime.model import ExecRequest, Started
from dray.runtime.state import Container


def run(container: Container, request: ExecRequest, *, die_with_parent: bool) -> Started:
    """Run the process; returns once it executes. StartError when it cannot, Conflict when init is gone."""
    limits = program.limits_of(request.process)
    ours, theirs = Channel.pair()
    with contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        try:
            pid, pidfd = _fork(container, request, theirs, die_with_parent)
        except ProcessLookupError:
            raise Conflict(f"container {container.saved.id} is not running") from None
        except OSError as error:
            raise Internal(f"exec: {error}") from error
        finally:
            theirs.close()
        undo.callback(os.close, pidfd)
        with contextlib.ExitStack() as failed:
            failed.callback(_kill, pid, pidfd)
            fds = ours.expect(Ready)
            for fd in fds:
                failed.callback(os.close, fd)
            try:
                program.set_limits(pid, limits)
            except OSError as error:
                raise Internal(f"exec: {error}") from error
            ours.send(Start())
            ours.receive()  # the end of file: execve succeeded
            failed.pop_all()
        return Started(pid, fds[0] if fds else None)


def _kill(pid: int, pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        libc.pidfd_send_signal(pidfd, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _fork(container: Container, request: ExecRequest, theirs: Channel, die_with_parent: bool) -> tuple[int, int]:
    kinds = container.saved.namespaces
    flags = 0
    for kind in kinds:
        flags |= namespaces.FLAGS[kind]
    cgroup_fd = container.cgroup.clone_fd()
    dumpable = libc.prctl(libc.PR_GET_DUMPABLE)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    home = -1
    try:
        if "pid" in kinds:
            home = os.open(namespaces.file("pid"), os.O_RDONLY | os.O_CLOEXEC)
            libc.setns(container.pidfd, libc.CLONE_NEWPID)
        pid, pidfd = libc.clone3(cgroup=-1 if cgroup_fd is None else cgroup_fd)
        if pid == 0:
            _child(container, request, theirs, flags & ~libc.CLONE_NEWPID, die_with_parent=die_with_parent)
        return pid, pidfd
    finally:
        if home >= 0:
            libc.setns(home, libc.CLONE_NEWPID)
            os.close(home)
        libc.prctl(libc.PR_SET_DUMPABLE, dumpable)
        if cgroup_fd is not None:
            os.close(cgroup_fd)


def _child(
    container: Container,
    request: ExecRequest,
    channel: Channel,
    flags: int,
    *,
    die_with_parent: bool,
) -> NoReturn:
    try:
        gc.disable()
        stdio = request.stdio
        keep = {channel.socket.fileno(), container.pidfd, stdio.stdin, stdio.stdout, stdio.stderr} - {-1}
        init.settle(keep, die_with_parent=die_with_parent, name="dray:[exec]")
        wanted = program.program_of(request.process, request.seccomp, request.console_size)
        if container.cgroup.clone_fd() is None:
            container.cgroup.add(0)
        program.label(wanted)
        if flags:
            libc.setns(container.pidfd, flags)
        if flags & libc.CLONE_NEWUSER:
            init.become_namespace_root()
        privileges.new_session_keyring(f"_ses.{container.saved.id}")
        terminal = None
        if wanted.terminal:
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            terminal = console.open_pty(root, wanted.console_size)
        path = init.finish(wanted, stdio, terminal, channel, die_with_parent)
        channel.expect(Start)
        program.execute(wanted, path)
    except BaseException as error:
        channel.send(Failed.of(error))
    finally:
        os._exit(1)
