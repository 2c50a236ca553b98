"""A `Runtime` that runs plain processes: what the shim's own tests need of one, no root, no namespaces.

The state of a "container" is its processes' session: create forks a child that waits on a pipe, start lets it go,
exec forks another one into the same session.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import time
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dray.base.errors import Conflict, NotFound, StartError
from dray.runtime.model import CreateRequest, ExecRequest, Runtime, Started, Stdio


def select(path: str, arguments: Sequence[str], run_dir: str) -> Runtime:
    return FakeRuntime()


class FakeRuntime:
    def __init__(self) -> None:
        self.gates: dict[str, int] = {}
        self.groups: dict[str, list[int]] = {}
        self.failures: dict[str, int] = {}

    def create(self, request: CreateRequest) -> Started:
        process = request.document["process"]
        if process["args"][0] == "nosuch-create":
            raise StartError("exec: nosuch-create: executable file not found in $PATH", 127)
        reader, gate = os.pipe2(os.O_CLOEXEC)
        failed, failure = os.pipe2(os.O_CLOEXEC)
        started = self._fork(process, request.stdio, reader, failure, size=request.console_size)
        os.close(reader)
        os.close(failure)
        self.gates[request.id], self.failures[request.id] = gate, failed
        self.groups[request.id] = [started.pid]
        (request.bundle / "fake.pids").write_text(f"{started.pid}\n")
        return started

    def _fork(
        self, process: dict[str, Any], stdio: Stdio, gate: int = -1, failure: int = -1, *, size: object = None
    ) -> Started:
        master = slave = -1
        if process.get("terminal"):
            master, slave = pty.openpty()
            os.set_inheritable(master, False)
        pid = os.fork()
        if pid:
            if slave >= 0:
                os.close(slave)
            return Started(pid, master if master >= 0 else None)
        with contextlib.suppress(BaseException):
            os.setsid()
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            if slave >= 0:
                tty.setcbreak(slave) if process.get("cbreak") else None
                os.login_tty(slave)
            else:
                null = os.open("/dev/null", os.O_RDWR)
                for number, fd in enumerate((stdio.stdin, stdio.stdout, stdio.stderr)):
                    os.dup2(fd if fd >= 0 else null, number)
            if gate >= 0 and not os.read(gate, 1):
                os._exit(1)
            try:
                os.execvpe(process["args"][0], process["args"], dict(os.environ))
            except OSError:
                if failure >= 0:
                    os.write(failure, b"x")
        os._exit(127)

    def start(self, id: str) -> None:
        gate, failed = self.gates.pop(id), self.failures.pop(id)
        os.write(gate, b"g")
        os.close(gate)
        said = os.read(failed, 1)
        os.close(failed)
        if said:
            raise StartError("executable file not found in $PATH", 127)

    def exec(self, request: ExecRequest) -> Started:
        if request.process["args"][0] == "nosuch":
            raise StartError("executable file not found in $PATH", 127)
        started = self._fork(request.process, request.stdio)
        self.groups[request.id].append(started.pid)
        return started

    def kill(self, id: str, signal: int, *, all_processes: bool = False) -> None:
        pids = self.groups.get(id) or self._remembered(id)
        if not pids:
            raise NotFound(f"no container {id}")
        for pid in pids if all_processes else pids[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal)

    def _remembered(self, id: str) -> list[int]:
        """The pids of a container whose shim is dead: the id is the run directory in these tests."""
        path = Path(id) / "fake.pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def pause(self, id: str) -> None:
        self.kill(id, signal.SIGSTOP, all_processes=True)

    def resume(self, id: str) -> None:
        self.kill(id, signal.SIGCONT, all_processes=True)

    def update(self, id: str, resources: dict[str, Any]) -> None:
        if "refuse" in resources:
            raise Conflict("refused")

    def pids(self, id: str) -> list[int]:
        found = []
        for pid in self.groups.get(id) or self._remembered(id):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(pid)
        return found

    def oom_kills(self, id: str) -> int:
        return 0

    def delete(self, id: str, *, force: bool = False) -> None:
        if force:
            with contextlib.suppress(NotFound):
                self.kill(id, signal.SIGKILL, all_processes=True)
            while self.pids(id):
                time.sleep(0.001)
        gate = self.gates.pop(id, -1)
        if gate >= 0:
            os.close(gate)
        self.groups.pop(id, None)
