"""Unpack a layer tar into a directory.

Two forms of output. OVERLAY is an overlayfs layer (Documentation/filesystems/overlayfs.rst): a whiteout is a
character device 0:0, an opaque directory bears `trusted.overlay.opaque=y`; the directory holds this layer alone.
PLAIN is a whole file system to which the layer is applied: whiteouts delete.

Rules (image-spec layer.md), kept to the letter:

* A whiteout hides what lower layers have; what this layer itself has put there stays. If that is a directory, it
  becomes opaque, since the whiteout hides the lower one. `.wh..wh..opq` likewise, wherever in the tar it comes.
* A directory that the tar does not list but has files for is *implicit*: its metadata is that of the lower layer's.
  In OVERLAY form the caller fixes it afterwards (`lower.adopt`), as layers are unpacked independently.
* A hard link whose target only a lower layer has needs that file copied up. Without `lower`, NeedsLower is raised
  and the caller applies the layer again, after those below it.

The output directory must be reachable by nobody else while a layer is unpacked. Names and links: see `tree`.
Attributes of overlayfs itself (`trusted.overlay.*`) in a tar are dropped: they could redirect a directory.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct, field

from dray.base.errors import InvalidParameter
from dray.linux.trees import tree_usage
from dray.store.layers.headers import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    LINK,
    REGULAR,
    SYMLINK,
    Entry,
    TarReader,
)
from dray.store.layers.stream import Budget
from dray.store.layers.tree import Tree, clean, named
from dray.store.layers.whiteouts import WHITEOUT, Whiteouts

_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_TIME = (1 << 63) - 1


class NeedsLower(Exception):
    """The layer links to a file that only a lower layer has: it must be applied in order."""


class Lower(Protocol):
    """What lies below the layer, for hard links into it."""

    def copy_up(self, tree: Tree, path: bytes) -> bytes | None:
        """Copy the file `path` from the lower layers into `tree`; return its path with the links above it
        resolved, None if they have no such file."""


class Applied(Struct):
    """What a layer put there: apparent bytes and inodes, its implicit directories (b"" is the root), its opaque
    ones, and whether the root itself is opaque (overlayfs knows no such root: the chain is cut there instead)."""

    size: int = 0
    inodes: int = 0
    implicit: set[bytes] = field(default_factory=set)
    opaque: set[bytes] = field(default_factory=set)
    opaque_root: bool = False


def _umask() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        match = re.search(r"^Umask:\s*([0-7]+)", file.read(), re.MULTILINE)
    return int(match[1], 8) if match else 0o777


class Extractor:
    """Applies one tar to the directory `root`, or to a tree, which it then closes."""

    def __init__(
        self, root: str | os.PathLike[str] | Tree, *, overlay: bool, budget: Budget, lower: Lower | None = None
    ) -> None:
        self._tree = root if isinstance(root, Tree) else Tree(root)
        self._overlay = overlay
        self._budget = budget
        self._lower = lower
        self._umask = _umask()
        # Below a set-group-id directory a new file gets its group, below a default ACL another mode: once there may
        # be such a directory, owner and mode of everything are set, needed or not.
        self._inherits = not overlay
        self._times: dict[bytes, int] = {}  # directories get their time last, when nothing changes them any more
        self._whiteouts = Whiteouts(self._tree, overlay=overlay, make_room=self._make_room)
        self._written = 0
        self._result = Applied()
        self._root_listed = False
        self._own_tree = not isinstance(root, Tree)
        self._uneven = False  # the sum of the entries' sizes is not what lies there: measure it at the end
        self._makers: dict[bytes, Callable[[Entry, bytes, int, bytes], None]] = {
            REGULAR: self._file,
            DIRECTORY: self._directory,
            SYMLINK: self._symlink,
            LINK: self._link,
            CHAR: self._device,
            BLOCK_DEVICE: self._device,
            FIFO: self._device,
        }

    def apply(self, tar: TarReader) -> Applied:
        """Apply every entry; InvalidParameter for a hostile or damaged tar, OSError with the path for the rest."""
        self._tar = tar
        try:
            for entry in tar:
                self._entry(entry)
            self._finish()
            if self._uneven:
                self._result.size = tree_usage(f"/proc/self/fd/{self._tree.root}")[0]
        finally:
            self._tree.close()
        return self._result

    # --- entries

    def _entry(self, entry: Entry) -> None:
        path = clean(entry.name)
        above, _, base = path.rpartition(b"/")
        if base.startswith(WHITEOUT):
            self._whiteouts.add(above, base)
            return
        if not path:
            self._root(entry)
            return
        self._whiteouts.uncover(above)
        self._make(entry, path, self._tree.directory(above), base)
        self._result.inodes += 1
        self._whiteouts.placed(path, directory=entry.type == DIRECTORY)

    def _make(self, entry: Entry, path: bytes, parent: int, base: bytes) -> None:
        try:
            self._makers[entry.type](entry, path, parent, base)
        except OSError as error:
            raise named(error, path) from error

    def _root(self, entry: Entry) -> None:
        if entry.type != DIRECTORY:
            raise InvalidParameter("the layer has something else than a directory for its root")
        self._attributes(self._tree.root, entry)
        self._times[b""] = entry.mtime
        self._root_listed = True

    def _make_room(self, parent: int, base: bytes, path: bytes) -> None:
        """Remove what stands where something new comes."""
        if self._tree.remove(parent, base):
            self._uneven = self._own_tree
            inside = path + b"/"
            self._times = {k: v for k, v in self._times.items() if k != path and not k.startswith(inside)}
            self._tree.implicit = {k for k in self._tree.implicit if k != path and not k.startswith(inside)}

    def _file(self, entry: Entry, path: bytes, parent: int, base: bytes) -> None:
        mode = entry.mode & 0o7777
        try:
            fd = os.open(base, _CREATE, mode & 0o777, dir_fd=parent)
        except FileExistsError:
            self._make_room(parent, base, path)
            # Making room may have dropped the cached descriptor.
            parent = self._tree.directory(path.rpartition(b"/")[0])
            fd = os.open(base, _CREATE, mode & 0o777, dir_fd=parent)
        try:
            if entry.sparse is not None:
                self._sparse(fd, entry)
            elif entry.size:
                self._fill(fd, entry)
            if self._inherits or entry.uid or entry.gid:
                os.fchown(fd, entry.uid, entry.gid)
            if self._inherits or mode & (0o7000 | self._umask):
                os.fchmod(fd, mode)
            if entry.xattrs:
                self._set_xattrs(fd, entry)
            os.utime(fd, ns=_times(entry.mtime))
        finally:
            os.close(fd)

    def _fill(self, fd: int, entry: Entry) -> None:
        self._written += entry.size
        self._budget.write(self._written)
        self._result.size += entry.size
        for piece in self._tar.data(entry):
            written = os.write(fd, piece)
            while written < len(piece):
                written += os.write(fd, piece[written:])

    def _sparse(self, fd: int, entry: Entry) -> None:
        self._written += entry.size
        self._budget.write(self._written)
        self._result.size += entry.real_size
        os.ftruncate(fd, entry.real_size)
        pieces = iter(entry.sparse or ())
        at = left = 0
        for data in self._tar.data(entry):
            view = data
            while view:
                if not left:
                    at, left = next(pieces)
                count = os.pwrite(fd, view[:left], at)
                at, left, view = at + count, left - count, view[count:]

    def _directory(self, entry: Entry, path: bytes, parent: int, base: bytes) -> None:
        try:
            os.mkdir(base, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(base, dir_fd=parent).st_mode):
                self._make_room(parent, base, path)
                parent = self._tree.directory(path.rpartition(b"/")[0])
                os.mkdir(base, 0o700, dir_fd=parent)
        fd = os.open(base, _DIRECTORY, dir_fd=parent)
        self._tree.keep(path, fd)
        self._attributes(fd, entry)
        self._times[path] = entry.mtime
        self._tree.implicit.discard(path)

    def _attributes(self, fd: int, entry: Entry) -> None:
        # Always: a directory may have stood here before, with another owner.
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode & 0o7777)
        if entry.mode & stat.S_ISGID:
            self._inherits = True
        if entry.xattrs:
            self._inherits = True
            self._set_xattrs(fd, entry)

    def _symlink(self, entry: Entry, path: bytes, parent: int, base: bytes) -> None:
        try:
            os.symlink(entry.linkname, base, dir_fd=parent)
        except FileExistsError:
            self._make_room(parent, base, path)
            parent = self._tree.directory(path.rpartition(b"/")[0])
            os.symlink(entry.linkname, base, dir_fd=parent)
        if self._inherits or entry.uid or entry.gid:
            os.chown(base, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        self._late_attributes(entry, parent, base)

    def _late_attributes(self, entry: Entry, parent: int, base: bytes) -> None:
        if entry.xattrs:
            self._set_xattrs(b"/proc/self/fd/%d/%s" % (parent, base), entry)
        os.utime(base, ns=_times(entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _device(self, entry: Entry, path: bytes, parent: int, base: bytes) -> None:
        kind = {CHAR: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK, FIFO: stat.S_IFIFO}[entry.type]
        mode = entry.mode & 0o7777
        if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
            raise InvalidParameter(
                f"device numbers {entry.major}:{entry.minor} of {os.fsdecode(path)} out of range"
            )
        device = os.makedev(entry.major, entry.minor)
        try:
            os.mknod(base, kind | mode, device, dir_fd=parent)
        except FileExistsError:
            self._make_room(parent, base, path)
            parent = self._tree.directory(path.rpartition(b"/")[0])
            os.mknod(base, kind | mode, device, dir_fd=parent)
        if self._inherits or entry.uid or entry.gid:
            os.chown(base, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if self._inherits or mode & (0o7000 | self._umask):
            _change_mode(parent, base, kind, mode)
        self._late_attributes(entry, parent, base)

    def _link(self, entry: Entry, path: bytes, parent: int, base: bytes) -> None:
        target = clean(entry.linkname)
        if target == path:
            return
        above, _, last = target.rpartition(b"/")
        if not target:
            raise InvalidParameter(f"{os.fsdecode(path)} is a hard link to a directory")
        try:
            source = os.open(".", os.O_PATH | os.O_CLOEXEC, dir_fd=self._tree.directory(above, make=False))
        except FileNotFoundError:
            source = -1
        try:
            if source < 0 or not _present(source, last, overlay=self._overlay):
                if source >= 0:
                    os.close(source)
                    source = -1
                source, last = self._copy_up(target, path)
            self._link_to(source, last, path, base)
        finally:
            if source >= 0:
                os.close(source)

    def _copy_up(self, target: bytes, path: bytes) -> tuple[int, bytes]:
        """Bring a lower layer's file into this one; return (descriptor of its directory, its last component)."""
        if self._lower is None and self._overlay:
            raise NeedsLower(os.fsdecode(target))
        found = None
        if self._lower is not None and not self._whiteouts.hides(target):
            found = self._lower.copy_up(self._tree, target)
        if found is None:
            raise InvalidParameter(
                f"{os.fsdecode(path)} is a hard link to {os.fsdecode(target)}, which is nowhere"
            )
        self._result.inodes += 1
        self._uneven = self._own_tree
        above, _, last = found.rpartition(b"/")
        return os.open(".", os.O_PATH | os.O_CLOEXEC, dir_fd=self._tree.directory(above)), last

    def _link_to(self, source: int, last: bytes, path: bytes, base: bytes) -> None:
        parent = self._tree.directory(path.rpartition(b"/")[0])
        if stat.S_ISDIR(os.lstat(last, dir_fd=source).st_mode):
            raise InvalidParameter(f"{os.fsdecode(path)} is a hard link to a directory")
        try:
            os.link(last, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            here, there = os.lstat(base, dir_fd=parent), os.lstat(last, dir_fd=source)
            if (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev):
                return
            self._make_room(parent, base, path)
            parent = self._tree.directory(path.rpartition(b"/")[0])
            os.link(last, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        self._result.inodes -= 1  # the name is another name of an inode that was counted

    def _set_xattrs(self, target: int | bytes, entry: Entry) -> None:
        for name, value in entry.xattrs or ():
            if name.startswith(_OVERLAY_XATTRS):
                continue
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                # A file system without them, or user.* on a link or device: the file itself is still right.
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
                if error.errno == errno.EPERM and not name.startswith(b"user."):
                    raise

    # --- the end

    def _finish(self) -> None:
        self._result.opaque = self._whiteouts.finish()
        self._result.opaque_root = self._whiteouts.opaque_root
        self._result.inodes += self._whiteouts.inodes
        for path, mtime in self._times.items():
            try:
                os.utime(self._tree.directory(path, make=False), ns=_times(mtime))
            except (FileNotFoundError, InvalidParameter):
                continue
        self._result.implicit = self._tree.implicit
        if not self._root_listed:
            self._result.implicit.add(b"")
        self._result.inodes += len(self._result.implicit)


def _change_mode(parent: int, base: bytes, kind: int, mode: int) -> None:
    """chmod(2) without following: in a running container a link may stand there by now, leading anywhere."""
    fd = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if stat.S_IFMT(os.fstat(fd).st_mode) != kind:
            raise OSError(errno.EEXIST, "replaced by something else meanwhile", os.fsdecode(base))
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _present(parent: int, base: bytes, *, overlay: bool) -> bool:
    try:
        status = os.lstat(base, dir_fd=parent)
    except FileNotFoundError:
        return False
    return not (overlay and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0)


def _times(mtime: int) -> tuple[int, int]:
    # Out-of-range times become the epoch, as in Go's archive code.
    return (mtime, mtime) if 0 <= mtime <= _MAX_TIME else (0, 0)
