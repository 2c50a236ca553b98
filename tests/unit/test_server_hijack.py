"""Attach, exec start, logs and websocket: the exact heads, what was sent too early, half-close, descriptors."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dray import __version__
from dray.server.listeners import Listener
from unit.server_fakes import Fake, exchange, get, post, serving

EXEC_HEADERS = (
    f"Api-Version: 1.55\r\nDocker-Experimental: false\r\nOstype: linux\r\nServer: dray/{__version__} (linux)\r\n"
).encode()
UPGRADE = ("Connection: Upgrade", "Upgrade: tcp")


@pytest.fixture
async def fake() -> Fake:
    return Fake()


@pytest.fixture
async def path(fake: Fake, tmp_path: Path) -> AsyncIterator[str]:
    path = str(tmp_path / "api.sock")
    async with serving(fake, Listener(url=f"unix://{path}")):
        yield path


async def talk(path: str, request: bytes, *, shut: bool = False) -> bytes:
    """Send bytes, perhaps close the sending half, and read until the end."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(request)
        if shut:
            writer.write_eof()
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("version", "tty", "kind"),
    [
        ("/v1.42", False, b"multiplexed-stream"),
        ("/v1.41", False, b"raw-stream"),
        ("/v1.47", True, b"raw-stream"),
        ("", False, b"multiplexed-stream"),
    ],
)
async def test_attach_upgrades(path: str, fake: Fake, version: str, tty: bool, kind: bytes) -> None:
    fake.tty = tty
    answer = await talk(path, post(f"{version}/containers/web/attach?stream=1&stdout=1&stdin=yes", b"", *UPGRADE))
    assert answer == (
        b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker." + kind + b"\r\n"
        b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n<>"
    )
    _, options = fake.last("attach")
    assert (options.stdin, options.stdout, options.stderr, options.stream) == (True, True, False, True)
    assert fake.detached[0].multiplexed is not tty


async def test_attach_without_upgrade_is_a_raw_200(path: str, fake: Fake) -> None:
    answer = await talk(path, post("/v1.47/containers/web/attach?stream=1"))
    assert answer == b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n<>"
    assert fake.detached[0].multiplexed


async def test_exec_start_has_the_usual_headers_too(path: str, fake: Fake) -> None:
    answer = await talk(path, post("/v1.47/exec/abc/start", b'{"Detach":false,"Tty":false}', *UPGRADE))
    assert answer == (
        b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n"
        b"Connection: Upgrade\r\nUpgrade: tcp\r\n" + EXEC_HEADERS + b"\r\n<>"
    )
    ref, options, _, _ = fake.last("start")
    assert (ref, options.detach, options.tty) == ("abc", False, False)


async def test_a_detached_exec_is_a_plain_200(path: str, fake: Fake) -> None:
    answer = await exchange(path, post("/exec/abc/start", b'{"Detach":true}'))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"Content-Length: 0\r\n\r\n") or b"Content-Length: 0\r\n" in answer
    assert fake.last("start")[2] is None


