"""Read files of a root file system that is not mounted, as overlayfs would show it.

A container's root is mounted only inside its own mount namespace; before its start the engine still needs a few
small files of it (/etc/passwd, /etc/group). The view is computed from the layer directories, topmost first: a
whiteout (character device 0:0) hides what lies below, an opaque directory (`trusted.overlay.opaque`) hides the
lower directories' entries, symbolic links are resolved inside the root. Source: kernel,
Documentation/filesystems/overlayfs.rst.

For roots whose container does not run; nothing else may change the layers meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from dray.base.errors import InvalidParameter
from dray.runtime.model import Mount

_MOST_LINKS = 40
_OPAQUE = "trusted.overlay.opaque"


def layers_of(mounts: Sequence[Mount]) -> list[str]:
    """Return the directories that a snapshot's mounts merge, topmost first."""
    for mount in mounts:
        if mount.type == "overlay":
            upper = [word[9:] for word in mount.options if word.startswith("upperdir=")]
            lower = [
                path for word in mount.options if word.startswith("lowerdir=") for path in word[9:].split(":")
            ]
            return upper + lower
    return [mount.source for mount in mounts]


def read_file(layers: Sequence[str], path: str, *, limit: int = 1 << 20) -> bytes | None:
    """Return a regular file's content, or None if there is no such file.

    Anything that is not a regular file (a FIFO would block us for ever) counts as absent; more than `limit` bytes
    are an InvalidParameter.
    """
    found = _locate(layers, path)
    if found is None:
        return None
    try:
        fd = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > limit:
            raise InvalidParameter(f"{path} in the image is larger than {limit} bytes; it is not read")
        return file.read(limit)


def _locate(layers: Sequence[str], path: str) -> str | None:
    """Return the host path of the merged file at `path`; None if it does not exist or is a directory."""
    stack: list[list[str]] = [list(layers)]  # the directories that make up each ancestor, root first
    pending = [part for part in path.split("/") if part]
    links = 0
    while pending:
        name = pending.pop(0)
        if name == ".":
            continue
        if name == "..":
            if len(stack) > 1:
                stack.pop()
            continue
        found, directories = _lookup(stack[-1], name)
        if directories:
            stack.append(directories)
            continue
        if found is None:
            return None
        if stat.S_ISLNK(os.lstat(found).st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(found)
            if target.startswith("/"):
                del stack[1:]
            pending = [part for part in target.split("/") if part] + pending
            continue
        return found if not pending else None
    return None


def _lookup(parents: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Look one name up in a merged directory: (path of a non-directory, []) or (None, [directories])."""
    directories: list[str] = []
    for parent in parents:
        candidate = f"{parent}/{name}"
        try:
            status = os.lstat(candidate)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            break
        if not stat.S_ISDIR(status.st_mode):
            if directories:
                break
            return candidate, []
        directories.append(candidate)
        if _is_opaque(candidate):
            break
    return None, directories


def _is_opaque(path: str) -> bool:
    try:
        return os.getxattr(path, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError:
        return False
