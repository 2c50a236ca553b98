"""From a recipe to its blob, and from a blob to its recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from dray.base import digest as digests
from dray.base.errors import DrayError, Unavailable
from dray.store.layers.stream import Budget, Decompressed, detect
from dray.store.recipes.encoders import PROBE, Encoding, encode, guess, version_of
from dray.store.recipes.tape import Damaged, TapeWriter, play, record

if TYPE_CHECKING:
    from dray.store.recipes.book import Book, Head, Tell

TRIALS = 5  # encodings that are tried on the whole
_MOST = 0.5  # of a blob's size: a recipe that is larger saves too little


class NotRebuilt(DrayError):
    """A blob cannot be made again, or not at a gain; the message says why."""


def stream(file: BinaryIO, head: Head, directory: Path, tell: Tell | None = None) -> Iterator[bytes]:
    """Yield the blob of a recipe whose tape begins where `file` stands.

    Damaged if the files are not what they were; Unavailable if they are and the blob is another one all the same:
    then the encoder is.
    """
    wanted, plain = digests.hasher(head.digest), digests.hasher(head.diff_id)
    size = 0

    def tapped() -> Iterator[bytes]:
        for data in play(file, directory):
            plain.update(data)
            yield data

    same = head.encoding.name == "none" and head.digest == head.diff_id
    for data in encode(head.encoding, play(file, directory) if same else tapped()):
        wanted.update(data)
        size += len(data)
        if tell:
            tell(size, head.size)
        yield data
    if size == head.size and wanted.hexdigest() == digests.parse(head.digest)[1]:
        return
    if same or plain.hexdigest() != digests.parse(head.diff_id)[1]:
        raise Damaged("its unpacked files were changed")
    raise Unavailable(
        f"content {head.digest} cannot be made again here: {head.encoding.name} {version_of(head.encoding.name)} "
        f"gives other bytes than {head.encoding.shown}, which was used when it was unpacked; install that, or remove "
        "the image and pull it again"
    )


class Recorder:
    """Writes one recipe: of the blob that `blob` opens, whose plain tar is unpacked in `directory`.

    `stopped` is asked now and then; it raises to end the work.
    """

    def __init__(
        self,
        book: Book,
        head: Head,
        blob: Callable[[], BinaryIO],
        directory: str | os.PathLike[str],
        stopped: Callable[[], None],
    ) -> None:
        self._book = book
        self._head = head
        self._blob = blob
        self._directory = Path(directory)
        self._stopped = stopped

    def record(self) -> Head:
        """Write the recipe, prove it, enter it in the book; NotRebuilt if that cannot be done."""
        reasons = []
        with self._book.draft() as tape:
            record(self._plain(), self._directory, TapeWriter(tape))
            if tape.tell() > self._head.size * _MOST:
                raise NotRebuilt("the files that it was unpacked to have too little of it")
            for encoding in self._guesses()[:TRIALS]:
                head = msgspec.structs.replace(self._head, encoding=encoding)
                tape.seek(0)
                try:
                    for _ in stream(tape, head, self._directory):
                        self._stopped()
                except (Damaged, Unavailable) as error:
                    reasons.append(error.message)
                    continue
                tape.seek(0)
                self._book.enter(tape, head)
                return head
        raise NotRebuilt(
            "its bytes come out differently" if reasons else "no encoder known here makes such a stream"
        )

    def _guesses(self) -> list[Encoding]:
        with self._blob() as blob:
            head = blob.read(PROBE + (64 << 10))
        plain, size = b"", 0
        wanted = None if detect(head) == "zstd" else PROBE  # a frame of zstd may begin with the size of it all
        for data in self._plain():
            size += len(data)
            plain += data[: PROBE - len(plain)]
            if wanted is not None and size > wanted:
                break
        return guess(head, plain, size)

    def _plain(self) -> Iterator[bytes]:
        """Yield the plain tar, checked against its digest at the end."""
        with self._blob() as blob:
            chunks = Decompressed(blob, Budget(self._directory), threaded=False)
            for data in chunks:
                self._stopped()
                yield data
            if chunks.digest != self._head.diff_id:
                raise NotRebuilt(f"it unpacks to {chunks.digest}, the image says {self._head.diff_id}")