@pytest.mark.parametrize("pieces", [1, 2, 1000])
@pytest.mark.parametrize("upgrade", [UPGRADE, ()])
@pytest.mark.parametrize("body", [b"", b'{"Tty":false}'])
async def test_what_follows_the_request_is_leftover(
    path: str, fake: Fake, pieces: int, upgrade: tuple[str, ...], body: bytes
) -> None:
    where = "/v1.47/exec/slow/start" if body else "/v1.47/containers/slow/attach?stdin=1"
    request = post(where, body, *upgrade) + b"GET /not HTTP/1.1\r\n\r\n\x00stdin"
    reader, writer = await asyncio.open_unix_connection(path)
    size = -(-len(request) // pieces)
    for start in range(0, len(request), size):
        writer.write(request[start : start + size])
        if pieces > 1:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    fake.gate.set()
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    rest = fake.detached[0].leftover
    assert rest == b"GET /not HTTP/1.1\r\n\r\n\x00stdin"
    assert b"\r\n\r\n<" + rest + b">" in answer


async def test_a_client_may_close_its_sending_half_before_the_answer(path: str, fake: Fake) -> None:
    task = asyncio.ensure_future(
        talk(path, post("/v1.47/containers/slow/attach?stdin=1", b"", *UPGRADE) + b"all", shut=True)
    )
    await asyncio.sleep(0.05)
    fake.gate.set()
    assert (await task).endswith(b"\r\n\r\n<all>")


async def test_errors_before_the_hijack_are_responses_and_the_connection_lives(path: str) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(post("/v1.47/containers/missing/attach?stream=1", b"", *UPGRADE) + get("/_ping"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404")
    assert b"Content-Type: application/json\r\n" in head
    assert await reader.readuntil(b"}\n") == b'{"message":"No such container: missing"}\n'
    assert (await reader.readuntil(b"\r\n\r\nOK")).startswith(b"HTTP/1.1 200 OK")
    writer.close()


async def test_a_half_closed_client_gets_its_error_and_the_end(path: str) -> None:
    answer = await talk(path, post("/v1.47/containers/missing/attach", b"", *UPGRADE), shut=True)
    assert answer.startswith(b"HTTP/1.1 404")


async def test_a_half_closed_client_gets_every_answer_and_the_end(path: str) -> None:
    answer = await talk(path, get("/_ping") + get("/nosuch") + get("/_ping"), shut=True)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.count(b"HTTP/1.1 404") == 1


async def test_a_request_that_was_cut_off_gets_no_answer(path: str) -> None:
    request = post("/v1.47/containers/create", b"{}")
    assert await talk(path, request.replace(b"Content-Length: 2", b"Content-Length: 3"), shut=True) == b""


async def test_a_stream_without_end_ends_with_its_client(path: str) -> None:
    await talk(path, get("/events"), shut=True)


async def test_chunked_bodies_cannot_be_hijacked(path: str) -> None:
    request = get("/exec/abc/start", "Transfer-Encoding: chunked", "Content-Type: application/json")
    answer = await exchange(path, request.replace(b"GET", b"POST", 1) + b"2\r\n{}\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"Content-Length" in answer


async def test_hijacks_work_on_a_connection_used_before(path: str) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(get("/_ping"))
    await reader.readuntil(b"\r\n\r\nOK")
    writer.write(post("/containers/create", b'{"Image":"busybox"}'))
    await reader.readuntil(b"}\n")
    writer.write(post("/v1.47/containers/web/attach", b"", *UPGRADE) + b"in")
    assert (await reader.read()).endswith(b"\r\n\r\n<in>")
    writer.close()


@pytest.mark.parametrize(
    ("version", "tty", "kind"), [("/v1.47", False, b"multiplexed"), ("/v1.41", False, b"raw")]
)
async def test_logs_are_chunked(path: str, fake: Fake, version: str, tty: bool, kind: bytes) -> None:
    query = "stdout=1&follow=1&since=1700000000.000000005&tail=12&timestamps=1&details=1"
    answer = await talk(path, get(f"{version}/containers/web/logs?{query}"))
    assert answer == (
        b"HTTP/1.1 200 OK\r\n" + EXEC_HEADERS + b"Content-Type: application/vnd.docker." + kind + b"-stream\r\n"
        b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    _, options = fake.last("logs")
    assert (options.follow, options.tail, options.since) == (True, 12, 1700000000000000005)
    assert (options.stdout, options.stderr, options.timestamps, options.details) == (True, False, True, True)


async def test_old_http_gets_logs_without_chunks(path: str) -> None:
    answer = await talk(path, b"GET /containers/web/logs?stdout=1 HTTP/1.0\r\n\r\n")
    assert b"Transfer-Encoding" not in answer
    assert answer.endswith(b"Connection: close\r\n\r\nhello")


@pytest.mark.parametrize(("tail", "lines"), [("all", None), ("", None), ("-1", None), ("0", 0), ("7", 7)])
async def test_tail(path: str, fake: Fake, tail: str, lines: int | None) -> None:
    await talk(path, get(f"/containers/web/logs?stderr=1&tail={tail}"))
    assert fake.last("logs")[1].tail == lines


async def test_websocket_handshake(path: str, fake: Fake) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    headers = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    )
    answer = await talk(path, get("/v1.47/containers/web/attach/ws?stream=1", *headers) + b"\x82\x80frame")
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n<\x82\x80frame>" in answer
    assert fake.detached[0].websocket
    assert not fake.detached[0].multiplexed


async def test_a_websocket_needs_its_handshake(path: str) -> None:
    assert (await exchange(path, get("/containers/web/attach/ws"))).startswith(b"HTTP/1.1 400")


async def test_the_descriptor_is_blocking_and_stays_open_without_the_server(fake: Fake, tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    fake.leave_open = True
    async with serving(fake, Listener(url=f"unix://{path}")):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(post("/containers/web/attach", b"", *UPGRADE))
        await reader.readuntil(b"\r\n\r\n")
    with socket.socket(fileno=fake.detached[0].fd) as sock:
        assert sock.getblocking()
        assert os.get_inheritable(sock.fileno()) is False
        sock.sendall(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.write(b"typed")
        writer.write_eof()
        assert await asyncio.to_thread(sock.recv, 100) == b"typed"
        assert await asyncio.to_thread(sock.recv, 100) == b""
        sock.sendall(b"after your end")
        sock.shutdown(socket.SHUT_WR)
        assert await reader.read() == b"after your end"
    writer.close()


async def test_connecting_and_aborting_leaves_no_descriptor(path: str, fake: Fake) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    requests = [
        post("/v1.47/containers/web/attach?stdin=1", b"", *UPGRADE),
        post("/v1.47/containers/slow/attach?stdin=1", b"", *UPGRADE) + b"early",
        post("/v1.47/exec/abc/start", b"{}", *UPGRADE),
        post("/v1.47/exec/abc/start", b"{}", *UPGRADE)[:-1],
        get("/v1.47/containers/web/logs?stdout=1"),
        post("/v1.47/containers/web/attach", b"", *UPGRADE)[:40],
    ]
    await exchange(path, get("/_ping"))
    before = descriptors()
    for round_ in range(2000):
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        sock.connect(path)
        sock.send(requests[round_ % len(requests)])
        if round_ % 3:
            await asyncio.sleep(0)
        sock.close()
    fake.gate.set()
    async with asyncio.timeout(10):
        while descriptors() > before:
            await asyncio.sleep(0.01)
    assert (await exchange(path, get("/_ping"))).startswith(b"HTTP/1.1 200")
