"""Attach and logs: the client's socket goes to the process that has the bytes, and the daemon is out of the path.

Attach hands the socket to the container's shim; a client that attaches before the start waits in
`Container.pending` and is handed over with the start. Logs are written by a child of the zygote that is given the
socket (`shim.logserver`).
"""

from __future__ import annotations

import asyncio
import os
import select

from dray.api.requests import AttachOptions, Connection, Detached, LogOptions
from dray.base.errors import Conflict, InvalidParameter, Unsupported
from dray.engine import detachkeys
from dray.engine.events import Events
from dray.engine.layout import Layout
from dray.engine.model import Container, event_attributes
from dray.engine.registry import Registry
from dray.shim.model import AttachRequest, LogRequest
from dray.shim.tasks import Zygote, serve_logs

READABLE = ("json-file", "local")


class Streams:
    """The `Streams` backend of the server."""

    def __init__(self, registry: Registry, events: Events, zygote: Zygote, layout: Layout) -> None:
        self._registry = registry
        self._events = events
        self._zygote = zygote
        self._layout = layout

    async def attach(self, ref: str, options: AttachOptions, connection: Connection) -> None:
        """Connect a client to a container's stdio, now or when it starts."""
        container = self._registry.find(ref)
        keys = detachkeys.parse(options.detach_keys)
        status = container.state.status
        if status == "paused":
            raise Conflict(f"Container {container.id} is paused, unpause the container before attach.")
        if status == "restarting":
            raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
        if status in ("removing", "dead"):
            raise Conflict(f"Container {container.id} is being removed")
        config = container.record.config
        detached = await connection.hijack(tty=config.tty)
        request = AttachRequest(
            stdin=options.stdin and config.open_stdin and options.stream,
            stdout=options.stdout,
            stderr=options.stderr,
            framed=detached.multiplexed,
            websocket=detached.websocket,
            leftover=detached.leftover,
            detach_keys=keys if config.tty else b"",
        )
        self._events.publish("container", "attach", container.id, event_attributes(container))
        if options.logs:
            await self._replay(container, options, detached)
        if not options.stream:
            os.close(detached.fd)
            return
        async with container.lock:  # a start under way finishes first: its task takes the client, or nobody does
            if container.task is not None:
                await container.task.attach(request, detached.fd)
            elif self._registry.get(container.id) is None:
                os.close(detached.fd)
            else:
                _drop_gone(container.pending)
                container.pending.append((request, detached.fd))

    async def _replay(self, container: Container, options: AttachOptions, detached: Detached) -> None:
        """Write what was logged so far to an attaching client (`logs=1`), and wait until it is written."""
        request = self._request(
            container,
            LogOptions(stdout=options.stdout, stderr=options.stderr),
            multiplexed=detached.multiplexed,
            chunked=False,
        )
        await serve_logs(self._zygote, request, os.dup(detached.fd), wait=True)

    async def logs(self, ref: str, options: LogOptions, connection: Connection) -> None:
        """Write a container's log to the client."""
        container = self._registry.find(ref)
        if not options.stdout and not options.stderr:
            raise InvalidParameter("Bad parameters: you must choose at least one stream")
        driver = container.record.host_config.log_config.type
        if driver not in READABLE:
            raise Unsupported("configured logging driver does not support reading")
        opening = asyncio.Event()
        container.opening.add(opening)  # a removal waits: the client may ask for one as soon as it sees the head
        try:
            detached = await connection.chunked_response(tty=container.record.config.tty)
            request = self._request(container, options, multiplexed=detached.multiplexed, chunked=detached.chunked)
            await serve_logs(self._zygote, request, detached.fd)
        finally:
            container.opening.discard(opening)
            opening.set()

    def _request(
        self, container: Container, options: LogOptions, *, multiplexed: bool, chunked: bool
    ) -> LogRequest:
        record = container.record
        return LogRequest(
            driver=record.host_config.log_config.type,
            path=record.log_path,
            state_dir=self._layout.container(record.id),
            running=record.state.running,
            stdout=options.stdout,
            stderr=options.stderr,
            follow=options.follow,
            timestamps=options.timestamps,
            details=options.details,
            tail=options.tail,
            since=options.since,
            until=options.until,
            framed=multiplexed,
            chunked=chunked,
        )


def _drop_gone(pending: list[tuple[AttachRequest, int]]) -> None:
    """Close the sockets of clients that have left while they waited for a start."""
    poll = select.poll()
    for _, fd in pending:
        poll.register(fd, 0)  # hang-ups and errors are always told
    gone = {fd for fd, _ in poll.poll(0)}
    for fd in gone:
        os.close(fd)
    pending[:] = [waiting for waiting in pending if waiting[1] not in gone]
