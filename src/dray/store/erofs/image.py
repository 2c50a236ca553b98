"""Write a layer's image: the file that holds the tar (or stands beside it) gets its index behind what it has.

    0 ─ 4095       superblock, and the device table (byte 2048) if the tar is another file
    4096 ─         the tar, as it came (if it is not another file)
    behind it      copies: pieces of files with holes that do not lie as the index needs them, files of lower layers
    behind them    inodes, the root first, those of one directory together; then directories

Invariant: every address of data lies within the tar or the copies (`Space.checked`): whatever a tar says, a file of
the layer shows nothing but bytes of that layer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dray.base.errors import InvalidParameter
from dray.store.erofs import ondisk
from dray.store.erofs.nodes import CHUNKS, Node, Nodes
from dray.store.layers.stream import Budget

DATA_AT = 4096
_DEVICE_TABLE_AT = 2048
_OTHER = 1 << 31  # the first address of a tar that is another file
_SMALLEST = 12  # bits of the smallest chunk
_PIECE = 1 << 20


class Space:
    """The file being written, where the tar lies, and the copies made behind it.

    file: open for reading and writing; tar: where the tar is read from (a descriptor), from byte `start` on; `length` is
    its end, counted from there; `origin`: the address of its first block
    """

    def __init__(self, file: int, *, tar: int = -1, budget: Budget) -> None:
        self.file = file
        self.own = tar < 0
        self.tar = file if self.own else tar
        self.start = DATA_AT if self.own else 0
        self.origin = DATA_AT // ondisk.BLOCK if self.own else _OTHER
        self.length = 0
        self.end = DATA_AT  # where the next copy goes
        self._budget = budget
        self._copied = 0

    def stored(self, length: int) -> None:
        """The tar is there, `length` bytes."""
        self.length = length
        if self.own:
            self.end = _up(DATA_AT + length, ondisk.BLOCK)

    def checked(self, position: int, size: int) -> int:
        """Return the address of `size` bytes of the tar; InvalidParameter unless they lie within it."""
        last = self.origin + _up(position + size, ondisk.BLOCK) // ondisk.BLOCK
        if position < 0 or size < 0 or position + size > self.length or position % ondisk.BLOCK:
            raise InvalidParameter("damaged layer: a file's data lies outside the tar")
        if last > ondisk.LAST_BLOCK:
            raise InvalidParameter("layer too large for storage driver erofs: use --storage-driver overlay2")
        return self.origin + position // ondisk.BLOCK

    def room(self, size: int) -> int:
        """Make room for a copy of `size` bytes, zeros so far; return its byte in the file, at a block's start."""
        at = self.end
        self._copied += size
        self._budget.write(self.length + self._copied)
        self.end = _up(at + size, ondisk.BLOCK)
        if self.end // ondisk.BLOCK >= (ondisk.LAST_BLOCK if self.own else _OTHER):
            raise InvalidParameter("layer too large for storage driver erofs: use --storage-driver overlay2")
        os.ftruncate(self.file, self.end)
        return at


class _Chunks(NamedTuple):
    """A file with holes: bits of a chunk's size, the address of each chunk."""

    bits: int
    addresses: list[int]


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def copy_between(source: int, at: int, target: int, to: int, size: int) -> None:
    """Copy `size` bytes from byte `at` of one file to byte `to` of another."""
    while size:
        data = os.pread(source, min(size, _PIECE), at)
        if not data:
            raise InvalidParameter("unexpected EOF: the tar ends inside a file")
        written = os.pwrite(target, data, to)
        at, to, size = at + written, to + written, size - written


