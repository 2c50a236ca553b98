"""Files from web servers for `docker import URL`: what is asked of whom, and what a server may do."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from dray.base.errors import InvalidParameter, NotFound, Unavailable
from dray.engine.fetch import clean_url, open_url, shown
from dray.registry.proxies import Proxies


@dataclass
class Server:
    """A web server on loopback that remembers who asked."""

    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Authorization)
    location: str = ""
    port: int = 0


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers.get("Authorization")))
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", state.location)
                self.end_headers()
            elif self.path == "/file":
                self.send_response(200)
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"bytes")
            else:
                self.send_error(404 if self.path == "/nosuch" else 503)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        state.port = running.server_address[1]
        yield state
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("example.org/x.tgz", "http://example.org/x.tgz"),
        ("https://example.org:8443/x", "https://example.org:8443/x"),
    ],
)
def test_urls(text: str, url: str) -> None:
    assert clean_url(text) == url


@pytest.mark.parametrize(
    "text", ["file:///etc/shadow", "ftp://example.org/x", "http://", "http://host:port/", "unix:///run/x"]
)
def test_urls_that_are_not_fetched(text: str) -> None:
    with pytest.raises(InvalidParameter, match="cannot import from"):
        clean_url(text)


def test_a_file(server: Server) -> None:
    with open_url(f"http://me:pass%20word@127.0.0.1:{server.port}/file", Proxies()) as stream:
        assert stream.read(3) == b"byt"
        assert stream.read() == b"es"
        assert stream.read(10) == b""
    assert server.asked == [("/file", "Basic bWU6cGFzcyB3b3Jk")]


def test_credentials_stay_with_their_host(server: Server) -> None:
    server.location = f"http://localhost:{server.port}/file"
    with open_url(f"http://me:secret@127.0.0.1:{server.port}/moved", Proxies()) as stream:
        assert stream.read() == b"bytes"
    assert [authorization is not None for _, authorization in server.asked] == [True, False]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/moved"])
def test_redirects_that_are_not_followed(server: Server, location: str) -> None:
    server.location = location
    with pytest.raises(Unavailable, match="cannot fetch"):
        open_url(f"http://127.0.0.1:{server.port}/moved", Proxies())
    assert len(server.asked) <= 12


def test_answers_that_are_no_file(server: Server) -> None:
    with pytest.raises(NotFound, match="404"):
        open_url(f"http://127.0.0.1:{server.port}/nosuch", Proxies())
    with pytest.raises(Unavailable, match="503") as caught:
        open_url(f"http://me:secret@127.0.0.1:{server.port}/ill", Proxies())
    assert "secret" not in str(caught.value)
    assert "secret" not in shown("http://me:secret@host/x")
