"""`store.content`: every byte checked, nothing half there, leases against collection."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from dray.base import digest as digests
from dray.base.errors import Conflict, InvalidParameter, NotFound
from dray.store.content import ContentStore

DATA = b"some content" * 1000
DIGEST = digests.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "content")


def test_put_and_read(store: ContentStore) -> None:
    assert store.put(DATA) == DIGEST
    assert store.has(DIGEST)
    assert store.size(DIGEST) == len(DATA)
    assert store.read(DIGEST) == DATA
    assert dict(store.walk()) == {DIGEST: len(DATA)}
    assert os.stat(store.path(DIGEST)).st_mode & 0o777 == 0o600
    assert os.stat(store.path(DIGEST).parent).st_mode & 0o777 == 0o700


def test_wrong_digest_leaves_nothing(store: ContentStore, tmp_path: Path) -> None:
    ingest = store.ingest(expected=DIGEST)
    ingest.write(DATA + b"!")
    with pytest.raises(InvalidParameter, match="unexpected digest"):
        ingest.commit()
    assert not store.has(DIGEST)
    assert list((tmp_path / "content" / "ingest").iterdir()) == []


def test_wrong_size_leaves_nothing(store: ContentStore) -> None:
    ingest = store.ingest()
    ingest.write(DATA)
    with pytest.raises(InvalidParameter, match="unexpected size"):
        ingest.commit(size=len(DATA) + 1)
    assert list(store.walk()) == []


def test_sha512(store: ContentStore) -> None:
    digest = "sha512:" + hashlib.sha512(DATA).hexdigest()
    assert store.put(DATA, expected=digest) == digest
    assert store.read(digest) == DATA


def test_not_there(store: ContentStore) -> None:
    for verb in (store.open, store.size, store.read):
        with pytest.raises(NotFound):
            verb(DIGEST)
    with pytest.raises(InvalidParameter):
        store.path("sha256:../../etc/passwd")


def test_changed_on_disk_is_noticed(store: ContentStore) -> None:
    store.put(DATA)
    store.path(DIGEST).write_bytes(DATA[:-1] + b"X")
    with pytest.raises(InvalidParameter, match="changed on disk"):
        store.read(DIGEST)


def test_read_is_bounded(store: ContentStore) -> None:
    store.put(DATA)
    with pytest.raises(InvalidParameter, match="larger than"):
        store.read(DIGEST, limit=100)


def test_resumed_after_a_restart(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    with store.ingest(expected=DIGEST, ref="layer") as ingest:
        ingest.write(DATA[:700])
    again = ContentStore(tmp_path)
    with again.ingest(expected=DIGEST, ref="layer") as ingest:
        assert ingest.offset == 700
        ingest.write(DATA[700:])
        assert ingest.commit(size=len(DATA)) == DIGEST
    assert again.read(DIGEST) == DATA


def test_other_ingests_die_with_their_process(tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    store.ingest().write(DATA)
    assert len(list((tmp_path / "ingest").iterdir())) == 1
    ContentStore(tmp_path)
    assert list((tmp_path / "ingest").iterdir()) == []


def test_one_writer_of_a_ref(store: ContentStore) -> None:
    with store.ingest(ref="x"), pytest.raises(Conflict):
        store.ingest(ref="x")
    with store.ingest(ref="x"):
        pass


def test_collection_spares_the_marked_and_the_leased(store: ContentStore) -> None:
    kept, leased, loose = store.put(b"kept"), store.put(b"leased"), store.put(b"loose")
    with store.lease() as lease:
        assert lease.add(leased)
        assert not lease.add(digests.of(b"absent"))
        assert store.collect(lambda: {kept}) == (1, len(b"loose"))
    assert not store.has(loose)
    assert store.collect(lambda: {kept}) == (1, len(b"leased"))
    assert dict(store.walk()) == {kept: 4}


def test_a_blob_written_while_collecting_is_spared(store: ContentStore) -> None:
    """A writer may commit, name its object and drop its lease after the mark: the sweep must not take the blob."""
    written = []

    def mark() -> set[str]:
        with store.lease() as lease:
            written.append(store.put(b"just now", lease=lease))
        return set()

    assert store.collect(mark) == (0, 0)
    assert store.has(written[0])


def test_a_lease_given_up_while_collecting_still_counts(store: ContentStore) -> None:
    lease = store.lease()
    digest = store.put(b"early", lease=lease)

    def mark() -> set[str]:
        lease.close()
        return set()

    assert store.collect(mark) == (0, 0)
    assert store.has(digest)


def test_same_content_twice(store: ContentStore) -> None:
    first, second = store.ingest(), store.ingest()
    first.write(DATA)
    second.write(DATA)
    assert first.commit() == second.commit() == DIGEST
    assert dict(store.walk()) == {DIGEST: len(DATA)}


def test_a_staged_blob_can_be_read_before_it_has_a_name(store: ContentStore) -> None:
    ingest = store.ingest(expected=DIGEST)
    ingest.write(DATA)
    assert not store.has(DIGEST)
    assert ingest.stage(size=len(DATA)) == DIGEST
    assert store.has(DIGEST)
    assert store.read(DIGEST) == DATA
    assert list(store.walk()) == []
    ingest.commit()
    assert store.read(DIGEST) == DATA
    assert dict(store.walk()) == {DIGEST: len(DATA)}
    other = store.ingest(expected=digests.of(b"x"))
    other.write(b"y")
    with pytest.raises(InvalidParameter):
        other.stage()
    third = store.ingest()
    third.write(b"gone")
    digest = third.stage()
    third.abort()
    assert not store.has(digest)
