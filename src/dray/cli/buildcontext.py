"""The build context as a tar stream, made while it is sent: never whole in memory or on disk."""

from __future__ import annotations

import io
import os
import tarfile

from dray.base.errors import InvalidParameter
from dray.cli.ignorefile import Matcher, read_patterns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class TarStream:
    """A tar archive of files, read piece by piece; `read` makes it a request body."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = bytearray()
        self.sent = 0

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""
        while len(self._buffer) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._buffer += piece
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self.sent += len(data)
        return data


_CHUNK = 1 << 20
_BLOCK = tarfile.BLOCKSIZE


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def tar_pieces(
    entries: Iterator[tuple[str, str]], extra: dict[str, bytes] | None = None, *, own: bool = True
) -> Iterator[bytes]:
    """Yield a tar archive of (path on disk, name in the archive) pairs and of `extra` files.

    With `own` False owners are left at 0, as a build context has them. A file that is gone when its turn comes is
    left out; one that becomes shorter while it is read is an error.
    """
    with tarfile.TarFile(fileobj=io.BytesIO(), mode="w") as describer:
        for path, name in entries:
            try:
                member = describer.gettarinfo(path, arcname=name)
            except FileNotFoundError:
                continue
            if member is None:  # a socket
                continue
            # Whole seconds, as docker sends them: a fraction would cost every file a header of its own.
            member.mtime = int(member.mtime)
            if not own:
                member.uid = member.gid = 0
                member.uname = member.gname = ""
            yield _header(member)
            if member.isreg():
                yield from _content(path, member)
    for name, data in (extra or {}).items():
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o600
        yield _header(member) + data + b"\0" * (-len(data) % _BLOCK)
    yield b"\0" * (2 * _BLOCK)


def _content(path: str, member: tarfile.TarInfo) -> Iterator[bytes]:
    left = member.size
    with open(path, "rb", buffering=0) as file:
        while left:
            data = file.read(min(left, _CHUNK))
            if not data:
                raise InvalidParameter(f"{path} became shorter while it was read")
            left -= len(data)
            yield data
    if padding := -member.size % _BLOCK:
        yield b"\0" * padding


def load_ignore(folder: str, dockerfile: str) -> list[str]:
    """Return the patterns of `<Dockerfile>.dockerignore` or `.dockerignore`."""
    for path in (os.path.join(folder, dockerfile + ".dockerignore"), os.path.join(folder, ".dockerignore")):
        try:
            with open(path, encoding="utf-8") as file:
                return read_patterns(file.read())
        except FileNotFoundError:
            continue
    return []


def context_entries(folder: str, patterns: list[str], keep: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the files of a build context; `keep` names what the daemon needs even if a pattern leaves it out."""
    matcher = Matcher([*patterns, *(f"!{name}" for name in keep if patterns)])

    def walk(relative: str) -> Iterator[tuple[str, str]]:
        with os.scandir(os.path.join(folder, relative)) as found:
            names = sorted(entry.name for entry in found)
        for name in names:
            path = f"{relative}/{name}" if relative else name
            ignored = matcher.ignores(path)
            full = os.path.join(folder, path)
            is_dir = os.path.isdir(full) and not os.path.islink(full)
            if not ignored:
                yield full, path
            if is_dir and (not ignored or matcher.has_exceptions):
                yield from walk(path)

    return walk("")
