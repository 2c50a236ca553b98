"""The same scenarios on dockerd and on drayd: every field of every answer is the same, or its difference is listed.

With `--engine dockerd` the oracle is compared with itself: what differs then is noise that `normalise` missed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from conftest import House
from images import cache
from parity.documents import accepted, compare, normalise
from parity.scenarios import SCENARIOS
from support.engines import Dockerd, Engine

ACCEPTED = accepted()
played: set[str] = set()


@pytest.fixture(scope="module")
def oracle(house: House) -> Iterator[Engine]:
    """dockerd, beside the engine under test."""
    if house.kind is Dockerd:
        yield house.up()
        return
    one = Dockerd()
    try:
        one.start()
        one.load(cache.busybox_archive())
        yield one
        one.remove_everything()
    finally:
        one.destroy()


def play(name: str, engine: Engine) -> dict[str, object]:
    engine.remove_everything()
    try:
        documents = SCENARIOS[name](engine)
        return {key: normalise(value, engine) for key, value in documents.items()}
    finally:
        engine.remove_everything()


@pytest.mark.parametrize("name", SCENARIOS)
def test_same(name: str, oracle: Engine, house: House) -> None:
    wanted, got = play(name, oracle), play(name, house.up())
    played.add(name)
    found = [difference for key in wanted for difference in compare(f"{name}/{key}", wanted[key], got[key])]
    unlisted = []
    for difference in found:
        entry = next((one for one in ACCEPTED if one.covers(difference)), None)
        if entry is None:
            unlisted.append(difference)
        else:
            entry.used += 1
    if house.kind is Dockerd:
        unlisted = found
    assert not unlisted, "\n" + "\n".join(str(one) for one in unlisted)


def test_every_listed_difference_is_one(house: House) -> None:
    if house.kind is Dockerd or played != set(SCENARIOS):
        pytest.skip("only after all scenarios, on drayd")
    unused = [f"{one.where}: {one.path}" for one in ACCEPTED if not one.used]
    assert not unused, json.dumps(unused, indent=1)
