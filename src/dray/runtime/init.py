"""The container's first process, from the fork to execve.

It is born (clone3) in its new namespaces as a copy of the shim's Python, undumpable, and does in this order:

    1. keep only the descriptors it was given; new session; die with the shim (when there is one)
       read config.json, check it, make the program and the plan of it (`plan`); before that nothing is looked at
    2. new user namespace: wait for Mapped, become its root; join namespaces given by path
    3. host name, sysctls, session keyring, labels: on the host's /proc, which nobody in the container can alter
       (v1: it makes its cgroup itself and enters it, as one of the plan's operations)
    4. the plan's operations before the pivot; Prepared/Proceed when there are hooks; the pty; pivot_root
    5. createContainer hooks, the plan's operations after the pivot
    6. stdio, user, capabilities, program path (`program.prepare`); Ready
    7. wait for Start; startContainer hooks; seccomp; execve (`program.execute`)

An error at any step is one Failed message and exit code 1.

What is computed here rather than in the parent costs the parent, which stays, no memory; see `document`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from dray.linux import cgroups, libc, mounts, namespaces, privileges, processes
from dray.linux.cgroups import Cgroup
from dray.runtime import console, document, notify, program, rootfs, served, validate
from dray.runtime.handshake import Channel, Failed, Mapped, Prepared, Proceed, Ready, Staged, Start
from dray.runtime.hooks import Hook, hooks_of, run_hooks
from dray.runtime.model import CreateRequest, Stdio
from dray.runtime.program import Program
from dray.runtime.rootfs import Plan
from dray.runtime.stage import Stage
from dray.runtime.state import state_object


@dataclass(frozen=True, slots=True)
class Order:
    """What the parent decided before the fork.

    own: kinds of namespaces in which the container differs from the runtime
    makes_cgroup: init was born outside its cgroup, which it makes and enters by itself (v1)
    user_namespace: "" none, "new", "joined"
    join: name → descriptor of namespaces that init itself enters (mount last)
    starts: where Start comes from: the handshake's channel, or a listening socket that outlives the parent
    trees: index in `mounts`, or ROOT → detached tree that the parent has made
    pid_namespace: another container's, which init joins once it has the root; -1: none, or in a user namespace
    """

    request: CreateRequest
    own: frozenset[str]
    cgroup: Cgroup
    makes_cgroup: bool
    user_namespace: str
    join: Mapping[str, int]
    wants_hooks: bool
    die_with_parent: bool
    pivot: bool
    starts: int | None
    trees: Mapping[int, int] = field(default_factory=dict)
    pid_namespace: int = -1


@dataclass(frozen=True, slots=True)
class Job:
    """What init reads in its spec."""

    program: Program
    plan: Plan
    cgroups_path: str
    resources: Any
    hostname: str
    domainname: str
    sysctls: Mapping[str, str]
    time_offsets: str
    personality: int | None
    create_container: tuple[Hook, ...]
    start_container: tuple[Hook, ...]
    state: Callable[[str, int], dict[str, Any]]


def plan(order: Order) -> Job:
    """Check the spec and make the job of it; InvalidParameter or Unsupported name what is wrong with it."""
    request = order.request
    spec, profile = document.whole(request.spec)
    linux: dict[str, Any] = spec.get("linux") or {}
    validate.check(spec, order.own)
    bundle = str(request.bundle)
    return Job(
        program=program.program_of(
            spec.get("process") or {}, profile, request.console_size, linux.get("memoryPolicy")
        ),
        plan=rootfs.plan(
            spec,
            os.path.normpath(os.path.join(bundle, spec["root"].get("path") or "")),
            request.rootfs,
            order.trees,
        ),
        cgroups_path=linux.get("cgroupsPath") or "",
        resources=linux.get("resources"),
        hostname=spec.get("hostname") or "",
        domainname=spec.get("domainname") or "",
        sysctls=validate.sysctls_of(linux, order.own),
        time_offsets=validate.time_offsets(linux),
        personality=validate.personality(linux),
        create_container=hooks_of(spec, "createContainer"),
        start_container=hooks_of(spec, "startContainer"),
        state=lambda status, pid: state_object(request.id, status, pid, bundle, spec),
    )


def run(order: Order, channel: Channel, job: Job | None = None) -> NoReturn:
    """Be the container's init; never returns to the caller's stack."""
    made: list[Cgroup] = []
    try:
        gc.disable()  # objects of the parent own descriptors whose numbers are ours now: none may be finalized
        _settle(order, channel)
        job = plan(order) if job is None else job
        path, start_channel = _build(order, job, channel, made)
        start_channel.expect(Start)
        channel = start_channel
        if job.start_container:
            run_hooks(job.start_container, job.state("created", os.getpid()))
        program.execute(
            job.program,
            path,
            preserve_fds=order.request.preserve_fds,
            listening=notify.teller(channel, job.program.listener),
        )
    except BaseException as error:
        channel.send(Failed.of(error, grouped=bool(made)))
    finally:
        os._exit(1)


def run_stage(order: Order, flags: int, join: Mapping[str, int], channel: Channel) -> NoReturn:
    """Enter cgroup and namespaces, fork init as the parent's child, tell its pid; see `lifecycle`."""
    try:
        gc.disable()
        job = plan(order)  # by the rights and on the files of the host
        if order.cgroup.clone_fd() is None:
            order.cgroup.add(0)
        for kind in sorted(
            join, key=lambda kind: kind == "user"
        ):  # rights over the others end with the user namespace
            libc.setns(join[kind], namespaces.FLAGS[kind])
        if "user" in join:
            become_namespace_root()
        announced, announcing = os.pipe2(os.O_CLOEXEC)
        pid, _ = libc.clone3(flags | libc.CLONE_PARENT)
        if pid == 0:
            os.close(announcing)
            os.read(announced, 1)  # the end of file: who we are has been said, now we may speak
            os.close(announced)
            run(order, channel, job)
        channel.send(Staged(pid))
        os._exit(0)
    except BaseException as error:
        channel.send(Failed.of(error))
    finally:
        os._exit(1)


