"""A pull that daemon, registry and network break off at random moments downloads hardly a byte twice.

`make pull-kills` breaks each pull ten times.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.accesspoint import Sent, repeated
from support.brokenpulls import ALLOWED, BrokenPull
from support.engines import Drayd
from support.line import FAR, Line
from support.registries import PROGRAM, DebianRegistry, DrayRegistry
from support.world import World

pytestmark = pytest.mark.drayd_only("pulls that resume are drayd's")


@pytest.fixture(scope="module")
def line(world: World) -> Iterator[Line]:
    with Line() as one:
        yield one


@pytest.fixture(scope="module")
def puller(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drayd]:
    """An engine of its own, which is killed, and may speak to the far end without TLS."""
    flags = ["--bridge", "dray-broken1", "--bip", "172.29.79.1/24", "--insecure-registry", f"{FAR}/32"]
    one = Drayd(tmp_path_factory.mktemp("puller"), flags=flags)
    one.start()
    yield one
    one.stop()


def test_what_is_counted_as_repeated() -> None:
    log = [Sent("", 206, 0, 100), Sent("", 206, 200, 50), Sent("", 206, 90, 20), Sent("", 206, 0, 300)]
    assert [count for _, count in repeated(log)] == [10, 160]
    assert repeated(log[:2]) == []


@pytest.mark.parametrize("kind", [DrayRegistry, DebianRegistry])
def test_broken_at_random_moments(puller: Drayd, line: Line, kind: type[DebianRegistry], tmp_path: Path) -> None:
    if kind is DebianRegistry and PROGRAM is None:
        pytest.skip("docker-registry is not installed")
    seed = time.time_ns()
    with kind(tmp_path / "registry") as registry:
        pull = BrokenPull(puller, registry, line, size=80 << 20, rate=40e6, seed=seed)
        told = pull.run(pull.fill(), ("daemon", "registry", "network"))
    print(f"seed {seed}\n{told}")
    assert told.worst <= ALLOWED
    assert told.sent >= told.size
