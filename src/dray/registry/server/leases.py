"""What the garbage collection must spare because somebody works with it.

A digest is leased when a client was told that its blob is here (HEAD, upload, mount) or sends a manifest that refers to
it; for `grace` seconds from then, and in any case until a collection that runs at that moment is over. A collection
removes a blob only under the digest's lock, after a last look at the leases; a client is told that a blob is here only
under the same lock. So no client is told of a blob that is on its way out.

Leases live in memory. What was leased before the start of the server is unknown, so a collection in the first `grace`
seconds of its life spares everything.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

_STRIPES = 64


class Leases:
    """Leases of digests. Thread-safe."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._began = time.monotonic()
        self._stripes = tuple(threading.Lock() for _ in range(_STRIPES))
        self._guard = threading.Lock()
        self._until: dict[str, float] = {}
        self._held: dict[str, int] = {}
        self._spared: set[str] | None = None

    def lock(self, digest: str) -> threading.Lock:
        """Return the lock under which a blob of that digest appears, is told of, and goes."""
        return self._stripes[int(digest[-2:], 16) % _STRIPES]

    def touch(self, digest: str) -> None:
        """Lease a digest from now on."""
        with self._guard:
            self._until[digest] = time.monotonic() + self.grace
            if self._spared is not None:
                self._spared.add(digest)

    @contextlib.contextmanager
    def hold(self, digests: set[str]) -> Iterator[None]:
        """Lease digests during a block, and for the grace period after it. A removal that had begun is over."""
        with self._guard:
            for digest in digests:
                self._held[digest] = self._held.get(digest, 0) + 1
                if self._spared is not None:
                    self._spared.add(digest)
        try:
            for digest in digests:
                with self.lock(digest):  # whoever removes has it since his last look at the leases
                    pass
            yield
        finally:
            until = time.monotonic() + self.grace
            with self._guard:
                for digest in digests:
                    self._held[digest] -= 1
                    if not self._held[digest]:
                        del self._held[digest]
                    self._until[digest] = until

    @contextlib.contextmanager
    def collection(self) -> Iterator[None]:
        """Spare during the block whatever is or was leased at any time since its beginning."""
        with self._guard:
            now = time.monotonic()
            self._until = {digest: until for digest, until in self._until.items() if until > now}
            self._spared = {*self._until, *self._held}
        try:
            yield
        finally:
            with self._guard:
                self._spared = None

    def remove(self, digest: str, action: Callable[[], bool]) -> bool:
        """Run `action`, which removes something of that digest, unless it is leased; tell whether it ran and removed
        anything. Only during a `collection`."""
        if time.monotonic() - self._began < self.grace:
            return False
        with self.lock(digest):
            with self._guard:
                if self._spared is None or digest in self._spared:
                    return False
            return action()
