"""What lies below an overlay layer: lookups through a stack of layer directories, as overlayfs makes them.

A lookup goes from the highest layer down. It ends at the first layer that has the name, at a whiteout, at anything
that is not a directory on the way, and below an opaque directory. A symbolic link on the way is resolved in the
merged view, so the lookup begins again with the name it leads to.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from typing import Literal

from dray.base.errors import InvalidParameter
from dray.store.layers.extract import OPAQUE_XATTR, Applied
from dray.store.layers.tree import Tree, clean_link

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = 40
_OVERLAY = ("trusted.overlay.", "user.overlay.")


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


def adopt(directory: str | os.PathLike[str], applied: Applied, below: Sequence[str | os.PathLike[str]]) -> None:
    """Give the implicit directories of a layer the owner, mode, times and xattrs that the layers below say."""
    lower = LowerLayers(below)
    root = os.open(directory, _DIRECTORY)
    try:
        for path in sorted(applied.implicit):
            if any(path.startswith(opaque + b"/") for opaque in applied.opaque):
                continue
            found = lower.find(path)
            if found is None or found[2] != path:
                if found:
                    os.close(found[0])
                continue
            try:
                if stat.S_ISDIR(os.lstat(found[1], dir_fd=found[0]).st_mode):
                    _copy_directory(found[0], found[1], root, path or b".")
            finally:
                os.close(found[0])
    finally:
        os.close(root)


def _copy_directory(source: int, base: bytes, root: int, path: bytes) -> None:
    old = os.open(base, _DIRECTORY, dir_fd=source)
    try:
        new = os.open(path, _DIRECTORY, dir_fd=root)
        try:
            status = os.fstat(old)
            os.fchown(new, status.st_uid, status.st_gid)
            os.fchmod(new, stat.S_IMODE(status.st_mode))
            copy_xattrs(old, new)
            os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(new)
    finally:
        os.close(old)


def copy_file(source: int, base: bytes, target: int, name: bytes) -> None:
    """Copy one file that is not a directory, with owner, mode, xattrs and times. Sockets are not copied."""
    status = os.lstat(base, dir_fd=source)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode):
        old = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            new = os.open(name, flags, 0o600, dir_fd=target)
            try:
                copy_data(old, new, status.st_size)
                os.fchown(new, status.st_uid, status.st_gid)
                os.fchmod(new, mode)
                copy_xattrs(old, new)
                os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(new)
        finally:
            os.close(old)
        return
    if stat.S_ISSOCK(status.st_mode):
        return
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(base, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, stat.S_IFMT(status.st_mode) | mode, status.st_rdev, dir_fd=target)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, mode, dir_fd=target)
    copy_xattrs(b"/proc/self/fd/%d/%s" % (source, base), b"/proc/self/fd/%d/%s" % (target, name))
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def copy_data(old: int, new: int, size: int) -> None:
    """Copy a file's data in the kernel, holes kept."""
    end = 0
    while end < size:
        try:
            start = os.lseek(old, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # a hole to the end
            raise
        end = os.lseek(old, start, os.SEEK_HOLE)
        at = start
        while at < end:
            try:
                count = os.copy_file_range(old, new, end - at, at, at)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                count = os.pwrite(new, os.pread(old, min(end - at, 1 << 20), at), at)
            if not count:
                break
            at += count
    os.ftruncate(new, size)


def copy_xattrs(old: int | bytes, new: int | bytes) -> None:
    """Copy extended attributes, except overlayfs's own; a file system without them is no error."""
    follow = isinstance(old, int)
    try:
        names: Iterable[str] = os.listxattr(old) if follow else os.listxattr(old, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return
        raise
    for name in names:
        if name.startswith(_OVERLAY):
            continue
        try:
            if follow:
                os.setxattr(new, name, os.getxattr(old, name))
            else:
                value = os.getxattr(old, name, follow_symlinks=False)
                os.setxattr(new, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENODATA):
                raise
