"""Unpack a stranger's tar into a directory of a file system that is in use (`docker cp`, `PUT …/archive`).

Unlike a layer it has no whiteouts: `.wh.x` is a file like any other. Names are resolved from the root of the file
system, as a process in a chroot there would (`tree`), so that links of the container lead where they lead for its
own programs, and never out; a name, a hard link or a relative symbolic link of the tar that would leave the
destination is refused (moby `pkg/archive`). Device nodes and set-user-id bits are kept, as dockerd keeps them: what
they allow in a container is for its device cgroup and `no-new-privileges` to say.

The file system may be a running container's, whose processes swap directories for links while we write: every step
goes through a descriptor and follows nothing but the openat2(2) resolution of the directory above (CVE-2018-15664).
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable

from dray.base.errors import InvalidParameter
from dray.base.files import owned_fd
from dray.linux import mounts
from dray.linux.usernamespaces import IdMap
from dray.store.layers.extract import Extractor
from dray.store.layers.headers import DIRECTORY, LINK, SYMLINK, Entry, TarReader
from dray.store.layers.stream import Budget, Decompressed, ForwardReader, Readable
from dray.store.layers.tree import Tree, clean

Guard = Callable[[int], None]


class GuardedTree(Tree):
    """A tree each of whose directories is shown to `guard` before it is used; it raises to refuse one."""

    def __init__(self, root: int, guard: Guard) -> None:
        super().__init__(root)
        self._guard = guard

    def keep(self, path: bytes, fd: int) -> None:
        """See `Tree.keep`."""
        try:
            self._guard(fd)
        except BaseException:
            os.close(fd)
            raise
        super().keep(path, fd)


class CopyIn(Extractor):
    """Applies one tar to the directory `base` of a tree.

    owner: (uid, gid) of everything that is unpacked, None for what the tar says
    keep_kinds: refuse to replace a directory by something else, or the reverse
    own_root: the directory takes the attributes of the tar's entry for its root, `./`
    maps: the tree is that of a user namespace with these maps; owners of the tar, and `owner`, are ids inside
    """

    def __init__(
        self,
        tree: Tree,
        base: bytes,
        *,
        budget: Budget,
        owner: tuple[int, int] | None,
        keep_kinds: bool,
        own_root: bool,
        maps: IdMap | None,
    ) -> None:
        super().__init__(tree, overlay=False, budget=budget)
        self._base = base
        self._owner = owner
        self._keep_kinds = keep_kinds
        self._own_root = own_root
        self._maps = maps

    def _entry(self, entry: Entry) -> None:
        inside = self._inside(entry.name)
        path = self._placed(inside)
        if self._owner is not None:
            entry.uid, entry.gid = self._owner
        if self._maps is not None:
            entry.uid, entry.gid = self._maps.outside(entry.uid, entry.gid)
        if entry.type == LINK:
            entry.linkname = self._hard_link(entry, path)
        elif entry.type == SYMLINK:
            self._check_symlink(entry, path)
        if not inside:
            if entry.type != DIRECTORY:
                raise InvalidParameter("the archive replaces the directory it is unpacked into")
            if self._own_root:
                self._root(entry)
            return
        above, _, base = path.rpartition(b"/")
        parent = self._tree.directory(above)
        if self._keep_kinds:
            self._check_kind(entry, parent, base, path)
        self._make(entry, path, parent, base)

    def _make_room(self, parent: int, base: bytes, path: bytes) -> None:
        """Remove what stands there, unless something is mounted there or below: OSError EBUSY.

        The kernel itself would refuse that only to a process in the container's own mount namespace; to others it
        takes the mount away, and what is mounted below a directory would be emptied with it.
        """
        _refuse_mounts(parent, base, mounts.mount_id(parent))
        super()._make_room(parent, base, path)

    def _inside(self, name: bytes) -> bytes:
        try:
            return clean(name)
        except InvalidParameter:
            if b".." not in name:
                raise
            raise InvalidParameter(f'"{os.fsdecode(name)}" is outside of "{self._shown(b"")}"') from None

    def _placed(self, inside: bytes) -> bytes:
        return b"/".join(filter(None, (self._base, inside)))

    def _shown(self, path: bytes) -> str:
        return "/" + os.fsdecode(path or self._base)

    def _hard_link(self, entry: Entry, path: bytes) -> bytes:
        """Return the target's path from the root; the tar names it from the destination."""
        try:
            return self._placed(clean(entry.linkname))
        except InvalidParameter:
            link = os.fsdecode(entry.linkname)
            raise InvalidParameter(f'invalid hardlink "{self._shown(path)}" -> "{link}"') from None

    def _check_symlink(self, entry: Entry, path: bytes) -> None:
        target = os.fsdecode(entry.linkname)
        if target.startswith("/"):
            return
        lead = posixpath.normpath(posixpath.join(posixpath.dirname(self._shown(path)), target))
        if self._base and not f"{lead}/".startswith(f"{self._shown(b'')}/"):
            raise InvalidParameter(f'invalid symlink "{self._shown(path)}" -> "{target}"')

    def _check_kind(self, entry: Entry, parent: int, base: bytes, path: bytes) -> None:
        try:
            is_directory = stat.S_ISDIR(os.lstat(base, dir_fd=parent).st_mode)
        except FileNotFoundError:
            return
        shown = self._shown(path)
        if is_directory and entry.type != DIRECTORY:
            raise InvalidParameter(f'cannot overwrite directory "{shown}" with non-directory "{self._shown(b"")}"')
        if not is_directory and entry.type == DIRECTORY:
            raise InvalidParameter(f'cannot overwrite non-directory "{shown}" with directory "{self._shown(b"")}"')


def _refuse_mounts(parent: int, base: bytes, mount: int) -> None:
    fd = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if mounts.mount_id(fd) != mount:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), os.fsdecode(base))
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            with owned_fd(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)) as below:
                for name in os.listdir(below):
                    _refuse_mounts(below, os.fsencode(name), mount)
    finally:
        os.close(fd)


def copy_in(
    stream: Readable,
    root: int,
    base: bytes,
    *,
    guard: Guard,
    owner: tuple[int, int] | None = None,
    keep_kinds: bool = False,
    own_root: bool = False,
    maps: IdMap | None = None,
) -> None:
    """Unpack `stream` (plain, gzip, bzip2, xz or zstd) into the directory `base` of the file system `root`.

    maps: see `CopyIn`; the calling thread must be `acting_as` their root

    InvalidParameter for a hostile or damaged tar, Unavailable when the disk is full. What was unpacked before an
    error stays, as with any tar program.
    """
    tree = GuardedTree(root, guard)
    try:
        destination = tree.directory(base, make=False)
        budget = Budget(f"/proc/self/fd/{destination}")
        extractor = CopyIn(
            tree, base, budget=budget, owner=owner, keep_kinds=keep_kinds, own_root=own_root, maps=maps
        )
        chunks = Decompressed(stream, budget, hashed=False)
    except BaseException:
        tree.close()
        raise
    try:
        reader = ForwardReader(iter(chunks))
        extractor.apply(TarReader(reader))
        reader.drain()
    except RecursionError:
        raise InvalidParameter("a directory that the archive replaces is nested too deeply") from None
    finally:
        chunks.close()
