"""Some seconds of random work on the image store with a killed daemon in it; `make soak-gc` does it for longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import Drayd
from support.registries import DrayRegistry
from support.soak import Broken, Soak
from support.world import World

pytestmark = pytest.mark.drayd_only("the invariants are read from drayd's files")


@pytest.fixture
def soak(world: World, tmp_path: Path) -> Iterator[Soak]:
    engine = Drayd(tmp_path / "engine", flags=["--bridge", "dray-gc0"])
    engine.subnet = "172.29.79."
    with DrayRegistry(tmp_path / "registry") as registry:
        one = Soak(engine, registry, seed=7, images=5)
        try:
            one.prepare()
            yield one
        finally:
            if engine.daemon is not None:
                engine.remove_everything()
                engine.stop()


def test_nothing_is_lost_and_nothing_is_kept(soak: Soak) -> None:
    soak.run(5, round_seconds=5)
    assert soak.done["kill"] >= 1


def test_the_checks_see_what_is_wrong(soak: Soak) -> None:
    """A blob too many, a blob too few."""
    soak.load(soak.rng)
    soak.check()
    blobs = soak.engine.data_root / "content" / "blobs" / "sha256"
    spare = blobs / ("0" * 64)
    spare.write_bytes(b"x")
    with pytest.raises(Broken, match="nothing refers to"):
        soak.nothing_more(set())
    spare.unlink()
    largest = max(blobs.iterdir(), key=lambda blob: blob.stat().st_size)
    largest.unlink()
    with pytest.raises(Broken):
        soak.check()