def _chunked(space: Space, node: Node) -> _Chunks:
    """Lay out a file with holes: chunks that lie as they must in the tar stay there, the others are copied."""
    bits = max(_SMALLEST, (max(node.size, 1) - 1).bit_length() - CHUNKS.bit_length() + 1)
    size = 1 << bits
    addresses = [ondisk.NOWHERE] * (_up(node.size, size) >> bits)
    copies: dict[int, int] = {}
    position = node.data
    for offset, length in node.pieces or ():
        for number in range(offset >> bits, (offset + length - 1 >> bits) + 1):
            first, last = max(offset, number << bits), min(offset + length, (number + 1) << bits, node.size)
            where = position + first - offset
            whole = first == number << bits and last == min((number + 1) << bits, node.size)
            if whole and where % ondisk.BLOCK == 0:
                addresses[number] = space.checked(where, last - first)
                continue
            if number not in copies:
                copies[number] = space.room(min(size, node.size - (number << bits)))
                addresses[number] = copies[number] // ondisk.BLOCK
            space.checked(where // ondisk.BLOCK * ondisk.BLOCK, last - first + where % ondisk.BLOCK)
            copy_between(
                space.tar, space.start + where, space.file, copies[number] + first - (number << bits), last - first
            )
        position += length
    return _Chunks(bits - ondisk.BLOCK_BITS, addresses)


class Image:
    """Lays out one tree behind what `space` holds, and writes it. `inodes` and `size` are what `Usage` counts."""

    def __init__(self, space: Space, nodes: Nodes) -> None:
        self._space = space
        self._nodes = nodes
        self._order = list(_inodes(nodes.root))
        self._chunks: dict[Node, _Chunks] = {}
        self.inodes = len(self._order) - 1
        self.size = sum(node.size for node in self._order)

    def write(self) -> None:
        """Write it; afterwards `Node.at` is the byte of each inode in the file."""
        for node in self._order:
            if node.pieces is not None:
                self._chunks[node] = _chunked(self._space, node)
        metadata = self._space.end
        places, length = self._place()
        blocks = metadata // ondisk.BLOCK + _up(length, ondisk.BLOCK) // ondisk.BLOCK
        content = bytearray(_up(length, ondisk.BLOCK))
        further: list[bytes] = []
        for number, node in enumerate(self._order, 1):
            data, size = self._content(node, places)
            where = self._address(node, blocks)
            if data:
                further.append(data + bytes(-len(data) % ondisk.BLOCK))
                blocks += len(further[-1]) // ondisk.BLOCK
            at = places[node]
            encoded = self._encode(node, number, size, where, inline=bool(node.target) and not data)
            content[at : at + len(encoded)] = encoded
            node.at = metadata + at
        if blocks >= (ondisk.LAST_BLOCK if self._space.own else _OTHER):
            raise InvalidParameter("layer too large for storage driver erofs: use --storage-driver overlay2")
        _write_all(self._space.file, metadata, [content, *further])
        self._write_head(metadata // ondisk.BLOCK, blocks)

    def _write_head(self, metadata: int, blocks: int) -> None:
        space = self._space
        if not space.own:
            tar = _up(space.length, ondisk.BLOCK) // ondisk.BLOCK
            os.pwrite(space.file, ondisk.device(blocks=tar, address=_OTHER), _DEVICE_TABLE_AT)
        head = ondisk.superblock(
            inodes=len(self._order), blocks=blocks, metadata=metadata, root=_FIRST // ondisk.SLOT,
            devices=0 if space.own else 1, device_table=0 if space.own else _DEVICE_TABLE_AT,
        )  # fmt: skip
        os.pwrite(space.file, head, ondisk.SUPERBLOCK_AT)

    def _place(self) -> tuple[dict[Node, int], int]:
        """Return where each inode goes, in bytes from the start of the metadata, and the length of them all."""
        places: dict[Node, int] = {}
        at = _FIRST
        for node in self._order:
            length = ondisk.INODE
            if node.xattrs or node.opaque:
                length += len(_attributes(node))
            if _is_inline(node, length):
                length += len(node.target)
                if at % ondisk.BLOCK + length > ondisk.BLOCK:  # it must not cross a block's end
                    at = _up(at, ondisk.BLOCK)
            elif node in self._chunks:
                length += 4 * len(self._chunks[node].addresses)
            places[node] = at
            at = _up(at + length, ondisk.SLOT)
        return places, at

    def _content(self, node: Node, places: dict[Node, int]) -> tuple[bytes, int]:
        """Return what lies outside the inode and the tar, and the inode's size."""
        if node.children is not None:
            assert node.parent is not None
            entries = [(name, places[child] // ondisk.SLOT, child.mode) for name, child in node.children.items()]
            entries.append((b".", places[node] // ondisk.SLOT, node.mode))
            entries.append((b"..", places[node.parent] // ondisk.SLOT, node.parent.mode))
            entries.sort()
            return ondisk.directory(entries)
        if node.target:
            inline = _is_inline(node, ondisk.INODE + len(_attributes(node)))
            return b"" if inline else node.target, len(node.target)
        return b"", node.size

    def _address(self, node: Node, blocks: int) -> int:
        """Return what the inode says of where its data is; `blocks` is where the next directory goes."""
        kind = stat.S_IFMT(node.mode)
        if kind in (stat.S_IFDIR, stat.S_IFLNK):
            return blocks
        if kind != stat.S_IFREG:
            return ondisk.device_number(*node.device)
        if node in self._chunks:
            return self._chunks[node].bits
        if not node.size:
            return ondisk.NOWHERE
        if node.copy:
            return node.copy // ondisk.BLOCK
        return self._space.checked(node.data, node.size)

    def _encode(self, node: Node, number: int, size: int, where: int, *, inline: bool) -> bytes:
        attributes = _attributes(node)
        layout = ondisk.CHUNKED if node in self._chunks else ondisk.INLINE if inline else ondisk.FLAT
        links = node.links
        if node.children is not None:
            links = 2 + sum(child.children is not None for child in node.children.values())
        head = ondisk.inode(
            layout=layout, mode=node.mode, size=size, where=where, number=number, uid=node.uid, gid=node.gid,
            mtime=node.mtime, links=links, attributes=len(attributes),
        )  # fmt: skip
        tail = b""
        if inline:
            tail = node.target
        elif node in self._chunks:
            tail = b"".join(address.to_bytes(4, "little") for address in self._chunks[node].addresses)
        return head + attributes + tail


_FIRST = 2 * ondisk.SLOT  # the root: an inode's number is never 0


def _attributes(node: Node) -> bytes:
    if not node.opaque:
        return ondisk.xattrs(node.xattrs) if node.xattrs else b""
    return ondisk.xattrs({**(node.xattrs or {}), b"trusted.overlay.opaque": b"y"})


def _is_inline(node: Node, head: int) -> bool:
    return bool(node.target) and head + len(node.target) <= ondisk.BLOCK


def _inodes(root: Node) -> Iterator[Node]:
    """Yield every inode once: the root, then directory by directory what is in it, sorted."""
    yield root
    waiting = [root]
    names: dict[Node, int] = {}  # of files with several, as far as they are still in the tree
    while waiting:
        children = waiting.pop().children or {}
        below = []
        for name in sorted(children):
            child = children[name]
            if child.links > 1 and child.children is None:
                names[child] = names.get(child, 0) + 1
                if names[child] > 1:
                    continue
            yield child
            if child.children is not None:
                below.append(child)
        waiting += below[::-1]
    for node, links in names.items():
        node.links = links


def _write_all(file: int, at: int, parts: Sequence[bytes | bytearray]) -> None:
    data = memoryview(b"".join(parts))
    while data:
        written = os.pwrite(file, data[:_WRITE], at)
        data, at = data[written:], at + written


_WRITE = 8 << 20
