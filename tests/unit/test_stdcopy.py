import pytest
from hypothesis import given
from hypothesis import strategies as st

from dray.wire import stdcopy

frames = st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=50)), max_size=8)


def test_a_frame_is_header_and_payload():
    assert stdcopy.frame(stdcopy.STDERR, b"oops") == b"\x02\0\0\0\0\0\0\x04oops"


@given(frames, st.integers(1, 30))
def test_however_the_bytes_are_cut_the_payloads_are_the_same(frames, size):
    data = b"".join(stdcopy.frame(*frame) for frame in frames)
    decoder = stdcopy.Decoder()
    found = [piece for start in range(0, len(data), size) for piece in decoder.feed(data[start : start + size])]
    assert decoder.clean
    for stream in range(4):
        assert b"".join(p for s, p in found if s == stream) == b"".join(p for s, p in frames if s == stream)


def test_what_is_no_frame_is_refused():
    with pytest.raises(ValueError, match="unrecognized stream: 72"):
        stdcopy.Decoder().feed(b"HTTP/1.1 200 OK")


def test_an_unfinished_frame_is_not_clean():
    decoder = stdcopy.Decoder()
    assert decoder.feed(stdcopy.frame(1, b"abc")[:-1]) == [(1, b"ab")]
    assert not decoder.clean
