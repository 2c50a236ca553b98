"""The table of containers: names taken by creations under way, records of another version."""

from __future__ import annotations

from pathlib import Path

import pytest

from dray.base.errors import Conflict, Internal, NotFound
from dray.base.records import Change
from dray.engine.registry import Registry
from dray.store.metadata import Metadata


@pytest.fixture
def records(tmp_path: Path):
    metadata = Metadata(tmp_path / "dray.db")
    yield metadata
    metadata.close()


def test_a_name_whose_container_is_being_made_is_taken_but_not_found(records):
    registry = Registry(records)
    registry.reserve("web", "ab" * 32)
    with pytest.raises(NotFound, match="No such container: web"):
        registry.find("web")
    with pytest.raises(Conflict, match="already in use"):
        registry.check_name("web")


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"id":"x"}', b"\xff"])
def test_a_record_that_cannot_be_read_is_told_by_its_container(records, record):
    records.write([Change("container", "cafe", record)])
    with pytest.raises(Internal, match=r"record of container cafe .*nothing has been changed"):
        Registry(records).load()
