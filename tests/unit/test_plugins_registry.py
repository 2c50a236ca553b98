"""Plugins: found, activated, called; and what those do that are hostile, dead or slow."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.base.errors import InvalidParameter, NotFound
from dray.plugins import transport
from dray.plugins.discovery import Address, Folders
from dray.plugins.registry import VOLUME, Limits, PluginFailed, PluginRefused, Plugins
from support.plugin import FakePlugin, running

QUICK = Limits(long=1.0, short=1.0, glance=1.0, patience=0.3)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("sockets", "etc", "lib"):
        (tmp_path / name).mkdir()
    return Folders((str(tmp_path / "sockets"),), (str(tmp_path / "etc"), str(tmp_path / "lib")))


@pytest.fixture
def plugins(folders: Folders) -> Plugins:
    return Plugins(folders, QUICK)


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[FakePlugin]:
    with running(tmp_path / "sockets/one.sock", [VOLUME], {"echo": lambda asked: asked}) as found:
        yield found


def listen(path: Path) -> socket.socket:
    path.parent.mkdir(exist_ok=True)
    found = socket.socket(socket.AF_UNIX)
    found.bind(str(path))
    found.listen()
    return found


def spec(path: Path, content: str | dict[str, object], mode: int = 0o644) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)


# -- discovery


def test_sockets_come_before_specs_and_folders_in_order(folders: Folders, tmp_path: Path) -> None:
    with listen(tmp_path / "sockets/a.sock"), listen(tmp_path / "sockets/b/b.sock"):
        spec(tmp_path / "etc/a.spec", "unix:///elsewhere")
        spec(tmp_path / "etc/c.spec", "tcp://plugins.example:8080\n")
        spec(tmp_path / "lib/c.spec", "unix:///never")
        spec(tmp_path / "lib/d.json", {"Name": "d", "Addr": "https://h:1", "TLSConfig": {"CAFile": "/ca.pem"}})
        (tmp_path / "sockets/nosocket.sock").write_text("")
        assert folders.names() == ["a", "b", "c", "d"]
        assert folders.find("a") == Address(path=str(tmp_path / "sockets/a.sock"))
        assert folders.find("b") == Address(path=str(tmp_path / "sockets/b/b.sock"))
        assert folders.find("c") == Address(host="plugins.example", port=8080)
        found = folders.find("d")
        assert (found.host, found.tls and found.tls.ca_file) == ("h", "/ca.pem")
        assert found.tls is not None
        assert not found.tls.insecure_skip_verify


@pytest.mark.parametrize("name", ["../etc/a", "a/b", "", ".", "..", "a\0b", "x" * 200, "nosuch"])
def test_a_name_leads_nowhere_else(folders: Folders, tmp_path: Path, name: str) -> None:
    spec(tmp_path / "etc/a.spec", "unix:///x")
    with pytest.raises(NotFound, match="not found"):
        folders.find(name)


@pytest.mark.parametrize(
    ("file", "content", "mode", "words"),
    [
        ("p.spec", "unix:///x", 0o666, "may be written by others than root"),
        ("p.json", {"Name": "q", "Addr": "unix:///x"}, 0o644, 'says Name "q"'),
        ("p.json", "{", 0o644, "truncated"),
        ("p.json", '{"Addr": 5}', 0o644, "Expected `str`"),
        ("p.spec", "file:///etc/passwd", 0o644, "neither unix:///path nor tcp://host:port"),
        ("p.spec", "tcp://h:99999999", 0o644, "neither unix:///path nor"),
        ("p.spec", "", 0o644, "neither unix:///path nor"),
        ("p.spec", "x" * (70 << 10), 0o644, "larger than 65536 bytes"),
    ],
)
def test_hostile_specs(
    folders: Folders, tmp_path: Path, file: str, content: str | dict[str, object], mode: int, words: str
) -> None:
    spec(tmp_path / "etc" / file, content, mode)
    with pytest.raises(InvalidParameter, match=words):
        folders.find("p")


def test_a_fifo_for_a_spec_holds_nobody_up(folders: Folders, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "etc/p.spec")
    with pytest.raises(InvalidParameter, match="not a regular file"):
        folders.find("p")


# -- activation and calls


async def test_a_plugin_is_activated_once(plugins: Plugins, plugin: FakePlugin) -> None:
    one = await plugins.get("one", VOLUME)
    assert await one.call("echo", {"a": [1]}) == {"a": [1]}
    await (await plugins.get("one", VOLUME)).call("echo")
    assert [name for name, _ in plugin.calls] == ["Plugin.Activate", "echo", "echo"]
    with pytest.raises(NotFound, match="does not implement NetworkDriver"):
        await plugins.get("one", "NetworkDriver")


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"", {}), (b"null\n", {}), (b'{"a": 1}\n{"b": 2}\n', {"a": 1})],
    ids=["empty", "null", "two documents"],
)
async def test_careless_answers(plugins: Plugins, plugin: FakePlugin, answer: bytes, said: object) -> None:
    """As Go's decoder, which dockerd reads with, takes them."""
    plugin.handlers["echo"] = lambda _: answer
    assert await (await plugins.get("one", VOLUME)).call("echo") == said


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"Err": "no space"}, PluginRefused, "^echo: no space$"),
        ((500, {"Err": "broken"}), PluginRefused, "^echo: broken$"),
        ((404, b"plain words"), PluginRefused, "^echo: plain words$"),
        ((503, b""), PluginRefused, "^echo: status 503$"),
        (b"nonsense", PluginFailed, 'plugin "one": echo: the answer is not JSON'),
        ([1], PluginFailed, "not a JSON object"),
    ],
)
async def test_bad_answers(plugins: Plugins, plugin: FakePlugin, answer: object, kind: type, words: str) -> None:
    plugin.handlers["echo"] = lambda _: answer
    with pytest.raises(kind, match=words):
        await (await plugins.get("one", VOLUME)).call("echo")


