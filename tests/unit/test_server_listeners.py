"""TCP with its guard against browsers, TLS with half-close, path sockets and their peers, socket activation."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import pytest

from dray.base.errors import Forbidden, InvalidParameter
from dray.server import access, listeners, tls
from dray.server.listeners import Listener
from unit.server_fakes import Fake, get, post, serving

UPGRADE = ("Connection: Upgrade", "Upgrade: tcp")


@pytest.fixture
async def fake() -> Fake:
    return Fake()


@pytest.fixture
async def port(fake: Fake) -> AsyncIterator[int]:
    async with serving(
        fake, Listener(url="tcp://127.0.0.1:0", allowed_hosts=frozenset({"build.example.com"}))
    ) as servers:
        yield int(servers.addresses[0].rsplit(":", 1)[1])


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return head


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:2375", b"200"),
        ("[::1]:2375", b"200"),
        ("localhost", b"200"),
        ("buildbox:2375", b"200"),
        ("build.example.com:2375", b"200"),
        ("api.moby.localhost", b"200"),
        ("rebound.example.org:2375", b"403"),
    ],
)
async def test_names_that_a_page_could_have_resolved_are_refused(port: int, host: str, status: bytes) -> None:
    answer = await ask(port, get("/_ping").replace(b"Host: docker", f"Host: {host}".encode()))
    assert answer.split()[1] == status


@pytest.mark.parametrize(
    "header", ["Origin: http://evil.example.org", "Origin: null", "Sec-Fetch-Site: cross-site"]
)
async def test_pages_are_refused(port: int, fake: Fake, header: str) -> None:
    assert (await ask(port, post("/containers/web/start", b"", header))).split()[1] == b"403"
    assert fake.calls == []


async def test_attach_over_tcp_gives_the_socket_away(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(post("/v1.47/containers/web/attach", b"", *UPGRADE) + b"in")
    assert (await reader.read()).endswith(b"\r\n\r\n<in>")
    writer.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")

    def run(*command: str) -> None:
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True, timeout=30)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    run("req", "-x509", *key, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        run("req", *key[:-2], "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        run("x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem")
    return folder


def client_context(folder: Path, *, certificate: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if certificate:
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
    return context


@pytest.fixture
async def tls_port(fake: Fake, certificates: Path) -> AsyncIterator[int]:
    context = tls.server_context(
        str(certificates / "server.pem"), str(certificates / "server.key"), client_ca=str(certificates / "ca.pem")
    )
    async with serving(fake, Listener(url="tcp://127.0.0.1:0", tls=context)) as servers:
        yield int(servers.addresses[0].rsplit(":", 1)[1])


def tls_attach(port: int, folder: Path) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        outer = client_context(folder).wrap_socket(plain, server_hostname="localhost")
        outer.sendall(get("/_ping"))
        assert b"OK" in outer.recv(4096)
        outer.sendall(post("/v1.47/containers/slow/attach", b"", *UPGRADE) + b"in")
        received = b""
        while chunk := outer.recv(4096):
            received += chunk
        outer.close()
        return received


async def test_tls_serves_and_hijacks(tls_port: int, fake: Fake, certificates: Path) -> None:
    task = asyncio.create_task(asyncio.to_thread(tls_attach, tls_port, certificates))
    await asyncio.sleep(0.1)
    fake.gate.set()
    assert (await task).endswith(b"\r\n\r\n<in>")


async def test_tls_output_goes_on_after_the_client_has_closed_its_half(
    tls_port: int, fake: Fake, certificates: Path
) -> None:
    """`echo x | docker run -i`: the client sends close_notify, then wants the output."""
    fake.leave_open = True
    loop = asyncio.get_running_loop()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = client_context(certificates).wrap_bio(incoming, outgoing, server_hostname="localhost")
    sock = socket.create_connection(("127.0.0.1", tls_port), timeout=10)
    sock.setblocking(False)

    async def step(action: object, *arguments: object) -> object:
        while True:
            try:
                result = action(*arguments)  # type: ignore[operator]
            except ssl.SSLWantReadError:
                if data := outgoing.read():
                    await loop.sock_sendall(sock, data)
                data = await loop.sock_recv(sock, 65536)
                incoming.write(data) if data else incoming.write_eof()
            else:
                if data := outgoing.read():
                    await loop.sock_sendall(sock, data)
                return result

    with sock:
        await step(session.do_handshake)
        await step(session.write, post("/v1.47/containers/web/attach", b"", *UPGRADE))
        assert b"101 UPGRADED" in await step(session.read, 4096)
        inner = socket.socket(fileno=fake.detached[0].fd)
        with inner:
            await step(session.write, b"all of stdin")
            with pytest.raises(ssl.SSLWantReadError):
                session.unwrap()  # our close_notify; theirs is to come
            await loop.sock_sendall(sock, outgoing.read())
            assert await asyncio.to_thread(inner.recv, 100) == b"all of stdin"
            assert await asyncio.to_thread(inner.recv, 100) == b""
            await asyncio.to_thread(inner.sendall, b"x" * 1_000_000)
        size = 0
        while data := await loop.sock_recv(sock, 65536):
            size += len(data)
        assert size > 1_000_000


async def test_tls_without_a_client_certificate_reaches_nothing(
    tls_port: int, fake: Fake, certificates: Path
) -> None:
    def attempt() -> bytes:
        with socket.create_connection(("127.0.0.1", tls_port), timeout=10) as plain:
            context = client_context(certificates, certificate=False)
            with context.wrap_socket(plain, server_hostname="localhost") as outer:
                outer.sendall(get("/info"))
                return outer.recv(100)

    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(attempt)
    assert fake.calls == []


async def test_garbage_on_a_tls_port_is_dropped(tls_port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", tls_port)
    writer.write(get("/_ping"))
    assert b"HTTP/1.1 200" not in await reader.read()
    writer.close()


async def test_closing_the_servers_ends_streams_at_once(fake: Fake, tmp_path: Path) -> None:
    path = str(tmp_path / "api.sock")
    async with serving(fake, Listener(url=f"unix://{path}")):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(get("/events"))
        await reader.readuntil(b"\r\n\r\n")
    assert fake.cancelled == ["events"]
    writer.close()


@pytest.mark.parametrize(
    "url",
    [
        "/var/run/x.sock",
        "unix://relative",
        "tcp://127.0.0.1",
        "tcp://:x",
        "tcp://h:70000",
        "npipe:////./pipe/x",
        "fd://",
    ],
)
async def test_bad_addresses_are_refused(fake: Fake, url: str) -> None:
    with pytest.raises(InvalidParameter):
        async with serving(fake, Listener(url=url)):
            pass


async def test_one_bad_address_closes_the_others(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with pytest.raises(InvalidParameter):
        async with serving(fake, Listener(url=f"unix://{path}"), Listener(url="tcp://x")):
            pass
    assert not path.exists()


async def test_an_unknown_group_is_named(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="group nosuchgroup not found"):
        async with serving(fake, Listener(url=f"unix://{tmp_path}/api.sock", group="nosuchgroup")):
            pass
    assert not (tmp_path / "api.sock").exists()


def test_inherited_sockets_are_chosen_by_name() -> None:
    duplicates: list[int] = []

    def fake_socket(*, fileno: int) -> mock.Mock:
        duplicates.append(fileno)
        return mock.Mock(fileno=lambda: fileno)

    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:docker.socket:c"}
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(listeners.socket, "socket", fake_socket),
        mock.patch.object(listeners.os, "set_inheritable"),
    ):
        listeners.inherited("docker.socket")
        listeners.inherited("5")
        assert duplicates == [4, 5]
        assert len(listeners.inherited("")) == 3
        with pytest.raises(InvalidParameter, match="no socket named"):
            listeners.inherited("zzz")


@pytest.mark.parametrize(
    ("uid", "groups", "mode", "allowed"),
    [
        (0, [0], 0o600, True),
        (4242, [4242], 0o600, False),
        (4242, [4242], 0o660, False),
        (4242, [999], 0o660, True),
        (4242, [4242], 0o666, True),
    ],
)
def test_peers_are_those_that_the_file_admits(
    tmp_path: Path, uid: int, groups: list[int], mode: int, allowed: bool
) -> None:
    path = tmp_path / "s"
    path.touch()
    sock = mock.Mock(spec=socket.socket)
    sock.getsockname.return_value = str(path)
    packed = {
        socket.SO_PEERCRED: access._UCRED.pack(1, uid, 1),
        access._SO_PEERGROUPS: b"".join(group.to_bytes(4, "little") for group in groups),
    }
    sock.getsockopt.side_effect = lambda _level, option, _size: packed[option]
    status = mock.Mock(st_uid=0, st_gid=999, st_mode=mode)
    with (
        mock.patch.object(access.os, "stat", return_value=status),
        mock.patch.object(access.os, "geteuid", return_value=0),
    ):
        assert access.peer_may_connect(sock) is allowed


def test_own_origin_is_fine() -> None:
    headers = {"Host": "localhost:2375", "Origin": "http://localhost:2375"}
    access.check_browser(headers, frozenset(), check_host=True)
    with pytest.raises(Forbidden):
        access.check_browser({"Host": "a.example.org"}, frozenset(), check_host=True)
    access.check_browser({"Host": "a.example.org"}, frozenset(), check_host=False)
