"""A very small client of D-Bus: method calls with strings, and signals (dbus.freedesktop.org, "D-Bus Specification").

A message, little-endian, everything aligned to its size:

    byte order 'l', type, flags, version 1, body's length (u32), serial (u32),
    fields: array of (code, variant): 1 path, 2 interface, 3 member, 4 error, 5 reply to, 6 destination, 8 signature
    padding to 8, body

Only what is asked for is read: numbers of replies, members, error names, and strings that a body begins with.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Callable

from msgspec import Struct

from dray.base.errors import Internal

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
_NO_AUTO_START = 2
_LARGEST = 1 << 20  # of a message; nothing that we ask for is that long
SECONDS = 30.0  # for an answer
_DEFAULT = "unix:path=/run/dbus/system_bus_socket"
_BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class Message(Struct, frozen=True):
    """What came: a kind, and what of it matters. `words` are the strings that the body begins with."""

    kind: int
    reply_to: int = 0
    member: str = ""
    error: str = ""
    words: tuple[str, ...] = ()


class CallFailed(Internal):
    """The other side answered with an error; `name` is D-Bus's name of it."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(f"{name}: {words}")
        self.name = name


def encode(serial: int, service: str, path: str, interface: str, member: str, words: tuple[str, ...]) -> bytes:
    """Return a call with strings as arguments."""
    body = b""
    for word in words:
        body += b"\0" * (-len(body) % 4) + _string(word)
    fields = b""
    texts = ((1, "o", path), (2, "s", interface), (3, "s", member), (6, "s", service))
    for code, kind, text in texts:
        fields += b"\0" * (-len(fields) % 8) + bytes((code, 1)) + kind.encode() + b"\0" + _string(text)
    if words:
        signature = "s" * len(words)
        fields += b"\0" * (-len(fields) % 8) + b"\x08\x01g\0" + bytes((len(words),)) + signature.encode() + b"\0"
    head = struct.pack("<cBBBIII", b"l", CALL, _NO_AUTO_START, 1, len(body), serial, len(fields)) + fields
    return head + b"\0" * (-len(head) % 8) + body


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def decode(kind: int, order: str, fields: bytes, body: bytes) -> Message:
    """Return a message of its parts; ValueError, struct.error or IndexError for what is none."""
    found: dict[int, str | int] = {}
    at = 0
    while at < len(fields):
        at += -at % 8
        code, length = fields[at], fields[at + 1]
        signature = fields[at + 2 : at + 2 + length].decode()
        at += 3 + length
        if signature == "u":
            at += -at % 4
            (found[code],) = struct.unpack_from(f"{order}I", fields, at)
            at += 4
        elif signature == "g":
            found[code] = fields[at + 1 : at + 1 + fields[at]].decode()
            at += 2 + fields[at]
        elif signature in ("s", "o"):
            at += -at % 4
            found[code], at = _text(order, fields, at)
        else:
            raise ValueError(f"a header field of type {signature}")
    words = []
    at = 0
    for one in str(found.get(8, "")):
        if one != "s":
            break
        text, at = _text(order, body, at + -at % 4)
        words.append(text)
    return Message(kind, int(found.get(5, 0)), str(found.get(3, "")), str(found.get(4, "")), tuple(words))


def _text(order: str, data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(f"{order}I", data, at)
    if at + 4 + length >= len(data):
        raise ValueError("a string that does not end")
    return data[at + 4 : at + 4 + length].decode(errors="replace"), at + 5 + length


class Bus:
    """A connection to the system's bus. Calls `happened` for every signal, and when the connection ends; owns the
    connection and a task that reads it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, happened: Callable[[], None]
    ) -> None:
        self._reader, self._writer = reader, writer
        self._happened = happened
        self._serial = 0
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, happened: Callable[[], None]) -> Bus:
        """Connect and say hello; OSError if there is no bus or it does not want us."""
        address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or _DEFAULT
        kind, _, path = address.partition(";")[0].partition(",")[0].partition("=")
        if kind != "unix:path":
            raise ConnectionError(f"address {address} of the system's bus is no unix:path")
        bus = cls(*await asyncio.open_unix_connection(path), happened)
        try:
            bus._writer.write(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
            if not (await bus._reader.readline()).startswith(b"OK"):
                raise ConnectionError("the system's bus refuses us")
            bus._writer.write(b"BEGIN\r\n")
            bus._task = asyncio.get_running_loop().create_task(bus._read())
            await bus.call(*_BUS, "Hello")
        except BaseException:
            await bus.close()
            raise
        return bus

    async def close(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._writer.close()

    async def listen(self, rule: str) -> None:
        """Have the signals delivered that match a rule."""
        await self.call(*_BUS, "AddMatch", rule)

    async def call(self, service: str, path: str, interface: str, member: str, *words: str) -> tuple[str, ...]:
        """Call a method; return the strings of its answer. CallFailed with the other side's error; nobody is started
        for it. OSError if the connection ends, TimeoutError (an OSError) after SECONDS."""
        if self._task is None or self._task.done():
            raise ConnectionResetError("the system's bus has ended the connection")
        self._serial += 1
        answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[self._serial] = answered
        self._writer.write(encode(self._serial, service, path, interface, member, words))
        try:
            message = await asyncio.wait_for(answered, SECONDS)
        finally:
            self._waiting.pop(self._serial, None)
        if message.kind == ERROR:
            raise CallFailed(message.error, " ".join(message.words))
        return message.words

    async def _read(self) -> None:
        try:
            while True:
                message = await self._receive()
                waiting = self._waiting.get(message.reply_to)
                if message.kind == SIGNAL:
                    self._happened()
                elif waiting is not None and not waiting.done():
                    waiting.set_result(message)
        except (OSError, EOFError, ValueError, struct.error, IndexError):
            pass  # it has ended, or speaks another language
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError("the system's bus has ended the connection"))
        self._happened()

    async def _receive(self) -> Message:
        head = await self._reader.readexactly(16)
        order = "<" if head[:1] == b"l" else ">"
        size, _, length = struct.unpack_from(f"{order}III", head, 4)
        if size + length > _LARGEST:
            raise ValueError("a message that is too long")
        rest = await self._reader.readexactly(length + -length % 8 + size)
        return decode(head[1], order, rest[:length], rest[length + -length % 8 :])
