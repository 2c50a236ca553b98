"""A layer's files as they are while its tar is read: names, attributes, and where in the tar their data lies.

Names resolve as `layers.tree` resolves them on disk: links are followed inside the root for the directories above a
name, never for the name itself; what is missing is made as an *implicit* directory. Nothing here touches a file
system, so no name can lead anywhere; what a stranger's tar can take is memory, and that is bounded (`LIMIT`, `TEXT`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from dray.base.errors import InvalidParameter

LIMIT = 1 << 21  # inodes of one layer: about 500 bytes of memory each
TEXT = 256 << 20  # bytes of names, link targets and attributes of one layer
CHUNKS = 1 << 16  # of one file with holes, at most: four bytes each
_NAME_MAX = 255
_PATH_MAX = 4096
_LINKS = 40
IMPLICIT_MODE = stat.S_IFDIR | 0o755


class Node:
    """An inode.

    mode: with its type; mtime: nanoseconds; device: major and minor
    size, data: a file's, and the byte of the stored tar where it begins; pieces: of a file with holes, see `Entry`
    copy: the byte of the image where a copy begins, of a file that is not in the tar; 0 for none
    target: a link's; children: a directory's; parent: the directory above a directory
    links: how many names it has (1 for a directory)
    implicit: a directory that was made only because something lies in it; opaque: it hides what lies below
    whiteout: a mark of this layer, not an entry of its tar
    """

    __slots__ = (
        "at", "children", "copy", "data", "device", "gid", "implicit", "links", "mode", "mtime", "opaque", "parent", "pieces",
        "size", "target", "uid", "whiteout", "xattrs",
    )  # fmt: skip

    def __init__(self, mode: int, uid: int = 0, gid: int = 0, mtime: int = 0) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.device = (0, 0)
        self.size = 0
        self.data = -1
        self.copy = 0
        self.pieces: list[tuple[int, int]] | None = None
        self.target = b""
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(mode) else None
        self.parent: Node | None = None
        self.links = 0
        self.xattrs: dict[bytes, bytes] | None = None
        self.implicit = False
        self.opaque = False
        self.whiteout = False
        self.at = -1  # where the inode was put in the image


class Nodes:
    """The tree of one layer; `now` is the time of directories that nobody says anything about, in nanoseconds."""

    def __init__(self, now: int) -> None:
        self._now = now
        self.root = Node(IMPLICIT_MODE, mtime=now)
        self.root.parent, self.root.links, self.root.implicit = self.root, 1, True
        self._cache: dict[bytes, Node] = {}
        self._count = 0
        self._text = 0

    def take(self, text: int) -> None:
        """Count `text` bytes of memory; InvalidParameter beyond what a layer may hold."""
        self._text += text
        if self._text > TEXT:
            raise InvalidParameter(
                f"layer with more than {TEXT >> 20} MiB of names and attributes refused by storage driver erofs "
                "(--storage-driver overlay2 unpacks to files)"
            )

    def put(self, parent: Node, name: bytes, node: Node) -> None:
        """Give `node` the name `name`, in place of what had it before."""
        assert parent.children is not None
        if len(name) > _NAME_MAX:
            raise InvalidParameter(f"invalid name in layer: {os.fsdecode(name[:80])}…: File name too long")
        old = parent.children.get(name)
        if old is not None:
            old.links -= 1
            if old.children is not None or old.target:
                self._cache.clear()  # names above may have led through it
        else:
            self._count += 1
            if self._count > LIMIT:
                raise InvalidParameter(
                    f"layer of more than {LIMIT} files refused by storage driver erofs (--storage-driver overlay2 "
                    "unpacks to files)"
                )
            self.take(len(name))
        parent.children[name] = node
        node.links += 1
        if node.children is not None:
            node.parent = parent

    def directory(self, path: bytes, *, make: bool = True) -> Node:
        """Return the directory `path` (as `layers.tree.clean` returns it), links above it and itself followed.

        What is missing is made; without `make`, FileNotFoundError. InvalidParameter if something else stands there.
        """
        if not path:
            return self.root
        node = self._cache.get(path)
        if node is None:
            if len(path) >= _PATH_MAX:
                raise InvalidParameter(f"invalid name in layer: {os.fsdecode(path[:80])}…: File name too long")
            node = self._cache[path] = self._walk(path, make=make)
            if len(self._cache) > 4096:
                self._cache.clear()
        return node

    def _walk(self, path: bytes, *, make: bool) -> Node:
        waiting = path.split(b"/")[::-1]
        node, followed = self.root, 0
        while waiting:
            part = waiting.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                assert node.parent is not None
                node = node.parent
                continue
            assert node.children is not None
            child = node.children.get(part)
            if child is None or (child.whiteout and make):
                if not make:
                    raise FileNotFoundError(os.fsdecode(path))
                child = self._implicit(node, part, hides=child is not None)
            if child.target:
                followed += 1
                if followed > _LINKS:
                    raise InvalidParameter(f"{os.fsdecode(path)} in the layer is not a directory")
                if child.target.startswith(b"/"):
                    node = self.root
                waiting += child.target.split(b"/")[::-1]
                continue
            if child.children is None:
                raise InvalidParameter(f"{os.fsdecode(path)} in the layer is not a directory")
            node = child
        return node

    def _implicit(self, parent: Node, name: bytes, *, hides: bool) -> Node:
        """Make a directory; where a whiteout stood it hides what lies below, so there is nothing to inherit."""
        node = Node(IMPLICIT_MODE, mtime=self._now)
        node.implicit, node.opaque = not hides, hides
        self.put(parent, name, node)
        return node

    def walk(self) -> Iterator[tuple[bytes, Node, bool]]:
        """Yield (path, directory, whether one above it is opaque), every directory before what is in it."""
        waiting = [(b"", self.root, False)]
        while waiting:
            path, node, hidden = waiting.pop()
            yield path, node, hidden
            below = hidden or node.opaque
            for name, child in (node.children or {}).items():
                if child.children is not None:
                    waiting.append((path + b"/" + name if path else name, child, below))
