"""RFC 6455 frames, without a socket: what the server's side of an attached terminal needs.

A client's frames are masked (section 5.3), ours are not. Text and binary messages both carry input; fragments
are handed out as they come, since input is a stream. Control frames (ping, close) are never fragmented.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL_CLOSURE = 1000
MAX_CONTROL = 125

_FINAL, _MASKED = 0x80, 0x80
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept(key: str) -> str:
    """Return the Sec-WebSocket-Accept value for a client's Sec-WebSocket-Key (section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def header(opcode: int, length: int) -> bytes:
    """Return the header of an unmasked, unfragmented frame."""
    if length < 126:
        return bytes((_FINAL | opcode, length))
    if length < 1 << 16:
        return struct.pack(">BBH", _FINAL | opcode, 126, length)
    return struct.pack(">BBQ", _FINAL | opcode, 127, length)


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a whole unmasked frame."""
    return header(opcode, len(payload)) + payload


def close_frame(code: int = NORMAL_CLOSURE) -> bytes:
    """Return a close frame with a status code (section 7.4)."""
    return frame(CLOSE, struct.pack(">H", code))


def mask(payload: bytes, key: bytes, offset: int = 0) -> bytes:
    """XOR `payload` with the four-byte key, starting `offset` bytes into the message (its own inverse)."""
    if not payload:
        return b""
    turn = offset & 3
    key = key[turn:] + key[:turn]
    length = len(payload)
    repeated = (key * (length // 4 + 1))[:length]
    mixed = int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")
    return mixed.to_bytes(length, "little")


class Piece(NamedTuple):
    """Part of a message: data pieces come as they arrive, control frames whole."""

    opcode: int
    payload: bytes


class ProtocolError(ValueError):
    """The peer does not speak RFC 6455; `code` is what to close with."""

    def __init__(self, message: str, code: int = 1002) -> None:
        super().__init__(message)
        self.code = code


class Decoder:
    """Take a client's frames apart, however the bytes were cut on their way."""

    __slots__ = ("_buffer", "_key", "_left", "_offset", "_opcode")

    def __init__(self) -> None:
        self._buffer = b""
        self._opcode = CONTINUATION
        self._key = b""
        self._left = 0
        self._offset = 0

    def feed(self, data: bytes) -> list[Piece]:
        """Return the pieces that `data` completes; ProtocolError for what a client must not send."""
        buffer = self._buffer + data
        found: list[Piece] = []
        while buffer:
            if self._left:
                piece = buffer[: self._left]
                found.append(Piece(self._opcode, mask(piece, self._key, self._offset)))
                self._left -= len(piece)
                self._offset += len(piece)
                buffer = buffer[len(piece) :]
                continue
            rest = self._read_header(buffer, found)
            if rest is None:
                break
            buffer = rest
        self._buffer = buffer
        return found

    def _read_header(self, buffer: bytes, found: list[Piece]) -> bytes | None:
        """Consume a header (a control frame whole); None if more bytes are needed."""
        if len(buffer) < 2:
            return None
        opcode, length = buffer[0] & 0x0F, buffer[1] & 0x7F
        if buffer[0] & 0x70:
            raise ProtocolError("reserved bits are set, but no extension was agreed")
        if not buffer[1] & _MASKED:
            raise ProtocolError("a client's frame must be masked")
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise ProtocolError(f"unknown opcode {opcode}")
        position = 2
        if length >= 126:
            size = 2 if length == 126 else 8
            if len(buffer) < 2 + size:
                return None
            length = int.from_bytes(buffer[2 : 2 + size], "big")
            position += size
        if len(buffer) < position + 4:
            return None
        key = buffer[position : position + 4]
        position += 4
        if opcode & 0x8:
            if length > MAX_CONTROL or not buffer[0] & _FINAL:
                raise ProtocolError("a control frame is at most 125 bytes in one piece")
            if len(buffer) < position + length:
                return None
            found.append(Piece(opcode, mask(buffer[position : position + length], key)))
            return buffer[position + length :]
        self._opcode, self._key, self._left, self._offset = opcode, key, length, 0
        return buffer[position:]
