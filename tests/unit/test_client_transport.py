"""The client's HTTP, against answers written by hand."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dray.base.errors import InvalidParameter
from dray.client import address
from dray.client.api import Client
from dray.client.errors import ApiError, ConnectError, ProtocolError
from dray.client.images import split_tag
from dray.client.transport import Transport, encode_query, path_name, quote, version_key
from support.api_recorder import Recorder, recording


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as one:
        yield one


class Scripted:
    """A server that answers the requests of its connections with given bytes, one connection each."""

    def __init__(self, folder: Path, *answers: bytes) -> None:
        self.host = f"unix://{folder}/s"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/s")
        self._listener.listen()
        self.received: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, args=(answers,))
        self._thread.start()

    def _serve(self, answers: tuple[bytes, ...]) -> None:
        for answer in answers:
            connection, _ = self._listener.accept()
            with connection:
                self.received.append(connection.recv(65536))
                connection.sendall(answer)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(*answers: bytes) -> Scripted:
        made.append(Scripted(tmp_path, *answers))
        return made[-1]

    yield make
    for one in made:
        one.close()


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (HEAD + b"Content-Length: 5\r\n\r\nhello", b"hello"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: x\r\n\r\n", b"hello"),
        (HEAD + b"\r\nhello", b"hello"),
        (HEAD + b"Content-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_bodies(answer: bytes, body: bytes, scripted: Callable[..., Scripted]) -> None:
    transport = Transport(scripted(answer).host, version="1.41")
    assert transport.request("GET", "/x").read() == body
    transport.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        HEAD + b"Content-Length: 9\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ],
)
def test_answers_that_are_broken(answer: bytes, scripted: Callable[..., Scripted]) -> None:
    transport = Transport(scripted(answer).host, version="1.41")
    with pytest.raises(ProtocolError):
        transport.request("GET", "/x").read()
    transport.close()


def test_an_idle_connection_that_was_closed_is_replaced(scripted: Callable[..., Scripted]) -> None:
    answer = HEAD + b"Content-Length: 2\r\n\r\nok"
    server = scripted(answer, answer)
    transport = Transport(server.host, version="1.41")
    assert transport.request("GET", "/a").read() == b"ok"
    assert transport.request("GET", "/b").read() == b"ok"
    transport.close()
    assert [one.split()[1] for one in server.received] == [b"/v1.41/a", b"/v1.41/b"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'Content-Type: application/json\r\nContent-Length: 17\r\n\r\n{"message":"why"}', "why"),
        (b"Content-Length: 5\r\n\r\nplain", "plain"),
        (b"Content-Length: 0\r\n\r\n", "request returned status 409 without a message"),
    ],
)
def test_refusals(answer: bytes, message: str, scripted: Callable[..., Scripted]) -> None:
    transport = Transport(scripted(b"HTTP/1.1 409 Conflict\r\n" + answer).host, version="1.41")
    with pytest.raises(ApiError) as caught:
        transport.request("GET", "/x")
    transport.close()
    assert caught.value.status == 409
    assert caught.value.message.startswith(message)
    assert str(caught.value).startswith("Error response from daemon: ")


def test_an_upgrade_keeps_what_was_read_ahead(scripted: Callable[..., Scripted]) -> None:
    answer = (
        b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nUpgrade: tcp\r\n\r\nearly"
    )
    transport = Transport(scripted(answer).host, version="1.41")
    connection, kind = transport.upgrade("/containers/x/attach", {"stream": True})
    assert kind == "application/vnd.docker.raw-stream"
    assert bytes(connection.buffer) + connection.sock.recv(100) == b"early"
    connection.close()


def test_version_is_agreed_once(recorder: Recorder) -> None:
    recorder.headers["Api-Version"] = "1.9"
    recorder.answers["GET", "/containers/json"] = (200, b"[]")
    client = Client(Transport(recorder.host))
    assert client.containers.list(all=True, filters={"label": {"a": True}}) == []
    assert client.containers.list() == []
    client.close()
    first, second = recorder.take()
    assert (first.version, second.version) == ("1.9", "1.9")
    assert first.query == [("all", "1"), ("filters", '{"label":{"a":true}}')]


def test_a_body_is_streamed(recorder: Recorder) -> None:
    recorder.answers["POST", "/images/load"] = (200, b'{"stream":"a"}\r\n{"stream":"b"}\r\n')
    client = Client(Transport(recorder.host))
    response = client.images.load(io.BytesIO(b"x" * 700_000), quiet=True)
    assert [one["stream"] for one in response.documents()] == ["a", "b"]
    client.close()
    assert recorder.take()[0].raw == b"x" * 700_000


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(
        ConnectError, match=r"Cannot connect to the Docker daemon at unix:///.*\. Is the docker daemon running\?"
    ):
        Transport(f"unix://{tmp_path}/none").request("GET", "/x")


def test_a_line_break_cannot_enter_the_head(recorder: Recorder) -> None:
    transport = Transport(recorder.host, headers={"X": "a\r\nY: b"})
    with pytest.raises(ProtocolError, match="line break"):
        transport.ping()
    transport.close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unix:///x", "unix:///x"),
        ("unix://", "unix:///var/run/docker.sock"),
        ("tcp://1.2.3.4:5", "tcp://1.2.3.4:5"),
        ("tcp://host", "tcp://host:2375"),
        ("1.2.3.4:5", "tcp://1.2.3.4:5"),
        ("tcp://[::1]:5", "tcp://[::1]:5"),
        ("ssh://me@host:22", "ssh://me@host:22"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    assert address.parse(text).text == shown


@pytest.mark.parametrize(
    "text", ["bogus://x", "x", "tcp://h:0", "tcp://h:x", "ssh://-oProxyCommand=x", "ssh://a:b@h"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(InvalidParameter):
        address.parse(text)


def test_tls_has_its_own_port() -> None:
    assert address.parse("tcp://h", tls=True).port == 2376


def test_quoting() -> None:
    assert quote("a b/c~é") == "a%20b%2Fc~%C3%A9"
    assert path_name("a/b:c d") == "a/b:c%20d"
    assert encode_query({"a": True, "b": False, "c": None, "d": ["x", "y"], "e": {"k": [1]}, "f": 0}) == (
        "a=1&d=x&d=y&e=%7B%22k%22%3A%5B1%5D%7D&f=0"
    )
    assert version_key("1.9") < version_key("1.10")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ("a", "")),
        ("a:b", ("a", "b")),
        ("h:5/a", ("h:5/a", "")),
        ("h:5/a:b", ("h:5/a", "b")),
        ("a:b@sha256:0", ("a", "sha256:0")),
    ],
)
def test_names_and_tags(text: str, parts: tuple[str, str]) -> None:
    assert split_tag(text) == parts
