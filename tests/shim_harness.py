"""What the tests of shim and tasks share: a listener that remembers, and containers of the fake runtime."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

from dray.shim.model import ExitStatus, LogSpec, TaskCreate
from dray.shim.tasks import Task, Tasks, Zygote

FAKE = "shim_fake_runtime:select"


class Listener:
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self._changed = asyncio.Event()

    def _add(self, *event: Any) -> None:
        self.events.append(event)
        self._changed.set()

    def exited(self, task: Task, status: ExitStatus) -> None:
        self._add("exited", task.id, status.exit_code)

    def exec_exited(self, task: Task, exec_id: str, status: ExitStatus) -> None:
        self._add("exec_exited", exec_id, status.exit_code)

    def oom(self, task: Task) -> None:
        self._add("oom", task.id)

    def detached(self, task: Task, exec_id: str) -> None:
        self._add("detached", exec_id)

    def lost(self, task: Task) -> None:
        self._add("lost", task.id)

    async def event(self, kind: str, *, within: float = 20) -> tuple[Any, ...]:
        async with asyncio.timeout(within):
            while True:
                for event in self.events:
                    if event[0] == kind:
                        return event
                self._changed.clear()
                await self._changed.wait()


class Bench:
    """One zygote, its tasks and their folders."""

    def __init__(self, root: Path, zygote: Zygote) -> None:
        self.root = root
        self.zygote = zygote
        self.listener = Listener()
        self.tasks = Tasks(zygote)
        self.tasks.listener = self.listener
        self._count = 0

    def request(self, *args: str, process: dict[str, Any] | None = None, **options: Any) -> TaskCreate:
        self._count += 1
        run_dir = self.root / f"run{self._count}"
        state_dir = self.root / f"state{self._count}"
        run_dir.mkdir(parents=True)
        state_dir.mkdir(parents=True)
        spec = {
            "process": {"args": list(args), "terminal": options.get("tty", False), **(process or {})},
            "linux": {"namespaces": [{"type": "pid"}]},
        }
        (run_dir / "config.json").write_text(json.dumps(spec))
        log = options.pop("log", LogSpec(driver="json-file"))
        log = LogSpec(
            driver=log.driver,
            path=str(state_dir / "log"),
            options=log.options,
            attributes=log.attributes,
        )
        return TaskCreate(
            id=str(run_dir), run_dir=str(run_dir), state_dir=str(state_dir), rootfs=[], log=log, **options
        )

    def log(self, request: TaskCreate) -> str:
        return "".join(json.loads(line)["log"] for line in Path(request.log.path).read_text().splitlines())


async def read_all(connection: socket.socket) -> bytes:
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    parts = []
    while data := await loop.sock_recv(connection, 1 << 20):
        parts.append(data)
    return b"".join(parts)


async def read_until(connection: socket.socket, needle: bytes) -> bytes:
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    data = b""
    while needle not in data:
        piece = await loop.sock_recv(connection, 1 << 16)
        assert piece, f"the stream ended before {needle!r}: {data!r}"
        data += piece
    return data
