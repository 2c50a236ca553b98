import os
import resource
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


@pytest.mark.parametrize("size", [0, 3 << 20])
def test_more_descriptors_than_fit_beside_a_message(channels, size):
    ours, theirs = channels
    reader, writer = os.pipe()
    before = open_fds()
    ours.send({"text": "x" * size}, [reader, *[writer] * 600, reader])
    message = theirs.receive()
    assert message.json() == {"text": "x" * size}
    copies = message.take(602)
    assert [os.fstat(fd).st_ino for fd in (copies[0], copies[601])] == [os.fstat(reader).st_ino] * 2
    os.write(copies[600], b"through")
    assert os.read(copies[0], 10) == b"through"
    message.close()
    for fd in copies:
        assert not os.get_inheritable(fd)
        os.close(fd)
    assert open_fds() == before
    os.close(reader)
    os.close(writer)


def test_more_descriptors_than_a_process_may_have(channels):
    ours, theirs = channels
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours.send({}, [0] * 600)
    before = open_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 300, hard))
    try:
        with pytest.raises(Internal, match="RLIMIT_NOFILE"):
            theirs.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_fds() == before


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
