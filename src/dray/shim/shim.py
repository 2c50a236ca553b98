"""The shim: one per container; the parent of its processes, the owner of their streams, log and exit status.

It is forked from the zygote with one end of a socketpair, on which its first request is `create`; it outlives the
daemon, and a daemon that comes back connects to `shim.sock` in the run directory. Requests and events are
`wire.rpc` messages:

    create {task, attachments}   descriptors: those of task.fds, then one socket for each attachment
    start, pause, resume, pids   {}
    kill {signal, all}           update {resources}          resize {exec_id, rows, columns}
    attach AttachRequest         one descriptor, the client's socket
    exec ExecCreate              one descriptor if it has an `attach`
    state                        what a daemon that comes back must know: {pid, started_at, status, execs}
    seen {exec_id}               the daemon knows how the exec ended
    release                      the container is over and done with: remove the run directory, go away

    events: exited {status}, exec_exited {exec_id, status}, detached {exec_id}, oom

Order at the end: output complete → exit.json on disk → `exited` → cgroup removed. Told or not, a shim whose
container is over and that no daemon is connected to cleans up and goes, leaving run directory and exit.json.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dray.base.errors import Conflict, DrayError, InvalidParameter
from dray.base.files import write_atomic
from dray.linux import libc, mounts
from dray.logs import registry as log_drivers
from dray.runtime import document
from dray.runtime.model import CreateRequest, Mount, Runtime, Started
from dray.shim import requests
from dray.shim.connections import Connection, Listener
from dray.shim.execs import Execs, read_config
from dray.shim.loop import Loop
from dray.shim.model import AttachRequest, TaskCreate
from dray.shim.oom import OomMonitor
from dray.shim.process import Process
from dray.shim.stdio import Streams
from dray.wire import rpc

if TYPE_CHECKING:
    from dray.linux.origin import Origin
    from dray.shim.forwards import Forward

RuntimeFactory = Callable[[str, Sequence[str], str], Runtime]


_QUIET_SECONDS = 2.0  # after a request, before memory is settled: short runs never come to it


def serve(wait: Callable[[], rpc.Channel | None], runtimes: RuntimeFactory, origin: Origin | None) -> None:
    """Be a shim until the container is over (in a freshly forked process).

    `wait` returns the connection with the daemon, None if there will not be one; it may take its time.
    """
    os.setsid()
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    os.dup2(0, 2)  # /dev/null: the daemon's stderr is not ours to keep open
    shim = Shim(runtimes, origin)
    channel = wait()  # a spare shim spends its life here
    if channel is not None:
        libc.set_process_name("dray-shim")
        shim.connect(channel.socket)
        shim.run()


class Shim:
    """A container and everything that belongs to it in user space."""

    def __init__(self, runtimes: RuntimeFactory, origin: Origin | None = None) -> None:
        self._runtimes = runtimes
        self._origin = origin
        self._settling = False
        self._loop = Loop(self._failed)
        self._oom = OomMonitor(self._loop, self._count_oom, lambda: self._tell({"event": "oom"}))
        self._connections: list[Connection] = []
        self._listener: Listener | None = None
        self._task: TaskCreate | None = None
        self._config = b""
        self._spec: dict[str, Any] = {}  # its outline
        self._runtime: Runtime | None = None
        self._init: Process | None = None
        self._execs = Execs(self._loop, self._tell)
        self._held: list[int] = []
        self._forwards: list[Forward] = []
        self._released = False
        self._loop.watch_children(self._reap)
        self._methods: dict[str, Callable[[bytes, rpc.Received], Any]] = {
            "create": self._create,
            "start": lambda _params, _message: self._start(),
            "kill": self._kill,
            "attach": self._attach,
            "exec": self._exec,
            "resize": self._resize,
            "pause": lambda _params, _message: self._running().pause(self.task.id),
            "resume": lambda _params, _message: self._running().resume(self.task.id),
            "update": self._update,
            "pids": lambda _params, _message: self._running().pids(self.task.id),
            "state": lambda _params, _message: self._state(),
            "seen": self._seen,
            "release": lambda _params, _message: self._release(),
        }

    @property
    def task(self) -> TaskCreate:
        """The container this shim was made for."""
        if self._task is None:
            raise Conflict("the shim has no container yet")
        return self._task

    def run(self) -> None:
        """Serve until there is nothing left to do."""
        while not self._idle():
            self._loop.turn()
        if self._listener is not None:
            self._listener.close()

    def turn(self) -> None:
        """Serve what has come, once."""
        self._loop.turn()

    def abandon(self) -> None:
        """Undo everything (a rehearsal's end)."""
        self._undo(self.task)
        for connection in tuple(self._connections):
            connection.close()
        self._loop.close()

    def _idle(self) -> bool:
        """Whether the process may end."""
        over = self._init is None or self._init.complete
        if not over or (self._connections and not self._released):
            return False
        return not (
            self._execs.read()
            or (self._init is not None and self._init.streams.clients)
            or any(connection.pending for connection in self._connections)
        )

    def _failed(self) -> None:
        """A defect in one handler: note it; the container must not die of it."""
        import traceback

        if self._task is not None:
            with contextlib.suppress(OSError), open(os.path.join(self._task.run_dir, "shim.log"), "a") as log:
                traceback.print_exc(file=log)

    # --- connections ---

    def connect(self, connection: socket.socket) -> None:
        """Obey a daemon; `connection` is owned from here on."""
        self._connections.append(Connection(self._loop, connection, self._handle, self._disconnected))

    def _disconnected(self, connection: Connection) -> None:
        self._connections.remove(connection)

    def _tell(self, event: dict[str, Any]) -> None:
        for connection in tuple(self._connections):
            connection.send(event)

    def _handle(self, connection: Connection, message: rpc.Received) -> None:
        request = requests.request.decode(message.data)
        try:
            method = self._methods.get(request.method)
            if method is None:
                raise InvalidParameter(f"the shim does not know {request.method!r}")
            result = method(bytes(request.params), message)
        except Exception as error:
            connection.send({"id": request.id, "error": rpc.describe(error)})
        else:
            connection.send({"id": request.id, "result": result})
        finally:
            message.close()
            if self._origin is not None and not self._settling:
                self._settling = True
                self._loop.call_later(_QUIET_SECONDS, self._settle)

    def _settle(self) -> None:
        """Share memory with the zygote again where work has only passed through."""
        self._settling = False
        if self._origin is not None:
            self._origin.settle()

    # --- the container ---

    def _create(self, params: bytes, message: rpc.Received) -> dict[str, Any]:
        if self._task is not None:
            raise Conflict("the shim has its container already")
        request = requests.create.decode(params)
        task = self._task = request.task
        try:
            self._listener = Listener(self._loop, task.run_dir, self.connect)
            self._prepare(task, params)
            named = list(zip(task.fds, message.take(len(task.fds)), strict=True))
            self._held = [fd for _, fd in named]
            self._make(task, dict(named), request.attachments, message)
            if task.start:
                self._start()
        except BaseException:
            self._undo(task)
            raise
        assert self._init is not None
        return {"pid": self._init.pid, "started_at": self._init.started_at}

    def _prepare(self, task: TaskCreate, params: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(task.state_dir, "exit.json"))
        write_atomic(os.path.join(task.run_dir, "task.json"), msgspec.json.encode(task), durable=False)
        write_atomic(os.path.join(task.run_dir, "shim.pid"), b"%d\n" % os.getpid(), durable=False)
        self._config = read_config(task)
        self._spec = document.outline(self._config)

    def _make(
        self, task: TaskCreate, named: dict[str, int], attachments: list[AttachRequest], message: rpc.Received
    ) -> None:
        log = log_drivers.open_writer(task.log.driver, task.log.path, task.log.options, task.log.attributes)
        streams = Streams(
            self._loop,
            tty=task.tty,
            stdin_once=task.stdin_once,
            log=log,
            detached=lambda: self._tell({"event": "detached", "exec_id": ""}),
        )
        self._init = init = Process("", streams, tty=task.tty)
        self._runtime = runtime = self._runtimes(task.runtime, task.runtime_args, task.run_dir)
        request = CreateRequest(
            id=task.id,
            bundle=Path(task.run_dir),
            spec=self._config,
            rootfs=[Mount(m.type, m.source, tuple(m.options), m.target) for m in task.rootfs],
            namespace_fds={kind: named[kind] for kind in ("network", "user") if kind in named},
            console_size=task.console_size,
        )
        self._config = b""
        verb: Callable[[CreateRequest], Started] = runtime.create
        if task.restore:
            from dray.shim import checkpoints

            verb = checkpoints.restoring(runtime, task)
        init.run(
            lambda stdio: verb(msgspec.structs.replace(request, stdio=stdio)),
            stdin=task.open_stdin,
            output=True,
            owner=task.owner,
        )
        if task.forwards:
            self._forward(task)
        # The program does not run yet, and nothing of its output is read before this request is handled.
        for attachment in attachments:
            streams.attach(attachment, *message.take(1))

    def _forward(self, task: TaskCreate) -> None:
        from dray.shim.forwards import forward

        for protocol, index, address, port in task.forwards:
            self._forwards.append(forward(self._loop, protocol, self._held[index], address, port))

    def _undo(self, task: TaskCreate) -> None:
        """A create that failed leaves nothing."""
        if self._init is not None:
            if self._init.pid and self._runtime is not None:
                with contextlib.suppress(DrayError, OSError):
                    self._runtime.delete(task.id, force=True)
            self._init.close()
            self._init.complete = True
        self._close_held()
        if self._listener is not None:
            self._listener.close()
        mounts.remove_run_dir(task.run_dir)
        self._released = True

    def _close_held(self) -> None:
        for forward in self._forwards:
            forward.close()
        self._forwards = []
        for fd in self._held:
            os.close(fd)
        self._held = []

    def _running(self) -> Runtime:
        if self._runtime is None or self._init is None or self._init.status is not None:
            raise Conflict(f"container {self.task.id} is not running")
        return self._runtime

    def _start(self) -> None:
        runtime = self._running()
        if not self.task.restore:
            runtime.start(self.task.id)
        assert self._init is not None
        self._init.started_at = time.time_ns()
        self._loop.call_later(0, self._watch_oom)

    def _count_oom(self) -> int:
        return self._runtime.oom_kills(self.task.id) if self._runtime is not None else 0

    def _watch_oom(self) -> None:
        path = (self._spec.get("linux") or {}).get("cgroupsPath") or ""
        self._oom.start(path, self.task.id)

    def _kill(self, params: bytes, _message: rpc.Received) -> None:
        request = requests.plain.decode(params)
        if exec_id := request.get("exec_id"):
            self._process(exec_id).kill(request["signal"])
            return
        self._running().kill(self.task.id, request["signal"], all_processes=request["all"])

    def _update(self, params: bytes, _message: rpc.Received) -> None:
        self._running().update(self.task.id, requests.plain.decode(params)["resources"])

    def _resize(self, params: bytes, _message: rpc.Received) -> None:
        request = requests.plain.decode(params)
        self._process(request["exec_id"]).resize(request["rows"], request["columns"])

    def _process(self, exec_id: str) -> Process:
        if exec_id or self._init is None:
            return self._execs.find(exec_id)
        return self._init

    def _attach(self, params: bytes, message: rpc.Received) -> None:
        request = requests.attach.decode(params)
        self._process(request.exec_id).streams.attach(request, *message.take(1))

    # --- execs ---

    def _exec(self, params: bytes, message: rpc.Received) -> dict[str, int]:
        request = requests.exec_create.decode(params)
        return self._execs.start(request, self._running(), self.task, message)

    def _seen(self, params: bytes, _message: rpc.Received) -> None:
        self._execs.seen(requests.plain.decode(params)["exec_id"])

    # --- the end ---

    def _reap(self) -> None:
        """Reap whatever is a child of ours: init, execs, their orphans, compressors."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if self._init is not None and pid == self._init.pid and self._init.status is None:
                self._init_reaped(wait_status)
                continue
            self._execs.reaped(pid, wait_status)

    def _init_reaped(self, wait_status: int) -> None:
        assert self._init is not None
        if self._runtime is not None and not _has_own_pids(self._spec):
            # Nobody else ends what init has left running in a pid namespace that is not its own.
            with contextlib.suppress(DrayError, OSError):
                self._runtime.kill(self.task.id, signal.SIGKILL, all_processes=True)
        self._init.reaped(wait_status, self._init_complete)

    def _init_complete(self) -> None:
        init, task, runtime = self._init, self.task, self._runtime
        assert init is not None
        assert init.status is not None
        assert runtime is not None
        self._execs.end()
        init.status = msgspec.structs.replace(init.status, oom_killed=self._oom.kills() > 0)
        self._oom.close()
        self._close_held()  # ports are free before anybody is told
        init.close()
        with contextlib.suppress(OSError):  # a full disk: those who are connected learn it all the same
            write_atomic(os.path.join(task.state_dir, "exit.json"), msgspec.json.encode(init.status))
        init.complete = True
        self._tell({"event": "exited", "status": init.status})
        with contextlib.suppress(DrayError, OSError):
            runtime.delete(task.id, force=True)

    def _state(self) -> dict[str, Any]:
        init = self._init
        if init is None:
            raise Conflict("the shim has no container yet")
        return {
            "pid": init.pid,
            "started_at": init.started_at,
            "status": init.status if init.complete else None,
            "execs": self._execs.state(),
        }

    def _release(self) -> None:
        if self._init is not None and not self._init.complete:
            raise Conflict(f"container {self.task.id} is running: kill it first")
        if self._listener is not None:
            self._listener.close()
        mounts.remove_run_dir(self.task.run_dir)
        self._released = True


def _has_own_pids(spec: dict[str, Any]) -> bool:
    namespaces = spec["linux"].get("namespaces") or []
    return any(namespace["type"] == "pid" and not namespace.get("path") for namespace in namespaces)