def _settle(order: Order, channel: Channel) -> None:
    stdio = order.request.stdio
    keep = {channel.socket.fileno(), *order.join.values(), *order.trees.values()}
    keep |= set(range(3, 3 + order.request.preserve_fds))
    keep |= {order.pid_namespace} - {-1}
    keep |= served.descriptors(order.request.rootfs)
    keep |= {fd for fd in (stdio.stdin, stdio.stdout, stdio.stderr, order.starts) if fd is not None}
    settle(keep, die_with_parent=order.die_with_parent, name="dray:[init]")


def _build(order: Order, job: Job, channel: Channel, made: list[Cgroup]) -> tuple[str, Channel]:
    enter_namespaces(order, channel)
    _identify(order.request, job)
    program.label(job.program)

    def enter_cgroup() -> None:
        if order.makes_cgroup:
            made.append(cgroups.create(job.cgroups_path, order.request.id, job.resources))
            made[0].add(0)

    stage = Stage(
        cgroup_paths=hierarchies(order.cgroup.paths), enter_cgroup=enter_cgroup, pid_namespace=order.pid_namespace
    )
    for operation in job.plan.prepare:
        operation.execute(stage)
    if order.wants_hooks:
        channel.send(Prepared())
        channel.expect(Proceed)
    if job.create_container:
        run_hooks(job.create_container, job.state("creating", os.getpid()))
    terminal = None
    if job.program.terminal:
        terminal = console.open_pty(stage.root, job.program.console_size)
        console.bind_console(stage.root, terminal[1])
    mounts.change_root(stage.root, pivot=order.pivot)
    for operation in job.plan.finish:
        operation.execute(stage)
    if job.personality is not None:
        libc.personality(job.personality)
    if order.pid_namespace >= 0:
        _enter_pids(order, channel)
    path = finish(job.program, order.request.stdio, terminal, channel, order.die_with_parent)
    return path, _start_channel(order, channel)


