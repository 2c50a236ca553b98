import asyncio
import os
import signal
import socket

import pytest

from dray.base.errors import Unsupported
from dray.shim.model import AttachRequest, LogRequest, LogSpec
from dray.shim.tasks import Zygote, serve_logs
from dray.wire import stdcopy
from shim_harness import FAKE, Bench, read_all, read_until


@pytest.fixture
async def bench(tmp_path):
    zygote = Zygote.spawn(FAKE)
    try:
        yield Bench(tmp_path, zygote)
    finally:
        zygote.close()


def logs(request, **options):
    return LogRequest(driver=request.log.driver, path=request.log.path, state_dir=request.state_dir, **options)


def unchunk(data):
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert data == b"\r\n"
            return body
        body += data[:length]
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]


@pytest.mark.parametrize("driver", ["json-file", "local"])
async def test_a_finished_log_is_served_whole(bench, driver):
    request = bench.request("sh", "-c", "seq 1 5000; echo oops >&2", log=LogSpec(driver=driver))
    task = await bench.tasks.create(request)
    await task.wait()
    ours, theirs = socket.socketpair()
    with ours:
        await serve_logs(bench.zygote, logs(request), theirs.detach())
        frames = stdcopy.Decoder().feed(unchunk(await read_all(ours)))
    out = b"".join(payload for stream, payload in frames if stream == stdcopy.STDOUT)
    assert out == b"".join(b"%d\n" % n for n in range(1, 5001))
    assert [payload for stream, payload in frames if stream == stdcopy.STDERR] == [b"oops\n"]
    assert len(frames) == 5001
    await task.release()


@pytest.mark.parametrize("driver", ["json-file", "local"])
async def test_following_goes_through_rotations_to_the_end(bench, driver):
    script = "read x; for i in $(seq 1 40); do seq $i 40 | sed s/$/xxxxxxxxxxxxxxxxxxxxxxxxxxxx/; sleep 0.01; done"
    options = {"max-size": "8k", "max-file": "20", "compress": "false"}
    request = bench.request("sh", "-c", script, open_stdin=True, log=LogSpec(driver=driver, options=options))
    task = await bench.tasks.create(request)
    ours, theirs = socket.socketpair()
    keyboard, hand = socket.socketpair()

    await task.attach(AttachRequest(stdin=True, stdout=False, stderr=False), hand.detach())
    with ours, keyboard:
        await serve_logs(bench.zygote, logs(request, follow=True, running=True, framed=False), theirs.detach())
        await asyncio.sleep(0.1)
        keyboard.sendall(b"\n")
        body = unchunk(await read_all(ours))
    await task.wait()
    assert len(os.listdir(request.state_dir)) >= 4
    expected = [b"%d" % n + b"x" * 28 for i in range(1, 41) for n in range(i, 41)]
    assert body.split() == expected
    await task.release()


async def test_a_client_that_leaves_ends_the_server_promptly(bench):
    request = bench.request("sleep", "100")
    task = await bench.tasks.create(request)
    ours, theirs = socket.socketpair()
    served = asyncio.create_task(
        serve_logs(bench.zygote, logs(request, follow=True, running=True), theirs.detach(), wait=True)
    )
    await asyncio.sleep(0.1)
    assert not served.done()
    ours.close()
    async with asyncio.timeout(10):
        await served
    await task.kill(signal.SIGKILL)
    await task.wait()
    await task.release()


async def test_following_survives_the_zygote(bench, tmp_path):
    request = bench.request("sh", "-c", "read x; echo late", open_stdin=True)
    task = await bench.tasks.create(request)
    ours, theirs = socket.socketpair()
    with ours:
        await serve_logs(bench.zygote, logs(request, follow=True, running=True, framed=False), theirs.detach())
        await asyncio.sleep(0.2)
        os.kill(bench.zygote.pid, signal.SIGKILL)
        keyboard, hand = socket.socketpair()

        await task.attach(AttachRequest(stdin=True), hand.detach())
        keyboard.sendall(b"\n")
        assert await read_until(ours, b"0\r\n\r\n") == b"5\r\nlate\n\r\n0\r\n\r\n"
        keyboard.close()
    await task.wait()
    await task.release()


async def test_no_log_cannot_be_read(bench):
    request = bench.request("true", log=LogSpec(driver="none"))
    task = await bench.tasks.create(request)
    await task.wait()
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(Unsupported):
        await serve_logs(bench.zygote, logs(request), theirs.detach())
    await task.release()