async def test_a_plugin_that_hangs_costs_a_bounded_time_and_nobody_else(
    plugins: Plugins, plugin: FakePlugin, tmp_path: Path
) -> None:
    plugin.hang("echo")
    one = await plugins.get("one", VOLUME)
    hanging = [asyncio.ensure_future(one.call("echo")) for _ in range(50)]
    with running(tmp_path / "sockets/two.sock", [VOLUME], {"echo": lambda asked: asked}):
        assert await (await plugins.get("two", VOLUME)).call("echo", {"b": 1}) == {"b": 1}
    assert not any(call.done() for call in hanging), "the other plugin answered while these hang"
    for result in await asyncio.gather(*hanging, return_exceptions=True):
        assert isinstance(result, PluginFailed)
        assert 'plugin "one": echo: no answer within 1 s' in str(result)


async def test_a_dead_plugin_is_waited_for_and_then_named(plugins: Plugins, plugin: FakePlugin) -> None:
    one = await plugins.get("one", VOLUME)
    plugin.close()
    with pytest.raises(PluginFailed, match='plugin "one": echo: cannot be reached: No such file or directory'):
        await one.call("echo")


async def test_a_plugin_that_is_started_late_is_reached(tmp_path: Path, folders: Folders) -> None:
    plugins = Plugins(folders, Limits(patience=10))
    path = tmp_path / "late.sock"
    spec(tmp_path / "etc/late.spec", f"unix://{path}")
    asking = asyncio.ensure_future(plugins.get("late", VOLUME))
    await asyncio.sleep(0.15)
    with running(path, [VOLUME]):
        assert (await asking).implements == (VOLUME,)


async def test_a_plugin_that_came_back_is_activated_again(plugins: Plugins, tmp_path: Path) -> None:
    path = tmp_path / "sockets/one.sock"
    with running(path, [VOLUME]):
        one = await plugins.get("one", VOLUME)
    with listen(path), pytest.raises(PluginFailed):
        await one.call("echo", patience=0)
    path.unlink()
    with running(path, ["NetworkDriver"]), pytest.raises(NotFound, match="does not implement VolumeDriver"):
        await plugins.get("one", VOLUME)


async def test_all_of_a_kind_with_warnings_for_the_dead(
    plugins: Plugins, plugin: FakePlugin, tmp_path: Path
) -> None:
    spec(tmp_path / "etc/dead.spec", f"unix://{tmp_path}/nosuch.sock")
    spec(tmp_path / "etc/hostile.spec", "unix:///x", 0o666)
    with running(tmp_path / "sockets/net.sock", ["NetworkDriver"]):
        found, warnings = await plugins.all(VOLUME)
    assert [one.name for one in found] == ["one"]
    assert len(warnings) == 2
    assert 'plugin "dead"' in warnings[0]
    assert 'plugin "hostile"' in warnings[1]


# -- what a socket may answer


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "larger than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "larger than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "ended in the middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", "larger than"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", "larger than"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * (80 << 10), "head is larger"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1\r\n\r\n", "not HTTP"),
        (b"", "ended in the middle"),
    ],
)
async def test_answers_are_bounded(tmp_path: Path, raw: bytes, words: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.close()

    async with await asyncio.start_unix_server(answer, tmp_path / "s"):
        with pytest.raises(transport.BadAnswer, match=words):
            await transport.post(Address(path=str(tmp_path / "s")), "/x", b"", timeout=5)


async def test_a_body_without_a_length_is_cut_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "ANSWER_LIMIT", 1000)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000)
        writer.close()

    async with await asyncio.start_unix_server(answer, tmp_path / "s"):
        with pytest.raises(transport.BadAnswer, match="larger than"):
            await transport.post(Address(path=str(tmp_path / "s")), "/x", b"", timeout=5)


async def test_chunked_answers_are_read(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
        )
        writer.close()

    async with await asyncio.start_unix_server(answer, tmp_path / "s"):
        found = await transport.post(Address(path=str(tmp_path / "s")), "/x", b"", timeout=5)
    assert found == transport.Answer(201, b"abcde")
