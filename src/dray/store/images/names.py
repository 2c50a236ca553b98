"""The names of images, in memory and in the records, and what a word of the user may mean.

A word is tried as a name first, then as an id or the beginning of one, as Docker does.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable

import msgspec

from dray.base import reference
from dray.base.errors import InvalidParameter, NotFound
from dray.base.patterns import pattern
from dray.base.records import Change, Records
from dray.base.reference import Reference
from dray.oci.image import Descriptor
from dray.store.images.model import DANGLING, NameRecord

_KIND = "image"
_ID = pattern(r"(?:sha256:)?([0-9a-f]{1,64})", re.ASCII)
_encode = msgspec.json.Encoder().encode
_record = msgspec.json.Decoder(NameRecord)


def no_such_image(word: str) -> NotFound:
    """Return the error whose words make a client pull."""
    return NotFound(f"No such image: {word}")


def is_id(word: str) -> bool:
    """Tell whether a word is a whole image id."""
    match = _ID.fullmatch(word)
    return match is not None and len(match[1]) == 64


class Names:
    """All names. Thread-safe; changes are atomic."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = threading.RLock()
        self._names = {key: _record.decode(value) for key, value in records.scan(_KIND)}
        self.generation = 0  # grows with every change

    def all(self) -> dict[str, NameRecord]:
        """Return every name, dangling ones included."""
        with self._lock:
            return dict(self._names)

    def of(self, digest: str) -> list[str]:
        """Return the names of a target, sorted."""
        with self._lock:
            return sorted(name for name, record in self._names.items() if record.target.digest == digest)

    def target(self, name: str) -> Descriptor | None:
        """Return what a canonical name stands for."""
        with self._lock:
            record = self._names.get(name)
        return record.target if record else None

    def targets(self) -> dict[str, Descriptor]:
        """Return every target by digest."""
        with self._lock:
            return {record.target.digest: record.target for record in self._names.values()}

    def tagged_at(self, digest: str) -> int:
        """Return when a target last got a name."""
        with self._lock:
            return max((r.updated for r in self._names.values() if r.target.digest == digest), default=0)

    # --- finding

    def find(self, word: str) -> tuple[Descriptor, str | None]:
        """Return (target, canonical name or None if it was found by id).

        NotFound in Docker's words, also for an ambiguous id; InvalidParameter if the word can be neither.
        """
        with self._lock:
            if is_id(word):
                return self._by_id(word, word), None
            try:
                parsed = reference.parse(word)
            except InvalidParameter:
                if _ID.fullmatch(word):
                    return self._by_id(word, word), None
                raise
            name = self._by_name(parsed)
            if name is not None:
                return self._names[name].target, name
            if _ID.fullmatch(word):
                return self._by_id(word, parsed.tagged().familiar), None
            raise no_such_image(parsed.tagged().familiar)

    def _by_id(self, word: str, shown: str) -> Descriptor:
        prefix = "sha256:" + word.removeprefix("sha256:")
        matches = {r.target.digest: r.target for r in self._names.values() if r.target.digest.startswith(prefix)}
        if not matches:
            raise no_such_image(shown)
        if len(matches) > 1:
            raise NotFound(f"ambiguous reference: {len(matches)} images have an id that begins with {word}")
        return next(iter(matches.values()))

    def _by_name(self, parsed: Reference) -> str | None:
        exact = parsed.tagged().canonical
        if exact in self._names:
            return exact
        if parsed.digest is None:
            return None
        # name@digest holds for whatever tag of that repository has the digest.
        for name, record in self._names.items():
            if record.target.digest == parsed.digest and name.startswith((parsed.name + ":", parsed.name + "@")):
                return name
        return None

    # --- changing

    def put(self, names: Iterable[str], target: Descriptor) -> list[str]:
        """Give `target` these canonical names (none: it becomes dangling, unless it has one).

        A name taken from another target leaves that one dangling if it was its last. Returns the names that are new
        or have moved.
        """
        with self._lock:
            now = time.time_ns()
            moved, changes = [], []
            after = dict(self._names)
            for name in names:
                old = after.get(name)
                after[name] = NameRecord(target, old.created if old else now, now)
                changes.append(Change(_KIND, name, _encode(after[name])))
                if old is None or old.target.digest != target.digest:
                    moved.append(name)
                if old and not any(r.target.digest == old.target.digest for r in after.values()):
                    changes.append(self._dangle(after, old.target, now))
            if not any(record.target.digest == target.digest for record in after.values()):
                changes.append(self._dangle(after, target, now))
            elif (spare := DANGLING + target.digest) in after and any(
                r.target.digest == target.digest and n != spare for n, r in after.items()
            ):
                del after[spare]
                changes.append(Change(_KIND, spare, None))
            self._apply(changes, after)
            return moved

    def _dangle(self, after: dict[str, NameRecord], target: Descriptor, now: int) -> Change:
        name = DANGLING + target.digest
        after[name] = NameRecord(target, now, now)
        return Change(_KIND, name, _encode(after[name]))

    def remove(self, names: Iterable[str], *, keep_image: bool = False) -> None:
        """Take names away; with `keep_image` a target that loses its last one becomes dangling."""
        with self._lock:
            now, changes = time.time_ns(), []
            after = dict(self._names)
            for name in names:
                record = after.pop(name, None)
                if record is None:
                    continue
                changes.append(Change(_KIND, name, None))
                if keep_image and not any(r.target.digest == record.target.digest for r in after.values()):
                    changes.append(self._dangle(after, record.target, now))
            self._apply(changes, after)

    def _apply(self, changes: list[Change], after: dict[str, NameRecord]) -> None:
        if changes:
            self._records.write(changes)
            self._names = after
            self.generation += 1
