"""How the daemon starts the zygote and talks to it (see shim.zygote for the requests)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from dray.base.errors import Unavailable
from dray.shim.zygote import DEFAULT_RUNTIMES, SOCKET_FD
from dray.wire import rpc

_MFD_EXEC = 0x10  # kernels from 6.3 ask for it, older ones refuse it (memfd_create(2))
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_PROGRAM = """
import sys
sys.path[:] = {path!r}
from dray.shim.zygote import main
main({runtimes!r})
"""


class Zygote:
    """Owner of the zygote process. Use `spawn`, from a process without threads."""

    def __init__(self, pid: int, connection: socket.socket, runtimes: str) -> None:
        self.pid = pid
        self.runtimes = runtimes
        self._channel = rpc.Channel(connection)

    @classmethod
    def spawn(cls, runtimes: str = DEFAULT_RUNTIMES) -> Zygote:
        """Start the zygote (synchronous; before loop and threads).

        It runs a sealed copy of this interpreter with this process's module path, isolated from environment and
        working directory (`-I`). `runtimes` names the function that chooses a task's runtime, "module:function".
        """
        ours, theirs = rpc.pair()
        program = _sealed_interpreter()
        try:
            with theirs:
                path = [os.path.abspath(entry) for entry in sys.path if entry]
                code = _PROGRAM.format(path=path, runtimes=runtimes)
                pid = os.posix_spawn(
                    f"/proc/self/fd/{program}",
                    [sys.executable, "-I", "-S", "-c", code],
                    _environment(),
                    file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), SOCKET_FD)],
                )
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(program)
        return cls(pid, ours, runtimes)

    async def fork_shim(self, connection: socket.socket) -> None:
        """Let a shim be forked that serves `connection`."""
        self._send({"do": "shim"}, connection.fileno())

    async def new_network_namespace(self) -> tuple[int, int]:
        """Return (a new network namespace, a blocking NETLINK_ROUTE socket inside it); both are the caller's."""
        namespace, netlink = await self._networks({"do": "network namespace"}, 2)
        return namespace, netlink

    async def new_mapped_network_namespace(self, maps: tuple[str, str]) -> tuple[int, int, int]:
        """Return the same and the new user namespace that owns it; `maps` are the texts of uid_map and gid_map."""
        namespace, netlink, user = await self._networks({"do": "network namespace", "maps": maps}, 3)
        return namespace, netlink, user

    async def new_network_namespace_in(self, user: int) -> tuple[int, int]:
        """Return the same as `new_network_namespace`, owned by an existing user namespace."""
        namespace, netlink = await self._networks({"do": "network namespace"}, 2, (user,))
        return namespace, netlink

    async def _networks(self, request: dict[str, Any], count: int, fds: Sequence[int] = ()) -> list[int]:
        message = await self._ask(request, fds)
        try:
            return message.take(count)
        finally:
            message.close()

    async def warm(self, profile: dict[str, Any]) -> None:
        """Let the zygote compile a seccomp profile ahead of the containers that use it."""
        message = await self._ask({"do": "warm", "profile": profile})
        message.close()

    async def call(self, function: str, arguments: dict[str, Any], fds: Sequence[int] = ()) -> Any:
        """Run dray's function "module:name" as f(arguments, fds) in a process forked from the zygote; return its
        result (JSON), raise its error. The child goes on if this is cancelled; `fds` stay the caller's."""
        message = await self._ask({"do": "call", "function": function, "arguments": arguments}, fds)
        message.close()
        return message.json().get("result")

    def begin(self, function: str, arguments: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """The same without waiting for the end, or hearing of it."""
        ours, theirs = rpc.pair()
        with ours, theirs:
            self._send({"do": "call", "function": function, "arguments": arguments}, theirs.fileno(), fds)

    def _send(self, request: dict[str, Any], answer: int, fds: Sequence[int] = ()) -> None:
        try:
            self._channel.send(request, [answer, *fds])
        except (BrokenPipeError, ConnectionResetError):
            # It was killed. posix_spawn is safe with threads, too: the new one is as good as the old one.
            self.close()
            again = Zygote.spawn(self.runtimes)
            self.pid, self._channel = again.pid, again._channel
            self._channel.send(request, [answer, *fds])
        except OSError as error:
            raise Unavailable(f"the zygote process does not answer: {error}") from None

    async def _ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> rpc.Received:
        ours, theirs = rpc.pair()
        with ours:
            ours.setblocking(False)
            with theirs:
                self._send(request, theirs.fileno(), fds)
            message = await _receive(rpc.Channel(ours))
        error = message.json().get("error")
        if error is not None:
            message.close()
            raise msgspec.convert(error, rpc.Error).exception()
        return message

    def close(self) -> None:
        """Let the zygote end; shims stay."""
        self._channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


async def _receive(channel: rpc.Channel) -> rpc.Received:
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[rpc.Received | None] = loop.create_future()

    def readable() -> None:
        try:
            message = channel.receive()
        except BlockingIOError:
            return
        except OSError:
            message = None
        if not arrived.done():
            arrived.set_result(message)
        elif message is not None:
            message.close()
        loop.remove_reader(channel.fileno())

    loop.add_reader(channel.fileno(), readable)
    try:
        message = await arrived
    finally:
        loop.remove_reader(channel.fileno())
    if message is None:
        raise Unavailable("a process of the engine ended without an answer")
    return message


def _sealed_interpreter() -> int:
    """Return a sealed in-memory copy of the running interpreter's executable.

    Who reaches it through a container's /proc/<pid>/exe can neither write to it nor to the host's file behind it
    (CVE-2019-5736).
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        copy = os.memfd_create("dray", flags | _MFD_EXEC)
    except OSError:
        copy = os.memfd_create("dray", flags)
    try:
        with open("/proc/self/exe", "rb") as original:
            size = os.fstat(original.fileno()).st_size
            sent = 0
            while sent < size:
                sent += os.sendfile(copy, original.fileno(), sent, size - sent)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(copy)
        raise
    return copy


def _environment() -> dict[str, str]:
    """Return the environment without what would steer the interpreter; with a shared libpython, where it is (the
    executable's own notion may be relative to its path, which the copy has not)."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NOTIFY_", "LISTEN_"))
    }
    environment["LD_BIND_NOW"] = "1"  # else each fork resolves the C library's functions anew
    with open("/proc/self/maps") as maps:
        library = next((line.split()[-1] for line in maps if "/libpython" in line), None)
    if library is not None:
        environment["LD_LIBRARY_PATH"] = os.path.dirname(library)
    return environment
