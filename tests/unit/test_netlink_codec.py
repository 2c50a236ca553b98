from __future__ import annotations

import errno
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.linux import netlink
from dray.linux.netlink import Netlink, Request


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40))))
def test_attributes_round_trip(attributes: list[tuple[int, bytes]]) -> None:
    data = b"".join(netlink.attribute(kind, value) for kind, value in attributes)
    assert len(data) % 4 == 0
    assert list(netlink.each(data)) == attributes
    inside = netlink.parse(netlink.nested(7, data))
    assert list(netlink.each(inside[7])) == attributes


@pytest.mark.parametrize("data", [b"\x03\0\1\0", b"\xff\0\1\0", b"\x08\0\1\0ab"])
def test_a_malformed_attribute_is_an_error(data: bytes) -> None:
    with pytest.raises(OSError, match="malformed"):
        list(netlink.each(data))


class Kernel:
    """The other end of a socket pair: answers what the test tells it to."""

    def __init__(self) -> None:
        ours, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.netlink = Netlink(ours)

    def error(self, sequence: int, code: int, words: str = "") -> None:
        body = struct.pack("=iIHHII", -code, 16, 0, 0, sequence, 0)
        flags = netlink.NLM_F_CAPPED
        if words:
            body += netlink.text(netlink.NLMSGERR_ATTR_MSG, words)
            flags |= netlink.NLM_F_ACK_TLVS
        self.message(sequence, netlink.NLMSG_ERROR, body, flags)

    def message(self, sequence: int, kind: int, body: bytes, flags: int = 0) -> None:
        self.end.send(struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body)

    def close(self) -> None:
        self.netlink.close()
        self.end.close()


@pytest.fixture
def kernel() -> object:
    made = Kernel()
    yield made
    made.close()


BATCH = [Request("first", 16, 0, b"abcd"), Request("second", 17, 0, b""), Request("third", 18, 0, b"")]


def test_only_the_last_request_asks_for_an_answer(kernel: Kernel) -> None:
    kernel.error(3, 0)
    kernel.netlink.transact(BATCH, trailer=Request("end", 19, 0, b""))
    data = kernel.end.recv(1000)
    headers = []
    while data:
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data)
        headers.append((kind, flags, sequence))
        data = data[(length + 3) & ~3 :]
    assert headers == [(16, 1, 1), (17, 1, 2), (18, 5, 3), (19, 1, 4)]


def test_the_first_failure_is_raised_with_its_operation_and_the_kernels_words(kernel: Kernel) -> None:
    kernel.error(2, errno.EEXIST, "there is one already")
    kernel.error(3, errno.ENODEV)
    with pytest.raises(FileExistsError, match=r"\(there is one already\): 'second'") as caught:
        kernel.netlink.transact(BATCH)
    assert caught.value.errno == errno.EEXIST


def test_answers_of_an_earlier_batch_are_ignored(kernel: Kernel) -> None:
    kernel.error(1, errno.EPERM)
    with pytest.raises(PermissionError):
        kernel.netlink.transact(BATCH)
    kernel.error(3, 0)
    kernel.error(6, 0)
    kernel.netlink.transact(BATCH)


def test_an_interrupted_dump_is_asked_again(kernel: Kernel) -> None:
    kernel.message(1, 16, b"old!", netlink.NLM_F_DUMP_INTR)
    kernel.message(1, netlink.NLMSG_DONE, struct.pack("=i", 0))
    kernel.message(2, 16, b"new!")
    kernel.message(2, netlink.NLMSG_DONE, struct.pack("=i", 0))
    assert [message.body for message in kernel.netlink.dump(Request("list", 18, 0, b""))] == [b"new!"]


def test_a_failed_dump_is_an_error(kernel: Kernel) -> None:
    kernel.message(1, netlink.NLMSG_DONE, struct.pack("=i", -errno.ENOENT))
    with pytest.raises(FileNotFoundError, match="list"):
        kernel.netlink.dump(Request("list", 18, 0, b""))
