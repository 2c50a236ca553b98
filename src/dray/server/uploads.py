"""Request bodies that are passed on while they arrive: as an async iterator, or through a pipe to a thread."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterable, AsyncIterator
from typing import Protocol

_PIPE_SIZE = 1 << 20


class Content(Protocol):
    """Where a body comes from (aiohttp's StreamReader is one)."""

    def iter_any(self) -> AsyncIterable[bytes]:
        """Yield the body in pieces."""


class KeptBody:
    """A body that was read before."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Yield it."""
        yield self._data


class RequestBody:
    """The body of one request (`api.requests.Upload`)."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._content.iter_any():
            if chunk:
                yield chunk

    @contextlib.asynccontextmanager
    async def pipe(self) -> AsyncIterator[int]:
        """Pump the body into a pipe while the block runs; yields the read end (blocking).

        A reader that closes early loses nothing but the rest of the body. A client that goes away fails the block.
        """
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # beyond the user's pipe limit the default size does as well
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        os.set_blocking(write_end, False)
        pump = asyncio.ensure_future(self._pump(write_end))
        try:
            yield read_end
        finally:
            os.close(read_end)
            if not pump.done() and not await self._soon(pump):
                pump.cancel()
            with contextlib.suppress(asyncio.CancelledError, BrokenPipeError):
                await pump

    @staticmethod
    async def _soon(pump: asyncio.Future[None]) -> bool:
        """Give the pump the chance to end by itself: after a whole body it only has to see its end."""
        done, _ = await asyncio.wait([pump], timeout=0.05)
        return bool(done)

    async def _pump(self, write_end: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            async for chunk in self._chunks():
                view = memoryview(chunk)
                while view:
                    try:
                        view = view[os.write(write_end, view) :]
                    except BlockingIOError:
                        await _writable(loop, write_end)
        finally:
            os.close(write_end)


async def _writable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(fd, wake)
    try:
        await ready
    finally:
        loop.remove_writer(fd)
