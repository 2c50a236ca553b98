"""Paths in containers: Go's file modes, names, links resolved within the root."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.engine import rootfs
from dray.engine.archives import paths


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    (inside / "etc" / "passwd").write_text("inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("outside")
    os.symlink("/etc", inside / "absolute")
    os.symlink("../../../etc", inside / "climbing")
    os.symlink(tmp_path / "outside", inside / "leaving")
    os.symlink("absolute/passwd", inside / "chain")
    os.symlink("circle", inside / "circle")
    fd = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        (stat.S_IFREG | 0o644, 0o644),
        (stat.S_IFREG | 0o6755, 1 << 23 | 1 << 22 | 0o755),
        (stat.S_IFDIR | 0o1777, 1 << 31 | 1 << 20 | 0o777),
        (stat.S_IFLNK | 0o777, 1 << 27 | 0o777),
        (stat.S_IFIFO | 0o600, 1 << 25 | 0o600),
        (stat.S_IFSOCK | 0o600, 1 << 24 | 0o600),
        (stat.S_IFBLK | 0o660, 1 << 26 | 0o660),
        (stat.S_IFCHR | 0o666, 1 << 26 | 1 << 21 | 0o666),
    ],
)
def test_file_mode(mode: int, shown: int) -> None:
    assert paths.file_mode(mode) == shown


@pytest.mark.parametrize(
    ("path", "asked", "name"),
    [
        ("etc", "/etc", "etc"),
        ("/etc/", "/etc/", "etc"),
        ("/etc/.", "/etc/.", "."),
        ("/a/../../b", "/b", "b"),
        ("//a", "/a", "a"),
        ("/", "/", "/"),
        (".", "/.", "."),
        ("/..", "/", "/"),
    ],
)
def test_names(path: str, asked: str, name: str) -> None:
    assert paths.absolute(path) == asked
    assert paths.shown_name(asked) == name


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("/absolute/passwd", "etc/passwd"),
        ("/climbing", "etc"),
        ("/chain", "etc/passwd"),
        ("/nosuch/../etc", "etc"),
        ("/absolute/nosuch/x", "etc/nosuch/x"),
    ],
)
def test_evaluate(root: int, path: str, resolved: str) -> None:
    assert paths.evaluate(root, path) == resolved


def test_links_never_lead_out(root: int, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        paths.find(root, "/leaving/secret")
    found = paths.find(root, "/leaving")
    os.close(found.parent)
    assert found.stat.link_target == str(tmp_path / "outside")


def test_a_link_put_there_since_leads_nowhere(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of a path is resolved, then the directory is swapped for a link, then it is opened."""
    monkeypatch.setattr(paths, "evaluate", lambda root, path: "leaving")
    with pytest.raises(FileNotFoundError):
        paths.find(root, "/leaving/secret")
    with pytest.raises(FileNotFoundError):
        rootfs.open_in(root, "/leaving/secret")


def test_circles_end(root: int) -> None:
    with pytest.raises(OSError, match="levels of symbolic links"):
        paths.find(root, "/circle/")


def test_a_trailing_slash_wants_a_directory(root: int) -> None:
    with pytest.raises(NotADirectoryError):
        paths.find(root, "/etc/passwd/")
    place = paths.find(root, "/absolute/")
    os.close(place.parent)
    assert (place.path, place.stat.name, place.stat.link_target) == ("etc", "absolute", "")