def _enter_pids(order: Order, channel: Channel) -> None:
    """Go on as a child in the pid namespace that is joined; this process tells of it and ends.

    Only now: its processes could look at the host's tree through one whose root that is.
    """
    libc.setns(order.pid_namespace, libc.CLONE_NEWPID)
    announced, announcing = os.pipe2(os.O_CLOEXEC)
    pid, _ = libc.clone3(libc.CLONE_PARENT)
    if pid:
        channel.send(Staged(pid))
        os._exit(0)
    os.close(announcing)
    os.read(announced, 1)  # the end of file: who we are has been said
    os.close(announced)
    os.setsid()
    if order.die_with_parent:
        libc.prctl(libc.PR_SET_PDEATHSIG, 9)


def settle(keep: set[int], *, die_with_parent: bool, name: str) -> None:
    """Do what every forked process does first: shed what it inherited."""
    processes.forget_wakeups()
    processes.close_others(keep)
    os.setsid()
    libc.set_process_name(name)
    if die_with_parent:
        libc.prctl(libc.PR_SET_PDEATHSIG, 9)


def enter_namespaces(order: Order, channel: Channel) -> None:
    """Join what is to be joined by this process itself, and become root of a new user namespace."""
    for kind, fd in order.join.items():
        libc.setns(fd, namespaces.FLAGS[kind])
    if order.user_namespace == "new":
        channel.expect(Mapped)
    if order.user_namespace:
        become_namespace_root()


def become_namespace_root() -> None:
    """Take on ids 0 of the user namespace; before, this process had ids that it does not map."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    os.setgroups([])


def _identify(request: CreateRequest, job: Job) -> None:
    if job.time_offsets:
        libc.unshare(libc.CLONE_NEWTIME)
        privileges.write_proc("/proc/self/timens_offsets", job.time_offsets)
        fd = namespaces.open_path(namespaces.file("time"))
        libc.setns(fd, libc.CLONE_NEWTIME)
        os.close(fd)
    if job.hostname:
        libc.sethostname(job.hostname)
    if job.domainname:
        libc.setdomainname(job.domainname)
    for name, value in job.sysctls.items():
        privileges.write_proc(f"/proc/sys/{name}", value)
    if request.new_keyring:
        privileges.new_session_keyring(f"_ses.{request.id}")


def finish(
    wanted: Program, stdio: Stdio, terminal: tuple[int, int] | None, channel: Channel, die_with_parent: bool
) -> str:
    """Take the last steps that init and exec share; say Ready; return the program's path."""
    if terminal is None:
        program.set_stdio((stdio.stdin, stdio.stdout, stdio.stderr), wanted)
    else:
        slave = terminal[1]
        console.control(slave)
        program.set_stdio((slave, slave, slave), wanted)
    path = program.prepare(wanted, die_with_parent=die_with_parent)
    channel.send(Ready(), (terminal[0],) if terminal else ())
    if terminal is not None:
        os.close(terminal[0])
        os.close(terminal[1])
    return path


def hierarchies(paths: Mapping[str, str]) -> dict[str, str]:
    """Return name → directory, one entry a hierarchy, of a cgroup's controller → directory.

    Names are those below /sys/fs/cgroup: `memory`, `cpu,cpuacct` for controllers that share one, `systemd` for
    the named hierarchy; "" for v2.
    """
    names: dict[str, list[str]] = {}
    for controller, directory in paths.items():
        names.setdefault(directory, []).append(controller.removeprefix("name="))
    return {",".join(controllers): directory for directory, controllers in names.items()}


def _start_channel(order: Order, channel: Channel) -> Channel:
    """Return where Start will come from."""
    if order.starts is None:
        return channel
    import socket

    channel.close()
    listener = socket.socket(fileno=order.starts)
    connection, _ = listener.accept()
    return Channel(connection)
