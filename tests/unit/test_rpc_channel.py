import os
import socket

import pytest

from dray.base.errors import Conflict, Internal, InvalidParameter, StartError
from dray.wire import rpc


@pytest.fixture
def channels():
    ours, theirs = rpc.pair()
    with ours, theirs:
        yield rpc.Channel(ours), rpc.Channel(theirs)


def open_fds():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [0, 1000, rpc.INLINE_LIMIT - 20, rpc.INLINE_LIMIT, 3 << 20])
def test_messages_of_any_length_come_with_their_descriptors(channels, size):
    ours, theirs = channels
    reader, writer = os.pipe()
    before = open_fds()
    ours.send({"text": "x" * size}, [writer])
    message = theirs.receive()
    assert message.json() == {"text": "x" * size}
    [copy] = message.take(1)
    os.write(copy, b"through")
    assert os.read(reader, 10) == b"through"
    assert not os.get_inheritable(copy)
    message.close()
    for fd in (copy, reader, writer):
        os.close(fd)
    assert open_fds() == before - 2


def test_descriptors_that_nobody_takes_are_closed(channels):
    ours, theirs = channels
    reader, writer = os.pipe()
    ours.send({}, [writer, writer])
    os.close(writer)
    message = theirs.receive()
    with pytest.raises(InvalidParameter, match="2 descriptors instead of 3"):
        message.take(3)
    message.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_too_many_descriptors_are_refused(channels):
    with pytest.raises(InvalidParameter, match="at most"):
        channels[0].send({}, [0] * (rpc.MAX_DESCRIPTORS + 1))


def test_the_end_of_the_other_side_is_none(channels):
    ours, theirs = channels
    ours.close()
    assert theirs.receive() is None


def test_errors_keep_their_kind_across_processes():
    for error in (StartError("no such program", 127), Conflict("in the way"), Internal("broken")):
        back = rpc.describe(error).exception()
        assert (type(back), str(back)) == (type(error), str(error))
    assert rpc.describe(StartError("x", 126)).exception().exit_code == 126
    assert isinstance(rpc.describe(OSError(2, "open", "/x")).exception(), Internal)


def test_the_kernel_tells_who_the_peer_is(channels):
    assert rpc.peer_credentials(channels[0].socket) == (os.getpid(), os.getuid(), os.getgid())
    assert channels[0].socket.type == socket.SOCK_SEQPACKET
