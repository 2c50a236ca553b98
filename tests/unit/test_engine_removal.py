"""The order of a removal: a daemon that is killed anywhere in it must find what is left to do."""

from __future__ import annotations

import asyncio
import os
from unittest.mock import AsyncMock, Mock

import pytest

from dray.api.models import ContainerConfig, ExecConfig, HostConfig
from dray.base.errors import Conflict, DrayError, NotFound, Unavailable
from dray.engine import lifecycle as lifecycles
from dray.engine.execs import ExecTable
from dray.engine.layout import Layout
from dray.engine.lifecycle import Lifecycle
from dray.engine.model import Container, ContainerRecord


@pytest.fixture
def engine(tmp_path) -> Mock:
    engine = Mock()
    engine.registry.sync = AsyncMock()
    engine.launcher.remove_anonymous_volumes = AsyncMock()
    engine.launcher.layout.container_trash.return_value = str(tmp_path / "trash")
    return engine


@pytest.fixture
def lifecycle(engine: Mock) -> Lifecycle:
    return Lifecycle(
        engine.registry, engine.events, engine.launcher, engine.networks, engine.snapshots, engine.peers
    )


@pytest.fixture
def container() -> Container:
    record = ContainerRecord(
        id="ab" * 32, name="box", created=1, config=ContainerConfig(), host_config=HostConfig(),
        image_id="", image_ref="", path="", args=[], driver="", remove_volumes=True,
    )  # fmt: skip
    return Container(record)


async def test_the_record_goes_last(engine: Mock, lifecycle: Lifecycle, container: Container) -> None:
    await lifecycle.finish_removal(container)
    verbs = [name for name, _, _ in engine.mock_calls]
    done = ["snapshots.remove", "launcher.forget", "launcher.remove_anonymous_volumes", "registry.remove"]
    assert [verb for verb in verbs if verb in done] == done


async def test_a_removal_that_failed_can_be_tried_again(
    engine: Mock, lifecycle: Lifecycle, container: Container
) -> None:
    engine.registry.get.return_value = container
    engine.snapshots.remove.side_effect = OSError(16, "Device or resource busy", "/merged")
    with pytest.raises(OSError, match="busy"):
        await lifecycle.remove(container)
    assert container.state.status == "dead"
    engine.snapshots.remove.side_effect = None
    await lifecycle.remove(container)
    engine.registry.remove.assert_called_once_with(container)


@pytest.mark.parametrize(
    "error", [Conflict("it is not running"), Unavailable("its shim is gone"), NotFound("gone")]
)
async def test_a_container_that_ends_under_the_kill_is_removed(
    engine: Mock, lifecycle: Lifecycle, container: Container, error: DrayError
) -> None:
    async def kill(signum: int) -> None:
        container.state.status = "exited"
        container.settled.set()
        raise error

    container.state.status = "running"
    container.task = Mock(kill=kill)
    await lifecycle.remove(container, force=True)
    engine.registry.remove.assert_called_once_with(container)


async def test_the_settling_of_a_killed_container_may_take_long(
    monkeypatch: pytest.MonkeyPatch, lifecycle: Lifecycle, container: Container
) -> None:
    """Its process has ended; the machine is busy with what follows."""
    monkeypatch.setattr(lifecycles, "KILL_PATIENCE", 0.02)
    container.state.status, container.state.pid = "running", 2**22 + 1  # no process has this pid
    container.settled.clear()
    asyncio.get_running_loop().call_later(0.05, container.settled.set)
    await lifecycle.wait_until_settled(container)
    container.settled.clear()
    with pytest.raises(DrayError, match="its shim does not say how it ended"):
        await lifecycle.wait_until_settled(container)
    container.state.pid = os.getpid()
    with pytest.raises(
        DrayError, match=f"process {os.getpid()} did not end within 0.02 s of SIGKILL.*in state [RS]"
    ):
        await lifecycle.wait_until_settled(container)


async def test_an_exec_in_a_container_that_has_just_ended_is_a_conflict(
    engine: Mock, container: Container, tmp_path
) -> None:
    container.state.status, container.state.pid = "running", 2**22 + 1  # no process has this pid
    container.task = Mock()
    table = ExecTable(engine.registry, engine.events, Layout(str(tmp_path), str(tmp_path)), [])
    with pytest.raises(Conflict, match="is not running"):
        table.create(container, ExecConfig(cmd=["true"]))
