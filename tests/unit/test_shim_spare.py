"""The spare shim: forked ahead, used once, gone with the zygote, and no matter when it is killed."""

import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from dray.shim import rehearsal
from dray.shim.tasks import Zygote
from shim_harness import FAKE, Bench


def children(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    found = {}
    for child in map(int, text.split()):
        try:
            found[child] = Path(f"/proc/{child}/comm").read_text().strip()
        except FileNotFoundError:
            continue
    return found


async def spare_of(zygote, *, other_than=0):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for child, name in children(zygote.pid).items():
            if name == "dray-spare" and child != other_than:
                return child
        await asyncio.sleep(0.01)
    raise AssertionError("no spare shim was forked")


async def gone(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.fixture
async def bench(tmp_path):
    zygote = Zygote.spawn(FAKE)
    try:
        yield Bench(tmp_path, zygote)
    finally:
        zygote.close()


async def run(bench, code):
    request = bench.request("sh", "-c", f"sleep 0.01; exit {code}")
    task = await bench.tasks.create(request)
    shim = int((Path(request.run_dir) / "shim.pid").read_text())
    assert (await task.wait()).exit_code == code
    await task.release()
    return shim


async def test_the_spare_becomes_the_next_shim_and_is_replaced(bench):
    assert "dray-spare" not in children(bench.zygote.pid).values()
    await run(bench, 3)
    spare = await spare_of(bench.zygote)
    assert await run(bench, 4) == spare
    assert await spare_of(bench.zygote, other_than=spare) != spare


async def test_a_spare_that_was_killed_is_no_matter(bench):
    await run(bench, 0)
    spare = await spare_of(bench.zygote)
    os.kill(spare, signal.SIGKILL)
    assert await gone(spare)
    assert await run(bench, 5) != spare


async def test_a_spare_goes_when_a_profile_is_warmed_and_with_the_zygote(bench):
    await run(bench, 0)
    spare = await spare_of(bench.zygote)
    await bench.zygote.warm({"defaultAction": "SCMP_ACT_ALLOW"})
    assert await gone(spare)
    spare = await spare_of(bench.zygote, other_than=spare)
    os.kill(bench.zygote.pid, signal.SIGKILL)
    assert await gone(spare)


def test_a_rehearsal_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.listdir("/proc/self/fd")
    handler = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        rehearsal.rehearse()
    finally:
        signal.signal(signal.SIGCHLD, handler)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert not list(tmp_path.iterdir())
