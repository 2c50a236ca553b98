"""Whole directory trees, by descriptors that follow nothing: copy, remove, measure.

A tree made by a stranger (a container, a tar) may hold links to anywhere, and may be deeper than a path can be long
or the interpreter's stack can hold; nothing here resolves a path of more than one component.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from dray.base.files import owned_fd

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEP = 100
OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")


def copy_tree(source: str | os.PathLike[str] | int, target: str | os.PathLike[str] | int) -> None:
    """Copy everything in the directory `source`, its own attributes included, into the directory `target`.

    Either may be a descriptor (which stays the caller's). Names that `target` has already are an OSError (EEXIST),
    except directories, which are merged. Hard links among what is copied stay hard links.
    """
    old = os.dup(source) if isinstance(source, int) else os.open(source, _DIRECTORY)
    try:
        new = os.dup(target) if isinstance(target, int) else os.open(target, _DIRECTORY)
        try:
            _Copy(new).directory(old, new, b"")
        finally:
            os.close(new)
    finally:
        os.close(old)


class _Copy:
    """One copy: the target's root and, for hard links, where each inode was first put."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._inodes: dict[tuple[int, int], bytes] = {}

    def directory(self, old: int, new: int, path: bytes) -> None:
        with os.scandir(old) as entries:
            names = [os.fsencode(entry.name) for entry in entries]
        for name in names:
            self._entry(old, new, name, path + b"/" + name if path else name)
        status = os.fstat(old)
        os.fchown(new, status.st_uid, status.st_gid)
        os.fchmod(new, stat.S_IMODE(status.st_mode))
        copy_xattrs(old, new)
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _entry(self, old: int, new: int, name: bytes, path: bytes) -> None:
        status = os.lstat(name, dir_fd=old)
        if stat.S_ISDIR(status.st_mode):
            self._below(old, new, name, path)
            return
        if status.st_nlink > 1:
            first = self._inodes.setdefault((status.st_dev, status.st_ino), path)
            if first is not path:
                os.link(first, name, src_dir_fd=self._root, dst_dir_fd=new, follow_symlinks=False)
                return
        copy_file(old, name, new, name)

    def _below(self, old: int, new: int, name: bytes, path: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=new)
        with owned_fd(os.open(name, _DIRECTORY, dir_fd=old)) as source:
            with owned_fd(os.open(name, _DIRECTORY, dir_fd=new)) as target:
                self.directory(source, target, path)


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
        if name.startswith(OVERLAY_XATTRS):
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


def remove_at(parent: int, base: bytes, *, lift: int = -1, depth: int = 0) -> None:
    """Remove the tree `base` of the directory `parent`, following nothing.

    lift: a directory on the same file system that receives what lies deeper than can be walked (else RecursionError)
    """
    try:
        fd = os.open(base, _DIRECTORY, dir_fd=parent)
    except NotADirectoryError:
        os.unlink(base, dir_fd=parent)
        return
    try:
        with os.scandir(fd) as entries:
            for entry in list(entries):
                name = os.fsencode(entry.name)
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(name, dir_fd=fd)
                elif depth >= _DEEP and lift >= 0:
                    os.rename(name, secrets.token_hex(8), src_dir_fd=fd, dst_dir_fd=lift)
                else:
                    remove_at(fd, name, lift=lift, depth=depth + 1)
    finally:
        os.close(fd)
    os.rmdir(base, dir_fd=parent)


def remove_path(path: str | os.PathLike[str]) -> None:
    """Remove the tree at `path` at once; one that is gone is no error."""
    folder = Path(path)
    lift = os.open(folder.parent, _DIRECTORY)
    try:
        with contextlib.suppress(FileNotFoundError):
            remove_at(lift, os.fsencode(folder.name))
    finally:
        os.close(lift)


def tree_usage(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (apparent bytes of files, inodes) of a tree, every hard-linked file counted once."""
    seen: set[tuple[int, int]] = set()
    size = inodes = 0
    waiting = [os.fspath(path)]
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)
                elif status.st_nlink > 1:
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                inodes += 1
                size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return size, inodes
