"""The event bus: what happened, told to everybody who listens, the last 256 events kept for replay.

Source of the shapes: Engine API `GET /events`; of the behaviour: moby `daemon/events` (a buffer of 256, filters
on the actor's attributes).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence

from dray.api.filters import Filters
from dray.api.models import EventActor, EventMessage
from dray.base.errors import InvalidParameter
from dray.engine import clock

BUFFERED = 256
KINDS = ("container", "image", "volume", "network", "plugin", "daemon", "service", "node", "secret", "config")


class Events:
    """Publish from the event loop only; subscribers that fall behind lose nothing (their queues are unbounded
    and end with their connection)."""

    def __init__(self) -> None:
        self._buffer: deque[EventMessage] = deque(maxlen=BUFFERED)
        self._subscribers: set[asyncio.Queue[EventMessage]] = set()

    @property
    def listeners(self) -> int:
        """How many subscribers there are."""
        return len(self._subscribers)

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

    def replay(self, since: int) -> Sequence[EventMessage]:
        """Return the kept events not older than `since` (unix nanoseconds)."""
        return [message for message in self._buffer if message.time_nano >= since]

    def subscribe(self, *, since: int, until: int, filters: Filters) -> AsyncIterator[EventMessage]:
        """Return matching events: the kept ones from `since` on (0: none), then live ones until `until` (unix
        nanoseconds; 0: for ever). The subscription holds from this call on."""
        if since and until and since > until:
            raise InvalidParameter(
                f"`since` time ({since // 10**9}) cannot be after `until` time ({until // 10**9})"
            )
        queue: asyncio.Queue[EventMessage] = asyncio.Queue()
        for message in self.replay(since) if since else ():
            queue.put_nowait(message)
        self._subscribers.add(queue)
        return self._stream(queue, until, filters)

    async def _stream(
        self, queue: asyncio.Queue[EventMessage], until: int, filters: Filters
    ) -> AsyncIterator[EventMessage]:
        try:
            while True:
                try:
                    message = queue.get_nowait()
                except asyncio.QueueEmpty:
                    patience = (until - clock.now()) / 1e9 if until else None
                    if patience is not None and patience <= 0:
                        return
                    try:
                        message = await asyncio.wait_for(queue.get(), patience)
                    except TimeoutError:
                        return
                if until and message.time_nano > until:
                    return
                if matches(message, filters):
                    yield message
        finally:
            self._subscribers.discard(queue)


def matches(message: EventMessage, filters: Filters) -> bool:
    """Tell whether an event passes the filters (moby `daemon/events/filter.go`)."""
    actor = message.actor
    name = actor.attributes.get("name", "")
    for kind in KINDS:
        wanted = filters.values_of(kind)
        if not wanted:
            continue
        if message.type != kind:
            if actor.attributes.get(kind, "") not in wanted:
                return False
        elif not any(
            actor.id.startswith(value) or value == name or (kind == "image" and name.partition(":")[0] == value)
            for value in wanted
        ):
            return False
    return (
        filters.matches_exactly("type", message.type)
        and filters.matches_exactly("scope", message.scope)
        and filters.matches_exactly("event", (message.action, message.action.partition(":")[0]))
        and filters.matches_labels(actor.attributes)
    )
