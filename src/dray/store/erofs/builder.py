"""From the headers of a layer's tar to the tree that its image shows; the counterpart of `layers.extract`.

The rules are the extractor's, in its OVERLAY form, and so are the refusals (image-spec layer.md). Data is not
touched: a file is where its bytes lie in the tar. A hard link into a lower layer needs that file's bytes here:
without `lower`, NeedsLower.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from typing import Protocol

from dray.base.errors import InvalidParameter
from dray.store.erofs import ondisk
from dray.store.erofs.nodes import CHUNKS, Node, Nodes
from dray.store.layers.extract import NeedsLower
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
from dray.store.layers.tree import clean
from dray.store.layers.whiteouts import OPAQUE, WHITEOUT, hidden_name

_OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")
_KINDS = {
    REGULAR: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK, CHAR: stat.S_IFCHR,
    BLOCK_DEVICE: stat.S_IFBLK, FIFO: stat.S_IFIFO,
}  # fmt: skip
_ACCESS = b"system.posix_acl_access"
_MINIMAL = (0x01, 0x04, 0x20)  # owner, group, others
_NAMED_USER, _NAMED_GROUP, _MASK = 0x02, 0x08, 0x10
_MAX_TIME = (1 << 63) - 1
_XATTR_MAX = 65535
_TARGET_MAX = 4095
_SIZE_MAX = 16 << 40  # bytes of one file, as ext4 has it


class LowerFiles(Protocol):
    """What lies below the layer, for hard links into it."""

    def fetch(self, path: bytes) -> tuple[bytes, Node] | None:
        """Return (resolved path, a copy of the file there, its data stored); None if there is no such file."""


class Builder:
    """Builds the tree of one tar. `opaque_root`: the root hides all lower layers."""

    def __init__(self, budget: Budget, lower: LowerFiles | None = None) -> None:
        self.nodes = Nodes(time.time_ns())
        self.opaque_root = False
        self._budget = budget
        self._lower = lower

    def read(self, tar: TarReader) -> None:
        """Take every entry; InvalidParameter for a hostile or damaged tar."""
        self._tar = tar
        for entry in tar:
            self._entry(entry)

    def _entry(self, entry: Entry) -> None:
        path = clean(entry.name)
        above, _, base = path.rpartition(b"/")
        if base.startswith(WHITEOUT):
            self._whiteout(above, base)
        elif not path:
            self._root(entry)
        elif entry.type == LINK:
            self._link(entry, path, above, base)
        else:
            self._place(entry, path, above, base)

    def _root(self, entry: Entry) -> None:
        if entry.type != DIRECTORY:
            raise InvalidParameter("the layer has something else than a directory for its root")
        self._attributes(self.nodes.root, entry)

    def _place(self, entry: Entry, path: bytes, above: bytes, base: bytes) -> None:
        parent = self.nodes.directory(above)
        assert parent.children is not None
        old = parent.children.get(base)
        if entry.type == DIRECTORY and old is not None and old.children is not None:
            self._attributes(old, entry)
            return
        node = Node(_KINDS[entry.type])
        if entry.type == REGULAR:
            self._data(node, entry, path)
        elif entry.type == SYMLINK:
            node.target = _target(entry.linkname, path)
            self.nodes.take(len(node.target))
        elif entry.type in (CHAR, BLOCK_DEVICE):
            if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
                raise InvalidParameter(
                    f"device numbers {entry.major}:{entry.minor} of {os.fsdecode(path)} out of range"
                )
            node.device = entry.major, entry.minor
        elif entry.type == DIRECTORY and old is not None and old.whiteout:
            node.opaque = True
        self._attributes(node, entry)
        self.nodes.put(parent, base, node)

    def _data(self, node: Node, entry: Entry, path: bytes) -> None:
        node.data = self._tar.source.position
        node.size = entry.size if entry.sparse is None else entry.real_size
        node.pieces = entry.sparse
        self._budget.write(node.data + entry.size)
        if entry.sparse is not None:
            self.nodes.take(100 * len(entry.sparse) + min(node.size >> 10, 4 * CHUNKS))
            if node.size > _SIZE_MAX:
                raise InvalidParameter(f"{os.fsdecode(path)}: File too large")

    def _attributes(self, node: Node, entry: Entry) -> None:
        node.mode = stat.S_IFMT(node.mode) | entry.mode & 0o7777
        if entry.type == SYMLINK:
            node.mode = stat.S_IFLNK | 0o777
        node.uid, node.gid = entry.uid, entry.gid
        # Out-of-range times become the epoch, as in Go's archive code.
        node.mtime = entry.mtime if 0 <= entry.mtime <= _MAX_TIME else 0
        node.implicit = False
        if entry.xattrs:
            for name, value in entry.xattrs:
                self._attribute(node, name, value)
            if sum(len(name) + len(value) + 8 for name, value in (node.xattrs or {}).items()) > 4 * _XATTR_MAX:
                raise InvalidParameter("too many extended attributes of one file in layer")

    def _attribute(self, node: Node, name: bytes, value: bytes) -> None:
        if name.startswith(_OVERLAY_XATTRS) or ondisk.xattr_index(name) is None:
            return
        kind = stat.S_IFMT(node.mode)
        if name.startswith(b"user.") and kind not in (stat.S_IFREG, stat.S_IFDIR):
            return  # no file system has them on links and devices (xattr(7))
        if name.startswith(b"system."):
            if kind == stat.S_IFLNK:
                return
            entries = _access_list(value)
            if name == _ACCESS:
                node.mode = node.mode & ~0o777 | _granted(entries)
                if all(tag in _MINIMAL for tag, _ in entries):
                    return  # it says no more than the mode
            elif kind != stat.S_IFDIR:
                return  # only what is made in a directory has defaults
        elif name.endswith(b".") or b"\0" in name or len(name) > 255 or len(value) > _XATTR_MAX:
            raise InvalidParameter(f"invalid extended attribute {name[:80]!r} in layer")
        self.nodes.take(200 + len(name) + len(value))
        if node.xattrs is None:
            node.xattrs = {}
        node.xattrs[name] = value

    # --- hard links

    def _link(self, entry: Entry, path: bytes, above: bytes, base: bytes) -> None:
        parent = self.nodes.directory(above)
        target = clean(entry.linkname)
        if target == path:
            return
        if not target:
            raise InvalidParameter(f"{os.fsdecode(path)} is a hard link to a directory")
        node = self._present(target) or self._fetch(target, path)
        if node.children is not None:
            raise InvalidParameter(f"{os.fsdecode(path)} is a hard link to a directory")
        assert parent.children is not None
        if parent.children.get(base) is not node:
            self.nodes.put(parent, base, node)

    def _present(self, target: bytes) -> Node | None:
        node = self._own(target)
        return None if node is None or (stat.S_ISCHR(node.mode) and node.device == (0, 0)) else node

    def _fetch(self, target: bytes, path: bytes) -> Node:
        """Bring a lower layer's file into this one."""
        if self._lower is None:
            raise NeedsLower(os.fsdecode(target))
        found = None if self._hides(target) else self._lower.fetch(target)
        if found is None:
            raise InvalidParameter(
                f"{os.fsdecode(path)} is a hard link to {os.fsdecode(target)}, which is nowhere"
            )
        resolved, node = found
        if node.children is not None:
            raise InvalidParameter(f"{os.fsdecode(path)} is a hard link to a directory")
        above, _, base = resolved.rpartition(b"/")
        parent = self.nodes.directory(above)
        own = (parent.children or {}).get(base)
        if own is not None and not own.whiteout:
            return own  # a link of a lower layer led to what this layer has itself
        self.nodes.put(parent, base, node)
        return node

    def _hides(self, target: bytes) -> bool:
        node = self._own(target)
        return node is not None and node.whiteout

    def _own(self, target: bytes) -> Node | None:
        """Return what this layer itself has at a path."""
        above, _, base = target.rpartition(b"/")
        try:
            parent = self.nodes.directory(above, make=False)
        except FileNotFoundError:
            return None
        return (parent.children or {}).get(base)

    # --- whiteouts

    def _whiteout(self, above: bytes, base: bytes) -> None:
        if base == OPAQUE:
            if above:
                self.nodes.directory(above).opaque = True
                self.nodes.directory(above).implicit = False  # nothing below is seen: nothing to inherit
            else:
                self.opaque_root = True
            return
        name = hidden_name(above, base)
        if name is None:
            return
        parent = self.nodes.directory(above)
        assert parent.children is not None
        old = parent.children.get(name)
        if old is None:
            mark = Node(stat.S_IFCHR, mtime=0)
            mark.whiteout = True
            self.nodes.put(parent, name, mark)
        elif old.children is not None:
            old.opaque, old.implicit = True, False


