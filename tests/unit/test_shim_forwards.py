import os
import socket
import threading

import pytest

from dray.shim.forwards import TcpForward, UdpForward, forward
from dray.shim.loop import Loop


class Running:
    """A loop in a thread, and the forwards that it serves."""

    def __init__(self):
        self.loop = Loop()
        self.thread = threading.Thread(target=self.loop.run)
        self.forwards = []

    def forward(self, *args):
        self.forwards.append(forward(self.loop, *args))
        self.thread.start()
        return self.forwards[-1]

    def stop(self):
        if self.thread.ident is not None:
            self.loop.stopped = True
            wake, other = socket.socketpair()
            with wake, other:
                self.loop.watch(wake.fileno(), 1, lambda _events: None)
                other.send(b"x")
                self.thread.join()
                self.loop.forget(wake.fileno())
        for forwarding in self.forwards:
            forwarding.close()


@pytest.fixture
def running():
    it = Running()
    yield it
    it.stop()


def bound(kind):
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    listener = socket.socket(socket.AF_INET6, kind)
    try:
        listener.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 loopback")
    return listener


def serve_upper(listener, count):
    for _ in range(count):
        connection, _ = listener.accept()
        with connection:
            data = b""
            while piece := connection.recv(1 << 16):
                data += piece
            connection.sendall(data.upper())


def test_tcp_goes_both_ways_with_half_close(running):
    with socket.create_server(("127.0.0.1", 0)) as server, bound(socket.SOCK_STREAM) as front:
        address = front.getsockname()[:2]
        forwarding = running.forward("tcp", front.fileno(), *server.getsockname())
        assert isinstance(forwarding, TcpForward)
        serving = threading.Thread(target=serve_upper, args=(server, 2))
        serving.start()
        for payload in (b"hello", os.urandom(8).hex().encode() * 200_000):
            with socket.create_connection(address) as client:
                sender = threading.Thread(
                    target=lambda c=client, p=payload: (c.sendall(p), c.shutdown(socket.SHUT_WR))
                )
                sender.start()
                answer = b""
                while piece := client.recv(1 << 16):
                    answer += piece
                sender.join()
            assert answer == payload.upper()
        serving.join()


def test_tcp_to_nobody_is_closed(running):
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = server.getsockname()
    with bound(socket.SOCK_STREAM) as front:
        running.forward("tcp", front.fileno(), *nobody)
        with socket.create_connection(front.getsockname()[:2]) as client:
            client.settimeout(10)
            try:
                assert client.recv(1) == b""
            except ConnectionResetError:
                pass


def test_udp_answers_go_back_to_each_peer(running):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, bound(socket.SOCK_DGRAM) as front:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        forwarding = running.forward("udp", front.fileno(), *server.getsockname())
        assert isinstance(forwarding, UdpForward)
        peers = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(3)]
        for number, peer in enumerate(peers):
            peer.settimeout(10)
            peer.sendto(b"%d" % number, front.getsockname()[:2])
            data, sender = server.recvfrom(100)
            server.sendto(data + b"!", sender)
        for number, peer in enumerate(peers):
            assert peer.recv(100) == b"%d!" % number
            peer.close()


def test_other_protocols_are_refused(running):
    with bound(socket.SOCK_STREAM) as front, pytest.raises(ValueError, match="sctp"):
        forward(running.loop, "sctp", front.fileno(), "127.0.0.1", 1)


def test_closing_ends_every_connection():
    loop = Loop()
    with socket.create_server(("127.0.0.1", 0)) as server, bound(socket.SOCK_STREAM) as front:
        forwarding = forward(loop, "tcp", front.fileno(), *server.getsockname())
        with socket.create_connection(front.getsockname()[:2]) as client:
            client.settimeout(10)
            client.sendall(b"x")
            taken, _ = _turn_until(loop, server)
            forwarding.close()
            with taken:
                taken.settimeout(10)
                while taken.recv(10):
                    pass
            try:
                assert client.recv(1) == b""
            except ConnectionResetError:
                pass


def _turn_until(loop, server):
    server.setblocking(False)
    while True:
        loop.turn()
        try:
            return server.accept()
        except BlockingIOError:
            continue
