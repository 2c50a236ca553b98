"""Clients that come and go: nothing of them is kept by the engine."""

from __future__ import annotations

import os
import socket

import pytest

from dray.api.filters import parse
from dray.engine.events import Events
from dray.engine.streams import _drop_gone
from dray.shim.model import AttachRequest

ANY = parse("", frozenset())


async def test_a_subscription_that_was_never_read_ends_when_it_is_closed() -> None:
    events = Events()
    subscription = events.subscribe(since=0, until=0, filters=ANY)
    assert events.listeners == 1
    await subscription.aclose()
    assert events.listeners == 0


async def test_a_subscription_tells_what_happened_since_it_was_made_and_ends_in_time() -> None:
    events = Events()
    subscription = events.subscribe(since=0, until=1, filters=ANY)
    events.publish("container", "start", "c1")
    assert [message async for message in subscription] == []  # `until` is long over
    assert events.listeners == 0
    subscription = events.subscribe(since=1, until=0, filters=ANY)
    events.publish("container", "stop", "c1")
    assert [(await anext(subscription)).action for _ in range(2)] == ["start", "stop"]
    await subscription.aclose()


def test_waiting_clients_that_have_left_are_dropped_and_the_others_kept() -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    waiting = [(AttachRequest(), os.dup(ours.fileno())) for ours, _ in pairs]
    kept = [waiting[1], waiting[2]]
    for ours, _ in pairs:
        ours.close()
    pairs[0][1].close()
    pairs[1][1].shutdown(socket.SHUT_WR)  # has said all it had to say, and wants to hear the rest
    pairs[2][1].sendall(b"stdin")
    left = waiting[0][1]
    _drop_gone(waiting)
    assert waiting == kept
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(left)
    for _, fd in kept:
        os.close(fd)
    for _, theirs in pairs:
        theirs.close()
