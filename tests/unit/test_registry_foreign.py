"""`registry.foreign`: layers that lie outside their registry, at addresses that a stranger has chosen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dray.base import digest as digests
from dray.base import reference
from dray.base.errors import InvalidParameter, NotFound, Unavailable
from dray.oci.image import Descriptor
from dray.registry.model import Credentials, Repository
from dray.registry.proxies import Proxies
from dray.registry.remote import RemoteRegistries
from dray.registry.settings import RegistrySettings
from support.fakehttp import FakeServer, Request
from support.registries import Authority

DATA = b"a layer that may not be given away " * 3000
DIGEST = digests.of(DATA)


def lacks(request: Request) -> tuple[int, dict[str, str], bytes]:
    return 404, {}, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}'


def gives(request: Request) -> tuple[int, dict[str, str], bytes]:
    if (wanted := request.headers.get("range")) is not None:
        start, _, last = wanted.removeprefix("bytes=").partition("-")
        end = int(last) + 1 if last else len(DATA)
        return 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(DATA)}"}, DATA[int(start) : end]
    return 200, {"Accept-Ranges": "bytes"}, DATA


@pytest.fixture
def registry() -> Iterator[FakeServer]:
    with FakeServer(lacks) as server:
        yield server


def opened(registry: FakeServer, *, trusted: tuple[str, ...] = (), **over: object) -> Repository:
    settings = RegistrySettings(insecure_hosts=frozenset(trusted), attempts=1, **over)  # type: ignore[arg-type]
    secret = Credentials(username="user", password="secret")
    return RemoteRegistries(settings).repository(reference.parse(f"{registry.address}/a/b"), secret)


def foreign(*urls: str, size: int = len(DATA)) -> Descriptor:
    return Descriptor(digest=DIGEST, size=size, urls=list(urls))


def test_the_registry_is_asked_first(registry: FakeServer) -> None:
    registry.answer = gives
    with FakeServer(gives) as far:
        repository = opened(registry, trusted=(far.address,))
        with repository.blob(foreign(f"{far.url}/layer")) as blob:
            assert blob.read(100)
        assert far.requests == []


def test_what_it_lacks_is_fetched_where_it_lies_whole_or_in_parts(registry: FakeServer) -> None:
    with FakeServer(gives) as far:
        repository = opened(registry, trusted=(far.address,))
        descriptor = foreign(f"{far.url}/layer?x=1")
        with repository.blob(descriptor) as blob:
            assert b"".join(iter(lambda: blob.read(5000), b"")) == DATA
        with repository.blob(descriptor, 100, 300) as blob:
            assert blob.ranged
            assert blob.read(1000) == DATA[100:300]
        assert [one.path for one in far.requests] == ["/layer?x=1"] * 2
        assert all("authorization" not in one.headers for one in far.requests)
        assert len(registry.requests) == 1  # it is not asked again for what it has not got


def test_the_next_address_is_tried(registry: FakeServer) -> None:
    with FakeServer(gives) as far, FakeServer(lacks) as gone:
        repository = opened(registry, trusted=(far.address, gone.address))
        with repository.blob(foreign("ftp://x/y", f"{gone.url}/1", f"{far.url}/2")) as blob:
            assert blob.read(10)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://{}/layer", "is not https"),
        ("file:///etc/shadow", "no plain https"),
        ("http://user:secret@{}/layer", "no plain https"),
        ("https://[::1/layer", "no plain https"),
        ("unix:///run/docker.sock", "no plain https"),
    ],
)
def test_addresses_that_are_not_asked(registry: FakeServer, url: str, words: str) -> None:
    """That loopback counts as an insecure registry lets no manifest reach what listens there."""
    with FakeServer(gives) as far:
        repository = opened(registry)
        with pytest.raises(NotFound, match=f"not at its foreign addresses.*{words}"):
            repository.blob(foreign(url.format(far.address)))
        assert far.requests == []


def test_certificates_are_verified(registry: FakeServer, tmp_path: Path) -> None:
    with FakeServer(gives, tls=Authority(tmp_path / "ca"), folder=tmp_path / "tls") as far:
        with pytest.raises(Unavailable, match="certificate"):
            opened(registry).blob(foreign(f"{far.url}/layer"))
        assert far.requests == []
        with opened(registry, trusted=(far.address,)).blob(foreign(f"{far.url}/layer")) as blob:
            assert blob.read(10)


def test_lengths_are_checked(registry: FakeServer) -> None:
    with FakeServer(gives) as far:
        repository = opened(registry, trusted=(far.address,))
        with pytest.raises(NotFound, match="its descriptor says 5"):
            repository.blob(foreign(f"{far.url}/layer", size=5))


def test_an_address_that_fails_is_worth_another_try(registry: FakeServer) -> None:
    with (
        FakeServer(lambda request: (503, {}, b"")) as far,
        pytest.raises(Unavailable, match="unexpected status 503"),
    ):
        opened(registry, trusted=(far.address,)).blob(foreign(f"{far.url}/layer"))


def test_through_the_daemons_proxy(registry: FakeServer) -> None:
    with FakeServer(gives) as proxy:
        proxies = Proxies(http=proxy.url)
        repository = opened(registry, trusted=("far.example",), proxies=proxies)
        with repository.blob(foreign("http://far.example/layer")) as blob:
            assert blob.read(10) == DATA[:10]
        assert proxy.requests[0].path == "http://far.example/layer"


def test_an_error_of_the_registry_is_its_own(registry: FakeServer) -> None:
    registry.answer = lambda request: (400, {}, b"")
    with FakeServer(gives) as far, pytest.raises(InvalidParameter):
        opened(registry, trusted=(far.address,)).blob(foreign(f"{far.url}/layer"))
