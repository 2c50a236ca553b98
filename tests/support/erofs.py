"""Layers as EROFS images beside the same layers as files: what the kernel shows of both must be the same."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dray.base.errors import Unsupported
from dray.store.erofs.driver import probe
from dray.store.erofs.indexing import adopt, index_layer, mounted
from dray.store.layers.lower import LowerLayers
from dray.store.layers.lower import adopt as adopt_files
from dray.store.layers.unpack import unpack_layer
from support.layers import source


def needs_erofs(folder: Path) -> None:
    """Skip the test where the kernel cannot mount what the driver writes."""
    try:
        probe(folder)
    except Unsupported as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def image(tar: bytes, folder: Path, *, below: Sequence[str] | None = None) -> Iterator[str]:
    """The root of a layer made of `tar`; `below` are the directories under it, None to not even look there."""
    place = folder / f"image-{len(list(folder.iterdir()))}"
    place.mkdir()
    indexed = index_layer(source(tar, folder), place, lower=below)
    adopt(place, indexed, list(below or ()))
    fd = mounted(place)
    try:
        yield f"/proc/self/fd/{fd}/."
    finally:
        os.close(fd)


def files(tar: bytes, folder: Path, *, below: Sequence[str] | None = None) -> Path:
    """The same layer as files."""
    target = folder / f"files-{len(list(folder.iterdir()))}"
    target.mkdir()
    lower = None if below is None else LowerLayers(below)
    adopt_files(target, unpack_layer(source(tar, folder), target, overlay=True, lower=lower), list(below or ()))
    return target


def inodes(root: str | Path, *, times: bool = True) -> dict[str, tuple[object, ...]]:
    """Everything that a tree says of itself, by path: type and mode, owners, size, time, content, attributes, and which
    names are one file."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for path in [os.fspath(root), *sorted(walk(root))]:
        status = os.lstat(path)
        name = os.path.relpath(path, root)
        what: object = None
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                what = file.read()
        elif stat.S_ISLNK(status.st_mode):
            what = os.readlink(path)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            what = (os.major(status.st_rdev), os.minor(status.st_rdev))
        attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in
                      sorted(os.listxattr(path, follow_symlinks=False))}  # fmt: skip
        directory = stat.S_ISDIR(status.st_mode)
        found[name] = (
            stat.filemode(status.st_mode), status.st_uid, status.st_gid, what, attributes, status.st_nlink,
            first.setdefault(status.st_ino, name), 0 if directory else status.st_size,
            status.st_mtime_ns if times else 0,
        )  # fmt: skip
    return found


def walk(root: str | Path) -> list[str]:
    """Return the path of everything below `root`."""
    found, waiting = [], [os.fspath(root)]
    while waiting:
        here = waiting.pop()
        for name in os.listdir(here):
            found.append(f"{here}/{name}")
            if stat.S_ISDIR(os.lstat(found[-1]).st_mode) and len(found[-1]) < 3000:
                waiting.append(found[-1])
    return found
