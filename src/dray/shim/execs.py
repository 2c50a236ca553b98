"""The execs of a container, as its shim keeps them: from their start until the daemon knows how they ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from dray.base.errors import Conflict, NotFound
from dray.runtime import document
from dray.runtime.model import ExecRequest, Runtime
from dray.shim.loop import Loop
from dray.shim.model import ExecCreate, ExitStatus, TaskCreate
from dray.shim.process import Process
from dray.shim.stdio import Streams
from dray.wire import rpc

KILLED = 128 + signal.SIGKILL


class Execs:
    """Owns the processes of all execs; `tell` sends an event to the daemon."""

    def __init__(self, loop: Loop, tell: Callable[[dict[str, Any]], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._known: dict[str, Process] = {}
        self._told: list[Process] = []  # those that the daemon knows the end of; their clients may still read

    def start(
        self, request: ExecCreate, runtime: Runtime, task: TaskCreate, message: rpc.Received
    ) -> dict[str, int]:
        """Run a process beside init; with an `attach`, the message has its client's socket."""
        exec_id, attach = request.exec_id, request.attach
        if exec_id in self._known:
            raise Conflict(f"exec {exec_id} has run already")
        streams = Streams(
            self._loop,
            tty=request.tty,
            stdin_once=True,
            detached=lambda: self._tell({"event": "detached", "exec_id": exec_id}),
        )
        process = Process(exec_id, streams, tty=request.tty)
        order = ExecRequest(
            id=task.id,
            process=request.process,
            seccomp=document.profile_of(read_config(task)),
            console_size=request.console_size,
        )
        try:
            process.run(
                lambda stdio: runtime.exec(replace(order, stdio=stdio)),
                stdin=attach is not None and attach.stdin,
                output=attach is not None,
                owner=task.owner,
            )
        except BaseException:
            process.close()
            raise
        self._known[exec_id] = process
        if attach is not None:
            streams.attach(attach, *message.take(1))
        return {"pid": process.pid}

    def find(self, exec_id: str) -> Process:
        """Return the exec of that id; NotFound."""
        process = self._known.get(exec_id)
        if process is None:
            raise NotFound(f"No such exec instance: {exec_id}")
        return process

    def seen(self, exec_id: str) -> None:
        """The daemon knows how it ended: forget it, once nobody reads from it any more."""
        process = self._known.get(exec_id)
        if process is not None and process.complete:
            self._told.append(self._known.pop(exec_id))

    def reaped(self, pid: int, wait_status: int) -> None:
        """A child of the shim is gone; it may have been one of these."""
        for process in self._known.values():
            if process.pid == pid and process.status is None:
                process.reaped(wait_status, partial(self._complete, process))
                break

    def end(self) -> None:
        """Init is gone, and the kernel has killed what was left."""
        for process in self._known.values():
            if process.status is None:
                process.ended(KILLED, lambda: None)
            if not process.complete:
                self._complete(process)

    def read(self) -> bool:
        """Tell whether a client still reads from one of them."""
        self._told = [process for process in self._told if process.streams.clients]
        return bool(self._told) or any(process.streams.clients for process in self._known.values())

    def state(self) -> dict[str, ExitStatus | None]:
        """Return id → how it ended, None for one that runs."""
        return {process.exec_id: process.status if process.complete else None for process in self._known.values()}

    def _complete(self, process: Process) -> None:
        if process.complete:
            return
        process.complete = True
        process.close()
        self._tell({"event": "exec_exited", "exec_id": process.exec_id, "status": process.status})


def read_config(task: TaskCreate) -> bytes:
    """Return the task's config.json."""
    fd = os.open(os.path.join(task.run_dir, "config.json"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
