"""The registry client against servers that lie, stall, redirect and demand tokens."""

import contextlib
import json
import socket
import threading
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from dray.base import digest as digests
from dray.base import reference
from dray.base.errors import Forbidden, InvalidParameter, NotFound, Unauthorized, Unavailable
from dray.oci import image as oci
from dray.registry import connections, session, settings, tokens, transport
from dray.registry.model import ANONYMOUS, MANIFEST_LIMIT, Credentials
from dray.registry.proxies import Proxies
from dray.registry.remote import RemoteRegistries
from dray.registry.settings import RegistrySettings
from support.fakehttp import FakeServer
from support.registries import Authority, free_port

CONFIG = {"mediaType": oci.OCI_CONFIG, "digest": digests.of(b"{}"), "size": 2}
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": oci.OCI_MANIFEST, "config": CONFIG, "layers": []}).encode()
INDEX = json.dumps({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": []}).encode()
DIGEST = digests.of(MANIFEST)
BLOB = bytes(range(256)) * 64
BLOB_DESCRIPTOR = oci.Descriptor(media_type=oci.OCI_LAYER, digest=digests.of(BLOB), size=len(BLOB))
ME = Credentials("me", "secret")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting where only its being there matters."""
    monkeypatch.setattr(session, "_FIRST_WAIT", 0.01)


@pytest.fixture
def opened():
    """Open repositories that are closed after the test."""
    made = []

    def open_one(server, auth=ANONYMOUS, *, push=False, path="a/b", **over):
        address = server if isinstance(server, str) else server.address
        registries = RemoteRegistries(RegistrySettings(**over))
        made.append(registries.repository(reference.parse(f"{address}/{path}"), auth, push=push))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


def manifest_of(data=MANIFEST, media_type=oci.OCI_MANIFEST, **headers):
    return 200, {"Content-Type": media_type, **{k.replace("_", "-"): v for k, v in headers.items()}}, data


def read_all(blob):
    with blob:
        return b"".join(iter(lambda: blob.read(5000), b""))


# -- manifests


def test_a_manifest_and_its_descriptor(opened):
    with FakeServer(lambda r: manifest_of(Docker_Content_Digest=DIGEST)) as server:
        repository = opened(server)
        descriptor = oci.Descriptor(media_type=oci.OCI_MANIFEST, digest=DIGEST, size=len(MANIFEST))
        assert repository.resolve("v1") == descriptor
        assert [one.method for one in server.requests] == ["HEAD"]
        assert repository.manifest("v1") == (descriptor, MANIFEST)
        assert oci.DOCKER_LIST in server.requests[-1].headers["accept"]


def test_what_head_does_not_tell_is_fetched(opened):
    with FakeServer(lambda r: manifest_of()) as server:
        assert opened(server).resolve("v1").digest == DIGEST
        assert [one.method for one in server.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize(
    ("data", "media_type", "words"),
    [
        (json.dumps({**json.loads(INDEX), "layers": []}).encode(), oci.OCI_INDEX, "ambiguous"),
        (json.dumps({**json.loads(MANIFEST), "manifests": []}).encode(), oci.OCI_MANIFEST, "ambiguous"),
        (MANIFEST, oci.OCI_INDEX, "ambiguous"),
        (MANIFEST, oci.DOCKER_MANIFEST, "ambiguous"),
        (INDEX, oci.OCI_MANIFEST, "ambiguous"),
        (b'{"schemaVersion":1,"fsLayers":[]}', "application/json", "schema 1 are no longer supported.*a/b:v1"),
        (MANIFEST, "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        (b"<html>", "text/html", "invalid manifest"),
        (b"[]", oci.OCI_MANIFEST, "invalid manifest"),
        (b'{"schemaVersion":2,"mediaType":7}', oci.OCI_MANIFEST, "invalid manifest"),
        (b"[" * 100_000, oci.OCI_MANIFEST, "invalid manifest"),
    ],
)
def test_a_manifest_that_says_two_things_is_refused(opened, data, media_type, words):
    """CVE-2021-41190 among others."""
    with FakeServer(lambda r: manifest_of(data, media_type)) as server:
        with pytest.raises(InvalidParameter, match=words):
            opened(server).manifest("v1")
        assert len(server.requests) == 1


@pytest.mark.parametrize("media_type", ["application/json", "", oci.OCI_MANIFEST + "; charset=utf-8"])
def test_a_vague_content_type_is_made_up_for_by_the_contents(opened, media_type):
    with FakeServer(lambda r: manifest_of(media_type=media_type)) as server:
        assert opened(server).manifest("v1")[0].media_type == oci.OCI_MANIFEST


def test_digests_of_manifests_are_checked(opened):
    other = digests.of(b"other")
    with FakeServer(lambda r: manifest_of()) as server:
        with pytest.raises(InvalidParameter, match=f"verification failed for digest {other}"):
            opened(server).manifest(other)
        assert opened(server).manifest(DIGEST)[1] == MANIFEST
    for lie in (other, "sha256:short", "md5:0"):
        with FakeServer(lambda r, lie=lie: manifest_of(Docker_Content_Digest=lie)) as server:
            with pytest.raises(InvalidParameter, match="digest"):
                opened(server).manifest("v1")
    with FakeServer(lambda r: manifest_of(Docker_Content_Digest=other)) as server:
        with pytest.raises(InvalidParameter, match="offers"):
            opened(server).resolve(DIGEST)


def test_a_manifest_of_a_gigabyte_is_refused_before_it_is_read(opened):
    sent = []

    def endless(request):
        if request.headers.get("x"):
            return manifest_of()
        return pieces()

    def pieces():
        yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n"
        while True:
            sent.append(1)
            yield b" " * 65536

    with FakeServer(endless) as server:
        with pytest.raises(InvalidParameter, match=f"1073741824 bytes is refused: the limit is {MANIFEST_LIMIT}"):
            opened(server).manifest("v1")
    assert len(sent) < 200


@pytest.mark.parametrize("framing", [b"", b"Transfer-Encoding: chunked\r\n"])
def test_an_endless_manifest_is_cut_off(opened, framing):
    def pieces():
        yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + framing + b"\r\n"
        while True:
            yield b"10000\r\n" + b" " * 65536 + b"\r\n" if framing else b" " * 65536

    with FakeServer(lambda r: pieces()) as server:
        with pytest.raises(InvalidParameter, match=f"larger than {MANIFEST_LIMIT} bytes"):
            opened(server).manifest("v1")


def test_endless_headers_are_cut_off(opened):
    def pieces():
        yield b"HTTP/1.1 200 OK\r\n"
        while True:
            yield b"X-A: " + b"a" * 1000 + b"\r\n"

    with FakeServer(lambda r: pieces()) as server:
        with pytest.raises(Unavailable, match=r"malformed HTTP response.*more than 100 headers"):
            opened(server, attempts=1).manifest("v1")


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n "),  # one header, folded for ever
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"X-A: 1\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", b" "),
    ],
    ids=["header", "continue", "trailers", "body"],
)
def test_a_slow_loris_is_not_waited_for(opened, monkeypatch, first, again):
    monkeypatch.setattr(connections._Guarded, "patience", 0.3)
    monkeypatch.setattr(transport, "PATIENCE", 0.3)
    monkeypatch.setattr(transport, "STALL", 0.3)
    server_end = threading.Event()

    def pieces():
        yield first
        while not server_end.wait(0.1):
            yield again

    with FakeServer(lambda r: pieces()) as server:
        try:
            with pytest.raises((Unavailable, InvalidParameter)):
                opened(server, attempts=1).manifest("v1")
        finally:
            server_end.set()


def test_a_silent_registry_is_given_up(opened, monkeypatch):
    monkeypatch.setattr(transport, "STALL", 0.2)
    ended = threading.Event()

    def silent(request):
        ended.wait(10)
        return 500, {}, b""

    with FakeServer(silent) as server:
        with pytest.raises(Unavailable, match="timeout awaiting response headers"):
            opened(server, attempts=1).manifest("v1")
        ended.set()


def test_a_busy_registry_is_asked_again(opened):
    answers = iter(
        [(429, {"Retry-After": "0"}, b""), (503, {}, b""), (500, {}, b"?"), (502, {}, b""), manifest_of()]
    )
    with FakeServer(lambda r: next(answers)) as server:
        assert opened(server).manifest("v1")[1] == MANIFEST
        assert len(server.asked("GET")) == 5


def test_a_busy_registry_is_not_asked_for_ever(opened):
    with FakeServer(lambda r: (503, {}, b"")) as server:
        with pytest.raises(Unavailable, match="503 Service Unavailable"):
            opened(server, attempts=3).manifest("v1")
        assert len(server.asked("GET")) == 3


def test_waiting_for_a_busy_registry_ends_with_the_repository(opened):
    with FakeServer(lambda r: (429, {"Retry-After": "60"}, b"")) as server:
        repository = opened(server)
        timer = threading.Timer(0.3, repository.close)
        timer.start()
        with pytest.raises(Unavailable, match="context canceled"):
            repository.manifest("v1")
        timer.join()


def test_closing_breaks_off_what_is_under_way(opened):
    ended = threading.Event()

    def pieces():
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000
        ended.wait(20)

    with FakeServer(lambda r: pieces()) as server:
        repository = opened(server)
        descriptor = oci.Descriptor(media_type="", digest=DIGEST, size=100000)
        timer = threading.Timer(0.3, repository.close)
        with repository.blob(descriptor) as blob:
            timer.start()
            with pytest.raises(Unavailable, match="context canceled"):
                list(iter(lambda: blob.read(10000), b""))
        timer.join()
        ended.set()


# -- blobs


def ranged(request):
    match = request.headers.get("range", "")
    if not match:
        return 200, {"Accept-Ranges": "bytes"}, BLOB
    first, _, last = match.removeprefix("bytes=").partition("-")
    start, end = int(first), int(last) + 1 if last else len(BLOB)
    return 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(BLOB)}"}, BLOB[start:end]


def test_blobs_whole_and_in_parts(opened):
    with FakeServer(ranged) as server:
        repository = opened(server)
        with repository.blob(BLOB_DESCRIPTOR) as blob:
            assert (blob.start, blob.size, blob.ranged) == (0, len(BLOB), True)
        assert read_all(repository.blob(BLOB_DESCRIPTOR)) == BLOB
        assert read_all(repository.blob(BLOB_DESCRIPTOR, 1000)) == BLOB[1000:]
        part = repository.blob(BLOB_DESCRIPTOR, 1000, 1100)
        assert (part.start, part.size, part.ranged) == (1000, len(BLOB), True)
        assert read_all(part) == BLOB[1000:1100]


def test_a_registry_without_ranges_sends_all(opened):
    with FakeServer(lambda r: (200, {}, BLOB)) as server:
        blob = opened(server).blob(BLOB_DESCRIPTOR, 1000, 1100)
        assert (blob.start, blob.size, blob.ranged) == (0, len(BLOB), False)
        assert read_all(blob) == BLOB


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, {}, BLOB + b"x"), "its descriptor says"),
        ((200, {}, BLOB[1:]), "its descriptor says"),
        ((200, {"Content-Encoding": "gzip"}, BLOB), "unasked"),
        ((206, {}, BLOB[10:20]), "without a valid Content-Range"),
        ((206, {"Content-Range": f"bytes 11-19/{len(BLOB)}"}, BLOB[11:20]), "not the part"),
        ((206, {"Content-Range": f"bytes 10-20/{len(BLOB)}"}, BLOB[10:21]), "not the part"),
        ((206, {"Content-Range": "bytes 10-19/99"}, BLOB[10:20]), "its descriptor says"),
        ((206, {"Content-Range": f"bytes 10-19/{len(BLOB)}"}, BLOB[10:19]), "Content-Length is 9 where 10"),
    ],
)
def test_lengths_of_blobs_must_be_true(opened, answer, words):
    with FakeServer(lambda r: answer) as server:
        with pytest.raises(InvalidParameter, match=words):
            opened(server).blob(BLOB_DESCRIPTOR, 10, 20)


def test_a_part_that_nobody_asked_for_is_refused(opened):
    part = (206, {"Content-Range": f"bytes 0-{len(BLOB) - 1}/{len(BLOB)}"}, BLOB)
    with FakeServer(lambda r: part) as server, pytest.raises(InvalidParameter, match="none was asked for"):
        opened(server).blob(BLOB_DESCRIPTOR)


def test_a_blob_without_a_length_may_not_go_on_for_ever(opened):
    def pieces():
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        while True:
            yield BLOB

    with FakeServer(lambda r: pieces()) as server, pytest.raises(InvalidParameter, match="sends more than"):
        read_all(opened(server).blob(BLOB_DESCRIPTOR))


def test_a_blob_that_breaks_off_is_worth_another_try(opened):
    def pieces():
        yield b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BLOB) + BLOB[:100]

    with FakeServer(lambda r: pieces()) as server, pytest.raises(Unavailable, match="unexpected EOF"):
        read_all(opened(server).blob(BLOB_DESCRIPTOR))


def test_a_blob_that_trickles_is_given_up(opened, monkeypatch):
    from dray.registry import blobs

    monkeypatch.setattr(blobs, "WINDOW", 0.3)

    def pieces():
        yield b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BLOB)
        for byte in BLOB:
            time.sleep(0.02)
            yield bytes([byte])

    with FakeServer(lambda r: pieces()) as server, pytest.raises(Unavailable, match="stalls"):
        read_all(opened(server).blob(BLOB_DESCRIPTOR))


def test_a_blob_over_tls(opened, monkeypatch, tmp_path, authority):
    """It is read in another way: that one is bounded, checked and broken off as well."""
    from dray.registry import transport

    rest, ended = BLOB[10:], threading.Event()

    def trickle():
        yield b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BLOB) + BLOB[:10]
        for byte in rest:
            time.sleep(0.02)
            yield bytes([byte])

    def hang():
        yield b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BLOB) + BLOB[:10]
        ended.wait(20)

    def short():
        yield b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BLOB) + BLOB[:10]

    answers = {"whole": lambda: (200, {}, BLOB), "trickle": trickle, "hang": hang, "short": short}
    with FakeServer(lambda r: answers[r.path.split("/")[2]](), tls=authority, folder=tmp_path / "tls") as server:
        assert read_all(opened(server, path="whole/b").blob(BLOB_DESCRIPTOR)) == BLOB
        with pytest.raises(Unavailable, match="unexpected EOF"):
            read_all(opened(server, path="short/b").blob(BLOB_DESCRIPTOR))
        repository = opened(server, path="hang/b")
        timer = threading.Timer(0.3, repository.close)
        with repository.blob(BLOB_DESCRIPTOR) as blob:
            timer.start()
            with pytest.raises(Unavailable, match="context canceled"):
                read_all(blob)
        timer.join()
        ended.set()
        monkeypatch.setattr(transport, "WINDOW", 0.05)
        with pytest.raises(Unavailable, match="stalls"):
            read_all(opened(server, path="trickle/b").blob(BLOB_DESCRIPTOR))


def test_has_blob(opened):
    with FakeServer(lambda r: (200, {}, b"") if r.path.endswith(DIGEST) else (404, {}, b"")) as server:
        repository = opened(server)
        assert repository.has_blob(DIGEST)
        assert not repository.has_blob(digests.of(b"other"))
        with pytest.raises(InvalidParameter):
            repository.has_blob("../../x")


# -- redirects


def test_credentials_do_not_follow_a_redirect_to_another_host(opened):
    """CVE-2020-15157: the storage behind a registry gets no credentials, the registry itself does."""
    with FakeServer(lambda r: (200, {}, BLOB)) as storage:

        def registry(request):
            if "authorization" not in request.headers:
                return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
            return 307, {"Location": f"{storage.url}/elsewhere?signature=1"}, b""

        with FakeServer(registry) as server:
            assert read_all(opened(server, ME).blob(BLOB_DESCRIPTOR)) == BLOB
            assert server.requests[-1].headers["authorization"].startswith("Basic ")
        assert storage.requests[-1].path == "/elsewhere?signature=1"
        assert "authorization" not in storage.requests[-1].headers


@pytest.mark.parametrize("demand", ['Basic realm="give"', 'Bearer realm="{url}/token"'])
def test_another_host_gets_no_credentials_even_if_it_asks(opened, demand):
    """CVE-2020-15157: nor does a token service that the other host names."""

    def answer(request):
        if "/token" in request.path:
            return 200, {}, b'{"token":"x"}'
        return 401, {"WWW-Authenticate": demand.format(url=thief.url)}, b""

    with FakeServer(answer) as thief:
        with FakeServer(lambda r: (302, {"Location": f"{thief.url}/x"}, b"")) as server:
            with pytest.raises(Unauthorized):
                opened(server, ME).blob(BLOB_DESCRIPTOR)
        assert [one.path for one in thief.requests] == ["/x"]
        assert not [one for one in thief.requests if "authorization" in one.headers]


def test_credentials_do_follow_on_the_same_host(opened):
    def registry(request):
        if "authorization" not in request.headers:
            return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
        return (301, {"Location": "/here"}, b"") if request.path != "/here" else (200, {}, BLOB)

    with FakeServer(registry) as server:
        assert read_all(opened(server, ME).blob(BLOB_DESCRIPTOR)) == BLOB


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://", "http://[x"])
def test_redirects_lead_to_the_web_alone(opened, location):
    with FakeServer(lambda r: (302, {"Location": location}, b"")) as server:
        with pytest.raises(InvalidParameter, match="redirect"):
            opened(server).blob(BLOB_DESCRIPTOR)


def test_redirects_in_a_circle_end(opened):
    with FakeServer(lambda r: (302, {"Location": "/again"}, b"")) as server:
        with pytest.raises(InvalidParameter, match="stopped after 10 redirects"):
            opened(server).blob(BLOB_DESCRIPTOR)
        assert len(server.asked("GET")) == 11


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def trusted(tmp_path, authority, *servers):
    """Folders of certificates under which these servers are trusted; nothing is insecure."""
    for server in servers:
        folder = tmp_path / "certs.d" / server.address
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(authority.certificate.read_bytes())
    return {"insecure_networks": (), "certificate_folders": (str(tmp_path / "certs.d"),)}


def test_no_redirect_leads_from_https_to_http(opened, tmp_path, authority):
    with FakeServer(lambda r: (200, {}, BLOB)) as plain:
        redirect = (302, {"Location": f"{plain.url}/x"}, b"")
        with FakeServer(lambda r: redirect, tls=authority, folder=tmp_path / "tls") as server:
            with pytest.raises(Forbidden, match="from https to http"):
                opened(server, **trusted(tmp_path, authority, server)).blob(BLOB_DESCRIPTOR)
        assert plain.requests == []


# -- TLS


def test_an_unknown_authority_is_named_with_the_way_out(opened, tmp_path, authority):
    with FakeServer(lambda r: manifest_of(), tls=authority, folder=tmp_path / "tls") as server:
        words = f"x509: certificate signed by unknown authority.*/certs.d/{server.address}/ca.crt"
        with pytest.raises(Unavailable, match=words):
            opened(server, insecure_networks=()).manifest("v1")
        assert server.requests == []
        assert opened(server, **trusted(tmp_path, authority, server)).manifest("v1")[1] == MANIFEST
        assert opened(server).manifest("v1")[1] == MANIFEST  # loopback is insecure: not verified


def test_a_certificate_for_another_host_is_refused(opened, tmp_path, authority):
    with FakeServer(lambda r: manifest_of(), tls=authority, folder=tmp_path / "tls") as server:
        settings = trusted(tmp_path, authority, server)
        (tmp_path / "certs.d" / server.address).rename(tmp_path / "certs.d" / f"127.0.0.2:{server.port}")
        # The server listens on 127.0.0.1 alone: a forwarder makes it answer for 127.0.0.2 as well.
        with forwarder("127.0.0.2", server.port):
            with pytest.raises(Unavailable, match=r"x509: certificate is not valid for 127.0.0.2"):
                opened(f"127.0.0.2:{server.port}", **settings).manifest("v1")


@contextlib.contextmanager
def forwarder(host, port):
    """Take one connection at this host, and pass it on to 127.0.0.1."""
    with socket.create_server((host, port)) as front:

        def forward():
            client, _ = front.accept()
            back = socket.create_connection(("127.0.0.1", port))
            with client, back:
                other = threading.Thread(target=_copy, args=(back, client))
                other.start()
                _copy(client, back)
                other.join()

        thread = threading.Thread(target=forward)
        thread.start()
        yield
        thread.join(10)


def _copy(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def test_a_client_certificate_needs_its_key(opened, tmp_path, authority):
    folder = tmp_path / "certs.d" / "127.0.0.1:1"
    folder.mkdir(parents=True)
    authority.issue(folder, "client")
    (folder / "client.crt").rename(folder / "client.cert")
    (folder / "client.key").rename(tmp_path / "client.key")
    over = {"certificate_folders": (str(tmp_path / "certs.d"),), "insecure_networks": ()}
    with pytest.raises(InvalidParameter, match=r"missing key client.key for client certificate client.cert"):
        opened("127.0.0.1:1", **over).manifest("v1")
    (folder / "client.cert").unlink()
    (tmp_path / "client.key").rename(folder / "client.key")
    with pytest.raises(InvalidParameter, match=r"missing client certificate client.cert"):
        opened("127.0.0.1:1", **over).manifest("v1")
    (folder / "client.key").rename(folder / "ca.crt")
    with pytest.raises(InvalidParameter, match=r"ca.crt cannot be used for TLS"):
        opened("127.0.0.1:1", **over).manifest("v1")


def test_plain_http_needs_to_be_allowed(opened):
    with FakeServer(lambda r: manifest_of()) as server:
        with pytest.raises(Unavailable, match=r"server gave HTTP response to HTTPS client.*insecure-registries"):
            opened(server, insecure_networks=(), attempts=1).manifest("v1")
        assert opened(server, insecure_networks=(), insecure_hosts=frozenset({server.address})).manifest("v1")


def test_an_insecure_registry_that_answers_by_https_is_not_asked_by_http(opened, tmp_path, authority):
    with FakeServer(lambda r: (404, {}, b"{}"), tls=authority, folder=tmp_path / "tls") as server:
        with pytest.raises(NotFound, match="https://"):
            opened(server).manifest("v1")


def test_nothing_there(opened):
    port = free_port()
    words = rf'Get "http://127.0.0.1:{port}/v2/a/b/manifests/v1": dial tcp 127.0.0.1:{port}: connect: connection refused'
    with pytest.raises(Unavailable, match=words):
        opened(f"127.0.0.1:{port}").manifest("v1")


# -- tokens


class TokenRegistry:
    """A registry that wants bearer tokens, and their service, as one server."""

    def __init__(self, **reply):
        self.reply = {"expires_in": 300, **reply}
        self.serial = 0
        self.good = {}
        self.realm = ""

    def __call__(self, request):
        parts = urlsplit(request.path)
        if parts.path == "/token":
            return self.token(request, parse_qs(parts.query))
        scope = "repository:a/b:pull"
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.good:
            challenge = f'Bearer realm="{self.realm}",service="here",scope="{scope}"'
            if token:
                challenge += ',error="invalid_token"'
            return 401, {"WWW-Authenticate": challenge}, b""
        return manifest_of()

    def token(self, request, query):
        if request.method == "POST":
            query = parse_qs(request.body.decode())
        self.serial += 1
        token = f"token-{self.serial}"
        self.good[token] = query
        return 200, {}, json.dumps({"token": token, **self.reply}).encode()


@pytest.fixture
def token_registry():
    registry = TokenRegistry()
    with FakeServer(registry) as server:
        registry.realm = f"{server.url}/token"
        registry.server = server
        yield registry


def test_a_token_is_fetched_once_for_its_scope(opened, token_registry):
    server = token_registry.server
    repository = opened(server, ME)
    for _ in range(3):
        repository.manifest("v1")
    asked = server.asked("GET", "/token")
    assert len(asked) == 1
    query = parse_qs(urlsplit(asked[0].path).query)
    assert query == {"scope": ["repository:a/b:pull"], "service": ["here"], "account": ["me"]}
    assert asked[0].headers["authorization"] == tokens.basic("me", "secret")
    assert {one.headers["authorization"] for one in server.asked("GET", "/manifests")[1:]} == {"Bearer token-1"}


def test_an_anonymous_token(opened, token_registry):
    opened(token_registry.server).manifest("v1")
    asked = token_registry.server.asked("GET", "/token")
    assert "authorization" not in asked[0].headers
    assert "account" not in asked[0].path


def test_an_expired_token_is_fetched_anew(opened, token_registry, monkeypatch):
    repository = opened(token_registry.server)
    repository.manifest("v1")
    now = time.monotonic()
    authorizer = repository._endpoints()[0].authorizer
    monkeypatch.setattr(authorizer, "_clock", lambda: now + 295)
    repository.manifest("v1")
    assert len(token_registry.server.asked("GET", "/token")) == 2


def test_a_token_that_the_registry_has_forgotten_is_fetched_anew(opened, token_registry):
    repository = opened(token_registry.server)
    repository.manifest("v1")
    token_registry.good.clear()
    repository.manifest("v1")
    assert len(token_registry.server.asked("GET", "/token")) == 2


def test_a_token_that_does_not_help_ends_in_a_refusal(opened, token_registry):
    token_registry.good = type("Never", (dict,), {"__contains__": lambda self, key: False})()
    with pytest.raises(Unauthorized, match="authentication required"):
        opened(token_registry.server, ME).manifest("v1")
    assert len(token_registry.server.asked("GET", "/token")) <= 2


def test_an_identity_token_is_sent_as_a_form(opened, token_registry):
    opened(token_registry.server, Credentials(identity_token="refresh")).manifest("v1")
    posted = token_registry.server.asked("POST", "/token")
    assert parse_qs(posted[0].body.decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refresh"],
        "service": ["here"],
        "client_id": ["docker"],
        "scope": ["repository:a/b:pull"],
    }


def test_a_registry_token_is_sent_as_it_is(opened, token_registry):
    token_registry.good["mine"] = {}
    opened(token_registry.server, Credentials(registry_token="mine")).manifest("v1")
    assert token_registry.server.asked("GET", "/token") == []
    with pytest.raises(Unauthorized):
        opened(token_registry.server, Credentials(registry_token="bad")).manifest("v1")


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            (401, {}, b'{"details":"incorrect username or password"}'),
            Unauthorized,
            "incorrect username or password",
        ),
        ((403, {}, b""), Unauthorized, "unauthorized"),
        ((200, {}, b"{}"), InvalidParameter, "did not include a token"),
        ((200, {}, b'{"token":"a\\r\\nX-Evil: 1"}'), InvalidParameter, "did not include a token"),
        ((200, {}, b'{"token":7}'), InvalidParameter, "did not include a token"),
        ((200, {}, b"<html>"), InvalidParameter, "unable to decode token response"),
        ((200, {}, b'{"token":"x"}' + b" " * tokens.TOKEN_LIMIT), InvalidParameter, "a token of .* is refused"),
        ((500, {}, b""), Unavailable, "500 Internal Server Error"),
    ],
)
def test_what_a_token_service_may_say(opened, token_registry, answer, kind, words):
    token_registry.token = lambda request, query: answer
    with pytest.raises(kind, match=words):
        opened(token_registry.server, ME, attempts=1).manifest("v1")


@pytest.mark.parametrize(
    "realm", ["", "token", "ftp://127.0.0.1/t", "http://", "http://u:p@127.0.0.1/t", "http://[x"]
)
def test_a_token_service_must_have_a_url(opened, token_registry, realm):
    token_registry.realm = realm
    with pytest.raises(InvalidParameter, match="not a valid URL"):
        opened(token_registry.server, ME).manifest("v1")


def test_a_token_service_without_tls_gets_no_credentials_of_a_registry_with_it(
    opened, token_registry, tmp_path, authority
):
    challenge = {"WWW-Authenticate": f'Bearer realm="{token_registry.realm}"'}
    with FakeServer(lambda r: (401, challenge, b""), tls=authority, folder=tmp_path / "tls") as server:
        with pytest.raises(InvalidParameter, match="does without TLS"):
            opened(server, ME, **trusted(tmp_path, authority, server)).manifest("v1")
    assert token_registry.server.requests == []


def test_basic_needs_credentials(opened):
    demand = (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"")
    with FakeServer(lambda r: demand) as server:
        with pytest.raises(Unauthorized, match=r'^Get "http://.*/manifests/v1": no basic auth credentials$'):
            opened(server).manifest("v1")
        with pytest.raises(Unauthorized, match=r"^no basic auth credentials$"):
            opened(server, push=True).upload(DIGEST)
        with pytest.raises(Unauthorized, match="unauthorized: authentication required"):
            opened(server, ME).manifest("v1")


def test_a_mount_asks_for_both_rights(opened, token_registry):
    opened(token_registry.server, ME, push=True)
    answers = token_registry.__call__

    def registry(request):
        answer = answers(request)
        return (201, {}, b"") if request.method == "POST" and answer[0] == 200 else answer

    token_registry.server.answer = registry
    assert opened(token_registry.server, ME, push=True).upload(DIGEST, mount_from="c/d") is None
    query = parse_qs(urlsplit(token_registry.server.asked("GET", "/token")[0].path).query)
    assert query["scope"] == ["repository:a/b:pull,push", "repository:c/d:pull"]
    mounted = token_registry.server.asked("POST", "/uploads/")[-1].path
    assert parse_qs(urlsplit(mounted).query) == {"mount": [DIGEST], "from": ["c/d"]}


# -- login


def test_login_with_a_token_service(token_registry):
    token_registry.reply["refresh_token"] = "keep"
    registries = RemoteRegistries()
    assert registries.login(token_registry.server.address, ME) == ("Login Succeeded", "keep")
    query = parse_qs(urlsplit(token_registry.server.asked("GET", "/token")[0].path).query)
    assert query["offline_token"] == ["true"]
    assert "scope" not in query


def test_login_where_there_is_no_registry():
    with FakeServer(lambda r: (404, {}, b"")) as server:
        with pytest.raises(NotFound, match=r"login attempt to .* failed with status: 404 Not Found"):
            RemoteRegistries().login(server.address, ME)


# -- mirrors


@pytest.fixture
def hub(monkeypatch, tmp_path, authority):
    """A server in the place of Docker Hub's, and the settings under which it is trusted."""
    with FakeServer(lambda r: manifest_of(), tls=authority, folder=tmp_path / "hub") as server:
        monkeypatch.setattr(settings, "HUB_HOST", server.address)
        yield server, trusted(tmp_path, authority, server)


@pytest.mark.parametrize(
    "trouble",
    [(404, {}, b""), (500, {}, b""), (401, {"WWW-Authenticate": 'Basic realm="x"'}, b""), manifest_of(b"junk")],
    ids=["lacks it", "is broken", "wants credentials", "lies"],
)
def test_a_mirror_in_trouble_is_passed_over(opened, hub, trouble):
    server, over = hub
    good = (200, {}, BLOB)
    with FakeServer(lambda r: trouble) as broken, FakeServer(lambda r: manifest_of()) as second:
        mirrors = (f"http://127.0.0.1:{free_port()}", broken.url, second.url)
        repository = opened("docker.io", ME, path="library/x", mirrors=mirrors, **over)
        assert repository.manifest("v1")[1] == MANIFEST
        assert len(broken.requests) == 1
        assert (len(second.requests), server.requests) == (1, [])
        assert not [one for one in broken.requests + second.requests if "authorization" in one.headers]
        # What the second mirror lacks is fetched from the origin; what it has, from it, without asking the first.
        second.answer = lambda r: (404, {}, b"")
        server.answer = lambda r: good
        before = len(second.requests)
        assert read_all(repository.blob(BLOB_DESCRIPTOR)) == BLOB
        assert second.requests[before].path == server.requests[0].path


def test_an_unknown_image_is_refused_by_the_origin(opened, hub):
    server, over = hub
    server.answer = lambda r: (404, {}, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
    with FakeServer(lambda r: (404, {}, b"")) as mirror:
        repository = opened("docker.io", path="library/x", mirrors=(mirror.url,), **over)
        with pytest.raises(NotFound, match=r"^manifest for x:v1 not found: manifest unknown: manifest unknown$"):
            repository.manifest("v1")


def test_mirrors_take_no_pushes(opened, hub):
    server, over = hub
    server.answer = lambda r: (404, {}, b"")
    with FakeServer(lambda r: (200, {}, b"")) as mirror:
        opened("docker.io", path="library/x", mirrors=(mirror.url,), push=True, **over).has_blob(DIGEST)
        assert mirror.requests == []


# -- tags


def test_tags_are_followed_over_pages(opened):
    def registry(request):
        if "last=b" in request.path:
            return 200, {}, b'{"name":"a/b","tags":["c"]}'
        return 200, {"Link": '</v2/a/b/tags/list?last=b&n=2>; rel="next"'}, b'{"name":"a/b","tags":["a","b"]}'

    with FakeServer(registry) as server:
        assert list(opened(server).tags()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"Link": '<http://127.0.0.1:1/v2/a/b/tags/list>; rel="next"'}, b'{"tags":["a"]}', "at another host"),
        ({"Link": '</v2/a/b/tags/list?again>; rel="next"'}, b'{"tags":["a"]}', "does not end"),
        ({}, b"[]", "invalid list of tags"),
        ({}, b'{"tags":[1]}', "invalid list of tags"),
        ({}, b"no", "invalid list of tags"),
        ({}, b" " * (5 << 20), "is refused"),
    ],
)
def test_lists_of_tags_that_lie(opened, headers, body, words):
    with FakeServer(lambda r: (200, headers, body)) as server, pytest.raises(InvalidParameter, match=words):
        list(opened(server).tags())


