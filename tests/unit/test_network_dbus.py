"""The client of D-Bus on a bus of the test's own."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dray.network import dbus
from dray.network.dbus import Bus, CallFailed, encode


def answer(kind: int, to: int, *words: str, error: str = "") -> bytes:
    """A reply: the call's own encoding, with another head."""
    made = encode(7, "a.b", "/c", "d.e", "f", words)
    fields = struct.pack("<BB2sI", 5, 1, b"u\0", to)
    if error:
        fields += b"\x04\x01s\0" + struct.pack("<I", len(error)) + error.encode() + b"\0"
        fields += b"\0" * (-len(fields) % 8)
    (length,) = struct.unpack_from("<I", made, 12)
    old, body = made[16 : 16 + length], made[16 + length + -length % 8 :]
    fields += old
    head = struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), 9, len(fields)) + fields
    return head + b"\0" * (-len(head) % 8) + body


Script = Callable[[int], bytes]


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Script]]:
    """A bus that answers Hello, and then every call by the next script, which gets the call's number."""
    scripts: list[Script] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readline()).startswith(b"\0AUTH EXTERNAL ")
        writer.write(b"OK 1234\r\n")
        assert await reader.readline() == b"BEGIN\r\n"
        for number, script in enumerate([lambda to: answer(dbus.RETURN, to, ":1.1"), *scripts], 1):
            size, _, length = struct.unpack_from("<III", await reader.readexactly(16), 4)
            await reader.readexactly(length + -length % 8 + size)
            writer.write(script(number))
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "bus")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    yield scripts
    server.close()


async def test_answers_errors_signals_and_the_end(served: list[Script]) -> None:
    signal = answer(dbus.SIGNAL, 0, "x")
    served += [
        lambda to: signal + answer(dbus.RETURN, to, "trusted", "ünï"),
        lambda to: answer(dbus.ERROR, to, "no such zone", error="org.x.Unknown"),
    ]
    happened = 0

    def count() -> None:
        nonlocal happened
        happened += 1

    bus = await Bus.open(count)
    assert await bus.call("s", "/p", "i.i", "m", "eth0") == ("trusted", "ünï")
    assert happened == 1
    with pytest.raises(CallFailed, match=r"org\.x\.Unknown: no such zone"):
        await bus.call("s", "/p", "i.i", "m")
    with pytest.raises(ConnectionResetError):
        await bus.call("s", "/p", "i.i", "m")
    assert happened == 2
    await bus.close()


@pytest.mark.parametrize(
    "noise", [b"\0" * 64, b"l\2\0\1" + b"\xff" * 60, b"l\2\0\1" + bytes(4) + b"\1\0\0\0\4\0\0\0\7\1x\0" + bytes(8)]
)
async def test_nonsense_ends_it(served: list[Script], noise: bytes) -> None:
    served.append(lambda _: noise)
    bus = await Bus.open(lambda: None)
    with pytest.raises(ConnectionResetError):
        await bus.call("s", "/p", "i.i", "m", "w")
    await bus.close()


async def test_without_a_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (f"unix:path={tmp_path}/none", "tcp:host=x"):
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        with pytest.raises(OSError, match=r"No such file|no unix:path"):
            await Bus.open(lambda: None)
