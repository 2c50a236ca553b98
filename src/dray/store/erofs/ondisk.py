"""EROFS on disk, as far as it is written here (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h).

Little-endian throughout. An address is a number of blocks of 512 bytes, which is what a tar is aligned to, so that
a file's data can stay where it is in the tar (Linux 6.4). An inode's number says where it lies: in steps of 32 bytes
from the start of the metadata.

    superblock   128 bytes at 1024
    inode        64 bytes ("extended": 32-bit owners, 64-bit size, time with nanoseconds); behind it its attributes, and
                 then the target of a short link, or the addresses of the chunks of a file with holes
    directory    blocks of 12-byte entries, sorted by name over all blocks, `.` and `..` among them; behind the entries
                 of a block their names
"""

from __future__ import annotations

import stat
import struct

BLOCK = 512
BLOCK_BITS = 9
SUPERBLOCK_AT = 1024
INODE = 64
SLOT = 32  # an inode's number counts these
NOWHERE = 0xFFFFFFFF  # the address of a hole
LAST_BLOCK = NOWHERE - 1
DEVICE_SLOT = 128

FLAT, INLINE, CHUNKED = 0, 2, 4  # layouts of an inode's data
_MAGIC = 0xE0F5E1E2
_CHUNKED_FILES, _DEVICE_TABLE = 0x4, 0x8  # incompatible features
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_ENTRY = struct.Struct("<QHBB")
_DEVICE = struct.Struct("<64sII56x")
_TYPES = {
    stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFLNK: 7,
}  # fmt: skip
# attribute name → (its prefix's number, what is left of the name)
_PREFIXES = (
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
)
_WHOLE = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_XATTR_HEADER = 12


def superblock(
    *, inodes: int, blocks: int, metadata: int, root: int, devices: int = 0, device_table: int = 0
) -> bytes:
    """Return a superblock.

    blocks: of the file itself; metadata: the address of the inodes; root: the inode number of the root directory
    devices: further files that hold data, described from byte `device_table` on (a multiple of 128)
    """
    features = _CHUNKED_FILES | (_DEVICE_TABLE if devices else 0)
    return _SUPERBLOCK.pack(
        _MAGIC, 0, 0, BLOCK_BITS, 0, root, inodes, 0, 0, blocks, metadata, 0, bytes(16), bytes(16), features,
        0, devices, device_table // DEVICE_SLOT, 0, 0, 0, 0,
    )  # fmt: skip


def device(*, blocks: int, address: int) -> bytes:
    """Return a slot of the device table: a further file whose blocks have addresses from `address` on."""
    return _DEVICE.pack(b"", blocks, address)


def inode(
    *,
    layout: int,
    mode: int,
    size: int,
    where: int,
    number: int,
    uid: int,
    gid: int,
    mtime: int,
    links: int,
    attributes: int,
) -> bytes:
    """Return an inode.

    where: the address of its data, a device's number, or the format of its chunks; mtime: nanoseconds
    attributes: bytes of its attributes, see `xattrs`
    """
    count = (attributes - _XATTR_HEADER) // 4 + 1 if attributes else 0
    seconds, nanoseconds = divmod(mtime, 1_000_000_000)
    return _INODE.pack(
        1 | layout << 1, count, mode, 0, size, where, number & 0xFFFFFFFF, uid, gid, seconds, nanoseconds, links
    )  # fmt: skip


def changed(old: bytes, *, mode: int, uid: int, gid: int, mtime: int) -> bytes:
    """Return the inode `old` (64 bytes) with other attributes."""
    fields = list(_INODE.unpack(old))
    fields[2], fields[7], fields[8] = mode, uid, gid
    fields[9], fields[10] = divmod(mtime, 1_000_000_000)
    return _INODE.pack(*fields)


def device_number(major: int, minor: int) -> int:
    """Return a device's number as the kernel packs it into 32 bits (new_encode_dev)."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def xattr_index(name: bytes) -> tuple[int, bytes] | None:
    """Return (number of the name's prefix, the rest of the name); None where EROFS has no such attributes."""
    if name in _WHOLE:
        return _WHOLE[name], b""
    for prefix, number in _PREFIXES:
        if name.startswith(prefix):
            return number, name[len(prefix) :]
    return None


def xattrs(values: dict[bytes, bytes]) -> bytes:
    """Return an inode's attributes, of names that `xattr_index` knows; values of at most 65535 bytes."""
    if not values:
        return b""
    parts = [bytes(_XATTR_HEADER)]
    for name, value in sorted(values.items()):
        found = xattr_index(name)
        assert found is not None, name
        entry = bytes((len(found[1]), found[0])) + len(value).to_bytes(2, "little") + found[1] + value
        parts.append(entry + bytes(-len(entry) % 4))
    return b"".join(parts)


def directory(entries: list[tuple[bytes, int, int]]) -> tuple[bytes, int]:
    """Return (blocks, size) of a directory of (name, inode number, mode), `.` and `..` included, sorted by name."""
    blocks: list[bytes] = []
    size = start = used = 0
    for at, (name, _, _) in enumerate(entries):
        length = _ENTRY.size + len(name)
        if used + length > BLOCK:
            blocks.append(_directory_block(entries[start:at]))
            start, used = at, 0
        used += length
    blocks.append(_directory_block(entries[start:]))
    size = (len(blocks) - 1) * BLOCK + used
    return b"".join(blocks), size


def directory_blocks(names: list[bytes]) -> int:
    """Return how many blocks a directory of these names takes (see `directory`)."""
    count, used = 1, 0
    for name in names:
        length = _ENTRY.size + len(name)
        if used + length > BLOCK:
            count, used = count + 1, 0
        used += length
    return count


def _directory_block(entries: list[tuple[bytes, int, int]]) -> bytes:
    at = _ENTRY.size * len(entries)
    heads = []
    for name, number, mode in entries:
        heads.append(_ENTRY.pack(number, at, _TYPES[stat.S_IFMT(mode)], 0))
        at += len(name)
    return b"".join([*heads, *(name for name, _, _ in entries), bytes(BLOCK - at)])
