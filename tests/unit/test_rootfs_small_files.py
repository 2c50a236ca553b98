"""Small files of a container's root, which its image may have made into anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dray.base.errors import InvalidParameter
from dray.engine.rootfs import read_small_file


@pytest.fixture
def root(tmp_path: Path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_what_is_no_regular_file_is_none_and_no_descriptor_stays_open(root: int, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "out").symlink_to("../" * 20 + "etc/hostname")
    (tmp_path / "file").write_text("text")
    before = set(os.listdir("/proc/self/fd"))
    assert [read_small_file(root, f"/{name}") for name in ("folder", "fifo", "out", "absent")] == [""] * 4
    assert read_small_file(root, "/file") == "text"
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_large_file_is_refused(root: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(InvalidParameter, match="larger than 3 bytes"):
        read_small_file(root, "/file", limit=3)
