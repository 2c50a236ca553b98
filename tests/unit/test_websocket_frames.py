import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.wire import websocket


def client_frame(opcode, payload, *, final=True):
    key = os.urandom(4)
    head = websocket.header(opcode, len(payload))
    head = bytes((head[0] & (0xFF if final else 0x7F), head[1] | 0x80)) + head[2:]
    return head + key + websocket.mask(payload, key)


def test_the_answer_to_the_handshake_is_the_rfcs():
    assert websocket.accept("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_lengths_have_three_forms():
    assert websocket.frame(websocket.BINARY, b"x" * 125)[:2] == b"\x82\x7d"
    assert websocket.frame(websocket.BINARY, b"x" * 126)[:4] == b"\x82\x7e\0\x7e"
    assert websocket.frame(websocket.BINARY, b"x" * 65536)[:10] == b"\x82\x7f\0\0\0\0\0\1\0\0"


@given(st.lists(st.binary(max_size=400), max_size=5), st.integers(1, 70))
def test_messages_come_through_however_they_are_cut(payloads, size):
    data = b"".join(client_frame(websocket.BINARY, payload) for payload in payloads)
    decoder = websocket.Decoder()
    found = [piece for start in range(0, len(data), size) for piece in decoder.feed(data[start : start + size])]
    assert b"".join(piece.payload for piece in found) == b"".join(payloads)


def test_control_frames_come_whole_between_fragments():
    data = (
        client_frame(websocket.TEXT, b"a", final=False)
        + client_frame(websocket.PING, b"hey")
        + client_frame(websocket.CONTINUATION, b"b")
        + client_frame(websocket.CLOSE, b"\x03\xe8")
    )
    assert websocket.Decoder().feed(data) == [
        (websocket.TEXT, b"a"),
        (websocket.PING, b"hey"),
        (websocket.CONTINUATION, b"b"),
        (websocket.CLOSE, b"\x03\xe8"),
    ]


@pytest.mark.parametrize(
    "data",
    [
        websocket.frame(websocket.BINARY, b"not masked"),
        b"\xc2" + client_frame(websocket.BINARY, b"x")[1:],
        client_frame(0x3, b"unknown"),
        client_frame(websocket.PING, b"x" * 126),
        client_frame(websocket.PING, b"x", final=False),
    ],
)
def test_what_a_client_must_not_send_is_refused(data):
    with pytest.raises(websocket.ProtocolError) as caught:
        websocket.Decoder().feed(data)
    assert caught.value.code == 1002
