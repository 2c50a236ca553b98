"""One download and those who wait for it (see `downloads`, which drives them)."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from msgspec import Struct, field

from dray.base.errors import Unavailable
from dray.oci.image import Descriptor
from dray.registry.model import Repository
from dray.store.content import Lease
from dray.store.partial import Partial
from dray.store.transfer.cancel import Cancellation

# Hears (status, bytes so far, bytes in all); called from worker threads, must be quick and not raise.
Watch = Callable[[str, int, int], None]

WAITING, FETCHING, VERIFYING, COMPLETE = "Waiting", "Downloading", "Verifying Checksum", "Download complete"
_PATIENCE = 0.2  # seconds between two looks at whether a waiting client has gone


class Unwritable(Unavailable):
    """The blob cannot be stored here; trying again at once is of no use."""


class Stopped(Exception):
    """The transfer was given up, or failed in another thread."""


class Transfer(Struct, eq=False):
    """One blob's download. Fields are changed under the lock of `Downloads`; events may be waited for without."""

    number: int
    descriptor: Descriptor
    partial: Partial
    pending: list[int]
    tickets: list[Ticket] = field(default_factory=list)
    running: int = 0
    ranged: bool | None = None  # whether the registry honours ranges; None until it has answered
    idle: dict[int, int] = field(default_factory=dict)  # by part: attempts that failed since the last megabyte
    gained: int = 0  # bytes since `idle` was last set back
    again: bool = False  # what was here from earlier was wrong: fetched once more from the beginning
    status: str = WAITING
    error: BaseException | None = None
    staged: threading.Event = field(default_factory=threading.Event)  # readable, or failed
    ended: threading.Event = field(default_factory=threading.Event)  # on disk, or failed; nothing runs any more
    stop: Cancellation = field(default_factory=Cancellation)

    def tell(self, status: str) -> None:
        """Let every client hear how it stands."""
        self.status = status
        for ticket in list(self.tickets):
            ticket.watch(status, self.partial.received, self.descriptor.size)

    def ready(self) -> int | None:
        """Return the part to be fetched next, None if another connection cannot help."""
        if not self.pending or self.stop.cancelled:
            return None
        if self.running and self.ranged is not True:
            return None
        return self.pending[0]


class Ticket:
    """One pull's share in a download: wait for it, then close it. A context manager."""

    def __init__(
        self, leave: Callable[[Ticket], None], repository: Repository, lease: Lease, watch: Watch
    ) -> None:
        self._leave = leave
        self.repository: Repository | None = repository
        self.lease = lease
        self.watch = watch
        self.transfer: Transfer | None = None  # None: the blob was here already

    def wait(self, cancel: Cancellation) -> None:
        """Return when the blob is here, checked and readable; raise why it will not come."""
        if self.transfer is not None:
            self._wait(self.transfer.staged, self.transfer, cancel)

    def settle(self, cancel: Cancellation) -> None:
        """Return when the blob is on disk under its name."""
        if self.transfer is not None:
            self._wait(self.transfer.ended, self.transfer, cancel)

    def done(self) -> bool:
        """Tell whether `wait` would return at once."""
        transfer = self.transfer
        return transfer is None or (transfer.staged.is_set() and transfer.error is None)

    @staticmethod
    def _wait(event: threading.Event, transfer: Transfer, cancel: Cancellation) -> None:
        while not event.wait(_PATIENCE):
            cancel.check()
        if transfer.error is not None:
            raise transfer.error

    def close(self) -> None:
        """Leave; a download that nobody else waits for ends."""
        self._leave(self)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unwritable(error: OSError, transfer: Transfer) -> Unwritable:
    """Say in a user's words why a blob cannot be stored."""
    name = transfer.descriptor.digest.partition(":")[2][:12]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unwritable(
            f"no space left on device while storing {name}: free some and pull again, it goes on where it stopped"
        )
    return Unwritable(f"cannot store {name}: {error.strerror or error}")
