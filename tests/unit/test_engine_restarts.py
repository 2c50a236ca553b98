"""Restart policies as containers live them: the count of `on-failure:N`, the pauses, and what starts both anew."""

from __future__ import annotations

import asyncio
from unittest.mock import AsyncMock, Mock

import pytest

from dray.api.models import ContainerConfig, HostConfig, RestartPolicy
from dray.engine import lifecycle as lifecycles
from dray.engine.lifecycle import Lifecycle
from dray.engine.model import Container, ContainerRecord
from dray.shim.model import ExitStatus

SECOND = 10**9


class Runs:
    """A container whose runs end as the test says, and the pauses before the next ones."""

    def __init__(self, lifecycle: Lifecycle, container: Container) -> None:
        self.lifecycle, self.container = lifecycle, container
        self.pauses: list[float] = []

    async def end(self, code: int, *, after: int = 1) -> None:
        """Let the run end with a code after some seconds, and wait until the next has begun or none will."""
        started = self.container.state.started_at
        await self.lifecycle.ended(
            self.container, ExitStatus(exit_code=code, finished_at=started + after * SECOND)
        )
        if self.container.restart_timer is not None:
            await self.container.restart_timer


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    engine = Mock()
    engine.networks.detach, engine.registry.sync = AsyncMock(), AsyncMock()
    engine.launcher.release_volumes = AsyncMock()
    lifecycle = Lifecycle(
        engine.registry, engine.events, engine.launcher, engine.networks, engine.snapshots, engine.peers
    )
    policy = RestartPolicy(name="on-failure", maximum_retry_count=3)
    record = ContainerRecord(
        id="ab" * 32, name="box", created=1, config=ContainerConfig(), host_config=HostConfig(restart_policy=policy),
        image_id="", image_ref="", path="", args=[], driver="",
    )  # fmt: skip
    made = Runs(lifecycle, Container(record))

    async def launch(container: Container, undo: object, *, checkpoint: str = "") -> tuple[Mock, list[object]]:
        return Mock(pid=7, started_at=5 * SECOND, release=AsyncMock()), []

    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        made.pauses.append(seconds)
        await real(0)

    engine.launcher.launch = launch
    monkeypatch.setattr(lifecycles.asyncio, "sleep", sleep)
    return made


async def test_the_count_of_on_failure(runs: Runs) -> None:
    await runs.lifecycle.start(runs.container)
    for count in (1, 2, 3):
        await runs.end(9)
        assert (runs.container.record.restart_count, runs.container.state.status) == (count, "running")
    await runs.end(9)
    assert (runs.container.record.restart_count, runs.container.state.status) == (3, "exited")
    assert runs.pauses == [0.1, 0.2, 0.4]


async def test_success_ends_it(runs: Runs) -> None:
    await runs.lifecycle.start(runs.container)
    await runs.end(1)
    await runs.end(0)
    assert (runs.container.record.restart_count, runs.container.state.status) == (1, "exited")


async def test_a_good_run_makes_the_pause_short_again_and_leaves_the_count(runs: Runs) -> None:
    """Ten seconds are a good run. It forgives nothing of the count: moby's `restartCount` only grows until a start by
    hand."""
    await runs.lifecycle.start(runs.container)
    await runs.end(1, after=9)
    await runs.end(1, after=9)
    await runs.end(1, after=10)
    assert runs.pauses == [0.1, 0.2, 0.1]
    await runs.end(1, after=3600)
    assert (runs.container.record.restart_count, runs.container.state.status) == (3, "exited")


async def test_a_start_by_hand_begins_anew(runs: Runs) -> None:
    await runs.lifecycle.start(runs.container)
    for _ in range(4):
        await runs.end(1)
    assert runs.container.state.status == "exited"
    await runs.lifecycle.start(runs.container)
    assert runs.container.record.restart_count == 0
    await runs.end(1)
    assert runs.container.record.restart_count == 1
    assert runs.pauses[-1] == 0.1


async def test_a_run_that_cannot_start_is_left(runs: Runs) -> None:
    await runs.lifecycle.start(runs.container)
    runs.lifecycle._launcher.launch = AsyncMock(side_effect=OSError(2, "no such file", "/bin/gone"))  # type: ignore[method-assign]
    await runs.end(1)
    assert runs.container.state.status == "exited"
    assert "/bin/gone" in runs.container.state.error
