"""What lies below an overlay layer: lookups through a stack of layer directories, as overlayfs makes them.

A lookup goes from the highest layer down. It ends at the first layer that has the name, at a whiteout, at anything
that is not a directory on the way, and below an opaque directory. A symbolic link on the way is resolved in the
merged view, so the lookup begins again with the name it leads to.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from dray.base.errors import InvalidParameter
from dray.linux.trees import copy_file, copy_xattrs
from dray.store.layers.extract import Applied
from dray.store.layers.tree import Tree, clean_link
from dray.store.layers.whiteouts import OPAQUE_XATTR

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = 40


def is_whiteout(status: os.stat_result) -> bool:
    """Tell whether a file is overlayfs's mark of a deleted one."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(fd: int) -> bool:
    """Tell whether a directory hides those below it."""
    try:
        return os.getxattr(fd, OPAQUE_XATTR) in (b"y", b"Y")
    except OSError:
        return False


class LowerLayers:
    """A stack of layer directories, highest first (`extract.Lower`)."""

    def __init__(self, directories: Sequence[str | os.PathLike[str]]) -> None:
        self.directories = directories

    def find(self, path: bytes) -> tuple[int, bytes, bytes] | None:
        """Return (descriptor of the directory that has it, its last component, its resolved path), or None.

        The caller closes the descriptor. For the root the component is b".".
        """
        for _ in range(_LINKS):
            found = self._find(path)
            if not isinstance(found, bytes):
                return None if found is None else (*found, path)
            path = found
        return None

    def _find(self, path: bytes) -> tuple[int, bytes] | bytes | None:
        """One pass: the entry, None, or the path that a link on the way leads to."""
        if not path:
            return (os.open(self.directories[0], _DIRECTORY), b".") if self.directories else None
        parts = path.split(b"/")
        for directory in self.directories:
            fd = os.open(directory, _DIRECTORY)
            try:
                outcome = self._descend(fd, parts)
            finally:
                os.close(fd)
            if outcome is not False:
                return outcome
        return None

    def _descend(self, root: int, parts: list[bytes]) -> tuple[int, bytes] | bytes | Literal[False] | None:
        """Look in one layer: the entry, None (hidden), False (ask the next layer), or a path to begin again."""
        fd, opaque = os.dup(root), False
        try:
            for depth, part in enumerate(parts):
                try:
                    status = os.lstat(part, dir_fd=fd)
                except FileNotFoundError:
                    return None if opaque else False
                if is_whiteout(status):
                    return None
                if depth == len(parts) - 1:
                    found, fd = fd, -1
                    return found, part
                if stat.S_ISLNK(status.st_mode):
                    target = clean_link(b"/".join(parts[:depth]), os.readlink(part, dir_fd=fd))
                    return b"/".join(filter(None, [target, *parts[depth + 1 :]]))
                if not stat.S_ISDIR(status.st_mode):
                    return None
                below = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
                opaque = opaque or is_opaque(fd)
        finally:
            if fd >= 0:
                os.close(fd)
        return False

    def copy_up(self, tree: Tree, path: bytes) -> bytes | None:
        """Copy the file `path`, with everything that belongs to it, into `tree` (see `extract.Lower`)."""
        found = self.find(path)
        if found is None:
            return None
        source, base, resolved = found
        try:
            if stat.S_ISDIR(os.lstat(base, dir_fd=source).st_mode):
                raise InvalidParameter(f"{os.fsdecode(path)}: hard link to a directory")
            copy_file(source, base, tree.directory(resolved.rpartition(b"/")[0]), resolved.rpartition(b"/")[2])
        finally:
            os.close(source)
        return resolved


def inherited(implicit: Iterable[bytes], below: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[bytes, int]]:
    """Yield (path, open directory) of each path that the layers `below` have as a directory; it is closed afterwards."""
    lower = LowerLayers(below)
    for path in sorted(implicit):
        found = lower.find(path)
        if found is None:
            continue
        source, base, resolved = found
        try:
            if resolved != path or not stat.S_ISDIR(os.lstat(base, dir_fd=source).st_mode):
                continue
            fd = os.open(base, _DIRECTORY, dir_fd=source)
        finally:
            os.close(source)
        try:
            yield path, fd
        finally:
            os.close(fd)


def adopt(directory: str | os.PathLike[str], applied: Applied, below: Sequence[str | os.PathLike[str]]) -> None:
    """Give the implicit directories of a layer the owner, mode, times and xattrs that the layers below say."""
    seen = [
        path for path in applied.implicit if not any(path.startswith(opaque + b"/") for opaque in applied.opaque)
    ]
    root = os.open(directory, _DIRECTORY)
    try:
        for path, fd in inherited(seen, below):
            _copy_directory(fd, root, path or b".")
    finally:
        os.close(root)


def _copy_directory(old: int, root: int, path: bytes) -> None:
    new = os.open(path, _DIRECTORY, dir_fd=root)
    try:
        status = os.fstat(old)
        os.fchown(new, status.st_uid, status.st_gid)
        os.fchmod(new, stat.S_IMODE(status.st_mode))
        copy_xattrs(old, new)
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(new)
