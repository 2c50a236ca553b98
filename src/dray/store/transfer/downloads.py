"""Blobs on their way in, shared by all pulls of the daemon.

One transfer per digest, whoever and however many want it: a second pull joins the first one's, hears its
progress, and keeps it alive when the first client goes. It ends when the last one leaves; what has arrived stays
(`store.partial`) for the next.

At most `concurrency` connections receive at a time (`max-concurrent-downloads`). Each takes the next missing part of
the transfer that has the fewest connections, the oldest first: several layers come side by side, each in order, and
only when there are fewer layers than connections does one layer come in several parts at a time. A registry that
ignores ranges is read from the beginning by one connection.

A connection that breaks off is tried again, `attempts` times in a row without a megabyte of progress
(`max-download-attempts`). Each part has attempts of its own: a registry that goes away breaks all connections at once,
and that is one failure, not three. Credentials that fail are those of one pull: the transfer goes on with another one's.
"""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

from dray.base.errors import Forbidden, InvalidParameter, NotFound, Unauthorized, Unavailable
from dray.oci.image import Descriptor
from dray.registry.model import BlobStream, Repository
from dray.store.content import ContentStore, Lease
from dray.store.partial import PART, WrongDigest
from dray.store.transfer.cancel import Cancellation
from dray.store.transfer.tickets import (
    COMPLETE,
    FETCHING,
    VERIFYING,
    WAITING,
    Stopped,
    Ticket,
    Transfer,
    Unwritable,
    Watch,
    unwritable,
)

_CHUNK = 1 << 20
_PROGRESS = 1 << 20  # bytes that make up for failed attempts
_DELAYS = (0.1, 1.0, 2.0, 4.0, 5.0)  # seconds before an attempt is repeated
_PATIENCE = 0.2  # seconds between two looks at whether a waiting client has gone


