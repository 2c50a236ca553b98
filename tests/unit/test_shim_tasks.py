import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from dray.base.errors import Conflict, StartError
from dray.shim.model import AttachRequest, ExecCreate, LogSpec
from dray.shim.tasks import Zygote
from dray.wire import stdcopy, websocket
from shim_harness import FAKE, Bench, read_all, read_until


@pytest.fixture
async def bench(tmp_path):
    zygote = Zygote.spawn(FAKE)
    try:
        yield Bench(tmp_path, zygote)
    finally:
        zygote.close()


def attachment(**options):
    ours, theirs = socket.socketpair()
    return ours, (AttachRequest(**options), theirs.detach())


async def test_a_program_that_ends_at_once_has_code_log_and_exit_file(bench):
    request = bench.request("sh", "-c", "echo out; echo err >&2; exit 7")
    task = await bench.tasks.create(request)
    assert task.pid > 0
    status = await task.wait()
    assert status.exit_code == 7
    assert status.pid == task.pid
    assert bench.listener.events == [("exited", task.id, 7)]
    assert sorted(bench.log(request).split()) == ["err", "out"]
    assert json.loads((Path(request.state_dir) / "exit.json").read_text())["exit_code"] == 7
    await task.release()
    assert not Path(request.run_dir).exists()


async def test_a_client_attached_before_start_gets_every_byte_in_frames(bench):
    request = bench.request("sh", "-c", "echo one; echo two >&2")
    client, attached = attachment()
    with client:
        task = await bench.tasks.create(request, attachments=[attached])
        data = await read_all(client)
    found = stdcopy.Decoder().feed(data)
    assert sorted(found) == [(stdcopy.STDOUT, b"one\n"), (stdcopy.STDERR, b"two\n")]
    await task.wait()
    await task.release()


async def test_a_program_that_is_not_there_leaves_nothing(bench):
    for name in ("nosuch-create", "/no/such/program"):
        request = bench.request(name)
        client, attached = attachment()
        with client:
            with pytest.raises(StartError) as caught:
                await bench.tasks.create(request, attachments=[attached])
            assert await read_all(client) == b""
        assert caught.value.exit_code == 127
        assert not Path(request.run_dir).exists()
    assert bench.listener.events == []


async def test_created_then_started(bench):
    request = bench.request("echo", "hi", start=False)
    task = await bench.tasks.create(request)
    assert bench.log(request) == ""
    await task.start()
    assert (await task.wait()).exit_code == 0
    assert bench.log(request) == "hi\n"
    with pytest.raises(Conflict):
        await task.kill(signal.SIGTERM)
    await task.release()


async def test_kill_is_128_plus_the_signal(bench):
    task = await bench.tasks.create(bench.request("sleep", "100"))
    with pytest.raises(Conflict):
        await task.release()
    assert await task.pids() == [task.pid]
    await task.kill(signal.SIGTERM)
    assert (await task.wait()).exit_code == 128 + signal.SIGTERM
    await task.release()


async def test_stdin_once_ends_with_the_clients_half_close(bench):
    request = bench.request("sh", "-c", "cat; echo end", open_stdin=True, stdin_once=True)
    client, attached = attachment(stdin=True, framed=False, leftover=b"early ")
    with client:
        task = await bench.tasks.create(request, attachments=[attached])
        client.sendall(b"late\n")
        client.shutdown(socket.SHUT_WR)
        assert await read_all(client) == b"early late\nend\n"
    await task.wait()
    await task.release()


async def test_without_stdin_once_the_input_stays_open(bench):
    request = bench.request("cat", open_stdin=True)
    task = await bench.tasks.create(request)
    first, (attach, fd) = attachment(stdin=True, framed=False)
    await task.attach(attach, fd)
    second, (attach, fd) = attachment(stdin=True, framed=False)
    await task.attach(attach, fd)
    with first, second:
        first.sendall(b"a\n")
        assert await read_until(second, b"a\n") == b"a\n"
        first.shutdown(socket.SHUT_WR)
        assert await read_all(first) == b"a\n"
        second.sendall(b"b\n")
        assert await read_until(second, b"b\n") == b"b\n"
        await task.kill(signal.SIGKILL)
        assert await read_all(second) == b""
    await task.wait()
    await task.release()


async def test_exec_has_its_own_streams_and_code(bench):
    task = await bench.tasks.create(bench.request("sleep", "100"))
    client, (attach, fd) = attachment(stdin=True, framed=False)
    request = ExecCreate("x1", {"args": ["sh", "-c", "cat; exit 3"]}, attach=attach)
    with client:
        pid = await task.exec(request, fd)
        assert pid > 0
        client.sendall(b"typed")
        client.shutdown(socket.SHUT_WR)
        assert await read_all(client) == b"typed"
    assert await bench.listener.event("exec_exited") == ("exec_exited", "x1", 3)
    await task.exec(ExecCreate("x2", {"args": ["true"]}))
    with pytest.raises(StartError):
        await task.exec(ExecCreate("x3", {"args": ["nosuch"]}))
    await task.kill(signal.SIGKILL)
    await task.wait()
    await task.release()


