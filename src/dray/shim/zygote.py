"""The zygote: a warm, single-threaded process to fork shims and short-lived servants from.

drayd starts it before its own loop and threads (`shim.tasks.Zygote.spawn`), from a sealed copy of the interpreter,
so that nothing in a container can reach and overwrite the host's. It imports what its children need, freezes the
collector (so that children share its pages) and then only obeys its socket. When the socket closes, because drayd
ended or was killed, it ends as well; its children stay.

A request is one message whose first descriptor is the channel of its answer:

    {"do": "shim"}                                     the channel becomes the new shim's (see shim.shim)
    {"do": "network namespace"}                        answered {} with (namespace, NETLINK_ROUTE socket in it)
    {"do": "network namespace", "maps": [uid, gid]}    the same in a new user namespace with these maps, answered with
                                                       its descriptor besides; with one as second descriptor: in that
    {"do": "call", "function": "m:f", "arguments": …}  f(arguments, fds) of dray's module m, in a forked child,
                                                       answered with its result; the child ends with the call

Once a shim was wanted, another is kept ready: forked while nobody wants anything, it has touched what every shim
touches and waits for a connection. It ends with the zygote, or when a profile is warmed that it does not know.

Children are reaped by the handler of SIGCHLD, which they inherit and in which it does nothing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from dray.base.errors import DrayError, InvalidParameter
from dray.linux import cgroups, libc, seccomp, usernamespaces
from dray.runtime.model import Runtime
from dray.wire import rpc

SOCKET_FD = 3  # where the zygote finds its socket after execve
DEFAULT_RUNTIMES = "dray.shim.runtimes:select"

# Chooses the runtime of a task: (path of an OCI runtime or "", its global arguments, the task's run directory).
RuntimeFactory = Callable[[str, Sequence[str], str], Runtime]

# The texts of uid_map and gid_map of a user namespace to make; None: stay in the zygote's.
Maps = tuple[str, str] | None

_POOL_SIZE = 2
_IDLE_MILLISECONDS = 20
_PRELOAD = ("dray.shim.shim", "dray.logs.jsonfile", "dray.logs.none")


def main(runtimes: str) -> None:
    """Be the zygote: what the copy of the interpreter runs."""
    connection = socket.socket(fileno=SOCKET_FD)
    os.set_inheritable(SOCKET_FD, False)
    with contextlib.suppress(OSError):
        os.setsid()
    signal.signal(signal.SIGCHLD, partial(_reap, os.getpid()))
    libc.set_process_name("dray-zygote")
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    os.chdir("/")
    _leave_standard_streams()
    os.umask(0o022)
    factory = load(runtimes)
    for module in _PRELOAD:
        importlib.import_module(module)
    with contextlib.suppress(DrayError, OSError):  # a machine without cgroups says so when a container needs one
        cgroups.preload()
    seccomp.preload()
    from dray.shim import rehearsal

    with contextlib.suppress(DrayError, OSError):
        rehearsal.rehearse()
    gc.collect()
    gc.freeze()
    _Zygote(rpc.Channel(connection), factory).run()


def _reap(zygote: int, _number: int, _frame: object) -> None:
    if os.getpid() == zygote:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _leave_standard_streams() -> None:
    """Keep the daemon's stderr only: who reads its output must not wait for containers to end."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1):
        os.dup2(null, number)
    os.close(null)


