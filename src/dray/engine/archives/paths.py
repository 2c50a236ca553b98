"""Paths in containers, as the Engine API means and shows them (moby `container/archive.go`).

A path that ends in `/` or `/.` means what a link there leads to; any other means the link itself. Everything is
looked up by openat2(2) within the container's root, so nothing that is found here lies outside of it; the texts that
are returned are for showing and for choosing names, and are looked up again the same way when they are used.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections import deque

from msgspec import Struct

from dray.api.requests import PathStat
from dray.engine import clock, rootfs

_LINKS = 255  # moby's symlink.FollowSymlinkInScope gives up there

# Go's os.FileMode (package io/fs): type and special bits lie far above the nine permission bits.
_TYPES = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
}
_SPECIAL = {stat.S_ISUID: 1 << 23, stat.S_ISGID: 1 << 22, stat.S_ISVTX: 1 << 20}


def file_mode(mode: int) -> int:
    """Return Go's os.FileMode of a st_mode."""
    value = mode & 0o777 | _TYPES.get(stat.S_IFMT(mode), 0)
    for bit, shown in _SPECIAL.items():
        if mode & bit:
            value |= shown
    return value


def evaluate(root: int, path: str) -> str:
    """Return `path` from the root with every link in it resolved, whether or not anything is there.

    OSError ELOOP for links in a circle.
    """
    rest, done, links = deque(path.split("/")), list[str](), 0
    while rest:
        part = rest.popleft()
        if part in ("", "."):
            continue
        if part == "..":
            del done[-1:]
            continue
        target = _link(root, done, part)
        if target is None:
            done.append(part)
            continue
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            done.clear()
        rest.extendleft(reversed(target.split("/")))
    return "/".join(done)


def _link(root: int, above: list[str], name: str) -> str | None:
    try:
        parent = rootfs.open_in(root, "/".join(above), os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        return os.readlink(name, dir_fd=parent)
    except OSError:
        return None
    finally:
        os.close(parent)


class Place(Struct, frozen=True):
    """A path that was found: `parent` is a descriptor, now the caller's, of the directory that has `base` (`.` for
    the root itself), `path` the text from the root; `stat` what the API tells."""

    parent: int
    base: str
    path: str
    stat: PathStat
    mode: int


def find(root: int, path: str) -> Place:
    """Look a path up; OSError (ENOENT, ENOTDIR, ELOOP) if it is not there."""
    asked = absolute(path)
    above, base = posixpath.split(asked)
    if base in ("", "."):
        resolved = evaluate(root, asked)
        # What bears a trailing slash must be a directory: opening it as one says so.
        os.close(rootfs.open_in(root, resolved, os.O_PATH | os.O_DIRECTORY))
        directory, _, last = resolved.rpartition("/")
    else:
        directory, last = evaluate(root, above), base
        resolved = f"{directory}/{last}".lstrip("/")
    parent = rootfs.open_in(root, directory, os.O_PATH | os.O_DIRECTORY)
    try:
        status = os.lstat(last or ".", dir_fd=parent)
        link = ""
        if stat.S_ISLNK(status.st_mode):
            link = "/" + evaluate(root, resolved)
        told = PathStat(
            name=shown_name(asked),
            size=status.st_size,
            mode=file_mode(status.st_mode),
            mtime=clock.rfc3339(status.st_mtime_ns) if status.st_mtime_ns else "1970-01-01T00:00:00Z",
            link_target=link,
        )
    except BaseException:
        os.close(parent)
        raise
    return Place(parent, last or ".", resolved, told, status.st_mode)


def absolute(path: str) -> str:
    """Return a client's path from the root, cleaned, with its last `/` or `/.` kept (they mean something)."""
    clean = posixpath.normpath("/" + path).replace("//", "/")
    if path.endswith("/.") or path == ".":
        return clean.rstrip("/") + "/."
    if path.endswith("/"):
        return clean.rstrip("/") + "/"
    return clean


def shown_name(asked: str) -> str:
    """Return the last component, as Go's filepath.Base: `.` stays, the root is `/`."""
    return asked.rstrip("/").rpartition("/")[2] or "/"