async def test_an_exec_with_a_huge_environment_is_no_matter(bench):
    task = await bench.tasks.create(bench.request("sleep", "100"))
    process = {"args": ["true"], "env": ["X=" + "y" * 300_000]}
    await task.exec(ExecCreate("big", process))
    assert (await bench.listener.event("exec_exited"))[2] == 0
    await task.kill(signal.SIGKILL)
    await task.wait()
    await task.release()


async def test_a_terminal_echoes_resizes_and_detaches(bench):
    request = bench.request("sh", "-c", "stty size; read x; stty size; cat", tty=True, open_stdin=True)
    client, attached = attachment(stdin=True, detach_keys=b"\x10\x11")
    with client:
        task = await bench.tasks.create(request, attachments=[attached])
        await read_until(client, b"0 0\r\n")
        await task.resize(30, 100)
        client.sendall(b"go\n")
        await read_until(client, b"30 100\r\n")
        client.sendall(b"abc\x10")
        await asyncio.sleep(0.05)
        client.sendall(b"\x11never")
        await read_all(client)
    assert await bench.listener.event("detached") == ("detached", "")
    again, (attach, fd) = attachment(stdin=True)
    await task.attach(attach, fd)
    with again:
        again.sendall(b"def\n")
        await read_until(again, b"abcdef\r\n")
        await task.kill(signal.SIGKILL)
        await read_all(again)
    await task.wait()
    await task.release()


async def test_a_daemon_that_comes_back_finds_the_running_task(bench, tmp_path):
    request = bench.request("sh", "-c", "read x; exit 5", open_stdin=True)
    first = await bench.tasks.create(request)
    await first.exec(ExecCreate("e", {"args": ["sh", "-c", "exit 4"]}))
    first.disconnect()
    await asyncio.sleep(0.1)
    again = Bench(tmp_path / "again", bench.zygote)
    task = await again.tasks.reattach(Path(request.run_dir))
    assert task is not None
    assert (task.pid, task.started_at) == (first.pid, first.started_at)
    assert await again.listener.event("exec_exited") == ("exec_exited", "e", 4)
    client, (attach, fd) = attachment(stdin=True)
    await task.attach(attach, fd)
    client.sendall(b"\n")
    assert (await task.wait()).exit_code == 5
    client.close()
    assert again.listener.events.count(("exited", task.id, 5)) == 1
    await task.release()


async def test_an_exit_while_no_daemon_is_there_is_found_later(bench, tmp_path):
    request = bench.request("sh", "-c", "sleep 0.2; echo late; exit 9")
    first = await bench.tasks.create(request)
    first.disconnect()
    while not (Path(request.state_dir) / "exit.json").exists():
        await asyncio.sleep(0.02)
    while (Path(request.run_dir) / "shim.sock").exists():
        await asyncio.sleep(0.02)
    again = Bench(tmp_path / "again", bench.zygote)
    assert await again.tasks.reattach(Path(request.run_dir)) is None
    assert again.listener.events == [("exited", request.id, 9)]
    assert bench.log(request) == "late\n"


async def test_a_killed_shim_takes_its_container_along(bench, tmp_path):
    request = bench.request("sleep", "100")
    task = await bench.tasks.create(request)
    shim = int((Path(request.run_dir) / "shim.pid").read_text())
    os.kill(shim, signal.SIGKILL)
    await bench.listener.event("lost")
    assert (await task.wait()).exit_code == 137
    assert Path(f"/proc/{task.pid}").exists() is False or "Z" in Path(f"/proc/{task.pid}/stat").read_text()
    await task.release()
    assert not Path(request.run_dir).exists()


async def test_a_grandchild_that_keeps_the_pipe_does_not_keep_the_exit(bench):
    request = bench.request("sh", "-c", "sleep 30 & echo $!; exit 6")
    task = await bench.tasks.create(request)
    assert (await task.wait()).exit_code == 6
    os.kill(int(bench.log(request)), signal.SIGKILL)
    await task.release()


