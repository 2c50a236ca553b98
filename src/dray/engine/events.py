"""The event bus: what happened, told to everybody who listens, the last 256 events kept for replay.

Source of the shapes: Engine API `GET /events`; of the behaviour: moby `daemon/events` (a buffer of 256, filters
on the actor's attributes).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import contextmanager
from collections.abc import Iterator

from dray.api.models import EventActor, EventMessage
from dray.engine import clock

BUFFERED = 256
Matches = Callable[[EventMessage], bool]


class Events:
    """Publish from the event loop only; subscribers that fall behind lose nothing (their queues are unbounded
    and end with their connection)."""

    def __init__(self) -> None:
        self._buffer: deque[EventMessage] = deque(maxlen=BUFFERED)
        self._subscribers: set[asyncio.Queue[EventMessage]] = set()

    def publish(self, kind: str, action: str, actor_id: str, attributes: Mapping[str, str] | None = None) -> None:
        """Tell everybody that `action` happened to the object `actor_id` of `kind` (container, image, …)."""
        moment = clock.now()
        message = EventMessage(
            type=kind,
            action=action,
            actor=EventActor(id=actor_id, attributes=dict(attributes or {})),
            scope="local",
            time=moment // 10**9,
            time_nano=moment,
        )
        self._buffer.append(message)
        for queue in self._subscribers:
            queue.put_nowait(message)

    @contextmanager
    def subscribed(self) -> Iterator[asyncio.Queue[EventMessage]]:
        """Receive every event published from here on."""
        queue: asyncio.Queue[EventMessage] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)

    def replay(self, since: int) -> Sequence[EventMessage]:
        """Return the kept events not older than `since` (unix nanoseconds)."""
        return [message for message in self._buffer if (message.time_nano or 0) >= since]

    async def stream(
        self, *, since: int | None, until: int | None, matches: Matches
    ) -> AsyncIterator[EventMessage]:
        """Yield matching events: the kept ones from `since` on, then live ones until `until` (None: for ever)."""
        with self.subscribed() as queue:
            if since is not None:
                for message in self.replay(since):
                    if (until is None or (message.time_nano or 0) <= until) and matches(message):
                        yield message
            while True:
                timeout = None if until is None else (until - clock.now()) / 1e9
                if timeout is not None and timeout <= 0:
                    return
                try:
                    message = await asyncio.wait_for(queue.get(), timeout)
                except TimeoutError:
                    return
                if matches(message):
                    yield message
