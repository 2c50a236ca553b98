"""Uploads: what a registry may answer, and what the client then knows it has."""

import re

import pytest

from dray.base import digest as digests
from dray.base import reference
from dray.base.errors import Forbidden, InvalidParameter, NotFound, Unavailable
from dray.oci import image as oci
from dray.registry import session, uploads
from dray.registry.remote import RemoteRegistries
from dray.registry.settings import RegistrySettings
from support.fakehttp import FakeServer
from support.registries import Authority

BLOB = bytes(range(256)) * 16384  # 4 MiB
DIGEST = digests.of(BLOB)
CHUNK = 2 << 20


class UploadRegistry:
    """One upload at a time, in memory. `prefix` comes before every Location."""

    def __init__(self, prefix=""):
        self.prefix = prefix
        self.data = b""
        self.serial = 0
        self.known = True

    def location(self):
        self.serial += 1
        return {"Location": f"{self.prefix}/v2/a/b/blobs/uploads/u?state={self.serial}", **self.range()}

    def range(self):
        return {"Range": f"0-{max(len(self.data) - 1, 0)}"}

    def __call__(self, request):
        if request.method == "POST":
            return 202, self.location(), b""
        if not self.known:
            return 404, {}, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"blob upload unknown"}]}'
        assert f"state={self.serial}" in request.path, "not the newest Location"
        if request.method == "PATCH":
            return self.patch(request)
        if request.method == "GET":
            return 204, self.location(), b""
        if request.method == "DELETE":
            self.data = b""
            return 204, {}, b""
        self.data += request.body
        wanted = re.search(r"digest=(sha256)%3A([0-9a-f]+)", request.path)
        if digests.of(self.data) != f"{wanted[1]}:{wanted[2]}":
            return 400, {}, b'{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match"}]}'
        return 201, {"Docker-Content-Digest": digests.of(self.data)}, b""

    def patch(self, request):
        first, last = map(int, request.headers["content-range"].split("-"))
        assert last - first + 1 == len(request.body)
        if first != len(self.data):
            return 416, self.location(), b""
        self.data += request.body
        return 202, self.location(), b""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(session, "_FIRST_WAIT", 0.01)


@pytest.fixture
def registry():
    one = UploadRegistry()
    with FakeServer(one) as server:
        one.server = server
        yield one


@pytest.fixture
def repository(registry):
    name = reference.parse(f"{registry.server.address}/a/b")
    one = RemoteRegistries().repository(name, push=True)
    yield one
    one.close()


def methods(registry):
    return [one.method for one in registry.server.requests]


@pytest.mark.parametrize("absolute", [False, True])
def test_chunks_follow_the_newest_location(registry, repository, absolute):
    registry.prefix = registry.server.url if absolute else ""
    upload = repository.upload(DIGEST)
    for start in range(0, len(BLOB), CHUNK):
        upload.send(memoryview(BLOB)[start : start + CHUNK])
        assert upload.offset == start + CHUNK
    upload.commit(DIGEST)
    assert registry.data == BLOB
    assert methods(registry) == ["POST", "PATCH", "PATCH", "PUT"]


def test_a_small_blob_goes_with_the_put(registry, repository):
    upload = repository.upload(digests.of(b"small"))
    upload.send(b"small")
    assert upload.offset == 5
    upload.commit(digests.of(b"small"))
    assert registry.data == b"small"
    assert methods(registry) == ["POST", "PUT"]


def test_small_chunks_may_follow_each_other(registry, repository):
    upload = repository.upload(digests.of(b"abc"))
    for piece in (b"a", b"", b"b", b"c"):
        upload.send(piece)
    assert upload.offset == 3
    upload.commit(digests.of(b"abc"))
    assert registry.data == b"abc"


def test_an_empty_blob(registry, repository):
    upload = repository.upload(digests.of(b""))
    upload.commit(digests.of(b""))
    assert registry.data == b""


def test_an_upload_resumes_where_the_registry_is(registry, repository):
    upload = repository.upload(DIGEST)
    upload.send(BLOB[:CHUNK])
    registry.data = registry.data[:1000]  # the rest was lost
    with pytest.raises(Unavailable, match="another number of bytes"):
        upload.send(BLOB[CHUNK:])
    assert upload.resume() == upload.offset == 1000
    upload.send(BLOB[1000:])
    upload.commit(DIGEST)
    assert registry.data == BLOB


def test_a_registry_that_took_less_is_not_believed_to_have_taken_all(registry, repository):
    upload = repository.upload(DIGEST)
    whole = registry.patch

    def half(request):
        answer = whole(request)
        registry.data = registry.data[:1000]
        return (answer[0], registry.location(), b"")

    registry.patch = half
    with pytest.raises(Unavailable, match=rf"took 1000 bytes of {CHUNK}"):
        upload.send(BLOB[:CHUNK])
    assert upload.offset == 1000


