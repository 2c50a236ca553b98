"""Tasks as the daemon sees them: containers' processes, each kept by a shim of its own.

`Zygote` starts and talks to the process that shims are forked from, `Tasks` creates and finds shims, `Task` is one
of them. All of it belongs to one event loop. Descriptors that are passed on are duplicated by the kernel; ours are
closed as soon as they are sent, and on every error.

What a shim tells is told to the `TaskListener` exactly once per run, whether it happens while we are connected or
is found when we come back. A shim that goes away without having reported an exit was killed: its container is
then killed as well, and `lost` is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from dray.base.errors import Conflict, DrayError, Unavailable
from dray.base.malformed import MALFORMED
from dray.linux import mounts
from dray.logs import registry as log_drivers
from dray.shim.client import Client
from dray.shim.connections import SOCKET_NAME, short_path
from dray.shim.model import AttachRequest, ExecCreate, ExitStatus, LogRequest, TaskCreate
from dray.shim.spawn import Zygote
from dray.wire import rpc

__all__ = ["Task", "TaskListener", "Tasks", "Zygote", "serve_logs"]

LOST = ExitStatus(exit_code=128 + signal.SIGKILL, finished_at=0, error="the container's shim was killed")


class TaskListener(Protocol):
    """Called on the loop."""

    def exited(self, task: Task, status: ExitStatus) -> None:
        """The container is over: once per run, also when it is found at `reattach`."""

    def exec_exited(self, task: Task, exec_id: str, status: ExitStatus) -> None:
        """An exec is over."""

    def oom(self, task: Task) -> None:
        """The kernel's OOM killer struck in the container."""

    def detached(self, task: Task, exec_id: str) -> None:
        """A client left with the detach keys ("" the container's own streams)."""

    def lost(self, task: Task) -> None:
        """The shim died without reporting an exit; everything of the container has been killed (137)."""


