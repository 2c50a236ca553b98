"""Tar headers: ustar, PAX and GNU, as a stream of `Entry`.

Sources: POSIX.1-2017 `pax`, the GNU tar manual ("Basic Tar Format", "Storing Sparse Files"). Understood: PAX
records of extended and global headers (path, linkpath, size, uid, gid, mtime, SCHILY.xattr.*, GNU.sparse.* in
versions 0.0, 0.1 and 1.0), GNU long names and links, old GNU sparse maps, base-256 numbers, v7 directories.

The reader trusts nothing: numbers must be well formed, sizes are bounded before memory is taken, and a stream that
ends inside an entry is an error. An archive may end without the two zero blocks, as many writers leave them out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from dray.base.errors import InvalidParameter
from dray.store.layers.stream import ForwardReader

BLOCK = 512
REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_ZEROS = bytes(BLOCK)
_BLANK_SUM = 8 * 0x20
_META_LIMIT = 1 << 20  # of one PAX header or long name, as in Go's archive/tar
_SPARSE_LIMIT = 1 << 20  # pieces of one sparse file
_XATTR = b"SCHILY.xattr."
_MAX_INT = (1 << 63) - 1


class Entry:
    """One member of an archive.

    name, linkname: bytes as stored
    type: REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY or FIFO
    mtime: nanoseconds since the epoch
    size: bytes of data that follow in the stream (for a sparse file after its map)
    sparse: [(offset, length)] of the pieces that `size` holds, or None; `real_size` is then the file's size
    xattrs: [(name, value)]
    """

    __slots__ = (
        "gid", "linkname", "major", "minor", "mode", "mtime", "name", "real_size", "size", "sparse", "type", "uid",
        "xattrs",
    )  # fmt: skip

    name: bytes
    linkname: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    major: int
    minor: int
    sparse: list[tuple[int, int]] | None
    real_size: int
    xattrs: list[tuple[bytes, bytes]] | None


def number(field: bytes) -> int:
    """Read a numeric field: octal digits, or base-256 when the first byte has its top bit set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        value &= (1 << (8 * len(field) - 1)) - 1
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        return value
    text = field.partition(b"\0")[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise InvalidParameter(f"damaged tar header: {field!r} is not a number") from None


def _decimal(key: bytes, text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise InvalidParameter(f"damaged PAX header: {key.decode(errors='replace')}={text[:32]!r} is not a number")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    """Read PAX time: decimal seconds, possibly negative, possibly with a fraction."""
    negative = text.startswith(b"-")
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 18 or (fraction and not fraction.isdigit()):
        raise InvalidParameter(f"damaged PAX header: {text[:32]!r} is not a time")
    value = int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0")
    return -value if negative else value


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Split a PAX header into its `length key=value\\n` records."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space]
        if space < 0 or not digits.isdigit():
            if not data[at:].strip(b"\0"):
                return
            raise InvalidParameter("damaged PAX header: a record does not start with its length")
        end = at + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= space or not equals or data[end - 1 : end] != b"\n":
            raise InvalidParameter("damaged PAX header: a record's length is wrong")
        yield key, value
        at = end


class _Pax:
    """The records that apply to the next entry; `sparse` collects version 0.0's repeated ones."""

    def __init__(self, inherited: dict[bytes, bytes]) -> None:
        self.values = dict(inherited)
        self.xattrs: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []

    def parse(self, data: bytes) -> None:
        for key, value in _records(data):
            if key.startswith(_XATTR):
                self.xattrs.append((key[len(_XATTR) :], value))
            elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                self.pieces.append(value)
            elif value:
                self.values[key] = value
            else:
                self.values.pop(key, None)


class TarReader:
    """Iterate over the entries of a tar. Read an entry's data from `source` (by `data` or not at all) before going
    on; what is left of it is skipped."""

    def __init__(self, source: ForwardReader) -> None:
        self.source = source
        self._global: dict[bytes, bytes] = {}
        self._end = 0  # where the current entry's data ends
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        source = self.source
        pax: _Pax | None = None
        long_name = long_link = None
        while True:
            if left := self._end - source.position + self._padding:
                self._skip(left)
            header = source.take(BLOCK)
            if len(header) < BLOCK or header == _ZEROS:
                if header and header != _ZEROS[: len(header)]:
                    raise InvalidParameter("unexpected EOF: the tar ends inside a header")
                if pax or long_name or long_link:
                    raise InvalidParameter("unexpected EOF: the tar ends after an extended header")
                return
            entry, flag = self._parse(header)
            if flag == b"x":
                pax = pax or _Pax(self._global)
                pax.parse(self._meta(entry.size))
            elif flag == b"g":
                shared = _Pax(self._global)
                shared.parse(self._meta(entry.size))
                self._global = shared.values
            elif flag == b"L":
                long_name = self._meta(entry.size).partition(b"\0")[0]
            elif flag == b"K":
                long_link = self._meta(entry.size).partition(b"\0")[0]
            elif flag == b"V":
                self._span(entry.size)  # a volume label
            else:
                if long_name is not None:
                    entry.name = long_name
                if long_link is not None:
                    entry.linkname = long_link
                if pax or self._global:
                    self._extend(entry, pax or _Pax(self._global))
                self._finish(entry, flag, header)
                pax = long_name = long_link = None
                yield entry

    # --- one header

    def _parse(self, header: bytes) -> tuple[Entry, bytes]:
        (
            name, mode, uid, gid, size, mtime, checksum, flag, linkname, magic, _, _, _, major, minor, prefix,
        ) = _HEADER.unpack(header)  # fmt: skip
        stored = number(checksum)
        plain = sum(header) - sum(checksum) + _BLANK_SUM
        if stored != plain and stored != _signed_sum(header, checksum):
            raise InvalidParameter("damaged tar: wrong checksum in a header (is it a tar at all?)")
        entry = Entry()
        entry.name = name.partition(b"\0")[0]
        entry.linkname = linkname.partition(b"\0")[0]
        if magic == b"ustar\0" and prefix[0]:
            entry.name = prefix.partition(b"\0")[0] + b"/" + entry.name
        entry.mode = number(mode)
        entry.uid, entry.gid = number(uid), number(gid)
        entry.size = number(size)
        entry.mtime = number(mtime) * 1_000_000_000
        entry.sparse, entry.xattrs, entry.real_size = None, None, 0
        entry.major = entry.minor = 0
        if flag in (CHAR, BLOCK_DEVICE):
            entry.major, entry.minor = number(major), number(minor)
        if not 0 <= entry.size <= _MAX_INT:
            raise InvalidParameter(f"damaged tar: entry of {entry.size} bytes")
        return entry, flag

    def _finish(self, entry: Entry, flag: bytes, header: bytes) -> None:
        if flag in (b"\0", b"7"):
            flag = DIRECTORY if flag == b"\0" and entry.name.endswith(b"/") else REGULAR
        if flag == b"S":
            flag = REGULAR
            self._span(entry.size)
            self._old_gnu_sparse(entry, header)
        elif flag not in (REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO):
            raise InvalidParameter(f"unhandled tar header type {flag!r} of {entry.name.decode(errors='replace')}")
        elif flag == REGULAR:
            self._span(entry.size)
            if entry.sparse is not None and not entry.sparse and entry.real_size < 0:
                self._sparse_1_0(entry)
        else:
            entry.size = 0  # header only, whatever the field says
            self._span(0)
        entry.type = flag
        if not (0 <= entry.uid <= 0xFFFFFFFE and 0 <= entry.gid <= 0xFFFFFFFE):
            raise InvalidParameter(
                f"{entry.name.decode(errors='replace')}: owner {entry.uid}:{entry.gid} out of range"
            )

    def _extend(self, entry: Entry, pax: _Pax) -> None:
        values = pax.values
        if (path := values.get(b"path")) is not None:
            entry.name = path
        if (link := values.get(b"linkpath")) is not None:
            entry.linkname = link
        for field in (b"size", b"uid", b"gid"):
            if (text := values.get(field)) is not None:
                setattr(entry, field.decode(), _decimal(field, text))
        if (mtime := values.get(b"mtime")) is not None:
            entry.mtime = _nanoseconds(mtime)
        entry.xattrs = pax.xattrs or None
        if pax.pieces or any(key.startswith(b"GNU.sparse.") for key in values):
            self._pax_sparse(entry, pax)

    # --- sparse files

    def _pax_sparse(self, entry: Entry, pax: _Pax) -> None:
        values = pax.values
        if (name := values.get(b"GNU.sparse.name")) is not None:
            entry.name = name
        size = values.get(b"GNU.sparse.realsize", values.get(b"GNU.sparse.size"))
        if values.get(b"GNU.sparse.major") == b"1":
            if size is None:
                raise InvalidParameter("damaged PAX header: a sparse file without its size")
            # The map comes first in the data; `_finish` reads it once the data's extent is known.
            entry.sparse, entry.real_size = [], -_decimal(b"GNU.sparse.realsize", size) - 1
            return
        numbers = pax.pieces
        if (mapped := values.get(b"GNU.sparse.map")) is not None:
            numbers = mapped.split(b",")
        if size is None:
            return
        if len(numbers) % 2 or len(numbers) > 2 * _SPARSE_LIMIT:
            raise InvalidParameter("damaged PAX header: odd sparse map")
        parsed = [_decimal(b"GNU.sparse", item) for item in numbers]
        entry.real_size = _decimal(b"GNU.sparse.size", size)
        entry.sparse = _checked(list(zip(parsed[::2], parsed[1::2], strict=True)), entry.real_size, entry.size)

    def _sparse_1_0(self, entry: Entry) -> None:
        entry.real_size = -entry.real_size - 1
        start = self.source.position
        text, at = b"", 0

        def line() -> int:
            nonlocal text, at
            while (end := text.find(b"\n", at)) < 0:
                read = self.source.position - start
                block = b"" if read >= min(entry.size, 48 * _SPARSE_LIMIT) else self.source.take(BLOCK)
                if not block or len(text) - at > 32:  # no number is that long
                    raise InvalidParameter("damaged sparse file: its map does not end")
                text, at = text[at:] + block, 0
            value, at = _decimal(b"GNU.sparse map", text[at:end]), end + 1
            return value

        count = line()
        if count > _SPARSE_LIMIT:
            raise InvalidParameter(f"sparse file of {count} pieces refused")
        pieces = [(line(), line()) for _ in range(count)]
        entry.size -= self.source.position - start
        entry.sparse = _checked(pieces, entry.real_size, entry.size)

    def _old_gnu_sparse(self, entry: Entry, header: bytes) -> None:
        entry.real_size = number(header[483:495])
        pieces = _old_pieces(header[386:482])
        more = header[482]
        while more:
            block = self.source.take(BLOCK)
            self._end += BLOCK
            if len(block) < BLOCK or len(pieces) > _SPARSE_LIMIT:
                raise InvalidParameter("damaged sparse file: its map does not end")
            pieces += _old_pieces(block[:504])
            more = block[504]
        entry.sparse = _checked(pieces, entry.real_size, entry.size)

    # --- data

    def _span(self, size: int) -> None:
        self._end = self.source.position + size
        self._padding = -size % BLOCK

    def _meta(self, size: int) -> bytes:
        if size > _META_LIMIT:
            raise InvalidParameter(f"tar header of {size} bytes refused: names and attributes are never that long")
        self._span(size)
        data = self.source.take(size)
        if len(data) < size:
            raise InvalidParameter("unexpected EOF: the tar ends inside a header")
        return data

    def _skip(self, size: int) -> None:
        missing = size - self.source.skip(size)
        if missing > self._padding:
            raise InvalidParameter("unexpected EOF: the tar ends inside a file")

    def data(self, entry: Entry) -> Iterator[memoryview]:
        """Yield the data of the current entry; InvalidParameter if the stream ends first."""
        got = 0
        for piece in self.source.pieces(entry.size):
            got += len(piece)
            yield piece
        if got < entry.size:
            raise InvalidParameter("unexpected EOF: the tar ends inside a file")


def _signed_sum(header: bytes, checksum: bytes) -> int:
    """The checksum as some old writers made it, over signed bytes."""
    negative = sum(1 for byte in header if byte >= 0x80) - sum(1 for byte in checksum if byte >= 0x80)
    return sum(header) - sum(checksum) + _BLANK_SUM - 256 * negative


def _old_pieces(area: bytes) -> list[tuple[int, int]]:
    pieces = []
    for at in range(0, len(area) - 23, 24):
        if not area[at]:
            break
        pieces.append((number(area[at : at + 12]), number(area[at + 12 : at + 24])))
    return pieces


def _checked(pieces: list[tuple[int, int]], real_size: int, stored: int) -> list[tuple[int, int]]:
    """Refuse a sparse map that overlaps, runs backwards, or does not match size and data."""
    at = total = 0
    for offset, length in pieces:
        if offset < at or length < 0 or offset + length > real_size:
            raise InvalidParameter("damaged sparse file: its map contradicts its size")
        at, total = offset + length, total + length
    if total != stored or not 0 <= real_size <= _MAX_INT:
        raise InvalidParameter("damaged sparse file: its map contradicts its data")
    return [piece for piece in pieces if piece[1]]
