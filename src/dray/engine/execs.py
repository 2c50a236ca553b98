"""Further processes in running containers: create, start, inspect, resize (Engine API, Exec)."""

from __future__ import annotations

from dray.api import models as api
from dray.base import digest
from dray.base.errors import Conflict, InvalidParameter, NotFound
from dray.engine.events import Events
from dray.engine.lifecycle import Lifecycle
from dray.engine.model import Container, Exec
from dray.engine.processes import exec_process
from dray.engine.registry import Registry
from dray.shim.model import AttachRequest, ExecCreate


class ExecTable:
    """All execs of the daemon. They live as long as their container's run and are gone with the daemon, as
    dockerd's are; their processes are not."""

    def __init__(self, registry: Registry, events: Events) -> None:
        self._registry = registry
        self._events = events
        self._execs: dict[str, Exec] = {}

    def find(self, exec_id: str) -> Exec:
        """Return the exec with this id."""
        if (run := self._execs.get(exec_id)) is None:
            raise NotFound(f"No such exec instance: {exec_id}")
        return run

    def create(self, container: Container, ask: api.ExecConfig) -> Exec:
        """Make an exec of a running container; nothing runs yet."""
        self._check_running(container)
        if not ask.cmd:
            raise InvalidParameter("No exec command specified")
        run = Exec(
            id=digest.new_id(),
            container_id=container.id,
            process=exec_process(container, ask),
            tty=ask.tty,
            open_stdin=ask.attach_stdin,
            open_stdout=ask.attach_stdout,
            open_stderr=ask.attach_stderr,
            privileged=ask.privileged,
            detach_keys=ask.detach_keys,
            user=ask.user,
            command=list(ask.cmd),
        )
        self._execs[run.id] = run
        container.execs[run.id] = run
        self._publish(container, f"exec_create: {' '.join(run.command)}", run)
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
        self._publish(container, f"exec_start: {' '.join(run.command)}", run)
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
        attributes = Lifecycle.attributes(container) | {"execID": run.id, "exitCode": str(exit_code)}
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
            detach_keys=run.detach_keys,
            pid=run.pid,
        )

    def _publish(self, container: Container, action: str, run: Exec) -> None:
        self._events.publish(
            "container", action, container.id, Lifecycle.attributes(container) | {"execID": run.id}
        )