def test_what_was_held_back_is_given_up_by_resume(registry, repository):
    upload = repository.upload(digests.of(b"small"))
    upload.send(b"small")
    assert upload.resume() == upload.offset == 0
    upload.send(b"small")
    upload.commit(digests.of(b"small"))
    assert registry.data == b"small"


def test_an_upload_that_was_forgotten(registry, repository):
    upload = repository.upload(DIGEST)
    registry.known = False
    with pytest.raises(NotFound, match="blob upload unknown"):
        upload.resume()


def test_another_digest_is_refused(registry, repository):
    upload = repository.upload(digests.of(b"other"))
    upload.send(b"small")
    with pytest.raises(InvalidParameter, match="digest invalid: provided digest did not match"):
        upload.commit(digests.of(b"other"))
    upload.cancel()
    assert methods(registry)[-1] == "DELETE"


def test_cancelling_never_fails(registry, repository):
    upload = repository.upload(DIGEST)
    registry.server.__exit__()
    upload.cancel()


def test_a_registry_may_refuse_to_mount(registry, repository):
    upload = repository.upload(DIGEST, mount_from="c/d")
    assert upload is not None
    assert "mount=sha256%3A" in registry.server.requests[0].path


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ((202, {}, b""), InvalidParameter, "did not say where to upload"),
        ((202, {"Location": "ftp://x/"}, b""), InvalidParameter, "redirect to 'ftp://x/' is refused"),
        ((201, {}, b""), InvalidParameter, "was not sent"),
        ((404, {}, b'{"errors":[{"code":"NAME_INVALID","message":"no"}]}'), NotFound, "name invalid: no"),
        ((403, {}, b""), Forbidden, "denied: requested access to the resource is denied"),
        ((503, {}, b""), Unavailable, "503"),
    ],
)
def test_uploads_that_do_not_begin(registry, repository, answer, kind, words):
    registry.server.answer = lambda request: answer
    with pytest.raises(kind, match=words):
        repository.upload(DIGEST)


def test_credentials_do_not_go_to_another_host_that_takes_the_upload(registry):
    from dray.registry.model import Credentials

    def front(request):
        if "authorization" not in request.headers:
            return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
        return registry(request)

    with FakeServer(front) as server:
        registry.prefix = registry.server.url  # uploads go there
        name = reference.parse(f"{server.address}/a/b")
        repository = RemoteRegistries().repository(name, Credentials("me", "secret"), push=True)
        upload = repository.upload(DIGEST)
        upload.send(BLOB)
        upload.commit(DIGEST)
        repository.close()
    assert registry.data == BLOB
    assert methods(registry) == ["PATCH", "PUT"]
    assert not [one for one in registry.server.requests if "authorization" in one.headers]


def test_an_upload_is_not_moved_from_https_to_http(tmp_path):
    authority = Authority(tmp_path / "ca")
    answer = (202, {"Location": "http://127.0.0.1:1/v2/u"}, b"")
    with FakeServer(lambda r: answer, tls=authority, folder=tmp_path / "tls") as server:
        repository = RemoteRegistries().repository(reference.parse(f"{server.address}/a/b"), push=True)
        with pytest.raises(Forbidden, match="X-Forwarded-Proto"):
            repository.upload(DIGEST)
        repository.close()


def test_a_manifest_is_stored_under_its_digest(registry, repository):
    data = b'{"schemaVersion":2}'
    registry.server.answer = lambda r: (201, {"Docker-Content-Digest": digests.of(data)}, b"")
    assert repository.put_manifest("v1", oci.OCI_MANIFEST, data) == digests.of(data)
    put = registry.server.requests[-1]
    assert (put.method, put.path, put.body) == ("PUT", "/v2/a/b/manifests/v1", data)
    assert put.headers["content-type"] == oci.OCI_MANIFEST
    registry.server.answer = lambda r: (201, {"Docker-Content-Digest": digests.of(b"other")}, b"")
    with pytest.raises(InvalidParameter, match="the registry stored"):
        repository.put_manifest("v1", oci.OCI_MANIFEST, data)


def test_a_slow_line_has_time_for_a_large_chunk(registry, repository, monkeypatch):
    """A socket's timeout bounds one `sendall`: a large body goes in slices."""
    from dray.registry import transport

    sent = list(transport._sliced(memoryview(BLOB)))
    assert len(sent) == 16
    assert b"".join(sent) == BLOB
    assert transport._sliced(b"small") == b"small"
    assert uploads.SMALL <= CHUNK
    assert RegistrySettings().attempts == 5