class Task:
    """A container's processes."""

    def __init__(self, owner: Tasks, request: TaskCreate, client: Client | None) -> None:
        self._owner = owner
        self._request = request
        self._client = client
        self._over: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._released = False
        # Events wait here until whoever asked for the task has got it.
        self._early: list[dict[str, Any]] | None = []
        self._known: set[str] = set()  # execs whose end was learned from `state`
        self.id = request.id
        self.run_dir = Path(request.run_dir)
        self.pid = 0
        self.started_at = 0  # unix nanoseconds

    async def _call(self, method: str, params: Any = None, fds: Sequence[int] = ()) -> Any:
        if self._client is None:
            raise Conflict(f"container {self.id} is not running")
        return await self._client.call(method, {} if params is None else params, fds)

    async def start(self) -> None:
        """Run the program of a task that was created with `start=False`; StartError."""
        await self._call("start")

    async def kill(self, signum: int, *, all_processes: bool = False) -> None:
        """Signal init, or every process; Conflict if the container is over."""
        await self._call("kill", {"signal": int(signum), "all": all_processes})

    async def kill_exec(self, exec_id: str, signum: int) -> None:
        """Signal an exec's process; NotFound if there is no such exec, nothing happens if it is over."""
        await self._call("kill", {"signal": int(signum), "all": False, "exec_id": exec_id})

    async def wait(self) -> ExitStatus:
        """Wait for the end; returns at once when it is over. Safe to cancel."""
        return await asyncio.shield(self._over)

    @property
    def status(self) -> ExitStatus | None:
        """How it ended, None while it runs."""
        return self._over.result() if self._over.done() else None

    async def attach(self, request: AttachRequest, fd: int) -> None:
        """Connect a client's socket, which is the shim's from here on; `fd` is closed in every case."""
        try:
            await self._call("attach", request, [fd])
        finally:
            os.close(fd)

    async def exec(self, request: ExecCreate, fd: int | None = None) -> int:
        """Run a further process, with `request.attach` on the client's socket `fd`; return its pid.

        StartError if it cannot be run: nothing was written to the socket then, so that a caller who kept a
        duplicate can tell the client why. `fd` is closed in every case.
        """
        try:
            result = await self._call("exec", request, [] if fd is None else [fd])
        finally:
            if fd is not None:
                os.close(fd)
        return int(result["pid"])

    async def resize(self, rows: int, columns: int, exec_id: str = "") -> None:
        """Give a terminal a size."""
        await self._call("resize", {"exec_id": exec_id, "rows": rows, "columns": columns})

    async def pause(self) -> None:
        """Freeze every process."""
        await self._call("pause")

    async def resume(self) -> None:
        """Undo `pause`."""
        await self._call("resume")

    async def update(self, resources: dict[str, Any]) -> None:
        """Apply an OCI `linux.resources` object."""
        await self._call("update", {"resources": resources})

    async def pids(self) -> list[int]:
        """Return the pids (the host's) of every process."""
        return list(await self._call("pids"))

    async def release(self) -> None:
        """The end is handled: remove the run directory and let the shim go. Conflict while it runs."""
        if not self._over.done():
            raise Conflict(f"container {self.id} is running: kill it first")
        self._released = True
        client, self._client = self._client, None
        if client is None:
            await self._owner.clean_up_gone(self)
            return
        try:
            await client.call("release", {})
        except Unavailable:  # the shim had gone already
            await self._owner.clean_up_gone(self)
        finally:
            client.close()

    # --- what the shim tells ---

    def handle(self, event: dict[str, Any]) -> None:
        """Take an event of the shim."""
        if self._early is not None:
            self._early.append(event)
            return
        self.tell(event)

    def tell(self, event: dict[str, Any]) -> None:
        """Tell the listener now."""
        listener = self._owner.listener
        match event["event"]:
            case "exited":
                self.ended(msgspec.convert(event["status"], ExitStatus))
            case "exec_exited":
                listener.exec_exited(self, event["exec_id"], msgspec.convert(event["status"], ExitStatus))
                if self._client is not None:
                    self._client.post("seen", {"exec_id": event["exec_id"]})
            case "detached":
                listener.detached(self, event["exec_id"])
            case "oom":
                listener.oom(self)
            case "gone":
                self._client = None
                if not self._over.done() and not self._released:
                    self._owner.clean_up_lost(self)

    def ended(self, status: ExitStatus) -> None:
        """Tell the end, once."""
        if not self._over.done():
            self._over.set_result(status)
            self._owner.listener.exited(self, status)

    def disconnected(self) -> None:
        """The shim is gone."""
        self.handle({"event": "gone"})

    def declare_lost(self) -> None:
        """Everything of the container is dead; tell so."""
        if not self._over.done():
            self._over.set_result(LOST)
            self._owner.listener.lost(self)

    @property
    def request(self) -> TaskCreate:
        """What the task was created from."""
        return self._request

    def known(self, exec_id: str) -> None:
        """The end of this exec is not to be told again."""
        self._known.add(exec_id)

    def disconnect(self) -> None:
        """Leave the shim alone, as a daemon that shuts down does."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def adopt(self, state: dict[str, Any], client: Client) -> None:
        """Learn from a shim's `state`; its events are told as soon as the caller has had his turn."""
        self._client = client
        self.pid, self.started_at = state["pid"], state["started_at"]
        asyncio.get_running_loop().call_soon(self._catch_up)

    def _catch_up(self) -> None:
        early, self._early = self._early or [], None
        for event in early:
            if event.get("exec_id") not in self._known or event["event"] != "exec_exited":
                self.tell(event)


