"""A database on a disk without a free byte: what removes still goes, what makes anew does not."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.base.errors import Internal
from dray.base.records import Change
from dray.store.metadata import Metadata


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(tmp_path)], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def exhaust(records: Metadata) -> None:
    """Use up what room the database's own files still have."""
    numbers = itertools.count()

    def fill_up() -> None:
        for number in numbers:
            records.write([Change("made", f"{len(records.scan('made'))}-{number}", b"x" * 3000)])

    with pytest.raises(Internal, match="free some space"):
        fill_up()


def test_a_full_disk_takes_removals_and_changes_but_nothing_new(disk: Path) -> None:
    records = Metadata(disk / "metadata.db")
    records.write([Change("k", str(number), b"x" * 1000) for number in range(40)])
    records.sync()
    filler = fill(disk)
    exhaust(records)
    for number in range(20):
        records.write([Change("k", str(number), None)])
    for number in range(20, 40):
        records.write([Change("k", str(number), b"y" * 1000)])
    exhaust(records)
    records.write([Change("k", "39", None)])
    records.close()
    again = Metadata(disk / "metadata.db")
    assert [key for key, _ in again.scan("k")] == [str(number) for number in range(20, 39)]
    filler.unlink()
    again.write([Change("k", "0", b"anew")])
    again.close()


def test_the_ballast_is_taken_again_when_there_is_room(disk: Path) -> None:
    spare = disk / "metadata.db-spare"
    records = Metadata(disk / "metadata.db")
    records.write([Change("k", "a", b"x")])
    records.sync()
    whole = spare.stat().st_size
    filler = fill(disk)
    exhaust(records)
    records.write([Change("k", "a", None)])
    assert spare.stat().st_size < whole
    filler.unlink()
    records.write([Change("k", "b", b"x")])
    records.sync()
    assert spare.stat().st_blocks * 512 >= whole
    records.close()