def test_a_repository_without_tags(opened):
    with FakeServer(lambda r: (200, {}, b'{"name":"a/b","tags":null}')) as server:
        assert list(opened(server).tags()) == []


# -- proxies


def test_a_proxy_is_asked_with_its_credentials_which_nobody_reads(opened):
    with FakeServer(lambda r: manifest_of()) as proxy:
        over = {
            "proxies": Proxies(http=f"http://pro:xy@{proxy.address}"),
            "insecure_hosts": frozenset({"r.example:5000"}),
        }
        assert opened("r.example:5000", **over).manifest("v1")[1] == MANIFEST
        asked = proxy.asked("GET")[0]
        assert asked.path == "http://r.example:5000/v2/a/b/manifests/v1"
        assert asked.headers["proxy-authorization"] == tokens.basic("pro", "xy")


def test_a_proxy_that_refuses_is_named_without_its_password(opened):
    with FakeServer(lambda r: (407, {}, b"")) as proxy:
        over = {"proxies": Proxies(https=f"http://pro:secretxy@{proxy.address}"), "attempts": 1}
        with pytest.raises(Unavailable, match=r"proxyconnect tcp.*407") as refused:
            opened("r.example", **over).manifest("v1")
        assert "secretxy" not in str(refused.value)
        assert [one.path for one in proxy.asked("CONNECT")] == ["r.example:443"]
