"""Volumes of all drivers by name: holders, removal races, plugins that fail."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.base.errors import Conflict, NotFound
from dray.plugins.discovery import Folders
from dray.plugins.registry import VOLUME, Limits, PluginFailed, PluginRefused, Plugins
from dray.store.metadata import Metadata
from dray.volumes.local import Volumes
from dray.volumes.table import VolumeTable
from support.plugin import FakePlugin, running, volume_handlers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and mounts need root")
TMPFS = {"type": "tmpfs", "device": "tmpfs"}


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Metadata]:
    found = Metadata(tmp_path / "records.db")
    yield found
    found.close()


def open_table(tmp_path: Path, records: Metadata) -> VolumeTable:
    folders = Folders((str(tmp_path / "sockets"),), ())
    plugins = Plugins(folders, Limits(long=0.3, short=0.3, glance=0.3, patience=0.2))
    return VolumeTable(Volumes(tmp_path / "volumes", records), plugins, records)


@pytest.fixture
def table(tmp_path: Path, records: Metadata) -> VolumeTable:
    return open_table(tmp_path, records)


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[FakePlugin]:
    with running(tmp_path / "sockets/far.sock", [VOLUME], volume_handlers(tmp_path / "far")) as found:
        yield found


async def test_mounted_at_first_use_and_unmounted_after_the_last(table: VolumeTable) -> None:
    volume, made = await table.create("tmp", options=TMPFS)
    assert made
    assert not (await table.create("tmp"))[1]
    place = Path(volume.mountpoint)
    assert await table.mount("tmp", "m1", user="c1") == str(place)
    (place / "shared").write_text("1")
    await table.mount("tmp", "m2", user="c2")
    await table.unmount("tmp", "m1")
    await table.unmount("tmp", "m1")
    assert place.is_mount()
    with pytest.raises(Conflict, match=r"volume is in use - \[c2\]"):
        await table.remove("tmp")
    await table.unmount("tmp", "m2")
    assert not place.is_mount()
    await table.remove("tmp")


async def test_a_restart_takes_over_what_is_mounted(table: VolumeTable, tmp_path: Path, records: Metadata) -> None:
    volume, _ = await table.create("tmp", options=TMPFS)
    other, _ = await table.create("other", options=TMPFS)
    await table.mount("tmp", "m1", user="c1")
    await table.mount("other", "m2", user="c2")
    again = open_table(tmp_path, records)
    again.adopt({"tmp": {"m1": "c1"}})
    again.local.release_unused(["tmp"])
    assert Path(volume.mountpoint).is_mount()
    assert not Path(other.mountpoint).is_mount(), "its container ended while the daemon was away"
    await again.unmount("tmp", "m1")
    assert not Path(volume.mountpoint).is_mount()


async def test_a_volume_is_kept_for_a_container_that_is_being_made(table: VolumeTable) -> None:
    await table.create("data", holder="c1")
    with pytest.raises(Conflict, match=r"remove data: volume is in use - \[c1\]"):
        await table.remove("data")
    table.let_go("data", "c1")
    await table.remove("data")


async def test_create_and_remove_at_once_leave_no_half_volume(table: VolumeTable) -> None:
    async def make(number: int) -> None:
        volume, _ = await table.create("data", holder=f"c{number}")
        assert os.path.isdir(volume.mountpoint), "held, so it stays"
        await asyncio.sleep(0)
        assert os.path.isdir(volume.mountpoint)
        table.let_go("data", f"c{number}")

    async def remove() -> None:
        try:
            await table.remove("data", force=True)
        except Conflict:
            pass

    await asyncio.gather(*(work for number in range(40) for work in (make(number), remove())))
    known = table.known("data")
    assert known is None or os.path.isdir(known.mountpoint)


async def test_a_mount_that_hangs_holds_up_nobody_else(
    table: VolumeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    freed = threading.Event()
    monkeypatch.setattr(Volumes, "_mount", staticmethod(lambda volume, words: freed.wait()))
    for number in range(40):
        await table.create(f"nfs{number}", options={"type": "nfs", "device": ":/x", "o": "addr=192.0.2.1"})
    hanging = [asyncio.ensure_future(table.mount(f"nfs{number}", "m", user="c")) for number in range(40)]
    await asyncio.sleep(0.05)
    await table.create("plain")
    await table.mount("plain", "m", user="c")
    await asyncio.to_thread(table.local.size, "plain")  # the pool's threads are free
    assert not any(one.done() for one in hanging)
    freed.set()
    await asyncio.gather(*hanging)


# -- plugins


async def test_life_of_a_plugins_volume(
    table: VolumeTable, plugin: FakePlugin, tmp_path: Path, records: Metadata
) -> None:
    volume, made = await table.create("data", driver="far", options={"size": "5"}, labels={"a": "b"})
    assert (made, volume.driver, volume.labels) == (True, "far", {"a": "b"})
    assert plugin.asked("VolumeDriver.Create") == [{"Name": "data", "Opts": {"size": "5"}}]
    assert table.scope("far") == "global"
    shown, status = await table.inspect("data")
    assert (shown.mountpoint, status) == (str(tmp_path / "far/data"), {"kind": "test"})
    assert not (await table.create("data"))[1], "the name is enough"
    assert await table.mount("data", "m1", user="c1") == str(tmp_path / "far/data")
    again = open_table(tmp_path, records)
    again.adopt({"data": {"m1": "c1"}})
    await again.unmount("data", "m1")
    assert (
        plugin.asked("VolumeDriver.Mount")
        == plugin.asked("VolumeDriver.Unmount")
        == [{"Name": "data", "ID": "m1"}]
    )
    await again.remove("data")
    assert again.known("data") is None
    assert plugin.asked("VolumeDriver.Remove") == [{"Name": "data"}]


async def test_volumes_made_elsewhere_are_listed_found_and_used(
    table: VolumeTable, plugin: FakePlugin, tmp_path: Path
) -> None:
    (tmp_path / "far/theirs").mkdir()
    await table.create("ours")
    listed, warnings = await table.list()
    assert [(one.name, one.driver) for one in listed] == [("ours", "local"), ("theirs", "far")]
    assert warnings == []
    assert (await table.inspect("theirs"))[0].driver == "far"
    volume, made = await table.create("theirs")
    assert (volume.driver, made) == ("far", False)
    with pytest.raises(Conflict, match="driver 'far' already has volume 'theirs'"):
        await table.create("theirs", driver="local")
    with pytest.raises(NotFound, match="get nosuch: no such volume"):
        await table.inspect("nosuch")


async def test_a_plugin_that_fails_is_named(table: VolumeTable, plugin: FakePlugin) -> None:
    with pytest.raises(
        NotFound, match='create x1: error looking up volume plugin nosuch: plugin "nosuch" not found'
    ):
        await table.create("x1", driver="nosuch")
    plugin.handlers["VolumeDriver.Create"] = lambda _: {"Err": "out of disks"}
    with pytest.raises(PluginRefused, match=r"^create x1: VolumeDriver\.Create: out of disks$"):
        await table.create("x1", driver="far")
    assert table.known("x1") is None
    plugin.handlers["VolumeDriver.Create"] = lambda _: {}
    await table.create("x1", driver="far")
    plugin.handlers["VolumeDriver.Mount"] = lambda _: {"Mountpoint": "relative/path"}
    with pytest.raises(PluginFailed, match="Mountpoint 'relative/path' is not an absolute path"):
        await table.mount("x1", "m", user="c")
    plugin.handlers["VolumeDriver.Mount"] = lambda _: {"Mountpoint": "/"}
    with pytest.raises(PluginFailed, match="Mountpoint '/' is not an absolute path"):
        await table.mount("x1", "m", user="c")


async def test_a_plugin_that_hangs_holds_up_its_volumes_alone(table: VolumeTable, plugin: FakePlugin) -> None:
    await table.create("slow", driver="far")
    plugin.hang("VolumeDriver.Mount")
    mounting = asyncio.ensure_future(table.mount("slow", "m", user="c"))
    await asyncio.sleep(0.02)
    await table.create("plain")
    await table.mount("plain", "m", user="c")
    assert not mounting.done()
    with pytest.raises(PluginFailed, match=r'plugin "far": VolumeDriver\.Mount: no answer within'):
        await mounting
    plugin.hang("VolumeDriver.List")
    listed, warnings = await table.list()
    assert [one.name for one in listed] == ["plain", "slow"], "from its record"
    assert "VolumeDriver.List: no answer" in warnings[0]


async def test_a_volume_whose_plugin_is_gone_can_be_removed_by_force(
    table: VolumeTable, plugin: FakePlugin
) -> None:
    await table.create("data", driver="far")
    plugin.close()
    with pytest.raises(NotFound, match='remove data: plugin "far" not found'):
        await table.remove("data")
    await table.remove("data", force=True)
    assert table.known("data") is None
