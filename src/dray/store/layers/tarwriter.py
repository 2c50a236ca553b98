"""Writing tars, deterministically: the same tree gives the same bytes.

ustar headers; PAX records only for what does not fit (long or non-ASCII names, large numbers, xattrs). Times are
cut to whole seconds, users and groups are written by number alone, devices in the way of Docker's own layers, so
that diff ids do not depend on the host.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from dray.base.errors import Internal
from dray.linux.usernamespaces import IdMap
from dray.store.layers.headers import BLOCK, BLOCK_DEVICE, CHAR, DIRECTORY, FIFO, LINK, REGULAR, SYMLINK

END = bytes(2 * BLOCK)
_CHUNK = 1 << 20
_SKIPPED = ("trusted.overlay.", "user.overlay.", "security.selinux")  # belong to this host, not to the files
_OCTAL_MAX = {8: 0o7777777, 12: 0o77777777777}


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value) if 0 <= value <= _OCTAL_MAX[width] else b"%0*o\0" % (width - 1, 0)


def _record(key: bytes, value: bytes) -> bytes:
    """Encode one PAX record; its length counts its own digits."""
    body = b" " + key + b"=" + value + b"\n"
    size = len(body)
    while len(body) + len(b"%d" % size) != size:
        size = len(body) + len(b"%d" % size)
    return b"%d" % size + body


def _block(
    name: bytes,
    kind: bytes,
    numbers: tuple[int, int, int, int, int],
    *,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """Return one header block; `numbers` are mode, uid, gid, size, mtime."""
    fields = b"".join(_octal(value, width) for value, width in zip(numbers, (8, 8, 8, 12, 12), strict=True))
    devices = b"".join(_octal(value, 8) for value in device) if kind in (CHAR, BLOCK_DEVICE) else bytes(16)
    prefix = b""
    if len(name) > 100 and (cut := name.rfind(b"/", 0, 156)) > 0 and 0 < len(name) - cut - 1 <= 100:
        prefix, name = name[:cut], name[cut + 1 :]
    head = name[:100].ljust(100, b"\0") + fields
    tail = kind + link[:100].ljust(100, b"\0") + b"ustar\x0000" + bytes(64) + devices + prefix.ljust(167, b"\0")
    checksum = sum(head) + sum(tail) + 8 * 0x20
    return head + b"%06o\0 " % checksum + tail


def header(
    name: bytes,
    *,
    kind: bytes = REGULAR,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: dict[str, bytes] | None = None,
) -> bytes:
    """Return the header of an entry, PAX blocks included. `mtime` is in whole seconds."""
    pax: dict[bytes, bytes] = {}
    cut = name.rfind(b"/", 0, 156)
    fits = len(name) <= 100 or (cut > 0 and 0 < len(name) - cut - 1 <= 100)
    if not fits or not name.isascii():
        pax[b"path"] = name
    if len(link) > 100 or not link.isascii():
        pax[b"linkpath"] = link
    for key, value, width in ((b"size", size, 12), (b"uid", uid, 8), (b"gid", gid, 8), (b"mtime", mtime, 12)):
        if not 0 <= value <= _OCTAL_MAX[width]:
            pax[key] = b"%d" % value
    for attribute, content in (xattrs or {}).items():
        pax[b"SCHILY.xattr." + os.fsencode(attribute)] = content
    block = _block(name, kind, (mode, uid, gid, size, mtime), link=link, device=device)
    if not pax:
        return block
    data = b"".join(_record(key, pax[key]) for key in sorted(pax))
    base = name.rstrip(b"/").rpartition(b"/")[2][:80]
    extended = _block(b"PaxHeaders.0/" + base, b"x", (0o644, 0, 0, len(data), 0))
    return extended + data + padding(len(data)) + block


def padding(size: int) -> bytes:
    """Return what fills the last block of `size` bytes."""
    return bytes(-size % BLOCK)


def member(name: bytes, data: bytes, *, mode: int = 0o644, mtime: int = 0) -> bytes:
    """Return a small file as a whole member."""
    return header(name, mode=mode, size=len(data), mtime=mtime) + data + padding(len(data))


def whiteout(path: bytes) -> bytes:
    """Return the whiteout of `path` (image-spec layer.md)."""
    above, slash, base = path.rpartition(b"/")
    return header(above + slash + b".wh." + base, mode=0)


@dataclass(slots=True)
class TreeWriter:
    """Writes files of a tree; remembers inodes, so that the second name of a file is a hard link.

    maps: the files are those of a user namespace with these maps, and the tar gets the ids inside
    """

    maps: IdMap | None = None
    _inodes: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def entry(self, parent: int, base: bytes, name: bytes) -> Iterator[bytes]:
        """Yield the member for the file `base` in the directory `parent`, named `name` in the tar.

        The tree may belong to a running container: a file that vanishes meanwhile yields nothing, and what is read
        is the very file that was looked at, whatever has taken its name since.
        """
        try:
            file = os.open(base, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            return
        try:
            yield from self._member(file, parent, base, name)
        finally:
            os.close(file)

    def _member(self, file: int, parent: int, base: bytes, name: bytes) -> Iterator[bytes]:
        status = os.fstat(file)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return  # sockets have no form in a tar
        link, device = b"", (0, 0)
        if kind == DIRECTORY:
            name = name.rstrip(b"/") + b"/"
        elif status.st_nlink > 1:
            first = self._inodes.setdefault((status.st_dev, status.st_ino), name)
            if first is not name:
                kind, link = LINK, first
        if kind == SYMLINK:
            link = os.readlink(b"", dir_fd=file)
        if kind in (CHAR, BLOCK_DEVICE):
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        size = status.st_size if kind == REGULAR else 0
        uid, gid = status.st_uid, status.st_gid
        if self.maps is not None:
            uid, gid = self.maps.inside(uid, gid)
        yield header(
            name,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=uid,
            gid=gid,
            size=size,
            mtime=status.st_mtime_ns // 1_000_000_000,
            link=link,
            device=device,
            xattrs=None if kind == LINK else self._xattrs(parent, base),
        )
        if size:
            yield from _content(file, base, size)

    def _xattrs(self, parent: int, base: bytes) -> dict[str, bytes]:
        path = b"/proc/self/fd/%d/%s" % (parent, base)
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError:
            return {}
        return {
            name: os.getxattr(path, name, follow_symlinks=False) for name in names if not name.startswith(_SKIPPED)
        }


_KINDS = {
    stat.S_IFREG: REGULAR,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHAR,
    stat.S_IFBLK: BLOCK_DEVICE,
    stat.S_IFIFO: FIFO,
}


def _content(file: int, base: bytes, size: int) -> Iterator[bytes]:
    fd = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        left = size
        while left:
            data = os.read(fd, min(left, _CHUNK))
            if not data:
                raise Internal(f"{os.fsdecode(base)} shrank while it was being written to a tar")
            left -= len(data)
            yield data
    finally:
        os.close(fd)
    yield padding(size)
