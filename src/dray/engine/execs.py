"""Further processes in running containers: create, start, inspect, resize (Engine API, Exec)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
from collections.abc import Sequence

from dray.api import models as api
from dray.api.requests import Connection
from dray.base import digest
from dray.base.errors import Conflict, DrayError, InvalidParameter, NotFound
from dray.engine import detachkeys
from dray.engine.events import Events
from dray.engine.layout import Layout
from dray.engine.model import Container, Exec, event_attributes
from dray.engine.processes import exec_process
from dray.engine.registry import Registry
from dray.shim.model import AttachRequest, ExecCreate
from dray.wire import stdcopy

KEPT_SECONDS = 300.0  # moby `execCommandGC`: between five and ten minutes


class ExecTable:
    """All execs of the daemon. They can be asked about until `KEPT_SECONDS` after their end, and are gone with the
    daemon, as dockerd's are; their processes are not."""

    def __init__(self, registry: Registry, events: Events, layout: Layout, capabilities: Sequence[str]) -> None:
        self._registry = registry
        self._events = events
        self._layout = layout
        self._capabilities = capabilities
        self._execs: dict[str, Exec] = {}

    def find(self, exec_id: str) -> Exec:
        """Return the exec with this id."""
        if (run := self._execs.get(exec_id)) is None or run.lapsed:
            raise NotFound(f"No such exec instance: {exec_id}")
        return run

    def create(self, container: Container, ask: api.ExecConfig) -> Exec:
        """Make an exec of a running container; nothing runs yet."""
        self._check_running(container)
        if not ask.cmd:
            raise InvalidParameter("No exec command specified")
        try:
            process = exec_process(container, ask, self._layout, self._capabilities)
        except (FileNotFoundError, ProcessLookupError):  # its /proc/<pid>/root: it has just ended
            raise Conflict(f"container {container.id} is not running") from None
        run = Exec(
            id=digest.new_id(),
            container_id=container.id,
            process=process,
            tty=ask.tty,
            open_stdin=ask.attach_stdin,
            open_stdout=ask.attach_stdout,
            open_stderr=ask.attach_stderr,
            privileged=ask.privileged,
            detach_keys=ask.detach_keys,
            user=ask.user,
            command=list(ask.cmd),
            console_size=ask.console_size,
        )
        self._execs[run.id] = run
        container.execs[run.id] = run
        self._publish(container, f"exec_create: {_words(run)}", run)
        return run

    async def start(
        self,
        run: Exec,
        *,
        attach: AttachRequest | None,
        fd: int | None,
        console_size: tuple[int, int] | None = None,
    ) -> None:
        """Run the process, its stdio connected to the client's socket `fd` (whose owner is the shim from here on)."""
        container = self.check_startable(run)
        assert container.task is not None
        run.started = run.running = True
        request = ExecCreate(
            exec_id=run.id, process=run.process, tty=run.tty, console_size=console_size, attach=attach
        )
        self._publish(container, f"exec_start: {_words(run)}", run)
        try:
            run.pid = await container.task.exec(request, fd)
        except BaseException as error:
            run.running = False
            run.exit_code = getattr(error, "exit_code", 126)
            run.finished.set()
            raise

    def check_startable(self, run: Exec) -> Container:
        """Return the exec's container; Conflict if it cannot run (any more)."""
        if run.started:
            word = "running" if run.running else "stopped"
            raise Conflict(
                f"Error: Exec command {run.id} has already run"
                if word == "stopped"
                else f"Error: Exec command {run.id} is already running"
            )
        container = self._registry.get(run.container_id)
        if container is None:
            raise NotFound(f"No such container: {run.container_id}")
        self._check_running(container)
        return container

    @staticmethod
    def _check_running(container: Container) -> None:
        status = container.state.status
        if status == "paused":
            raise Conflict(f"container {container.id} is paused, unpause the container before exec")
        if status == "restarting":
            raise Conflict(f"container {container.id} is restarting, wait until the container is running")
        if status != "running" or container.task is None:
            raise Conflict(f"container {container.id} is not running")

    async def resize(self, run: Exec, rows: int, columns: int) -> None:
        """Tell the exec's terminal its size."""
        container = self._registry.get(run.container_id)
        if container is None or container.task is None or not run.running:
            raise InvalidParameter(f"exec {run.id} is not running: nothing to resize")
        await container.task.resize(rows, columns, run.id)

    def ended(self, container: Container, exec_id: str, exit_code: int) -> None:
        """Write down that a process ended."""
        run = self._execs.get(exec_id)
        if run is None:
            return
        run.running, run.exit_code = False, exit_code
        run.finished.set()
        container.execs.pop(exec_id, None)
        asyncio.get_running_loop().call_later(KEPT_SECONDS, self._execs.pop, exec_id, None)
        attributes = event_attributes(container) | {"execID": run.id, "exitCode": str(exit_code)}
        self._events.publish("container", "exec_die", container.id, attributes)

    def detached(self, container: Container, exec_id: str) -> None:
        """Tell that a client left an exec with the detach keys."""
        if run := self._execs.get(exec_id):
            self._publish(container, "exec_detach", run)

    def forget(self, container: Container) -> None:
        """Drop the execs of a container that ended a run or was removed."""
        for exec_id in container.execs:
            self._execs.pop(exec_id, None)
        container.execs.clear()

    def inspect(self, run: Exec) -> api.ExecInspectResponse:
        """Return what `GET /exec/{id}/json` answers."""
        return api.ExecInspectResponse(
            id=run.id,
            running=run.running,
            exit_code=run.exit_code,
            process_config=api.ProcessConfig(
                tty=run.tty,
                entrypoint=run.command[0],
                arguments=run.command[1:],
                privileged=run.privileged,
                user=run.user,
            ),
            open_stdin=run.open_stdin,
            open_stderr=run.open_stderr,
            open_stdout=run.open_stdout,
            can_remove=False,
            container_id=run.container_id,
            detach_keys=base64.b64encode(detachkeys.parse(run.detach_keys)).decode() if run.detach_keys else "",
            pid=run.pid,
        )

    def _publish(self, container: Container, action: str, run: Exec) -> None:
        self._events.publish("container", action, container.id, event_attributes(container) | {"execID": run.id})


