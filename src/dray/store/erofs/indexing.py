"""One layer's blob into an image: decompress, verify, store, and index, in a single pass over the stream.

A tar that lies on the disk uncompressed and verified, on the same file system, is not written again: it gets another
name beside the image (a hard link), and the image holds its index alone.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from msgspec import field

from dray.linux import erofs
from dray.linux.trees import OVERLAY_XATTRS
from dray.store.erofs import ondisk
from dray.store.erofs.builder import Builder
from dray.store.erofs.image import DATA_AT, Image, Space, copy_between
from dray.store.erofs.nodes import Node, Nodes
from dray.store.layers.extract import Applied, NeedsLower
from dray.store.layers.headers import TarReader
from dray.store.layers.lower import LowerLayers, inherited
from dray.store.layers.stream import Budget, ForwardReader, detect
from dray.store.layers.unpack import consume
from dray.store.snapshots import LayerSource

IMAGE, TAR = "layer.erofs", "layer.tar"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Indexed(Applied):
    """What `Applied` says, and where in the image the inodes of its implicit directories are (bytes)."""

    slots: dict[bytes, int] = field(default_factory=dict)


class _Store:
    """Writes chunks to the image as they pass, as long as the tar goes on."""

    def __init__(self, space: Space, budget: Budget) -> None:
        self._space = space
        self._budget = budget
        self.ended = False

    def through(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        at = DATA_AT
        for data in chunks:
            if not self.ended:
                self._budget.write(at + len(data) - DATA_AT)
                view = memoryview(data)
                while view:
                    written = os.pwrite(self._space.file, view, at)
                    view, at = view[written:], at + written
            yield data


class _LowerFiles:
    """Files of lower layers, copied behind the tar once that is complete (`builder.LowerFiles`)."""

    def __init__(self, lower: LowerLayers) -> None:
        self._lower = lower
        self._wanted: list[tuple[Node, bytes]] = []

    def fetch(self, path: bytes) -> tuple[bytes, Node] | None:
        found = self._lower.find(path)
        if found is None:
            return None
        source, base, resolved = found
        try:
            status = os.lstat(base, dir_fd=source)
            node = Node(status.st_mode, status.st_uid, status.st_gid, max(status.st_mtime_ns, 0))
            if stat.S_ISLNK(status.st_mode):
                node.target = os.readlink(base, dir_fd=source)
            elif stat.S_ISREG(status.st_mode):
                node.size = status.st_size
                self._wanted.append((node, resolved))
            elif not stat.S_ISDIR(status.st_mode):
                node.device = os.major(status.st_rdev), os.minor(status.st_rdev)
            node.xattrs = attributes_of(b"/proc/self/fd/%d/%s" % (source, base)) or None
        finally:
            os.close(source)
        return resolved, node

    def copy(self, space: Space) -> None:
        """Copy them all."""
        for node, path in self._wanted:
            found = self._lower.find(path)
            assert found is not None, path
            source, base, _ = found
            try:
                file = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
            finally:
                os.close(source)
            try:
                node.copy = space.room(node.size)
                copy_between(file, 0, space.file, node.copy, node.size)
            finally:
                os.close(file)


def attributes_of(path: bytes) -> dict[bytes, bytes]:
    """Return the extended attributes of a file that EROFS can hold, without overlayfs's own; no link is followed."""
    found = {}
    for name in os.listxattr(path, follow_symlinks=False):
        key = os.fsencode(name)
        if not name.startswith(OVERLAY_XATTRS) and ondisk.xattr_index(key) is not None:
            found[key] = os.getxattr(path, name, follow_symlinks=False)
    return found


def index_layer(
    layer: LayerSource,
    directory: str | os.PathLike[str],
    *,
    lower: Sequence[str] | None = None,
    tell: Callable[[int], None] | None = None,
    budget: Budget | None = None,
) -> Indexed:
    """Make the image of `layer` in `directory`; `tell` hears how many bytes of the blob were read.

    lower: the directories below, highest first; with them everything that comes from them is in the image already
    (`implicit` is empty). Without, NeedsLower if a hard link leads there. InvalidParameter if the tar is hostile or
    damaged or is not what `diff_id` says. What was written by then is left for the caller to remove.
    """
    budget = budget or Budget(directory)
    with contextlib.ExitStack() as scope:
        file = os.open(f"{os.fspath(directory)}/{IMAGE}", _FLAGS, 0o600)
        scope.callback(os.close, file)
        files = None if lower is None else _LowerFiles(LowerLayers(lower))
        builder = Builder(budget, files)
        space = _link(layer, directory, file, builder, budget, tell) or _store(layer, file, builder, budget, tell)
        if not space.own:
            scope.callback(os.close, space.tar)
        os.ftruncate(file, space.end)
        if files is not None:
            files.copy(space)
            _inherit(builder.nodes, lower or ())
        image = Image(space, builder.nodes)
        image.write()
        return _result(builder, image)


