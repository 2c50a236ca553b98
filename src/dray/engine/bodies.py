"""Blocking work on the bodies of requests and responses: each in a thread, the loop stays free."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import BinaryIO, TypeVar, cast

from dray.api.requests import Upload

T = TypeVar("T")


async def stream_of(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield what a blocking iterator of bytes yields, each step in a worker thread."""
    try:
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            await asyncio.to_thread(close)


async def read_body(content: Upload, work: Callable[[BinaryIO], T]) -> T:
    """Run `work` on a request's body in a thread; return what it returns.

    It has ended when this does, cancelled or not: a client that goes away ends the body under it.
    """

    def run(fd: int) -> T:
        with os.fdopen(os.dup(fd), "rb", buffering=1 << 20) as stream:
            return work(stream)

    async with content.pipe() as fd:
        job = _in_own_thread(lambda: run(fd))
        try:
            return await asyncio.shield(job)
        finally:
            await asyncio.wait([job])


def _in_own_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Start a thread for work that waits for a client: in the loop's few workers, some slow clients would make
    everybody wait."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def told(value: T | None, error: BaseException | None) -> None:
        if result.cancelled():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(cast("T", value))

    def run() -> None:
        value, failed = None, None
        try:
            value = work()
        except BaseException as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the daemon is stopping, the loop is closed
            loop.call_soon_threadsafe(told, value, failed)

    threading.Thread(target=run, name="body", daemon=True).start()
    return result


def joined(chunks: Iterator[bytes], size: int = 256 << 10) -> Iterator[bytes]:
    """Join small chunks, so that a tar of many small files does not travel in as many small messages."""
    waiting: list[bytes] = []
    held = 0
    for chunk in chunks:
        waiting.append(chunk)
        held += len(chunk)
        if held >= size:
            yield b"".join(waiting)
            waiting, held = [], 0
    if waiting:
        yield b"".join(waiting)