class ExecVerbs:
    """The `Execs` backend of the server."""

    def __init__(self, registry: Registry, table: ExecTable) -> None:
        self._registry = registry
        self._table = table

    async def create(self, ref: str, config: api.ExecConfig) -> api.IDResponse:
        """Prepare an exec."""
        detachkeys.parse(config.detach_keys)
        return api.IDResponse(id=self._table.create(self._registry.find(ref), config).id)

    async def start(self, id: str, options: api.ExecStartConfig, connection: Connection | None) -> None:
        """Run a prepared exec, its stdio on the client's connection."""
        run = self._table.find(id)
        self._table.check_startable(run)
        size = options.console_size or run.console_size
        console = (size[0], size[1]) if size and any(size) else None
        if connection is None:
            await self._table.start(run, attach=None, fd=None, console_size=console)
            return
        detached = await connection.hijack(tty=run.tty)
        attach = AttachRequest(
            stdin=run.open_stdin,
            stdout=run.open_stdout,
            stderr=run.open_stderr,
            framed=detached.multiplexed,
            leftover=detached.leftover,
            detach_keys=detachkeys.parse(run.detach_keys) if run.tty else b"",
            exec_id=run.id,
        )
        told = os.dup(detached.fd)
        try:
            await self._table.start(run, attach=attach, fd=detached.fd, console_size=console)
        except DrayError as error:
            await asyncio.to_thread(_tell, told, str(error), detached.multiplexed)
        finally:
            os.close(told)

    async def inspect(self, id: str) -> api.ExecInspectResponse:
        """Return what is known of an exec."""
        run = self._table.find(id)
        if run.running and not os.path.exists(f"/proc/{run.pid}"):
            # The client saw the end of its stream before we were told how the process ended.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.finished.wait(), 2)
        return self._table.inspect(run)

    async def resize(self, id: str, height: int, width: int) -> None:
        """Set the size of the terminal."""
        await self._table.resize(self._table.find(id), height, width)


def _tell(fd: int, message: str, framed: bool) -> None:
    """Write an error into a hijacked stream, as dockerd does, and end it."""
    data = f"{message}\r\n".encode()
    with socket.socket(fileno=os.dup(fd)) as client, contextlib.suppress(OSError):
        client.settimeout(5)
        client.sendall(stdcopy.frame(stdcopy.STDOUT, data) if framed else data)
        client.shutdown(socket.SHUT_RDWR)


def _words(run: Exec) -> str:
    """Return a command as dockerd's events have it: with a space behind a program without arguments."""
    return f"{run.command[0]} {' '.join(run.command[1:])}"
