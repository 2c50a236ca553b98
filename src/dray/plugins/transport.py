"""One HTTP/1.1 request to a plugin, on a connection of its own, with bounds on time and size.

Asynchronous, so that a plugin that never answers holds no thread. Retrying is the caller's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from msgspec import Struct

from dray.plugins.discovery import Address, TlsConfig

MEDIA_TYPE = "application/vnd.docker.plugins.v1.2+json"
ANSWER_LIMIT = 16 << 20
_HEAD_LIMIT = 64 << 10


class BadAnswer(Exception):
    """What came back is not HTTP, or too large."""


class Answer(Struct, frozen=True):
    """A response: its status and whole body."""

    status: int
    body: bytes


async def post(address: Address, path: str, body: bytes, *, timeout: float) -> Answer:
    """Send a POST and return the whole answer.

    OSError if nobody listens, TimeoutError after `timeout` seconds in all, BadAnswer for what is not an answer.
    """
    async with asyncio.timeout(timeout):
        reader, writer = await _connect(address)
        try:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {address.host or 'plugin'}\r\nUser-Agent: dray\r\n"
                f"Accept: {MEDIA_TYPE}\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            # A plugin may answer before it has read everything (413): its answer counts, not our broken pipe.
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            return await _answer(reader)
        finally:
            writer.transport.abort()  # nothing is to follow, and a plugin that reads no more must not delay us


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.path:
        return await asyncio.open_unix_connection(sock=await _socket(address.path), limit=_HEAD_LIMIT)
    context = _context(address.tls) if address.tls else None
    return await asyncio.open_connection(address.host, address.port, limit=_HEAD_LIMIT, ssl=context)


async def _socket(path: str) -> socket.socket:
    """Connect to a unix socket. A full backlog is EAGAIN (unix(7)), which asyncio would take for a connection."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        while True:
            try:
                found.connect(path)
                return found
            except BlockingIOError:
                await asyncio.sleep(0.02)
    except BaseException:
        found.close()
        raise


def _context(tls: TlsConfig):  # type: ignore[no-untyped-def]  # ssl is imported only for the plugin that needs it
    import ssl

    context = ssl.create_default_context(cafile=tls.ca_file or None)
    if tls.insecure_skip_verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if tls.cert_file:
        context.load_cert_chain(tls.cert_file, tls.key_file or None)
    return context


async def _answer(reader: asyncio.StreamReader) -> Answer:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        version, status, *_ = line.split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise BadAnswer("the answer is not HTTP/1")
        headers = {}
        for field in fields:
            name, _, value = field.partition(":")
            headers[name.strip().lower()] = value.strip()
        return Answer(int(status), await _body(reader, headers))
    except asyncio.IncompleteReadError as error:
        raise BadAnswer("the connection ended in the middle of the answer") from error
    except asyncio.LimitOverrunError as error:
        raise BadAnswer(f"the answer's head is larger than {_HEAD_LIMIT} bytes") from error
    except ValueError as error:
        raise BadAnswer("the answer is not HTTP") from error


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunks(reader)
    if "content-length" in headers:
        length = int(headers["content-length"])
        if not 0 <= length <= ANSWER_LIMIT:
            raise BadAnswer(f"the answer is larger than {ANSWER_LIMIT} bytes")
        return await reader.readexactly(length)
    body = bytearray()
    while chunk := await reader.read(1 << 16):
        _grow(body, chunk)
    return bytes(body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        if size < 0 or size > ANSWER_LIMIT:
            raise BadAnswer(f"the answer is larger than {ANSWER_LIMIT} bytes")
        _grow(body, await reader.readexactly(size))
        await reader.readexactly(2)
    return bytes(body)


def _grow(body: bytearray, chunk: bytes) -> None:
    if len(body) + len(chunk) > ANSWER_LIMIT:
        raise BadAnswer(f"the answer is larger than {ANSWER_LIMIT} bytes")
    body += chunk