class Tasks:
    """The shims of this daemon."""

    listener: TaskListener

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote
        self._background: set[asyncio.Task[None]] = set()

    async def create(
        self,
        request: TaskCreate,
        *,
        descriptors: Sequence[int] = (),
        attachments: Sequence[tuple[AttachRequest, int]] = (),
    ) -> Task:
        """Make a shim and its container; with `request.start`, its program runs when this returns.

        `descriptors` (those that `request.fds` names) stay the caller's; the attachments' are closed in every
        case. StartError, InvalidParameter and the rest are raised as the runtime raised them; then nothing is
        left, the run directory included.
        """
        attached = [fd for _, fd in attachments]
        task = Task(self, request, None)
        try:
            ours, theirs = rpc.pair()
            client = Client(ours, task.handle, task.disconnected)
            try:
                with theirs:
                    await self._zygote.fork_shim(theirs)
                params = {"task": request, "attachments": [attachment for attachment, _ in attachments]}
                result = await client.call("create", params, [*descriptors, *attached])
            except Unavailable:  # killed in the middle of it: what it has made so far is nobody's
                client.close()
                await self._kill_remains(request)
                await self.remove_run_dir(task.run_dir)
                raise
            except BaseException:
                client.close()
                raise
        finally:
            for fd in attached:
                os.close(fd)
        task.adopt(result, client)
        return task

    async def reattach(self, run_dir: Path) -> Task | None:
        """Find a task again after a restart of the daemon; None if its shim is gone.

        What happened meanwhile is told to the listener before this returns: `exited` with what exit.json says,
        the ends of execs, or `lost` for a shim that was killed. Without `run_dir/task.json` there was no task.
        """
        try:
            request = msgspec.json.decode((run_dir / "task.json").read_bytes(), type=TaskCreate)
        except (FileNotFoundError, NotADirectoryError, *MALFORMED):
            return None
        task = Task(self, request, None)
        connection = _connect(run_dir)
        if connection is not None:
            client = Client(connection, task.handle, task.disconnected)
            try:
                state = await client.call("state", {})
            except DrayError:
                client.close()
            else:
                task.adopt(state, client)
                self._tell_what_happened(task, state)
                return task
        try:
            data = (Path(request.state_dir) / "exit.json").read_bytes()
            status = msgspec.json.decode(data, type=ExitStatus)
        except (FileNotFoundError, *MALFORMED):
            await self._kill_lost(task)
        else:
            await self._kill_remains(request)  # killed after its last word, it has left its cgroup
            task.ended(status)
        return None

    def _tell_what_happened(self, task: Task, state: dict[str, Any]) -> None:
        for exec_id, status in state["execs"].items():
            if status is not None:
                task.known(exec_id)
                task.tell({"event": "exec_exited", "exec_id": exec_id, "status": status})
        if state["status"] is not None:
            task.ended(msgspec.convert(state["status"], ExitStatus))

    def clean_up_lost(self, task: Task) -> None:
        """A shim died: kill what is left of its container, then say so."""
        work = asyncio.get_running_loop().create_task(self._kill_lost(task))
        self._background.add(work)
        work.add_done_callback(self._background.discard)

    async def _kill_lost(self, task: Task) -> None:
        try:
            await self._kill_remains(task.request)
        finally:
            task.declare_lost()

    async def clean_up_gone(self, task: Task) -> None:
        """Remove what a shim has left that was killed after it had told the end."""
        await self._kill_remains(task.request)
        await self.remove_run_dir(task.run_dir)

    async def _kill_remains(self, request: TaskCreate) -> None:
        """Kill and remove what a container has in the kernel, without its shim."""
        arguments = {
            "id": request.id,
            "run_dir": request.run_dir,
            "runtime": request.runtime,
            "runtime_args": request.runtime_args,
            "factory": self._zygote.runtimes,
        }
        await self._zygote.call("dray.shim.remains:kill", arguments)

    async def remove_run_dir(self, run_dir: Path) -> None:
        """Remove what a shim that is gone has left."""
        await asyncio.to_thread(mounts.remove_run_dir, run_dir)


def _connect(run_dir: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with short_path(os.fspath(run_dir)) as directory:
            connection.connect(f"{directory}/{SOCKET_NAME}")
        _pid, uid, _gid = rpc.peer_credentials(connection)
        if uid in (0, os.geteuid()):
            return connection
    except OSError:
        pass
    with contextlib.suppress(OSError):
        connection.close()
    return None


async def serve_logs(zygote: Zygote, request: LogRequest, fd: int, *, wait: bool = False) -> None:
    """Let a process of its own write a container's log to the client's socket; `fd` is closed in every case.

    It goes on without the daemon, ends when the client does, and closes the socket at the end without shutting it
    down. This returns when the log's files are open, so that their removal no longer matters; with `wait`, when
    everything is written. Unsupported if the driver cannot be read.
    """
    ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            log_drivers.format_of(request.driver)
            arguments = msgspec.to_builtins(request)
            if wait:
                await zygote.call("dray.shim.logserver:serve", arguments, [fd, theirs])
                return
            zygote.begin("dray.shim.logserver:serve", arguments, [fd, theirs])
        finally:
            os.close(fd)
            os.close(theirs)
        await _end_of(ours)
    finally:
        os.close(ours)


async def _end_of(pipe: int) -> None:
    """Wait until all writers of a pipe that nobody writes to have closed it."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(pipe, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(pipe)
