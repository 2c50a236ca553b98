"""The server's life: listeners, periodic collection, the control socket, signals.

The control socket `<root>/control.sock` (0600) takes one line, `collect`, and answers with what was collected: so
`dray registry gc` works beside a running server, which alone knows what is being pushed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web

from dray.base.errors import InvalidParameter
from dray.registry.server.accesslog import AccessLog
from dray.registry.server.app import Application
from dray.registry.server.assembly import House, furnish, guard_of, proxy_of, readable, tls_of
from dray.registry.server.call import Server
from dray.registry.server.options import Settings

log = logging.getLogger("dray.registry")

_THREADS = 16
_BUFFER = 1 << 20  # bytes of a body that may wait in memory, per connection
_LAST_REQUESTS = 10.0  # seconds that running requests have after SIGTERM
CONTROL = "control.sock"


async def _listen(settings: Settings, manager: web.Server, context: ssl.SSLContext | None) -> list[asyncio.Server]:
    loop, scheme = asyncio.get_running_loop(), "https" if context else "http"
    servers: list[asyncio.Server] = []
    for host, port in settings.addresses:
        try:
            server = await loop.create_server(
                manager, host or None, port, ssl=context, backlog=1024, reuse_address=True
            )
        except OSError as error:
            for one in servers:
                one.close()
            raise InvalidParameter(
                f"cannot listen on {host}:{port}: {error.strerror or error} (choose another one with --listen)"
            ) from None
        servers.append(server)
        for sock in server.sockets:
            address, number = sock.getsockname()[:2]
            shown = f"[{address}]" if ":" in address else address
            print(f"Listening on {scheme}://{shown}:{number}", flush=True)
            if context is None and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
                print(
                    "Warning: without TLS (--tls-cert, --tls-key) Docker clients refuse this address unless their "
                    'daemon.json lists it under "insecure-registries", and passwords cross the network in the clear',
                    flush=True,
                )
    return servers


async def _collect_often(house: House, interval: float, pool: ThreadPoolExecutor) -> None:
    while True:
        await asyncio.sleep(interval)
        try:
            collected = await asyncio.get_running_loop().run_in_executor(pool, house.collector.collect)
            log.info("garbage collection: %s", collected)
        except Exception:
            log.exception("garbage collection failed; the next one tries again")


@contextlib.asynccontextmanager
async def _control(root: Path, house: House, pool: ThreadPoolExecutor) -> AsyncIterator[None]:
    """Answer on the control socket during the block."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await reader.readline() == b"collect\n":
                collected = await asyncio.get_running_loop().run_in_executor(pool, house.collector.collect)
                writer.write(f"{collected}\n".encode())
        except Exception as error:
            log.exception("garbage collection")
            writer.write(f"failed: {error}\n".encode())
        finally:
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            writer.close()

    path = root / CONTROL
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
    finally:
        os.umask(mask)
    server = await asyncio.start_unix_server(talk, sock=sock)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def collect_now(settings: Settings) -> str:
    """Collect garbage: by the server that uses the root if there is one, else ourselves. Returns what was done."""
    if not settings["s3-bucket"]:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(os.path.join(settings["root"], CONTROL))
            except OSError:
                pass  # no server
            else:
                sock.sendall(b"collect\n")
                with sock.makefile() as answer:
                    return answer.readline().strip() or "failed: the server ended"
        if not os.path.isdir(settings["root"]):
            raise InvalidParameter(f"there is no registry in {settings['root']} (name its folder with --root)")
    house = furnish(settings, serving=False)
    try:
        return str(house.collector.collect())
    finally:
        house.storage.close()


async def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with contextlib.AsyncExitStack() as stack:
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="registry")
        stack.callback(pool.shutdown)
        with readable():
            context = tls_of(settings)
            house = furnish(settings, serving=True)
            stack.callback(house.storage.close)
            access_log = AccessLog(settings["access-log"])
            stack.callback(access_log.close)
            guard, extra = guard_of(settings, house.storage, stack)
            proxy = proxy_of(settings, house, stack)
        server = Server(
            repositories=house.repositories,
            uploads=house.uploads,
            guard=guard,
            pool=pool,
            proxy=proxy,
            read_only=settings["read-only"],
        )
        application = Application(server, access_log, extra)
        manager = web.Server(application, read_bufsize=_BUFFER, auto_decompress=False, access_log=None)
        if not settings["s3-bucket"]:
            await stack.enter_async_context(_control(Path(settings["root"]), house, pool))
        print(f"Storing in {house.storage.name}{_manner(settings)}", flush=True)
        listeners = await _listen(settings, manager, context)
        if settings.seconds("gc-interval"):
            collecting = asyncio.ensure_future(_collect_often(house, settings.seconds("gc-interval"), pool))
            stack.callback(collecting.cancel)
        await stopped.wait()
        print("Stopping; uploads in progress are kept and can be resumed", flush=True)
        for listener in listeners:
            listener.close()
        manager.pre_shutdown()
        await manager.shutdown(_LAST_REQUESTS)
    return 0


def _manner(settings: Settings) -> str:
    """What else is worth saying at the start."""
    parts = [
        f"a cache of {settings['proxy']}" if settings["proxy"] else "",
        "read-only" if settings["read-only"] else "",
        f"authentication: {settings['auth']}" if settings["auth"] != "none" else "",
    ]
    shown = ", ".join(part for part in parts if part)
    return f" ({shown})" if shown else ""
