"""The daemon's side of the resolver's process: starts it, finds it again, tells it everything, replaces it.

What shall be is kept here, and changes at once; telling it follows, in order, one request after the other. A new
process (the first one, or after one was killed) is told everything, and gets the sandboxes' namespaces again through
their containers' processes. So neither the end of the daemon nor that of the process loses a name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dray.base.errors import DrayError, NotFound, Unavailable
from dray.network import sandbox as sandboxes
from dray.network.dns.model import PROCESS_NAME, SOCKET_NAME, VERSION, Member, Members, Opening, Sandbox, Snapshot
from dray.shim.client import Client
from dray.shim.connections import short_path
from dray.wire import rpc

log = logging.getLogger(__name__)

_PROCESS = "dray.network.dns.process:serve"
_PATIENCE = 5.0  # seconds for an answer of the process; a silent one is replaced
_AGAIN = (0.0, 0.1, 1.0, 5.0)  # seconds between attempts to start it


class Forker(Protocol):
    """Who forks the process (`shim.spawn.Zygote`)."""

    def begin(self, function: str, arguments: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Run f(arguments, fds) in a new process without waiting for its end."""


class Service:
    """The resolver. Belongs to the event loop."""

    def __init__(self, forker: Forker, directory: str) -> None:
        """`directory`: where the process's socket is, the daemon's exec-root."""
        self._forker = forker
        self._directory = directory
        self._sandboxes: dict[str, Sandbox] = {}
        self._members: dict[str, Member] = {}
        self._pids: dict[str, int] = {}
        self._open: set[str] = set()  # sandboxes that the present process has sockets of
        self._client: Client | None = None
        self._process = 0  # its pid
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    # -- what shall be

    def open(self, sandbox: Sandbox, members: Iterable[Member], netns: int) -> asyncio.Task[None]:
        """Let a sandbox ask, and be found by these names. The task ends once it can; it never fails: a container
        without names is better than none, and as long as it runs it is tried again. `netns` stays the caller's."""
        come = list(members)
        self._sandboxes[sandbox.id] = sandbox
        self._members.update((member.id, member) for member in come)
        self._open.discard(sandbox.id)
        return self._later(self._do_open(sandbox, come, os.dup(netns)))

    def started(self, sandbox_id: str, pid: int) -> None:
        """The sandbox's first process runs."""
        if sandbox_id in self._sandboxes:
            self._pids[sandbox_id] = pid
            self._later(self._do_started(sandbox_id, pid))

    def update(self, sandbox: Sandbox, come: Iterable[Member] = (), gone: Iterable[str] = ()) -> None:
        """A sandbox is in other networks, or has other names there."""
        self._sandboxes[sandbox.id] = sandbox
        self._change(Members(list(come), list(gone)))
        self._later(self._ask("update", sandbox))

    def rename(self, come: Iterable[Member]) -> None:
        """These endpoints have other names."""
        self._change(Members(list(come)))

    def close(self, sandbox_id: str, gone: Iterable[str]) -> None:
        """A sandbox ends, and so do the names of these endpoints."""
        if self._sandboxes.pop(sandbox_id, None) is None:
            return
        self._pids.pop(sandbox_id, None)
        self._open.discard(sandbox_id)
        self._later(self._ask("close", {"id": sandbox_id}))
        self._change(Members(gone=list(gone)))

    def knows(self, sandbox_id: str) -> bool:
        """Whether a sandbox was opened."""
        return sandbox_id in self._sandboxes

    def _change(self, members: Members) -> None:
        self._members.update((member.id, member) for member in members.come)
        for endpoint_id in members.gone:
            self._members.pop(endpoint_id, None)
        if members.come or members.gone:
            self._later(self._ask("members", members))

    # -- the daemon's life

    async def adopt(self, running: Mapping[str, tuple[Sandbox, int]], members: Iterable[Member]) -> None:
        """The daemon has started: these sandboxes (with the pid of their first process) and names are there."""
        self._members = {member.id: member for member in members}
        for sandbox_id, (sandbox, pid) in running.items():
            self._sandboxes[sandbox_id] = sandbox
            self._pids[sandbox_id] = pid
        if running or os.path.exists(f"{self._directory}/{SOCKET_NAME}"):
            await self._attempt(self._ensure())

    def warm(self) -> None:
        """Have the process before the first sandbox needs it."""
        if self._client is None:
            self._later(self._attempt(self._ensure()))

    async def stop(self, *, end: bool) -> None:
        """The daemon ends. `end`: no container runs, and the process ends as well."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        client, self._client = self._client, None
        if client is None:
            return
        try:
            if end:
                with contextlib.suppress(Unavailable, TimeoutError):
                    await asyncio.wait_for(client.call("stop", {}), _PATIENCE)
                await asyncio.to_thread(_wait_for_end, self._process)
        finally:
            client.close()

    # -- telling it

    def _later(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _attempt(self, work: Any) -> None:
        try:
            async with self._turn:
                await work
        except (DrayError, OSError, TimeoutError) as error:
            log.error("the resolver of names in networks: %s", str(error) or "no answer")
            self._retry()

    async def _ask(self, method: str, params: Any) -> None:
        await self._attempt(self._call(method, params))

    async def _do_open(self, sandbox: Sandbox, come: list[Member], netns: int) -> None:
        async def work() -> None:
            await self._call_open(await self._ensure(), sandbox.id, netns, come)

        try:
            await self._attempt(work())
        finally:
            os.close(netns)

    async def _do_started(self, sandbox_id: str, pid: int) -> None:
        async def work() -> None:
            if sandbox_id in self._sandboxes:
                await self._settle(await self._ensure(), sandbox_id, pid)

        await self._attempt(work())

    async def _settle(self, client: Client, sandbox_id: str, pid: int) -> None:
        """Make sure that a running container's sandbox has its sockets, and ends with it."""
        if sandbox_id not in self._open:
            with sandboxes.of_process(pid) as netns:
                await self._call_open(client, sandbox_id, netns)
        await self._request(client, "started", {"id": sandbox_id, "pid": pid})

    async def _call_open(self, client: Client, sandbox_id: str, netns: int, come: Sequence[Member] = ()) -> None:
        if sandbox_id in self._sandboxes:  # it may have ended meanwhile
            await self._request(client, "open", Opening(self._sandboxes[sandbox_id], list(come)), [netns])
            self._open.add(sandbox_id)

    async def _call(self, method: str, params: Any) -> None:
        if self._client is None and not self._sandboxes:
            return  # nobody to answer for: what is kept here will do
        client = await self._ensure()
        with contextlib.suppress(NotFound):  # a sandbox that is not open yet will be opened as it is now
            await self._request(client, method, params)

    async def _request(self, client: Client, method: str, params: Any, fds: Sequence[int] = ()) -> Any:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await client.call(method, params, fds)
        except TimeoutError:
            log.error("the resolver's process (pid %d) does not answer: it is replaced", self._process)
            if self._client is client:
                self._client = None
            client.close()
            _kill(self._process)
            raise

    # -- the process

    async def _ensure(self) -> Client:
        client = self._client
        if client is None:
            client, has = await self._find() or await self._start()
            self._client = client
            try:
                await self._catch_up(client, has)
            except BaseException:
                self._client = None
                client.close()
                raise
        return client

    async def _catch_up(self, client: Client, has: set[str]) -> None:
        """Tell a process everything."""
        self._open = has & set(self._sandboxes)
        await self._request(
            client, "reset", Snapshot(list(self._sandboxes.values()), list(self._members.values()))
        )
        for sandbox_id, pid in list(self._pids.items()):
            with contextlib.suppress(DrayError, OSError):  # that container is about to end
                await self._settle(client, sandbox_id, pid)

    async def _find(self) -> tuple[Client, set[str]] | None:
        """Connect to the process that an earlier daemon has left."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with short_path(self._directory) as directory:
                connection.connect(f"{directory}/{SOCKET_NAME}")
        except OSError:
            connection.close()
            return None
        pid = rpc.peer_credentials(connection)[0]
        greeted = await self._greet(connection)
        if greeted is None:
            _kill(pid)
        return greeted

    async def _start(self) -> tuple[Client, set[str]]:
        ours, theirs = rpc.pair()
        with theirs:
            self._forker.begin(_PROCESS, {"directory": self._directory}, [theirs.fileno()])
        greeted = await self._greet(ours)
        if greeted is None:
            raise Unavailable("its process could not be started")
        return greeted

    async def _greet(self, connection: socket.socket) -> tuple[Client, set[str]] | None:
        client = Client(connection, _log, lambda: self._lost(client))
        try:
            hello = await asyncio.wait_for(client.call("hello", {}), _PATIENCE)
        except (DrayError, TimeoutError):
            client.close()
            return None
        if hello["version"] != VERSION:  # of a drayd before an upgrade
            client.close()
            return None
        self._process = hello["pid"]
        return client, set(hello["sandboxes"])

    def _lost(self, client: Client) -> None:
        """The process is gone."""
        if self._client is client:
            self._client = None
            if self._sandboxes and not self._closing:
                log.warning("the resolver's process has ended: it is started again")
                self._retry()

    def _retry(self) -> None:
        if not self._closing and not any(task.get_name() == "resolver" for task in self._tasks):
            self._later(self._bring_back()).set_name("resolver")

    async def _bring_back(self) -> None:
        for seconds in _AGAIN:
            await asyncio.sleep(seconds)
            if self._closing or not self._sandboxes:
                return
            try:
                async with self._turn:
                    client = await self._ensure()
                    for sandbox_id, pid in list(self._pids.items()):
                        if sandbox_id not in self._open:
                            await self._settle(client, sandbox_id, pid)
                return
            except (DrayError, OSError, TimeoutError) as error:
                log.error("the resolver of names in networks: %s", str(error) or "no answer")


def _log(event: dict[str, Any]) -> None:
    log.error("the resolver of names in networks: %s", event["text"])


def _kill(pid: int) -> None:
    """End a process of ours that does not obey any more."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text().strip() == PROCESS_NAME:
            os.kill(pid, signal.SIGKILL)


def _wait_for_end(pid: int) -> None:
    """Wait until a process that was told to end has done so."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(_PATIENCE * 1000)
    finally:
        os.close(pidfd)
