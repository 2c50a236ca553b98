"""Fixtures of the end-to-end and parity tests: one private world and one running engine for the whole session.

`--engine dockerd` runs the end-to-end scenarios on Debian's dockerd instead of drayd: a scenario is right when it
passes there. Tests that only make sense on drayd carry the marker `drayd_only` with their reason.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from support.engines import ENGINES, Engine
from support.leaks import Snapshot, command_line, settled, take
from support.world import World

IN_WORLD = ("e2e", "parity")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=sorted(ENGINES), default="drayd", help="engine of the e2e scenarios")


def pytest_configure(config: pytest.Config) -> None:
    # Ended from outside, the session still takes its engines down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hypothesis.settings.register_profile("dray", deadline=None)  # how long an example takes says nothing of it
    hypothesis.settings.load_profile("dray")
    # The machine's firewalld is not to be told of bridges in private namespaces.
    os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = "unix:path=/nonexistent"
    config.addinivalue_line("markers", "drayd_only(reason): dockerd is known to do otherwise, or cannot")


def _needs_world(item: pytest.Item) -> bool:
    return item.path.parent.name in IN_WORLD


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests in the world come last: the process stays in it once entered."""
    items.sort(key=_needs_world)
    if config.getoption("--engine") != "dockerd":
        return
    for item in items:
        mark = item.get_closest_marker("drayd_only")
        if mark is not None:
            item.add_marker(pytest.mark.skip(reason=f"only on drayd: {mark.args[0]}"))


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The private world, entered; the archives are made before, since it has no way out."""
    from images import cache

    cache.busybox_archive()
    cache.nginx_archive()
    if any(item.path.name == "test_e2e_mariadb.py" for item in request.session.items):
        cache.mariadb_archive()
    one = World()
    one.enter()
    try:
        yield one
    finally:
        one.leave()


class House:
    """Keeps one engine running through the session, and puts up a new one when a test has broken it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.kind = ENGINES[name]
        self.engine: Engine | None = None
        self.baseline: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """The world without the daemon and its direct children, whose pids change with every restart."""
        assert self.engine is not None
        ours = {self.engine.pid} if self.engine.daemon is not None else set()
        for pid in list(ours):
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    children = Path(f"/proc/{pid}/task/{task}/children").read_text()
                    ours.update(int(child) for child in children.split())
        return take(self.world, ignoring=ours | self._spare(ours) | self._resolver())

    def _resolver(self) -> set[int]:
        """The one resolver of an engine, which outlives its daemon; a second one would be a leak."""
        found = [pid for pid in sorted(self.world.processes()) if " dray-dns " in command_line(pid)]
        return set(found[:1])

    @staticmethod
    def _spare(parents: set[int]) -> set[int]:
        """The one shim that the zygote keeps ready for the next container; a second one would be a leak."""
        for pid in parents:
            with contextlib.suppress(OSError):
                for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                    if Path(f"/proc/{child}/comm").read_text().strip() == "dray-spare":
                        return {int(child)}
        return set()

    def up(self) -> Engine:
        """The running engine, with busybox and its variants loaded."""
        if self.engine is not None and self.engine.daemon is not None and self.engine.answers():
            return self.engine
        if self.engine is not None:
            self.down()
        from images import cache

        self.engine = self.kind()
        self.engine.start()
        self.engine.load(cache.busybox_archive())
        # What an engine makes once and keeps (parent cgroups, chains) belongs to the baseline.
        self.engine.ok("run", "--rm", "-p", "127.0.0.1::80", "-m", "64m", "busybox", "true")
        self.engine.ok("run", "--rm", "--network", "host", "busybox", "true")
        self.baseline = self.snapshot()
        return self.engine

    def leaks(self) -> dict[str, list[str]]:
        """What is in the world beyond the idle engine."""
        assert self.baseline is not None
        return settled(self.snapshot, self.baseline)

    def down(self) -> None:
        """Stop the engine and wipe whatever is left of it."""
        if self.engine is None:
            return
        with contextlib.suppress(Exception):
            if self.engine.daemon is not None:
                self.engine.remove_everything()
                self.engine.stop()
        self.world.kill_all()
        self.engine.daemon = None
        self.engine.destroy()
        self.engine = None


@pytest.fixture(scope="session")
def house(world: World, pytestconfig: pytest.Config) -> Iterator[House]:
    one = House(world, str(pytestconfig.getoption("--engine")))
    try:
        yield one
    finally:
        one.down()


@pytest.fixture
def engine(house: House) -> Iterator[Engine]:
    """A running engine without containers and volumes; the test fails if it leaves anything in the world."""
    one = house.up()
    yield one
    try:
        if one.daemon is None:
            one.start()
        one.remove_everything()
        left = house.leaks()
    except BaseException:
        house.down()
        raise
    if left:
        house.down()
        pytest.fail(f"left behind: {left}")


@pytest.fixture
def nginx_engine(engine: Engine) -> Engine:
    """The engine with nginx:latest loaded."""
    if engine.docker("image", "inspect", "nginx").returncode != 0:
        from images import cache

        engine.load(cache.nginx_archive())
    return engine
