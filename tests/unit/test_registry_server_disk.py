"""The registry's disk: what is told is on it, in an order that a power loss cannot spoil; many may write at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dray.registry.server import disk
from dray.registry.server.disk import DiskStorage
from dray.registry.server.turns import Turns


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[DiskStorage]:
    one = DiskStorage(tmp_path / "registry")
    yield one
    one.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the storage has asked of the kernel: (`sync` FILE, `rename` FILE, `folder` FOLDER), by last name."""
    told: list[tuple[str, str]] = []
    sync, rename, folder = os.fdatasync, os.rename, disk.sync_directory

    def synced(fd: int) -> None:
        told.append(("sync", Path(os.readlink(f"/proc/self/fd/{fd}")).name))
        sync(fd)

    def renamed(source: Any, target: Any) -> None:
        told[:] = [("sync", Path(target).name) if one == ("sync", Path(source).name) else one for one in told]
        told.append(("rename", Path(target).name))
        rename(source, target)

    def on_disk(path: Any) -> None:
        told.append(("folder", Path(path).name))
        folder(path)

    monkeypatch.setattr(os, "fdatasync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(disk, "sync_directory", on_disk)
    return told


def test_bytes_then_names_then_folders(storage: DiskStorage, calls: list[tuple[str, str]]) -> None:
    storage.put({"a/b/first": b"1", "c/second": b"2"})
    told = calls.copy()
    assert told.index(("sync", "first")) < told.index(("rename", "first")) < told.index(("rename", "second"))
    assert told.index(("sync", "second")) < told.index(("rename", "first"))
    # Every folder that is new is in its parent for good, and holds its new name for good.
    assert {("folder", name) for name in ("registry", "a")} <= set(told[: told.index(("rename", "first"))])
    assert told[-2:] == [("folder", "b"), ("folder", "c")]
    calls.clear()
    storage.put({"a/b/third": b"3"})
    assert calls == [("sync", "third"), ("rename", "third"), ("folder", "b")]


def test_an_upload_is_on_disk_before_its_link(storage: DiskStorage, calls: list[tuple[str, str]]) -> None:
    upload = storage.upload("uploads/u")
    upload.write(b"bytes")
    assert calls == []  # nothing of an upload in progress is synced
    upload.commit("blobs/x", {"links/x": b""})
    renames = [one for one in calls if one[0] == "rename"]
    assert renames == [("rename", "x"), ("rename", "x")]
    assert calls.index(("sync", "x")) < calls.index(("rename", "x"))
    assert calls[-2:] == [("folder", "blobs"), ("folder", "links")]
    # Somebody else's commit of the same bytes may not be synced yet.
    again = storage.upload("uploads/v")
    again.write(b"bytes")
    calls.clear()
    again.commit("blobs/x")
    assert calls == [("folder", "blobs")]


def test_what_is_not_asked_to_be_durable_costs_no_sync(storage: DiskStorage, calls: list[tuple[str, str]]) -> None:
    storage.put({"uploads/u/repository": b"a"}, durable=False)
    assert [kind for kind, _ in calls] == ["rename"]
    storage.put({"uploads/u/other": b"b"})  # the folder was not durable either
    assert ("folder", "registry") in calls
    assert ("folder", "uploads") in calls


def test_a_failed_write_leaves_nothing(storage: DiskStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space"):
            storage.put({"a/first": b"", "a/second": b"2"})
    assert list(storage.list("a")) == []
    assert list(storage.list("tmp")) == []


def test_writers_do_not_wait_for_each_others_disk(storage: DiskStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two syncs meet: so the file system writes its journal once for both."""
    together = threading.Barrier(2, timeout=10)
    sync = os.fdatasync

    def meet(fd: int) -> None:
        together.wait()
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", meet)
    threads = [threading.Thread(target=storage.put, args=({f"same/{n}": b"x"},)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.name for entry in storage.list("same")) == ["0", "1"]


def test_folders_that_come_and_go(storage: DiskStorage) -> None:
    """A folder is removed when it is empty, while others put something into it."""

    def work(number: int) -> None:
        for turn in range(30):
            storage.put({f"a/b/{number}": b"x"}, durable=turn % 2 == 0)
            assert storage.delete(f"a/b/{number}")

    failed: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert list(storage.list("a")) == []


def test_turns() -> None:
    turns, order = Turns(), []
    inside, leave = threading.Event(), threading.Event()

    def add(name: str) -> None:
        with turns.shared():
            order.append(name)
            inside.set()
            leave.wait(10)

    def remove() -> None:
        with turns.alone():
            order.append("alone")

    first = threading.Thread(target=add, args=("first",))
    first.start()
    inside.wait(10)
    second = threading.Thread(target=add, args=("second",))
    second.start()
    while len(order) < 2:  # both at a time
        pass
    alone = threading.Thread(target=remove)
    alone.start()
    while not turns._waiting:
        pass
    third = threading.Thread(target=add, args=("third",))
    third.start()
    assert order == ["first", "second"]
    leave.set()
    for thread in (first, second, alone, third):
        thread.join()
    assert order == ["first", "second", "alone", "third"]