Tell = Callable[[int], None] | None


def _store(layer: LayerSource, file: int, builder: Builder, budget: Budget, tell: Tell) -> Space:
    """Read a blob, its tar written to the image on the way."""
    space = Space(file, budget=budget)
    store = _Store(space, budget)

    def read(reader: ForwardReader) -> int:
        builder.read(TarReader(reader))
        store.ended = True
        return reader.position

    space.stored(consume(layer, budget, read, tell=tell, through=store.through))
    return space


def _link(
    layer: LayerSource,
    directory: str | os.PathLike[str],
    file: int,
    builder: Builder,
    budget: Budget,
    tell: Tell,
) -> Space | None:
    """Read the headers of a blob that is the tar itself, and give it a name beside the image; None if it is not, or
    lies elsewhere."""
    with layer.open() as blob:
        size = os.fstat(blob.fileno()).st_size
        # The kernel reads whole blocks, and there must be nothing of them missing.
        whole = size and size % ondisk.BLOCK == 0
        if not (layer.verified and whole and not detect(os.pread(blob.fileno(), 6, 0))):
            return None
        descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(
                str(blob.fileno()), f"{os.fspath(directory)}/{TAR}", src_dir_fd=descriptors, follow_symlinks=True
            )
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOENT):
                raise
            return None
        finally:
            os.close(descriptors)
        space = Space(
            file, tar=os.open(f"{os.fspath(directory)}/{TAR}", os.O_RDONLY | os.O_CLOEXEC), budget=budget
        )
        try:
            # Only the pages with headers are touched.
            reader = ForwardReader(iter([cast("bytes", mmap.mmap(space.tar, size, prot=mmap.PROT_READ))]))
            builder.read(TarReader(reader))
        except BaseException:
            os.close(space.tar)
            raise
    space.stored(reader.position)
    if tell:
        tell(size)
    return space


def _result(builder: Builder, image: Image) -> Indexed:
    result = Indexed(size=image.size, inodes=image.inodes, opaque_root=builder.opaque_root)
    for path, node, hidden in builder.nodes.walk():
        if node.opaque:
            result.opaque.add(path)
        if node.implicit and not hidden:
            result.implicit.add(path)
            result.slots[path] = node.at
    return result


def _inherit(nodes: Nodes, below: Sequence[str]) -> None:
    """Give implicit directories what the layers below say of them."""
    waiting = {path: node for path, node, hidden in nodes.walk() if node.implicit and not hidden}
    for path, fd in inherited(waiting, below):
        status, node = os.fstat(fd), waiting[path]
        node.mode, node.uid, node.gid, node.mtime = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
        )
        node.xattrs = attributes_of(b"/proc/self/fd/%d/." % fd) or None
    for node in waiting.values():
        node.implicit = False


def adopt(directory: str | os.PathLike[str], indexed: Indexed, below: Sequence[str]) -> None:
    """Give the implicit directories of an image the owner, mode and time that the layers below say.

    NeedsLower if one has extended attributes, for which the image has no room.
    """
    file = os.open(f"{os.fspath(directory)}/{IMAGE}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for path, fd in inherited(indexed.implicit, below):
            if attributes_of(b"/proc/self/fd/%d/." % fd):
                raise NeedsLower(os.fsdecode(path))
            status, at = os.fstat(fd), indexed.slots[path]
            old = os.pread(file, ondisk.INODE, at)
            new = ondisk.changed(
                old, mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, mtime=max(status.st_mtime_ns, 0)
            )
            os.pwrite(file, new, at)
    finally:
        os.close(file)


def mounted(directory: str | os.PathLike[str]) -> int:
    """Return a detached mount of the image in `directory`, the caller's to close."""
    tar = f"{os.fspath(directory)}/{TAR}"
    return erofs.mount(f"{os.fspath(directory)}/{IMAGE}", [tar] if os.path.exists(tar) else [])


def check_image(directory: str) -> int:
    """Write an image of an empty directory and mount it; the mount is the caller's to close. For a first trial."""
    file = os.open(f"{directory}/{IMAGE}", _FLAGS, 0o600)
    try:
        Image(Space(file, budget=Budget(directory, reserve=0)), Nodes(0)).write()
    finally:
        os.close(file)
    return mounted(directory)
