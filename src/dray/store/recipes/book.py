"""Recipes: blobs that are not on disk, but can be made again from their unpacked layers.

    <content>/recipes/sha256/<hex>    the digest is the blob's, 0600
        one line of JSON (`Head`), then the tape (see `tape`)
    <content>/recipes/*.tmp           being written; gone at the next start

A recipe gets its name after it was played once, and what came out had the digest of the blob that it stands for. It
is played into a file without a name, which only its readers keep: a crash leaves nothing behind, and nobody reads a
byte before the digest of all of them was right.

A recipe goes when its layer proves damaged: the blob then counts as missing, and a pull brings it back. A recipe whose
layer's directory is not there at start goes, too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
from msgspec import Struct

from dray.base import digest as digests
from dray.base import failpoints
from dray.base.errors import NotFound, Unavailable
from dray.base.files import sync_directory
from dray.base.malformed import MALFORMED
from dray.store.recipes.encoders import Encoding

log = logging.getLogger("dray.store")

# Told while a blob is being made: bytes so far, and in all.
Tell = Callable[[int, int], None]
_HEAD_LIMIT = 128 << 10


class Head(Struct, frozen=True):
    """What a recipe begins with.

    size: of the blob; diff_id: the digest of its plain tar; chain_id: the layer it is made from
    directory: of that layer's files, from the content store's folder
    """

    digest: str
    size: int
    diff_id: str
    chain_id: str
    directory: str
    encoding: Encoding


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Head).decode


class Made(io.FileIO):
    """A blob that was made, in a file without a name. Its book shares it while it is open."""

    lock = threading.RLock()  # of all books: nobody may take the descriptor while it is being closed

    def close(self) -> None:
        """Let go of the file."""
        with Made.lock:
            super().close()

    def again(self) -> BinaryIO | None:
        """Open the same file once more, from its beginning; None if it was just closed."""
        with Made.lock:
            return None if self.closed else cast("BinaryIO", Made(f"/proc/self/fd/{self.fileno()}", "rb"))


class Book:
    """The recipes of one content store at `root`. Thread-safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / "recipes" / "sha256"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._heads: dict[str, Head] = {}
        self._sizes: dict[str, int] = {}
        self._making: dict[str, threading.Lock] = {}
        self._made: weakref.WeakValueDictionary[str, Made] = weakref.WeakValueDictionary()
        for entry in list(os.scandir(self._folder.parent)):
            if entry.name.endswith(".tmp"):
                os.unlink(entry.path)
        for entry in list(os.scandir(self._folder)):
            self._adopt(Path(entry.path))

    def _adopt(self, path: Path) -> None:
        """Take up a recipe that was here before, if it can still be played."""
        try:
            with path.open("rb") as file:
                head = _decode(file.readline(_HEAD_LIMIT))
        except (OSError, *MALFORMED):
            head = None
        if head is None or head.digest != f"sha256:{path.name}" or not self.directory(head).is_dir():
            log.warning(
                "the layer that sha256:%s is made from is gone: the blob has to be pulled again", path.name
            )
            path.unlink()
            return
        self._heads[head.digest], self._sizes[head.digest] = head, path.stat().st_size

    # --- what there is

    def __contains__(self, digest: str) -> bool:
        return digest in self._heads

    def head(self, digest: str) -> Head | None:
        """Return a recipe's head, None if there is no recipe."""
        return self._heads.get(digest)

    def heads(self) -> list[Head]:
        """Return the heads of all recipes."""
        with self._lock:
            return list(self._heads.values())

    def taken(self, digest: str) -> int:
        """Return the bytes of a recipe's file, 0 if there is none."""
        return self._sizes.get(digest, 0)

    def directory(self, head: Head) -> Path:
        """Return where the files of a recipe's layer are."""
        return Path(os.path.normpath(self._root / head.directory))

    def relative(self, directory: str | os.PathLike[str]) -> str:
        """Return a layer's directory as `Head.directory` has it: a data root may be moved."""
        return os.path.relpath(directory, self._root)

    # --- writing

    @contextlib.contextmanager
    def draft(self) -> Iterator[BinaryIO]:
        """Give an unnamed file to write a tape to."""
        with tempfile.TemporaryFile(dir=self._folder.parent) as file:
            yield cast("BinaryIO", file)

    def enter(self, tape: BinaryIO, head: Head) -> None:
        """Name a recipe that was proved; `tape` is read from where it stands. It is on disk when this returns."""
        path, beside = self._path(head.digest), self._folder.parent / f"{secrets.token_hex(8)}.tmp"
        try:
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(_encode(head) + b"\n")
                shutil.copyfileobj(tape, file)
                file.flush()
                os.fdatasync(file.fileno())
            os.rename(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync_directory(self._folder)
        failpoints.reach("discard.recorded")
        with self._lock:
            self._heads[head.digest], self._sizes[head.digest] = head, os.stat(path).st_size

    def drop(self, digest: str) -> int:
        """Remove a recipe; return the bytes that it took, 0 if there was none."""
        with self._lock:
            if self._heads.pop(digest, None) is None:
                return 0
            size = self._sizes.pop(digest)
            self._path(digest).unlink(missing_ok=True)
            return size

    def _path(self, digest: str) -> Path:
        return self._folder / digests.parse(digest)[1]

    # --- playing

    def open(self, digest: str, tell: Tell | None = None) -> BinaryIO:
        """Make a blob and open it for unbuffered reading; whoever wants it at the same time gets the same file.

        NotFound if there is no recipe, or its layer proves damaged (the message names it); Unavailable if there is no
        space, or an encoder is missing.
        """
        with self._lock:
            making = self._making.setdefault(digest, threading.Lock())
        with making:
            made = self._made.get(digest)
            if made is not None and (file := made.again()) is not None:
                return file
            fresh = self._make(digest, tell)
            self._made[digest] = fresh
            return cast("BinaryIO", fresh)

    def _make(self, digest: str, tell: Tell | None) -> Made:
        try:
            fd, path = tempfile.mkstemp(dir=self._folder.parent, suffix=".tmp")
            os.unlink(path)
            made = Made(fd, "rb+")
            try:
                for data in self.stream(digest, tell):
                    view = memoryview(data)
                    while view:
                        view = view[made.write(view) :]
                made.seek(0)
            except BaseException:
                made.close()
                raise
        except OSError as error:
            raise Unavailable(f"content {digest} cannot be made from its unpacked layer: {error}") from error
        return made

    def stream(self, digest: str, tell: Tell | None = None) -> Iterator[bytes]:
        """Yield a blob as it is made; the errors of `open`, the last of them after the last byte."""
        from dray.store.recipes.playing import stream
        from dray.store.recipes.tape import Damaged

        head = self.head(digest)
        try:
            if head is None:
                raise FileNotFoundError
            with self._path(digest).open("rb") as file:
                file.readline(_HEAD_LIMIT)
                yield from stream(file, head, self.directory(head), tell)
        except FileNotFoundError:
            raise NotFound(f"content {digest}: not found") from None
        except Damaged as error:
            assert head is not None
            self.drop(digest)
            log.error("layer %s: %s: its blob %s is gone", head.chain_id, error, digest)
            raise NotFound(
                f"content {digest} cannot be made again from layer {head.chain_id}: {error}; pull the image again"
            ) from error
