"""Removal of directories in which something is mounted."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.base.files import remove_tree
from dray.linux import libc, mounts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(a directory with a file in it, a run directory that it is mounted in)."""
    source, run_dir = tmp_path / "source", tmp_path / "run dir"
    source.mkdir()
    (source / "file").write_text("precious")
    (run_dir / "mounts/0").mkdir(parents=True)
    libc.mount(str(source), str(run_dir / "mounts/0"), "", libc.MS_BIND)
    yield source, run_dir
    if mounts.is_mounted(str(run_dir / "mounts/0")):
        libc.umount2(str(run_dir / "mounts/0"), libc.MNT_DETACH)


def test_nothing_is_deleted_through_a_mount(bound: tuple[Path, Path]) -> None:
    source, run_dir = bound
    with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
        remove_tree(run_dir)
    assert (source / "file").read_text() == "precious"


def test_a_run_directory_goes_with_its_mounts(bound: tuple[Path, Path]) -> None:
    source, run_dir = bound
    (run_dir / "config.json").write_text("{}")
    mounts.remove_run_dir(run_dir)
    assert not run_dir.exists()
    assert (source / "file").read_text() == "precious"


def test_a_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("1")
    (tmp_path / "link").symlink_to("kept")
    remove_tree(tmp_path / "link")
    assert (tmp_path / "kept/file").exists()
    assert not (tmp_path / "link").is_symlink()
