"""Where images came from: the repositories that a target was pulled from, or pushed to.

Records of kind `image-source`, key: a target's digest, document: a JSON list of canonical repository names
(`docker.io/library/busybox`). What they say is known from a registry; giving an image another name changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Set

import msgspec

from dray.base.records import Change, Records

_KIND = "image-source"
_encode = msgspec.json.Encoder().encode
_names = msgspec.json.Decoder(tuple[str, ...])


class Sources:
    """All that is known of where images came from. Thread-safe."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = threading.Lock()
        self._found = {key: _names.decode(value) for key, value in records.scan(_KIND)}

    def of(self, digest: str) -> tuple[str, ...]:
        """Return the repositories of a target, in the order in which they were met."""
        return self._found.get(digest, ())

    def add(self, digest: str, repository: str) -> None:
        """Remember that a repository has a target."""
        with self._lock:
            known = self._found.get(digest, ())
            if repository not in known:
                self._records.write([Change(_KIND, digest, _encode((*known, repository)))])
                self._found[digest] = (*known, repository)

    def forget(self, present: Set[str]) -> None:
        """Forget all but these targets."""
        with self._lock:
            gone = self._found.keys() - present
            if gone:
                self._records.write([Change(_KIND, digest, None) for digest in gone])
                self._found = {digest: names for digest, names in self._found.items() if digest not in gone}
