"""`store.transfer.downloads` and `store.partial`: parts, resuming, sharing, and registries that lie or break off."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from dray.base.errors import Conflict, InvalidParameter, NotFound, Unauthorized, Unavailable
from dray.oci.image import Descriptor
from dray.store import content as content_module
from dray.store import partial as partial_module
from dray.store.content import ContentStore, Lease
from dray.store.partial import Partial, WrongDigest
from dray.store.transfer import Cancellation, Cancelled, Downloads
from dray.store.transfer import downloads as downloads_module
from dray.store.transfer.downloads import Ticket
from support.engines import until
from support.fake_registry import FakeRegistry

PART = 256 << 10
DATA = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(40_000))  # 1.28 MB: five parts


class World:
    """A store, a registry with one blob, and what a pull hears."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content = ContentStore(root)
        self.registry = FakeRegistry()
        self.digest = self.registry.add(DATA)
        self.blob = Descriptor(digest=self.digest, size=len(DATA))
        self.lease = Lease(self.content)
        self.cancel = Cancellation()
        self.heard: list[tuple[str, int, int]] = []

    def downloads(self, *, concurrency: int = 1) -> Downloads:
        return Downloads(self.content, concurrency=concurrency, attempts=3, part_size=PART)

    def join(self, downloads: Downloads, registry: FakeRegistry | None = None) -> Ticket:
        def hear(status: str, current: int, total: int) -> None:
            self.heard.append((status, current, total))

        return downloads.join(self.blob, registry or self.registry, self.lease, hear, self.cancel)

    def fetch(self, downloads: Downloads | None = None) -> None:
        with self.join(downloads or self.downloads()) as ticket:
            ticket.wait(self.cancel)
            ticket.settle(self.cancel)

    def ingests(self) -> list[str]:
        """What is in the ingest folders, but for bookmarks."""
        return [path.name for path in (self.root / "ingest").glob("*/*") if path.name != "ref"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(downloads_module, "_DELAYS", (0.001,))
    monkeypatch.setattr(downloads_module, "_PROGRESS", 100_000)
    monkeypatch.setattr(partial_module, "JOURNAL", 100_000)
    return World(tmp_path / "content")


def kept(content: ContentStore, digest: str, data: bytes, part: int, count: int) -> None:
    """Leave `count` bytes of a part as a broken-off transfer does."""
    partial = content.partial(digest, len(data), part_size=PART)
    start = partial.bounds(part)[0]
    partial.write(part, data[start : start + count])
    partial.keep()


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_blob_comes_in_parts(world: World, concurrency: int) -> None:
    world.fetch(world.downloads(concurrency=concurrency))
    assert world.content.read(world.digest) == DATA
    assert world.registry.served[world.digest] == len(DATA)
    assert world.ingests() == []
    assert [status for status, _, _ in world.heard][-2:] == ["Verifying Checksum", "Download complete"]
    assert ("Downloading", len(DATA), len(DATA)) in world.heard


def test_one_layer_alone_uses_all_connections(world: World) -> None:
    together = threading.Barrier(3, timeout=10)
    seen: set[int] = set()

    def meet(digest: str, offset: int) -> None:
        if offset % PART == 0 and offset and offset < 4 * PART and offset not in seen:
            seen.add(offset)
            together.wait()  # passes only if three parts are read at a time

    world.registry.before_read = meet
    world.fetch(world.downloads(concurrency=3))
    assert world.content.read(world.digest) == DATA


def test_layers_go_before_parts(world: World) -> None:
    """A layer comes before the further parts of one that has begun: but for those two that the connections have."""
    other = world.registry.add(DATA[::-1])
    joined = threading.Event()
    reading: list[tuple[str, int]] = []

    def look(digest: str, offset: int) -> None:
        reading.append((digest, offset // PART))
        joined.wait(0.2)

    world.registry.before_read = look
    downloads = world.downloads(concurrency=2)
    with (
        world.join(downloads) as first,
        downloads.join(
            Descriptor(digest=other, size=len(DATA)), world.registry, world.lease, lambda *_: None, world.cancel
        ) as second,
    ):
        joined.set()
        first.settle(world.cancel)
        second.settle(world.cancel)
    before = {part for digest, part in reading[: reading.index((other, 0))] if digest == world.digest}
    assert before <= {0, 1}


def test_a_broken_connection_goes_on_where_it_stopped(world: World) -> None:
    broken: list[int] = []

    def sometimes(digest: str, offset: int) -> None:
        if offset and offset % 192_000 < (64 << 10) and offset not in broken:
            broken.append(offset)
            raise Unavailable("connection reset")

    world.registry.before_read = sometimes
    world.fetch()
    assert len(broken) > 3
    assert world.content.read(world.digest) == DATA
    assert world.registry.served[world.digest] == len(DATA)


def test_a_registry_that_ignores_ranges_is_read_once(world: World) -> None:
    world.registry.ranges = False
    world.fetch(world.downloads(concurrency=3))
    assert world.content.read(world.digest) == DATA
    assert world.registry.served[world.digest] == len(DATA)


def test_resuming_from_a_registry_that_ignores_ranges(world: World) -> None:
    world.registry.ranges = False
    kept(world.content, world.digest, DATA, 1, 1000)
    world.fetch(world.downloads(concurrency=3))
    assert world.content.read(world.digest) == DATA


def test_attempts_are_numbered(world: World) -> None:
    def never(digest: str, offset: int) -> None:
        raise Unavailable("connection refused")

    world.registry.before_read = never
    with pytest.raises(Unavailable, match="connection refused"):
        world.fetch()
    assert not world.content.has(world.digest)


def test_connections_that_break_together_are_one_failure(world: World) -> None:
    """A registry that is started again breaks all connections, and refuses them all for a moment."""
    together = threading.Barrier(3, timeout=10)
    seen: dict[int, int] = {}

    def away(digest: str, offset: int) -> None:
        part = offset // PART
        seen[part] = seen.get(part, 0) + 1
        if part in (1, 2, 3) and seen[part] <= 2:  # of three attempts
            together.wait()
            raise Unavailable("connection refused")

    world.registry.before_read = away
    world.fetch(world.downloads(concurrency=3))
    assert world.content.read(world.digest) == DATA


def test_what_arrived_survives_the_process(world: World) -> None:
    """A killed daemon closes nothing: the next store on the same folder goes on from the journal."""
    partial = world.content.partial(world.digest, len(DATA), part_size=PART)
    for at in range(0, 200_000, 50_000):
        partial.write(0, DATA[at : at + 50_000])
    partial.write(2, DATA[2 * PART : 3 * PART])
    again = World.__new__(World)
    again.__dict__.update(world.__dict__, content=ContentStore(world.root))
    again.lease = Lease(again.content)
    again.fetch()
    assert again.content.read(world.digest) == DATA
    assert world.registry.served[world.digest] == len(DATA) - 200_000 - PART


def test_a_wrong_digest_drops_everything_and_names_both(world: World) -> None:
    world.registry.blobs[world.digest] = b"x" + DATA[1:]
    actual = "sha256:" + hashlib.sha256(b"x" + DATA[1:]).hexdigest()
    with pytest.raises(InvalidParameter, match=f"{actual}, expected {world.digest}"):
        world.fetch()
    assert not world.content.has(world.digest)
    assert world.ingests() == []


def test_damaged_leftovers_are_fetched_once_more(world: World) -> None:
    """After a power loss the journal may promise what the disk has not got."""
    kept(world.content, world.digest, b"\0" * len(DATA), 1, PART)
    world.fetch()
    assert world.content.read(world.digest) == DATA


def test_a_size_that_is_not_the_descriptors(world: World) -> None:
    world.blob = Descriptor(digest=world.digest, size=len(DATA) - 5)
    with pytest.raises(InvalidParameter, match="unexpected size"):
        world.fetch()


def test_an_endless_body_is_refused(world: World) -> None:
    world.registry.endless = True
    with pytest.raises(InvalidParameter, match="more than"):
        world.fetch()
    assert not world.content.has(world.digest)


def test_two_pulls_share_one_download(world: World) -> None:
    gate = threading.Event()
    world.registry.before_read = lambda digest, offset: gate.wait(10) and None
    downloads = world.downloads()
    with world.join(downloads) as first, world.join(downloads) as second:
        gate.set()
        first.settle(world.cancel)
        second.settle(world.cancel)
    assert world.registry.served[world.digest] == len(DATA)
    assert len([one for one in world.heard if one[0] == "Download complete"]) == 2


def test_the_second_pull_keeps_it_alive_when_the_first_goes(world: World) -> None:
    gate = threading.Event()
    world.registry.before_read = lambda digest, offset: gate.wait(10) and None
    downloads = world.downloads()
    first = world.join(downloads)
    with world.join(downloads, other := FakeRegistry()) as second:
        other.blobs = world.registry.blobs
        first.close()
        gate.set()
        second.settle(world.cancel)
    assert world.content.read(world.digest) == DATA


def test_the_last_to_leave_ends_it_and_what_arrived_stays(world: World) -> None:
    reached = threading.Event()

    def wait_in_the_middle(digest: str, offset: int) -> None:
        if offset > 2 * PART:
            reached.set()
            time.sleep(0.02)

    world.registry.before_read = wait_in_the_middle
    downloads = world.downloads()
    ticket = world.join(downloads)
    reached.wait(10)
    ticket.close()
    until(lambda: not downloads._transfers, what="the transfer to end")
    before = world.registry.served[world.digest]
    assert before < len(DATA)
    assert sorted(world.ingests()) == ["data", "parts"]
    world.registry.before_read = lambda digest, offset: None
    world.fetch(downloads)
    assert world.content.read(world.digest) == DATA
    assert world.registry.served[world.digest] == len(DATA)


def test_waiting_ends_when_the_client_goes(world: World) -> None:
    gate = threading.Event()
    world.registry.before_read = lambda digest, offset: gate.wait(10) and None
    downloads = world.downloads()
    with world.join(downloads) as ticket:
        world.cancel.cancel()
        with pytest.raises(Cancelled):
            ticket.wait(world.cancel)
    gate.set()
    until(lambda: not downloads._transfers)


def test_one_pulls_refused_credentials_are_not_anothers(world: World) -> None:
    world.registry.forbidden = Unauthorized("authentication required")
    gate = threading.Event()
    granted = FakeRegistry()
    granted.blobs = world.registry.blobs
    granted.before_read = lambda digest, offset: gate.wait(10) and None
    downloads = world.downloads()
    with world.join(downloads, granted) as good, world.join(downloads) as bad:
        gate.set()
        good.settle(world.cancel)
        bad.settle(world.cancel)


def test_a_blob_that_the_registry_has_not(world: World) -> None:
    world.registry.blobs.clear()
    with pytest.raises(NotFound, match="blob unknown"):
        world.fetch()


def test_a_full_disk_says_so_and_the_next_pull_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset >= 3 * PART:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Unavailable, match="no space left on device"):
        world.fetch()
    assert not world.content.has(world.digest)
    monkeypatch.setattr(os, "pwrite", write)
    before = world.registry.served[world.digest]
    world.fetch()
    assert world.content.read(world.digest) == DATA
    assert world.registry.served[world.digest] - before == len(DATA) - 3 * PART


def test_an_empty_blob(world: World) -> None:
    world.digest = world.registry.add(b"")
    world.blob = Descriptor(digest=world.digest, size=0)
    world.fetch()
    assert world.content.has(world.digest)


def test_a_complete_blob_outlives_its_pull_until_its_time_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pull broke off elsewhere: what it has brought in whole is not collected at once."""
    world.fetch()
    world.lease.close()
    assert world.content.collect(set) == (0, 0)
    assert ContentStore(world.root).collect(set) == (0, 0)  # the next daemon
    monkeypatch.setattr(content_module, "STALE", -60)
    monkeypatch.setattr(content_module, "STALE_TIGHT", -60)
    world.content.expire()
    assert world.content.collect(set)[0] == 1
    assert world.ingests() == []


def test_a_blob_that_is_named_needs_no_bookmark(world: World) -> None:
    world.fetch()
    world.lease.close()
    world.content.forget_bookmarks([world.digest])
    assert world.content.collect(set)[0] == 1


def test_broken_off_transfers_go_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(world.content, world.digest, DATA, 0, 1000)
    going_on = world.content.partial("sha256:" + "1" * 64, 5)
    assert world.content.expire() == 0
    monkeypatch.setattr(content_module, "STALE", -60)
    monkeypatch.setattr(content_module, "STALE_TIGHT", -60)
    assert world.content.expire() == 1
    going_on.drop()
    assert world.ingests() == []


def test_parts_of_another_cut_are_not_taken_up(world: World) -> None:
    kept(world.content, world.digest, DATA, 0, 1000)
    partial = world.content.partial(world.digest, len(DATA), part_size=2 * PART)
    assert partial.received == 0
    partial.drop()


def test_a_partial_blob_has_one_writer(world: World) -> None:
    partial = world.content.partial(world.digest, len(DATA))
    with pytest.raises(Conflict):
        world.content.partial(world.digest, len(DATA))
    partial.drop()


def test_a_blob_that_is_not_whole_is_not_to_be_read(world: World) -> None:
    partial: Partial = world.content.partial(world.digest, len(DATA), part_size=PART)
    partial.write(1, DATA[PART : 2 * PART])
    with pytest.raises(WrongDigest, match="unexpected size"):
        partial.stage()
    assert not world.content.has(world.digest)
    partial.drop()
