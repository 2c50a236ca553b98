"""The daemon's end of a channel with a shim: requests that await their replies, and events."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dray.base.errors import Unavailable
from dray.wire import rpc


class Client:
    """Owns the socket. `gone` is called once when the other side has closed it; not after `close`."""

    def __init__(
        self, connection: socket.socket, event: Callable[[dict[str, Any]], None], gone: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = rpc.Channel(connection)
        self._event = event
        self._gone = gone
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._sending = asyncio.Lock()
        self._posts: set[asyncio.Task[Any]] = set()
        connection.setblocking(False)
        self._loop.add_reader(connection.fileno(), self._readable)

    async def call(self, method: str, params: Any, fds: Sequence[int] = ()) -> Any:
        """Ask and await the answer; the shim's errors are raised here, Unavailable if it is gone.

        The descriptors stay the caller's and may be closed when this returns or raises.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[number] = answer
        try:
            await self._send({"id": number, "method": method, "params": params}, fds)
            return await answer
        finally:
            self._waiting.pop(number, None)

    def post(self, method: str, params: Any) -> None:
        """Ask without waiting for the answer."""
        task = self._loop.create_task(self._post(method, params))
        self._posts.add(task)
        task.add_done_callback(self._posts.discard)

    async def _post(self, method: str, params: Any) -> None:
        try:
            await self.call(method, params)
        except Unavailable:
            pass

    async def _send(self, message: Any, fds: Sequence[int]) -> None:
        async with self._sending:
            while True:
                if self._channel.fileno() < 0:
                    raise Unavailable("the container's shim is gone")
                try:
                    self._channel.send(message, fds)
                    return
                except BlockingIOError:
                    await self._writable()
                except OSError as error:
                    raise Unavailable(f"the container's shim is gone ({error})") from None

    async def _writable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        fd = self._channel.fileno()
        self._loop.add_writer(fd, _set, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(fd)

    def _readable(self) -> None:
        while self._channel.fileno() >= 0:
            try:
                message = self._channel.receive()
            except BlockingIOError:
                return
            except OSError:
                message = None
            if message is None:
                self.close()
                self._gone()
                return
            message.close()  # a shim sends no descriptors
            self._take(message.json())

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._event(message)
            return
        if "id" not in message:  # the zygote could not even fork
            for answer in self._waiting.values():
                _fail(answer, msgspec.convert(message["error"], rpc.Error).exception())
            return
        waiting = self._waiting.get(message["id"])
        if waiting is None or waiting.done():
            return
        if "error" in message:
            _fail(waiting, msgspec.convert(message["error"], rpc.Error).exception())
        else:
            waiting.set_result(message.get("result"))

    def close(self) -> None:
        """Close the connection; whoever still waits gets Unavailable."""
        if self._channel.fileno() < 0:
            return
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        for answer in self._waiting.values():
            _fail(answer, Unavailable("the container's shim is gone"))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
