"""Attached streams: frames, the detach keys, half-closing, and slow readers."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.base.errors import InvalidParameter
from dray.cli import signals
from dray.cli.streams import Demultiplexer, Detached, Session
from dray.cli.terminal import DetachFilter, parse_detach_keys
from dray.client.errors import ApiError, ProtocolError
from dray.client.http1 import Connection


def frame(stream: int, data: bytes) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big") + data


def collect(pieces: list[bytes]) -> tuple[bytes, bytes]:
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    demultiplexer = Demultiplexer(out_write, err_write)
    try:
        for piece in pieces:
            demultiplexer.feed(piece)
    finally:
        os.close(out_write)
        os.close(err_write)
    with os.fdopen(out_read, "rb") as out, os.fdopen(err_read, "rb") as err:
        return out.read(), err.read()


@given(st.lists(st.tuples(st.sampled_from((0, 1, 2)), st.binary(max_size=50)), max_size=8), st.integers(1, 30))
def test_frames_cut_anywhere(frames: list[tuple[int, bytes]], size: int) -> None:
    stream = b"".join(frame(number, data) for number, data in frames)
    out, err = collect([stream[at : at + size] for at in range(0, len(stream), size)])
    assert out == b"".join(data for number, data in frames if number < 2)
    assert err == b"".join(data for number, data in frames if number == 2)


def test_an_error_frame_is_an_error() -> None:
    stream = frame(1, b"a") + frame(3, b"broken")
    with pytest.raises(ApiError, match="broken"):
        collect([stream[:12], stream[12:]])


def test_a_stream_that_is_not_multiplexed_is_told() -> None:
    with pytest.raises(ProtocolError, match="Unrecognized stream: 104"):
        collect([b"hello, world"])


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a", b"a"),
        ("ctrl-@,DEL", b"\x00\x7f"),
        ("ctrl-[,a", b"\x1ba"),
        ("ctrl-\\", b"\x1c"),
    ],
)
def test_detach_keys(text: str, keys: bytes) -> None:
    assert parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["", "ctrl-", "foo", "ctrl-1", "a,,b"])
def test_detach_keys_that_are_none(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_detach_keys(text)


@pytest.mark.parametrize(
    ("typed", "sent", "left"),
    [
        ([b"xaby"], b"x", True),
        ([b"xa", b"b"], b"x", True),
        ([b"xa", b"cy"], b"xacy", False),
        ([b"aab"], b"a", True),
        ([b"a"], b"", False),
    ],
)
def test_detach_filter(typed: list[bytes], sent: bytes, left: bool) -> None:
    keys, out, ended = DetachFilter(b"ab"), b"", False
    for piece in typed:
        data, ended = keys.feed(piece)
        out += data
    assert (out, ended) == (sent, left)


def run_session(
    server: socket.socket, client: socket.socket, *, stdin: int | None, tty: bool, keys: bytes = b""
) -> bytes:
    """Run a session whose output goes to a pipe; returns what was written there."""
    read_end, write_end = os.pipe()
    found: list[bytes] = []

    def drain() -> None:
        with os.fdopen(read_end, "rb") as file:
            found.append(file.read())

    reader = threading.Thread(target=drain)
    reader.start()
    connection = Connection(client)
    try:
        Session(connection, tty=tty, stdin=stdin, stdout=write_end, stderr=write_end, detach_keys=keys).run()
    finally:
        os.close(write_end)
        reader.join()
        connection.close()
        server.close()
    return found[0]


def test_half_close_keeps_the_output() -> None:
    server, client = socket.socketpair()
    stdin_read, stdin_write = os.pipe()
    os.write(stdin_write, b"hello")
    os.close(stdin_write)

    def echo() -> None:
        data = b""
        while piece := server.recv(100):
            data += piece
        server.sendall(b"got " + data)
        server.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=echo)
    thread.start()
    assert run_session(server, client, stdin=stdin_read, tty=True) == b"got hello"
    thread.join()
    os.close(stdin_read)


def test_more_than_any_buffer_in_both_directions() -> None:
    """A peer that writes before it reads: neither side may wait for the other."""
    server, client = socket.socketpair()
    stdin_read, stdin_write = os.pipe()
    size = 4 << 20

    def feed() -> None:
        with os.fdopen(stdin_write, "wb") as file:
            file.write(b"i" * size)

    def peer() -> None:
        server.sendall(b"o" * size)
        got = 0
        while piece := server.recv(1 << 16):
            got += len(piece)
        server.sendall(str(got).encode())
        server.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=feed), threading.Thread(target=peer)]
    for thread in threads:
        thread.start()
    out = run_session(server, client, stdin=stdin_read, tty=True)
    for thread in threads:
        thread.join()
    os.close(stdin_read)
    assert out == b"o" * size + str(size).encode()


def test_the_detach_keys_end_it() -> None:
    server, client = socket.socketpair()
    stdin_read, stdin_write = os.pipe()
    os.write(stdin_write, b"ls\x10\x11")
    with pytest.raises(Detached, match="read escape sequence"):
        run_session(server, client, stdin=stdin_read, tty=True, keys=b"\x10\x11")
    os.close(stdin_read)
    os.close(stdin_write)


def test_a_container_that_reads_no_more_still_speaks() -> None:
    server, client = socket.socketpair()
    stdin_read, stdin_write = os.pipe()
    server.shutdown(socket.SHUT_RD)
    os.write(stdin_write, b"unwanted")
    server.sendall(b"last words")
    server.shutdown(socket.SHUT_WR)
    assert run_session(server, client, stdin=stdin_read, tty=True) == b"last words"
    os.close(stdin_read)
    os.close(stdin_write)


def test_the_third_signal_that_the_container_does_not_obey_ends_the_client(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sent: list[str] = []
    with signals.SignalHandlers() as handlers:
        signals.forward(handlers, sent.append)
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert sent == ["INT", "USR1", "TERM"]
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGINT)
    assert capsys.readouterr().err == "\ngot 3 SIGTERM/SIGINTs, forcefully exiting\n"