async def test_a_thousand_connect_and_abort_leave_no_descriptor(bench):
    request = bench.request("cat", open_stdin=True)
    task = await bench.tasks.create(request)
    shim = (Path(request.run_dir) / "shim.pid").read_text().strip()
    before = len(os.listdir(f"/proc/{shim}/fd"))
    for _ in range(1000):
        client, (attach, fd) = attachment(stdin=True)
        client.close()
        await task.attach(attach, fd)
    for _ in range(100):
        if len(os.listdir(f"/proc/{shim}/fd")) == before:
            break
        await asyncio.sleep(0.02)
    assert len(os.listdir(f"/proc/{shim}/fd")) == before
    await task.kill(signal.SIGKILL)
    await task.wait()
    await task.release()


async def test_a_websocket_client_types_and_reads_frames(bench):
    request = bench.request("cat", open_stdin=True, stdin_once=True)
    client, attached = attachment(stdin=True, websocket=True)
    key = b"\1\2\3\4"

    def masked(opcode, payload):
        return bytes((0x80 | opcode, 0x80 | len(payload))) + key + websocket.mask(payload, key)

    with client:
        task = await bench.tasks.create(request, attachments=[attached])
        client.sendall(masked(websocket.PING, b"there?") + masked(websocket.TEXT, b"hello"))
        await read_until(client, websocket.frame(websocket.BINARY, b"hello"))
        client.sendall(masked(websocket.CLOSE, b""))
        assert await read_all(client) == websocket.close_frame()
    assert (await task.wait()).exit_code == 0
    await task.release()


async def test_a_slow_client_makes_the_process_wait_and_loses_nothing(bench):
    size = 20_000_000
    request = bench.request("head", "-c", str(size), "/dev/zero", log=LogSpec(driver="none"))
    client, attached = attachment(framed=False)
    with client:
        task = await bench.tasks.create(request, attachments=[attached])
        await asyncio.sleep(0.3)
        shim = (Path(request.run_dir) / "shim.pid").read_text().strip()
        status = Path(f"/proc/{shim}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) < 40_000
        assert task.status is None
        assert len(await read_all(client)) == size
    await task.wait()
    await task.release()


async def test_a_published_port_is_forwarded_to_the_container(bench):
    with socket.create_server(("127.0.0.1", 0)) as inside, socket.create_server(("127.0.0.1", 0)) as outside:
        address = outside.getsockname()
        request = bench.request("sleep", "100", fds=["hold", "hold"], forwards=[("tcp", 1, *inside.getsockname())])
        task = await bench.tasks.create(request, descriptors=[inside.fileno(), outside.fileno()])
        outside.close()
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, address)
            inside.setblocking(False)
            accepted, _ = await loop.sock_accept(inside)
            with accepted:
                await loop.sock_sendall(client, b"in")
                assert await loop.sock_recv(accepted, 10) == b"in"
                await loop.sock_sendall(accepted, b"out")
                assert await loop.sock_recv(client, 10) == b"out"
        await task.kill(signal.SIGKILL)
        await task.wait()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        await task.release()


DAEMON = """
import asyncio, os, sys
from dray.shim.tasks import Tasks, Zygote
from dray.shim.model import AttachRequest, TaskCreate
import msgspec
zygote = Zygote.spawn({fake!r})
class Listener:
    def __getattr__(self, name): return lambda *a: None
async def main():
    request = msgspec.json.decode({request!r}, type=TaskCreate)
    tasks = Tasks(zygote)
    tasks.listener = Listener()
    task = await tasks.create(request, attachments=[(AttachRequest(framed=False), {fd})])
    await task.wait()
    await asyncio.sleep(100)
asyncio.run(main())
"""


async def test_a_killed_daemon_takes_no_byte_from_an_attached_client(bench):
    size = 100_000_000
    request = bench.request("sh", "-c", f"head -c {size} /dev/zero; exit 12", log=LogSpec(driver="local"))
    ours, theirs = socket.socketpair()
    program = DAEMON.format(fake=FAKE, request=msgspec.json.encode(request), fd=theirs.fileno())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    daemon = subprocess.Popen([sys.executable, "-c", program], env=environment, pass_fds=[theirs.fileno()])
    theirs.close()
    with ours, daemon:
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        got = 0
        while data := await loop.sock_recv(ours, 1 << 20):
            if got < 5_000_000 <= got + len(data):
                daemon.kill()
                daemon.wait()
            got += len(data)
    assert got == size
    exit_file = Path(request.state_dir) / "exit.json"
    while not exit_file.exists():
        await asyncio.sleep(0.01)
    assert json.loads(exit_file.read_text())["exit_code"] == 12


async def test_a_killed_zygote_is_replaced(bench):
    task = await bench.tasks.create(bench.request("sleep", "100"))
    first = bench.zygote.pid
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    again = await bench.tasks.create(bench.request("true"))
    assert (await again.wait()).exit_code == 0
    assert bench.zygote.pid != first
    await again.release()
    await task.kill(signal.SIGKILL)
    await task.wait()
    await task.release()
