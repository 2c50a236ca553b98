"""Whiteouts and opaque directories of a layer being unpacked (image-spec layer.md).

`.wh.<name>` hides what lower layers have under that name, `.wh..wh..opq` all that they have in a directory. What
the layer itself puts there stays, whichever comes first in the tar.

OVERLAY form: a whiteout becomes a character device 0:0; where this layer has, or later puts, a directory, that
directory becomes opaque (`trusted.overlay.opaque=y`). PLAIN form: what is hidden is deleted, and what this layer
has put there itself is remembered, so that it is not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from dray.base.errors import InvalidParameter
from dray.store.layers.tree import Tree, named

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
OPAQUE_XATTR = b"trusted.overlay.opaque"
_META = b".wh..wh."


def hidden_name(above: bytes, base: bytes) -> bytes | None:
    """Return what the whiteout `base` (not the opaque one) in the directory `above` hides; None for aufs's own state,
    which it kept under such names. InvalidParameter for one of `.` or `..`."""
    if base.startswith(_META):
        return None
    name = base[len(WHITEOUT) :]
    if name in (b"", b".", b".."):
        raise InvalidParameter(f"invalid whiteout in layer: {os.fsdecode(above + b'/' + base)}")
    return name


class Whiteouts:
    """The whiteouts of one layer. `make_room(parent, base, path)` removes what stands at a path.

    inodes: how many whiteout devices were made; opaque_root: the root itself is opaque
    """

    def __init__(self, tree: Tree, *, overlay: bool, make_room: Callable[[int, bytes, bytes], None]) -> None:
        self._tree = tree
        self._overlay = overlay
        self._make_room = make_room
        self._own: set[bytes] = set()  # PLAIN: what this layer has put there, and the directories above it
        self._hidden: set[bytes] = set()  # OVERLAY: devices standing where this layer may yet put something
        self._opaque: set[bytes] = set()
        self.opaque_root = False
        self.inodes = 0

    def hides(self, path: bytes) -> bool:
        """Tell whether a whiteout stands at `path`."""
        return path in self._hidden

    # --- entries of the layer itself

    def uncover(self, above: bytes) -> None:
        """Before something is put below `above`: a whiteout there becomes an opaque directory."""
        if not self._hidden:
            return
        parts = above.split(b"/")
        for depth in range(1, len(parts) + 1):
            path = b"/".join(parts[:depth])
            if path in self._hidden:
                self._hidden.discard(path)
                os.unlink(parts[depth - 1], dir_fd=self._tree.directory(b"/".join(parts[: depth - 1])))
                self._tree.directory(path)
                self._opaque.add(path)

    def placed(self, path: bytes, *, directory: bool) -> None:
        """After something was put at `path`."""
        if not self._overlay:
            while path and path not in self._own:
                self._own.add(path)
                path = path.rpartition(b"/")[0]
        elif self._hidden and path in self._hidden:
            self._hidden.discard(path)
            if directory:
                self._opaque.add(path)

    # --- entries that are whiteouts

    def add(self, above: bytes, base: bytes) -> None:
        """Take the whiteout `base` in the directory `above`; InvalidParameter for one of `.` or `..`."""
        if base == OPAQUE:
            self._opaque_directory(above)
            return
        name = hidden_name(above, base)
        if name is None:
            return
        path = above + b"/" + name if above else name
        self.uncover(above)
        try:
            self._hide(self._tree.directory(above), name, path)
        except OSError as error:
            raise named(error, path) from error

    def _hide(self, parent: int, name: bytes, path: bytes) -> None:
        if self._overlay:
            try:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
                self._hidden.add(path)
                self.inodes += 1
            except FileExistsError:
                if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                    self._opaque.add(path)
        elif path in self._own:
            self._prune(path)
        else:
            try:
                self._make_room(parent, name, path)
            except FileNotFoundError:
                pass  # nothing to hide

    def _opaque_directory(self, path: bytes) -> None:
        self.uncover(path)
        fd = self._tree.directory(path)
        if not self._overlay:
            self._prune(path)
        elif not path:
            self.opaque_root = True
        else:
            os.setxattr(fd, OPAQUE_XATTR, b"y")
            self._opaque.add(path)

    def _prune(self, path: bytes) -> None:
        """PLAIN: remove from the directory `path` what this layer has not put there itself."""
        try:
            fd = self._tree.directory(path, make=False)
        except (FileNotFoundError, InvalidParameter):
            return  # this layer has made something else of it
        for name in map(os.fsencode, os.listdir(fd)):
            child = path + b"/" + name if path else name
            if child not in self._own:
                self._make_room(self._tree.directory(path), name, child)
            elif stat.S_ISDIR(os.lstat(name, dir_fd=self._tree.directory(path)).st_mode):
                self._prune(child)

    def finish(self) -> set[bytes]:
        """Mark the opaque directories that are still there; return them."""
        marked = set()
        for path in self._opaque:
            try:
                os.setxattr(self._tree.directory(path, make=False), OPAQUE_XATTR, b"y")
            except (FileNotFoundError, InvalidParameter):
                continue  # replaced by something else since
            self._tree.implicit.discard(path)  # hidden below, so there is nothing to inherit from
            marked.add(path)
        return marked
