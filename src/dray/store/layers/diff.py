"""What a container has changed, and a layer tar of it.

`docker diff` words: A added, C changed, D deleted; a directory that something was changed in counts as changed
itself. Deletions are told by their topmost path.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from dray.store.layers.lower import LowerLayers, is_opaque, is_whiteout
from dray.store.layers.tarwriter import END, TreeWriter, whiteout
from dray.store.layers.walk import beneath
from dray.store.layers.whiteouts import OPAQUE, WHITEOUT
from dray.store.snapshots import Change

_META = (b".wh..wh.", b".wh..opq")  # not of a file: marks of a whole directory
_NOTHING = LowerLayers(())
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def overlay_changes(
    upper: str | os.PathLike[str], below: Sequence[str], *, marks_are_files: bool = False
) -> list[Change]:
    """Return how the upper directory of an overlay changes the layers `below` (highest first).

    marks_are_files: names that begin with `.wh.` are marks, of an opaque directory or of a deleted file
    """
    found: list[Change] = []
    lower = LowerLayers(below)
    root = os.open(upper, _DIRECTORY)
    try:
        _compare(root, b"", lower, found, marks_are_files)
    finally:
        os.close(root)
    return sorted(found, key=lambda change: change.path)


def _below(lower: LowerLayers, path: bytes) -> os.stat_result | None:
    place = lower.find(path)
    if place is None:
        return None
    try:
        return os.lstat(place[1], dir_fd=place[0]) if place[2] == path else None
    finally:
        os.close(place[0])


def _compare(fd: int, path: bytes, lower: LowerLayers, found: list[Change], marks: bool) -> None:
    hidden = is_opaque(fd)
    names = sorted(map(os.fsencode, os.listdir(fd)))
    if marks:
        hidden = hidden or OPAQUE in names
        for name in [name for name in names if name.startswith(WHITEOUT)]:
            names.remove(name)
            hidden_path = path + b"/" + name[len(WHITEOUT) :] if path else name[len(WHITEOUT) :]
            if not name.startswith(_META) and _below(lower, hidden_path) is not None:
                found.append(Change("/" + os.fsdecode(hidden_path), "D"))
    for name in names:
        child = path + b"/" + name if path else name
        status = os.lstat(name, dir_fd=fd)
        old = _below(lower, child)
        shown = "/" + os.fsdecode(child)
        if is_whiteout(status):
            if old is not None:
                found.append(Change(shown, "D"))
            continue
        if not stat.S_ISDIR(status.st_mode):
            found.append(Change(shown, "A" if old is None else "C"))
            continue
        before = len(found)
        below = os.open(name, _DIRECTORY, dir_fd=fd)
        try:
            # Nothing lies below a directory that is itself new.
            _compare(below, child, lower if old is not None else _NOTHING, found, marks)
        finally:
            os.close(below)
        if old is None:
            found.append(Change(shown, "A"))
        elif len(found) > before or not _same_directory(status, old):
            found.append(Change(shown, "C"))
    if hidden and path:
        present = set(names)
        gone = [name for name in _merged_names(lower, path) if name not in present]
        found += [Change("/" + os.fsdecode(path + b"/" + name), "D") for name in gone]


def _same_directory(new: os.stat_result, old: os.stat_result) -> bool:
    return (new.st_mode, new.st_uid, new.st_gid, new.st_mtime_ns) == (
        old.st_mode,
        old.st_uid,
        old.st_gid,
        old.st_mtime_ns,
    )


def _merged_names(lower: LowerLayers, path: bytes) -> list[bytes]:
    """Return the names in the directory `path` as the lower layers together show it."""
    names: set[bytes] = set()
    for directory in lower.directories:
        one = LowerLayers([directory]).find(path)
        if one is None:
            continue
        try:
            status = os.lstat(one[1], dir_fd=one[0])
            if stat.S_ISDIR(status.st_mode):
                fd = os.open(one[1], _DIRECTORY, dir_fd=one[0])
                try:
                    names.update(map(os.fsencode, os.listdir(fd)))
                finally:
                    os.close(fd)
        finally:
            os.close(one[0])
    return sorted(name for name in names if _below(lower, path + b"/" + name) is not None)


def tree_changes(
    new: str | os.PathLike[str], old: str | os.PathLike[str] | None, *, same_inodes: bool = False
) -> list[Change]:
    """Return how one whole tree differs from another (None: an empty one), by metadata.

    same_inodes: `new` began as a snapshot of `old`, so that a file nobody has touched has the inode number and the
    time of change that it had: nothing escapes, not even a change that put the old time of modification back
    """
    found: list[Change] = []
    here = os.open(new, _DIRECTORY)
    try:
        there = os.open(old, _DIRECTORY) if old else -1
        try:
            _compare_trees(here, there, "", found, same_inodes=same_inodes)
        finally:
            if there >= 0:
                os.close(there)
    finally:
        os.close(here)
    return sorted(found, key=lambda change: change.path)


def _entries(folder: int) -> dict[str, os.stat_result]:
    if folder < 0:
        return {}
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found[entry.name] = entry.stat(follow_symlinks=False)
    return found


def _compare_trees(new: int, old: int, path: str, found: list[Change], *, same_inodes: bool) -> None:
    """Compare two open directories (`old` -1: nothing); links are never followed, whoever plants them meanwhile."""
    here, there = _entries(new), _entries(old)
    for name, status in here.items():
        before, was = len(found), there.get(name)
        directory = stat.S_ISDIR(status.st_mode)
        kept = was is not None and stat.S_ISDIR(was.st_mode)
        if directory:
            with _opened(new, name) as below, _opened(old if kept else -1, name) as beside:
                if below >= 0:
                    _compare_trees(below, beside, f"{path}/{name}", found, same_inodes=same_inodes)
        if was is None:
            found.append(Change(f"{path}/{name}", "A"))
        elif len(found) > before or not _same_file(status, was, same_inode=same_inodes and not directory):
            found.append(Change(f"{path}/{name}", "C"))
    found += [Change(f"{path}/{name}", "D") for name in there.keys() - here.keys()]


@contextlib.contextmanager
def _opened(parent: int, name: str) -> Iterator[int]:
    """Open a directory; -1 if there is none."""
    fd = -1
    if parent >= 0:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def _same_file(new: os.stat_result, old: os.stat_result, *, same_inode: bool) -> bool:
    if same_inode:
        return (new.st_ino, new.st_ctime_ns) == (old.st_ino, old.st_ctime_ns)
    size = (0, 0) if stat.S_ISDIR(new.st_mode) else (new.st_size, old.st_size)
    return _same_directory(new, old) and size[0] == size[1] and new.st_rdev == old.st_rdev


def write_layer(upper: str | os.PathLike[str], changes: Sequence[Change]) -> Iterator[bytes]:
    """Yield the layer tar of `changes`, whose added and changed files lie in `upper`."""
    root = os.open(upper, _DIRECTORY)
    writer = TreeWriter()
    try:
        for change in sorted(changes, key=lambda change: os.fsencode(change.path)):
            path = os.fsencode(change.path).lstrip(b"/")
            if change.kind == "D":
                yield whiteout(path)
                continue
            above, _, base = path.rpartition(b"/")
            parent = beneath(root, above)
            if parent is None:
                continue
            try:
                yield from writer.entry(parent, base, path)
            finally:
                os.close(parent)
        yield END
    finally:
        os.close(root)
