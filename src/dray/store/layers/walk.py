"""A whole tree as a tar, read by descriptors that follow nothing.

The tree may be a running container's, which renames and swaps what is being read: a directory is only ever entered
through its parent's descriptor and never through a link, so nothing outside the tree is read; what vanishes is left
out. Few descriptors are open however deep the tree is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dray.base.errors import InvalidParameter
from dray.linux import libc
from dray.store.layers.tarwriter import END, TreeWriter

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WITHIN = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS
_HELD = 64  # directories that are kept open above the one being read
_PATH_MAX = 4096  # bytes: no program could name what lies deeper

# Asked of a directory on another file system than its parent's: (its path from the root of the walk, descriptor).
Enter = Callable[[bytes, int], bool]


@dataclass(slots=True)
class _Level:
    """A directory on the way down: descriptor (-1 while closed), path, device, names still to come."""

    fd: int
    path: bytes
    device: int
    names: Iterator[bytes]


def beneath(root: int, path: bytes) -> int | None:
    """Open a directory below `root` without following any link; None if there is none (any more)."""
    try:
        return libc.openat2(root, path or b".", _DIRECTORY, resolve=_WITHIN)
    except OSError:
        return None


def everywhere(path: bytes, fd: int) -> bool:
    """Enter every file system."""
    return True


def _level(fd: int, path: bytes) -> _Level:
    return _Level(fd, path, os.fstat(fd).st_dev, iter(sorted(map(os.fsencode, os.listdir(fd)))))


def write_below(
    root: int, writer: TreeWriter, *, prefix: bytes = b"", enter: Enter = everywhere
) -> Iterator[bytes]:
    """Yield the members for everything below the directory `root` (not for itself), in the order of names, their
    names behind `prefix`. `enter` decides whether a mount point's content belongs to it."""
    levels = [_level(os.open(".", _DIRECTORY, dir_fd=root), b"")]
    try:
        while levels:
            here = levels[-1]
            if here.fd < 0 and (again := beneath(root, here.path)) is not None:
                here.fd = again
            name = next(here.names, None)
            if name is None or here.fd < 0:
                _close(levels.pop())
                continue
            path = here.path + b"/" + name if here.path else name
            yield from writer.entry(here.fd, name, prefix + path)
            below = _enter(here, name, path, enter)
            if below is not None:
                levels.append(below)
                if len(levels) > _HELD:
                    _close(levels[-_HELD])
    finally:
        for level in levels:
            _close(level)


def _enter(here: _Level, name: bytes, path: bytes, enter: Enter) -> _Level | None:
    try:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=here.fd).st_mode):
            return None
        fd = os.open(name, _DIRECTORY, dir_fd=here.fd)
    except OSError:
        return None  # gone, or a link by now
    if len(path) >= _PATH_MAX:
        os.close(fd)
        raise InvalidParameter(f"{os.fsdecode(path[:80])}…: directories nested too deeply to be archived")
    try:
        if os.fstat(fd).st_dev != here.device and not enter(path, fd):
            os.close(fd)
            return None
        return _level(fd, path)
    except BaseException:
        os.close(fd)
        raise


def _close(level: _Level) -> None:
    if level.fd >= 0:
        os.close(level.fd)
        level.fd = -1


def write_tree(root: int) -> Iterator[bytes]:
    """Yield a whole tree as a tar, without an entry for its root (`docker export`)."""
    yield from write_below(root, TreeWriter())
    yield END