def load(function: str) -> Any:
    """Return the object that "module:name" names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


class _Zygote:
    def __init__(self, channel: rpc.Channel, runtimes: RuntimeFactory) -> None:
        self._channel = channel
        self._runtimes = runtimes
        self._pool: list[tuple[int, ...]] = []  # namespaces made while idle, ready to be handed out
        self._pool_maps: Maps = None  # what they are: those that were wanted last
        self._used_network = False
        self._own_network = -1
        self._spare: rpc.Channel | None = None  # a shim that waits for its container
        self._spare_pid = 0
        self._used_shim = False

    def run(self) -> None:
        """Obey until the daemon is gone."""
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        while True:
            # What is kept ready is made when nobody wants anything, and only once somebody has wanted such a thing.
            network = self._used_network and len(self._pool) < _POOL_SIZE
            shim = self._used_shim and self._spare is None
            if (network or shim) and not poll.poll(_IDLE_MILLISECONDS):
                with contextlib.suppress(OSError):
                    if shim:
                        self._fork_spare()
                    else:
                        self._pool.append(self._new_network(self._pool_maps))
                continue
            message = self._channel.receive()
            if message is None:
                self._end_spare()
                return
            try:
                [answer] = message.take(1)
                self._obey(message, rpc.Channel(socket.socket(fileno=answer)))
            finally:
                message.close()

    def _obey(self, message: rpc.Received, answer: rpc.Channel) -> None:
        try:
            request = message.json()
            match request["do"]:
                case "shim":
                    self._used_shim = True
                    if not self._use_spare(answer):
                        self._fork(self._be_shim, answer, message)
                case "call":
                    self._fork(self._call, answer, message)
                case "warm":
                    seccomp.of_text(
                        msgspec.json.encode(request["profile"])
                    )  # kept for every shim that is forked from here on
                    gc.freeze()
                    self._drop_spare()  # it does not know it
                    answer.send({"result": None})
                case "network namespace":
                    fds = self._take_network(request.get("maps"), message)
                    try:
                        answer.send({"result": None}, fds)
                    finally:
                        for fd in fds:
                            os.close(fd)
                case other:
                    raise InvalidParameter(f"the zygote does not know {other!r}")
        except Exception as error:
            with contextlib.suppress(OSError):
                answer.send({"error": rpc.describe(error)})
        finally:
            answer.close()

    def _fork(self, child: Callable[[rpc.Channel, rpc.Received], None], answer: rpc.Channel, message: Any) -> int:
        """Run `child` in a forked process; return its pid."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            self._channel.close()
            self._drop_pool()
            if self._own_network >= 0:
                os.close(self._own_network)
            self._drop_spare()
            child(answer, message)
            code = 0
        except BaseException as error:
            with contextlib.suppress(OSError, ValueError):
                sys.excepthook(type(error), error, error.__traceback__)
        finally:
            os._exit(code)

    def _be_shim(self, connection: rpc.Channel, _message: rpc.Received) -> None:
        from dray.shim.shim import serve

        serve(lambda: connection, self._runtimes)

    def _be_spare(self, ours: rpc.Channel, _message: Any) -> None:
        from dray.shim.shim import serve

        def wait() -> rpc.Channel | None:
            message = ours.receive()
            ours.close()
            return None if message is None else rpc.Channel(socket.socket(fileno=message.take(1)[0]))

        libc.set_process_name("dray-spare")
        serve(wait, self._runtimes)

    def _fork_spare(self) -> None:
        ours, theirs = rpc.pair()
        self._spare = rpc.Channel(ours)  # the child drops its copy
        with theirs:
            self._spare_pid = self._fork(self._be_spare, rpc.Channel(theirs), None)

    def _use_spare(self, connection: rpc.Channel) -> bool:
        """Make the spare shim the one of this connection; False if there is none."""
        if self._spare is None:
            return False
        try:
            self._spare.send({}, [connection.fileno()])
        except OSError:  # somebody killed it
            return False
        finally:
            self._drop_spare()
        return True

    def _end_spare(self) -> None:
        """Let go of the spare and wait until it is gone: a daemon that has stopped leaves no process behind."""
        if self._spare is not None:
            self._drop_spare()
            with contextlib.suppress(ChildProcessError):  # children are reaped by the kernel (SIGCHLD is ignored)
                os.waitpid(self._spare_pid, 0)

    def _drop_spare(self) -> None:
        """Let go of the spare, which ends unless it has been sent a connection."""
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def _call(self, answer: rpc.Channel, message: rpc.Received) -> None:
        request = message.json()
        try:
            if not request["function"].startswith("dray."):
                raise InvalidParameter(f"{request['function']!r} is none of our functions")
            result = load(request["function"])(request["arguments"], message.take())
        except Exception as error:
            with contextlib.suppress(OSError):
                answer.send({"error": rpc.describe(error)})
            return
        with contextlib.suppress(OSError):  # nobody waits for it any more
            answer.send({"result": result})

    def _take_network(self, asked: list[str] | None, message: rpc.Received) -> tuple[int, ...]:
        maps = (asked[0], asked[1]) if asked else None
        if message.fds:
            [user] = message.take(1)
            try:
                return self._opened(usernamespaces.make_network_in(user))
            finally:
                os.close(user)
        if maps != self._pool_maps:
            self._drop_pool()
            self._pool_maps = maps
        self._used_network = True
        return self._pool.pop() if self._pool else self._new_network(maps)

    def _drop_pool(self) -> None:
        while self._pool:
            for fd in self._pool.pop():
                os.close(fd)

    def _new_network(self, maps: Maps) -> tuple[int, ...]:
        """Return a new network namespace, a NETLINK_ROUTE socket inside it and, with maps, the user namespace that
        owns it."""
        if maps is not None:
            user, namespace = usernamespaces.make_with_network(*maps, reap=False)
            try:
                return *self._opened(namespace), user
            except BaseException:
                os.close(user)
                raise
        self._remember_network()
        libc.unshare(libc.CLONE_NEWNET)
        try:
            return self._opened(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC), inside=True)
        finally:
            libc.setns(self._own_network, libc.CLONE_NEWNET)

    def _remember_network(self) -> None:
        if self._own_network < 0:
            self._own_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _opened(self, namespace: int, *, inside: bool = False) -> tuple[int, int]:
        """Return a network namespace's descriptor with a NETLINK_ROUTE socket of it; inside: we are in it."""
        try:
            if not inside:
                self._remember_network()
                libc.setns(namespace, libc.CLONE_NEWNET)
            try:
                with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
                    netlink.bind((0, 0))
                    return namespace, netlink.detach()
            finally:
                if not inside:
                    libc.setns(self._own_network, libc.CLONE_NEWNET)
        except BaseException:
            os.close(namespace)
            raise
