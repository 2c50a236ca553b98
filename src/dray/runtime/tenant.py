"""exec: a further process in a container's namespaces.

Two forks. The first child prepares everything where only the host sees it, enters init's namespaces with one
setns(2) on init's pidfd, which gives it the container's root and working directory too, and forks the process that
goes on (CLONE_PARENT: it is the runtime's child all the same). Only this one is in the container's pid namespace: its
processes never see one whose root or working directory is still the host's, which a holder of CAP_SYS_PTRACE could
walk through. It is undumpable from its birth: until its execve it is a Python process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from typing import NoReturn

from dray.base.errors import Conflict, Internal
from dray.linux import libc, namespaces, privileges
from dray.runtime import console, init, notify, program, scheduling
from dray.runtime.handshake import Channel, Failed, Ready, Staged, Start
from dray.runtime.model import ExecRequest, Started
from dray.runtime.state import Container


def run(container: Container, request: ExecRequest, *, die_with_parent: bool) -> Started:
    """Run the process; returns once it executes. StartError when it cannot, Conflict when init is gone."""
    limits = program.limits_of(request.process)
    ours, theirs = Channel.pair()
    with contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        try:
            first = _fork(container, request, theirs, die_with_parent)
        except ProcessLookupError:
            raise Conflict(f"container {container.saved.id} is not running") from None
        except OSError as error:
            raise Internal(f"exec: {error}") from error
        finally:
            theirs.close()
        pid, pidfd = _staged(first, ours)
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
            notify.serve(ours, pid, pidfd, container.oci_state)  # the end of file: execve succeeded
            failed.pop_all()
        return Started(pid, fds[0] if fds else None)


def _kill(pid: int, pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        libc.pidfd_send_signal(pidfd, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _fork(container: Container, request: ExecRequest, theirs: Channel, die_with_parent: bool) -> int:
    """Fork the first child; return its pid."""
    flags = 0
    for kind in container.saved.namespaces:
        flags |= namespaces.FLAGS[kind]
    cgroup_fd = container.cgroup.clone_fd()
    dumpable = libc.prctl(libc.PR_GET_DUMPABLE)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    try:
        pid, pidfd = libc.clone3(cgroup=-1 if cgroup_fd is None else cgroup_fd)
        if pid == 0:
            _stage(container, request, theirs, flags, die_with_parent=die_with_parent)
        os.close(pidfd)
        return pid
    finally:
        libc.prctl(libc.PR_SET_DUMPABLE, dumpable)
        if cgroup_fd is not None:
            os.close(cgroup_fd)


def _staged(first: int, ours: Channel) -> tuple[int, int]:
    """Wait until the first child has forked the process; return this one's pid and pidfd."""
    try:
        message, _ = ours.receive()
    finally:
        os.waitpid(first, 0)
    if not isinstance(message, Staged):
        raise Internal(f"exec: the process ended before it had forked: {message}")
    return message.pid, libc.pidfd_open(message.pid)


def _stage(
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
        keep |= set(range(3, 3 + request.preserve_fds))
        init.settle(keep, die_with_parent=die_with_parent, name="dray:[exec]")
        wanted = program.program_of(
            request.process,
            request.seccomp,
            request.console_size,
            (container.saved.spec.get("linux") or {}).get("memoryPolicy"),
        )
        scheduling.run_on(wanted.scheduling.initial, "initial")
        if container.cgroup.clone_fd() is None:
            container.cgroup.add(0)
        scheduling.run_on(wanted.scheduling.final, "final")
        program.label(wanted)
        if flags:
            libc.setns(container.pidfd, flags)
        if flags & libc.CLONE_NEWUSER:
            init.become_namespace_root()
        announced, announcing = os.pipe2(os.O_CLOEXEC)
        pid, _ = libc.clone3(libc.CLONE_PARENT)
        if pid == 0:
            os.close(announcing)
            os.read(announced, 1)  # the end of file: who we are has been said, now we may speak
            os.close(announced)
            _child(container, wanted, request, channel, die_with_parent=die_with_parent)
        channel.send(Staged(pid))
        os._exit(0)
    except BaseException as error:
        channel.send(Failed.of(error))
    finally:
        os._exit(1)


def _child(
    container: Container, wanted: program.Program, request: ExecRequest, channel: Channel, *, die_with_parent: bool
) -> NoReturn:
    try:
        os.setsid()
        if die_with_parent:
            libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        if container.saved.keyring:
            privileges.new_session_keyring(f"_ses.{container.saved.id}")
        terminal = None
        if wanted.terminal:
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            terminal = console.open_pty(root, wanted.console_size)
        path = init.finish(wanted, request.stdio, terminal, channel, die_with_parent)
        channel.expect(Start)
        listening = notify.teller(channel, wanted.listener)
        program.execute(wanted, path, preserve_fds=request.preserve_fds, listening=listening)
    except BaseException as error:
        channel.send(Failed.of(error))
    finally:
        os._exit(1)