def _access_list(value: bytes) -> list[tuple[int, int]]:
    """Return the (tag, permissions) of a POSIX access control list as attributes have it (acl(5), xattr(7))."""
    if value[:4] != b"\x02\0\0\0" or len(value) % 8 != 4:
        raise InvalidParameter("damaged access control list in layer")
    found = [(tag, rights) for tag, rights, _ in struct.iter_unpack("<HHI", value[4:])]
    tags = [tag for tag, _ in found]
    once = all(tags.count(tag) == 1 for tag in _MINIMAL) and tags.count(_MASK) <= 1
    named = {_NAMED_USER, _NAMED_GROUP} & set(tags)
    known = set(tags) <= {*_MINIMAL, _MASK, _NAMED_USER, _NAMED_GROUP} and all(right <= 7 for _, right in found)
    if not (once and known and tags == sorted(tags) and (_MASK in tags or not named)):
        raise InvalidParameter("damaged access control list in layer")
    return found


def _granted(entries: list[tuple[int, int]]) -> int:
    """Return the mode that goes with an access control list: the mask stands for the group."""
    rights = dict(entries)
    owner, group, other = (rights[tag] for tag in _MINIMAL)
    return owner << 6 | rights.get(_MASK, group) << 3 | other


def _target(target: bytes, path: bytes) -> bytes:
    if not target or b"\0" in target or len(target) > _TARGET_MAX:
        raise InvalidParameter(f"invalid link in layer: {os.fsdecode(path)} -> {target[:80]!r}")
    return target
