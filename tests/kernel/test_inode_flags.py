"""Flags of inodes, asked of a real file system."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

import pytest

from dray.linux.inodeflags import FS_IOC_GETFLAGS, FS_TOPDIR_FL, spread_directories
from dray.store.ledger import Ledger
from dray.store.metadata import Metadata


def flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return int(struct.unpack("l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, struct.pack("l", 0)))[0])
    finally:
        os.close(fd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if not spread_directories(tmp_path):
        pytest.skip(f"the file system of {tmp_path} has no such flag (it is not ext4)")
    made = tmp_path / "made"
    made.mkdir()
    return made


def test_the_flag_is_set_once_and_not_inherited(folder: Path) -> None:
    assert not flags(folder) & FS_TOPDIR_FL
    before = flags(folder)
    assert spread_directories(folder)
    assert flags(folder) == before | FS_TOPDIR_FL
    assert spread_directories(folder)
    assert flags(folder) == before | FS_TOPDIR_FL


def test_a_file_system_without_it_is_left_alone() -> None:
    assert not spread_directories("/proc")


def test_the_folders_of_a_storage_driver_are_spread(folder: Path) -> None:
    with contextlib.closing(Metadata(folder / "records.db")) as records:
        Ledger(folder / "root", records, "overlay2").close()
    assert flags(folder / "root") & FS_TOPDIR_FL
    assert not flags(folder / "root" / "trash") & FS_TOPDIR_FL
