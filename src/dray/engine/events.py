"""The event bus: what happened, told to everybody who listens, the last 256 events kept for replay.

Source of the shapes: Engine API `GET /events`; of the behaviour: moby `daemon/events` (a buffer of 256, filters
on the actor's attributes).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

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

    def subscribe(self, *, since: int, until: int, filters: Filters) -> Subscription:
        """Return matching events: the kept ones from `since` on (0: none), then live ones until `until` (unix
        nanoseconds; 0: for ever). The subscription holds from this call until its `aclose`."""
        if since and until and since > until:
            raise InvalidParameter(
                f"`since` time ({since // 10**9}) cannot be after `until` time ({until // 10**9})"
            )
        queue: asyncio.Queue[EventMessage] = asyncio.Queue()
        for message in self.replay(since) if since else ():
            queue.put_nowait(message)
        self._subscribers.add(queue)
        return Subscription(queue, until, filters, end=lambda: self._subscribers.discard(queue))


class Subscription:
    """One listener's events. Not a generator: closing one that never ran would not end the subscription."""

    def __init__(
        self, queue: asyncio.Queue[EventMessage], until: int, filters: Filters, *, end: Callable[[], None]
    ) -> None:
        self._queue = queue
        self._until = until
        self._filters = filters
        self._end = end

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> EventMessage:
        while True:
            message = await self._next()
            if message is None or (self._until and message.time_nano > self._until):
                await self.aclose()
                raise StopAsyncIteration
            if matches(message, self._filters):
                return message

    async def _next(self) -> EventMessage | None:
        """Return the next event; None when the time is over."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        patience = max(0.0, (self._until - clock.now()) / 1e9) if self._until else None
        try:
            return await asyncio.wait_for(self._queue.get(), patience)
        except TimeoutError:
            return None

    async def aclose(self) -> None:
        """End the subscription; harmless when it has ended."""
        self._end()


def _without_tag(name: str) -> str:
    """Return an image's name without its tag (a registry's port is none)."""
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def matches(message: EventMessage, filters: Filters) -> bool:
    """Tell whether an event passes the filters (moby `daemon/events/filter.go`)."""
    actor = message.actor
    name = actor.attributes.get("name", "")
    for kind in KINDS:
        wanted = filters.values_of(kind)
        if not wanted:
            continue
        if message.type != kind:
            other = actor.attributes.get(kind, "")
            if other not in wanted and not (kind == "image" and _without_tag(other) in wanted):
                return False
        elif not any(
            actor.id.startswith(value) or value == name or (kind == "image" and _without_tag(name) == value)
            for value in wanted
        ):
            return False
    return (
        filters.matches_exactly("type", message.type)
        and filters.matches_exactly("scope", message.scope)
        and filters.matches_exactly("event", (message.action, message.action.partition(":")[0]))
        and filters.matches_labels(actor.attributes)
    )