class Downloads:
    """See the module's text. Thread-safe; its threads live only while there is something to do."""

    def __init__(
        self, content: ContentStore, *, concurrency: int = 3, attempts: int = 5, part_size: int = PART
    ) -> None:
        self._content = content
        self._concurrency = concurrency
        self._attempts = attempts
        self._part_size = part_size
        self._lock = threading.Lock()
        self._transfers: dict[str, Transfer] = {}
        self._numbers = itertools.count()
        self._workers = 0
        self._commits = ThreadPoolExecutor(2, "commit")

    def set_limits(self, *, concurrency: int, attempts: int) -> None:
        """Use other limits from now on; threads that are too many end when they have nothing to do."""
        with self._lock:
            self._concurrency, self._attempts = concurrency, attempts

    def join(
        self, descriptor: Descriptor, repository: Repository, lease: Lease, watch: Watch, cancel: Cancellation
    ) -> Ticket:
        """Begin to fetch a blob, or take part in a download that is going on; `lease` protects it from now on.

        The blob being here already is told as done at once. OSError if it cannot be begun (a full disk).
        """
        ticket = Ticket(self._leave, repository, lease, watch)
        while True:
            with self._lock:
                if lease.add(descriptor.digest) and descriptor.digest not in self._transfers:
                    return ticket
                transfer = self._transfers.get(descriptor.digest)
                if transfer is None:
                    transfer = self._begin(descriptor)
                if not transfer.stop.cancelled and transfer.error is None:
                    if transfer.descriptor.size != descriptor.size:
                        raise InvalidParameter(
                            f"{descriptor.digest} is said to have {descriptor.size} bytes here and "
                            f"{transfer.descriptor.size} bytes elsewhere"
                        )
                    ticket.transfer = transfer
                    transfer.tickets.append(ticket)
                    watch(transfer.status, transfer.partial.received, descriptor.size)
                    self._staff()
                    return ticket
            while not transfer.ended.wait(_PATIENCE):  # its threads are just ending
                cancel.check()

    def _begin(self, descriptor: Descriptor) -> Transfer:
        partial = self._content.partial(descriptor.digest, descriptor.size, part_size=self._part_size)
        # An empty blob and one that is wholly here still go through a worker, which checks it.
        parts = partial.missing() or [0]
        transfer = Transfer(next(self._numbers), descriptor, partial, parts)
        self._transfers[descriptor.digest] = transfer
        return transfer

    def _leave(self, ticket: Ticket) -> None:
        transfer = ticket.transfer
        with self._lock:
            ticket.repository = None
            if transfer is None or ticket not in transfer.tickets:
                return
            transfer.tickets.remove(ticket)
            if transfer.tickets or transfer.staged.is_set():
                return
            transfer.stop.cancel()
            if transfer.running == 0:
                self._end(transfer, keep=True)

    # --- workers

    def _staff(self) -> None:
        """Have as many workers as there is work for. Under the lock."""
        able = [t for t in self._transfers.values() if t.ready() is not None]
        wanted = sum(len(t.pending) if t.ranged else 1 for t in able)
        for _ in range(min(wanted, self._concurrency - self._workers)):
            self._workers += 1
            threading.Thread(target=self._work, name="download", daemon=True).start()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            transfer, part = job
            error: BaseException | None = None
            try:
                self._fetch(transfer, part)
            except BaseException as failure:
                error = failure
            self._after(transfer, part, error)

    def _next(self) -> tuple[Transfer, int] | None:
        with self._lock:
            able = [t for t in self._transfers.values() if t.ready() is not None]
            if not able:
                self._workers -= 1
                return None
            transfer = min(able, key=lambda t: (t.running, t.number))
            transfer.running += 1
            return transfer, transfer.pending.pop(0)

    def _fetch(self, transfer: Transfer, part: int) -> None:
        """Receive what is missing of one part; where the registry ignores ranges, of all."""
        partial, descriptor = transfer.partial, transfer.descriptor
        start, end = partial.position(part), partial.bounds(part)[1]
        if start >= end:
            return
        last = end == descriptor.size
        ticket, repository = self._source(transfer)
        try:
            with repository.blob(descriptor, start, None if last else end) as stream:
                self._learn(transfer, stream)
                if stream.ranged or (stream.start == start == 0 == part and last):
                    self._copy(transfer, part, stream, stream.start, end)
                    if last and stream.read(1):
                        raise InvalidParameter(f"{descriptor.digest} has more than {descriptor.size} bytes")
                else:
                    self._copy_all(transfer, stream)
        except (NotFound, Unauthorized, Forbidden) as error:
            with self._lock:
                if ticket.repository is repository:
                    ticket.repository = None
                if any(other.repository is not None for other in transfer.tickets):
                    raise Unavailable(error.message) from error
            raise

    def _source(self, transfer: Transfer) -> tuple[Ticket, Repository]:
        with self._lock:
            for ticket in transfer.tickets:
                if ticket.repository is not None:
                    return ticket, ticket.repository
        raise Stopped

    def _learn(self, transfer: Transfer, stream: BlobStream) -> None:
        """Take in what the head of an answer says."""
        size = transfer.descriptor.size
        if stream.size is not None and stream.size != size:
            raise InvalidParameter(
                f"unexpected size: the registry has {stream.size} bytes of {transfer.descriptor.digest}, "
                f"its descriptor says {size}"
            )
        with self._lock:
            first = transfer.ranged is None
            transfer.ranged = stream.ranged
            if first and stream.ranged:
                self._staff()
        if transfer.status == WAITING:
            transfer.tell(FETCHING)

    def _copy(self, transfer: Transfer, part: int, stream: BlobStream, at: int, end: int) -> None:
        """Write a part from a stream that stands at the blob's offset `at`."""
        partial = transfer.partial
        if at > partial.position(part):
            raise InvalidParameter(
                f"the registry sent {transfer.descriptor.digest} from another byte than asked for"
            )
        while at < end:
            if transfer.stop.cancelled:
                raise Stopped
            data = stream.read(min(_CHUNK, end - at))
            if not data:
                raise Unavailable(f"{transfer.descriptor.digest} broke off after {at} bytes")
            fresh = memoryview(data)[max(0, partial.position(part) - at) :]
            at += len(data)
            if not fresh:
                continue
            try:
                partial.write(part, fresh)
            except OSError as error:
                raise unwritable(error, transfer) from error
            transfer.gained += len(fresh)
            if transfer.gained >= _PROGRESS:
                transfer.idle, transfer.gained = {}, 0
            transfer.tell(FETCHING)

    def _copy_all(self, transfer: Transfer, stream: BlobStream) -> None:
        """Write every part from one stream from the blob's beginning; what is here already is passed over."""
        with self._lock:
            transfer.ranged = False
            if transfer.running > 1:
                raise Unavailable("the registry has stopped to honour ranges")  # the other connection goes on
        partial, size = transfer.partial, transfer.descriptor.size
        at, part = stream.start, 0
        while at < size:
            end = partial.bounds(part)[1]
            self._copy(transfer, part, stream, at, end)
            at, part = end, part + 1
        if stream.read(1):
            raise InvalidParameter(f"{transfer.descriptor.digest} has more than {size} bytes")
        with self._lock:
            transfer.pending.clear()

    # --- after a part

    def _after(self, transfer: Transfer, part: int, error: BaseException | None) -> None:
        """Decide what a part's end means for its transfer."""
        delay = None
        if isinstance(error, Unavailable) and not isinstance(error, Unwritable) and not transfer.stop.cancelled:
            delay = self._excuse(transfer, part)
        if delay is not None:
            if delay >= 1:
                transfer.tell(f"Retrying in {delay:.0f} second{'s' if delay > 1 else ''}")
            transfer.stop.pause(delay)
        with self._lock:
            transfer.running -= 1
            if delay is not None and not transfer.stop.cancelled:
                transfer.pending = sorted({*transfer.pending, part})
                return
            if error is not None and transfer.error is None and not isinstance(error, Stopped):
                transfer.error = error
                transfer.stop.cancel()
            if transfer.running:
                return
            if transfer.stop.cancelled:
                self._end(transfer, keep=True)
                return
            if transfer.pending:
                return
            transfer.running += 1  # nobody else ends it while it is checked
        self._check(transfer)

    def _excuse(self, transfer: Transfer, part: int) -> float | None:
        """Count a failed attempt at a part; return the seconds to wait before the next, None if there is to be none."""
        with self._lock:
            failed = transfer.idle[part] = transfer.idle.get(part, 0) + 1
            if failed >= self._attempts:
                return None
            return _DELAYS[min(failed, len(_DELAYS)) - 1]

    def _check(self, transfer: Transfer) -> None:
        """All bytes are here: are they the right ones?"""
        transfer.tell(VERIFYING)
        try:
            transfer.partial.stage()
        except WrongDigest as error:
            self._wrong(transfer, error)
            return
        except OSError as error:
            with self._lock:
                transfer.error = unwritable(error, transfer)
                self._end(transfer, keep=True)
            return
        with self._lock:
            for ticket in transfer.tickets:
                ticket.lease.add(transfer.descriptor.digest)
        transfer.tell(COMPLETE)
        transfer.staged.set()
        self._commits.submit(self._commit, transfer)

    def _wrong(self, transfer: Transfer, error: WrongDigest) -> None:
        """Drop it all. Were it in part an earlier transfer's, that part may be what was wrong: once more, then."""
        with self._lock:
            suspect = bool(transfer.partial.resumed) and not transfer.again
            transfer.partial.drop()
            if suspect and transfer.tickets:
                try:
                    descriptor = transfer.descriptor
                    transfer.partial = self._content.partial(
                        descriptor.digest, descriptor.size, part_size=self._part_size
                    )
                except OSError as failure:
                    transfer.error = unwritable(failure, transfer)
                else:
                    transfer.again = True
                    transfer.pending = transfer.partial.missing() or [0]
                    transfer.running -= 1
                    return
            transfer.error = transfer.error or error
            self._end(transfer, keep=False)

    def _commit(self, transfer: Transfer) -> None:
        try:
            transfer.partial.commit()
        except OSError as error:
            transfer.error = unwritable(error, transfer)
        with self._lock:
            self._forget(transfer)
        transfer.ended.set()

    def _end(self, transfer: Transfer, *, keep: bool) -> None:
        """A transfer has failed or was given up, and no thread works on it. Under the lock."""
        if transfer.error is None:
            transfer.error = Stopped()
        try:
            if keep:
                transfer.partial.keep()
            else:
                transfer.partial.drop()
        except OSError:
            transfer.partial.drop()
        self._forget(transfer)
        transfer.staged.set()
        transfer.ended.set()

    def _forget(self, transfer: Transfer) -> None:
        if self._transfers.get(transfer.descriptor.digest) is transfer:
            del self._transfers[transfer.descriptor.digest]
