"""Responses as Docker writes them.

JSON bodies are not HTML-escaped and end with a newline; their Content-Type is exactly `application/json`, which
clients compare as text. Progress streams are one JSON object per line ending in CRLF, each flushed; an error after
the first message is the stream's last line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from dray.api import models
from dray.api.requests import Download, ProgressStream
from dray.base.errors import DrayError
from dray.server.call import Call
from dray.server.httpserver import Response, StreamResponse

JSON = "application/json"
_encoder = msgspec.json.Encoder()
encode = _encoder.encode


def json(value: Any, status: int = 200) -> Response:
    """Answer with a JSON document."""
    return Response(body=encode(value) + b"\n", status=status, headers={"Content-Type": JSON})


def empty(status: int = 200) -> Response:
    """Answer without a body."""
    return Response(status=status)


def error_message(error: Exception) -> str:
    """Return what a client is told of an error."""
    if isinstance(error, DrayError):
        return error.message
    if isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{place}"
    return f"internal error: {type(error).__name__}: {error}"


def error(status: int, message: str, *, plain: bool = False) -> Response:
    """Answer with an error; 304 has no body, clients older than JSON errors get plain text."""
    if status == 304:
        return empty(304)
    if plain:
        return Response(text=message + "\n", status=status)
    return json(models.ErrorResponse(message=message), status)


def stream(call: Call, content_type: str, **headers: str) -> StreamResponse:
    """Begin a chunked response."""
    call.responding = True
    response = StreamResponse(headers={**call.common_headers, "Content-Type": content_type, **headers})
    if call.request.version >= (1, 1):
        response.enable_chunked_encoding()
    return response


async def progress(call: Call, messages: ProgressStream) -> StreamResponse:
    """Stream progress; what fails before the first message is a normal error."""
    call.cancel_when_client_goes()
    iterator = aiter(messages)
    try:
        first = await anext(iterator, None)
        response = stream(call, JSON)
        await response.prepare(call.request)
        if first is None:
            await response.write_eof()
            return response
        await response.write(encode(first) + b"\r\n")
        try:
            async for message in iterator:
                await response.write(encode(message) + b"\r\n")
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as failure:
            await response.write(progress_error(failure))
        await response.write_eof()
        return response
    finally:
        await close(iterator)


def progress_error(failure: Exception) -> bytes:
    """Return the last line of a progress stream that failed."""
    message = error_message(failure)
    code = failure.exit_code if hasattr(failure, "exit_code") else 0
    detail = models.ErrorDetail(code=code, message=message)
    return encode({"errorDetail": detail, "error": message}) + b"\r\n"


async def download(call: Call, content: Download, content_type: str, **headers: str) -> StreamResponse:
    """Stream bytes. A failure after the first byte can only cut the connection, so that no client takes it for whole."""
    call.cancel_when_client_goes()
    try:
        first = await anext(content, b"")
        response = stream(call, content_type, **headers)
        await response.prepare(call.request)
        if first:
            await response.write(first)
        try:
            async for chunk in content:
                if chunk:
                    await response.write(chunk)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as failure:
            if call.request.transport is not None:
                call.request.transport.abort()
            raise ConnectionResetError(f"stream ended early: {error_message(failure)}") from failure
        await response.write_eof()
        return response
    finally:
        await close(content)


async def lines(
    call: Call, records: AsyncIterator[Any], *, content_type: str, prefix: bytes = b""
) -> StreamResponse:
    """Stream JSON records, one a line; the head is flushed before the first."""
    call.cancel_when_client_goes()
    try:
        response = stream(call, content_type)
        await response.prepare(call.request)
        async for record in records:
            await response.write(prefix + encode(record) + b"\n")
        await response.write_eof()
        return response
    finally:
        await close(records)


def taken() -> StreamResponse:
    """Return what stands for the response when the engine has answered on the client's own socket.

    An engine that answered without taking the socket had nothing to say: an empty 200.
    """
    return Response()


async def close(iterator: AsyncIterator[Any]) -> None:
    """Close an iterator that is perhaps a generator."""
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()
