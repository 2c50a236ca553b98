"""`dray-dns`: the process that answers for all sandboxes of one daemon. A child of the zygote, of one thread.

It is told what to answer over its first connection and over `dns.sock` in the daemon's exec-root (see `model`), and
goes on answering what it was told last when the daemon is gone. It ends when it is told to, or when it has neither
a daemon nor a sandbox: without a daemon a sandbox ends with the container's first process.

It reads what containers write, so it keeps only the rights to enter network namespaces and set them up.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import traceback
from typing import Any

import msgspec

from dray.base.errors import InvalidParameter, NotFound
from dray.linux import libc
from dray.network.dns.forward import Budget
from dray.network.dns.model import PROCESS_NAME, SOCKET_NAME, VERSION, Members, Opening, Sandbox, Snapshot
from dray.network.dns.namespace import Home
from dray.network.dns.resolver import Kept, Resolver
from dray.network.dns.zone import Zone
from dray.shim.connections import Connection, Listener
from dray.shim.loop import Loop
from dray.wire import rpc

_NET_BIND_SERVICE, _NET_ADMIN, _SYS_ADMIN = 10, 12, 21  # capabilities(7)
_RIGHTS = 1 << _NET_BIND_SERVICE | 1 << _NET_ADMIN | 1 << _SYS_ADMIN


def serve(arguments: dict[str, Any], fds: list[int]) -> None:
    """Be the process: `arguments["directory"]` holds the socket's name, `fds[0]` is the daemon's connection."""
    libc.set_process_name(PROCESS_NAME)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    process = Process(arguments["directory"], socket.socket(fileno=fds[0]))
    os.dup2(0, 2)  # /dev/null: the daemon's stderr is not ours to keep open
    libc.capset(_RIGHTS, _RIGHTS, 0)
    gc.freeze()
    process.run()


class Process:
    """Owns the sandboxes' resolvers and the connections with daemons."""

    def __init__(self, directory: str, connection: socket.socket) -> None:
        self._loop = Loop(failed=self._tell)
        self._home = Home()
        self._zone = Zone()
        self._kept = Kept(self._zone)
        self._budget = Budget()
        self._resolvers: dict[str, Resolver] = {}
        self._connections: set[Connection] = set()
        self._accepted(connection)
        self._listener = Listener(self._loop, directory, self._accepted, SOCKET_NAME)

    def run(self) -> None:
        """Answer until nobody needs it any more."""
        try:
            self._loop.run()
        finally:
            self._listener.close()
            for resolver in self._resolvers.values():
                resolver.close()
            for connection in list(self._connections):
                connection.close()
            self._home.close()
            self._loop.close()

    def _accepted(self, connection: socket.socket) -> None:
        self._connections.add(Connection(self._loop, connection, self._handle, self._gone))

    def _gone(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            # A start that the daemon did not live to acknowledge is undone by the next daemon.
            for sandbox_id in [found for found, resolver in self._resolvers.items() if not resolver.inhabited]:
                self._close(sandbox_id)
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if not self._connections and not self._resolvers:
            self._loop.stopped = True

    def _handle(self, connection: Connection, received: rpc.Received) -> None:
        request: dict[str, Any] = {}
        try:
            request = received.json()
            result = self._obey(request["method"], request["params"], received)
            connection.send({"id": request["id"], "result": result})
        except Exception as error:
            connection.send({"id": request.get("id", 0), "error": rpc.describe(error)})
        finally:
            received.close()

    def _obey(self, method: str, params: Any, received: rpc.Received) -> Any:
        match method:
            case "hello":
                return {"version": VERSION, "pid": os.getpid(), "sandboxes": list(self._resolvers)}
            case "reset":
                self._reset(msgspec.convert(params, Snapshot))
            case "members":
                self._change(msgspec.convert(params, Members))
            case "open":
                opening = msgspec.convert(params, Opening)
                self._change(Members(come=opening.come))
                self._open(opening.sandbox, received)
            case "update":
                sandbox = msgspec.convert(params, Sandbox)
                self._resolver(sandbox.id).update(sandbox)
            case "started":
                found = params["id"]
                self._resolver(found).end_with(params["pid"], lambda: self._ended(found))
            case "close":
                self._close(params["id"])
            case "stop":
                self._loop.stopped = True
            case other:
                raise InvalidParameter(f"the resolver does not know {other!r}")
        return None

    def _resolver(self, sandbox_id: str) -> Resolver:
        if sandbox_id not in self._resolvers:
            raise NotFound(f"the resolver has no sandbox {sandbox_id}")
        return self._resolvers[sandbox_id]

    def _reset(self, snapshot: Snapshot) -> None:
        wanted = {sandbox.id: sandbox for sandbox in snapshot.sandboxes}
        for sandbox_id in [known for known in self._resolvers if known not in wanted]:
            self._close(sandbox_id)
        for sandbox_id, resolver in self._resolvers.items():
            resolver.update(wanted[sandbox_id])
        self._zone.clear()
        self._change(Members(come=snapshot.members))

    def _change(self, members: Members) -> None:
        for endpoint_id in members.gone:
            self._zone.remove(endpoint_id)
        for member in members.come:
            self._zone.add(member)

    def _open(self, sandbox: Sandbox, received: rpc.Received) -> None:
        self._close(sandbox.id)
        [netns] = received.take(1)
        self._resolvers[sandbox.id] = Resolver(
            self._loop, self._home, self._zone, self._kept, self._budget, sandbox, netns
        )

    def _close(self, sandbox_id: str) -> None:
        resolver = self._resolvers.pop(sandbox_id, None)
        if resolver is not None:
            resolver.close()

    def _ended(self, sandbox_id: str) -> None:
        """A container's first process is gone; a daemon that is there says itself when its sandbox ends."""
        if not self._connections:
            self._close(sandbox_id)
            self._end_if_unused()

    def _tell(self) -> None:
        """Tell the daemon what went wrong in a handler: the others go on."""
        text = traceback.format_exc()
        for connection in list(self._connections):
            connection.send({"event": "failed", "text": text})
