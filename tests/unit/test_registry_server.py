"""The registry's endpoints, one by one, as distribution-spec 1.1 has them: over HTTP, on a local disk."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engines import until
from support.registries import DrayRegistry

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
EMPTY = "application/vnd.oci.empty.v1+json"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Peer:
    """A client of one repository."""

    def __init__(self, registry: DrayRegistry, name: str) -> None:
        self.registry, self.name, self.base = registry, name, f"/v2/{name}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        where = path if path.startswith("/v2/") else f"{self.base}/{path}"
        return self.registry.request(method, where, body, given)

    def code(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        status, _, answer = self.ask(method, path, body, **headers)
        return status, json.loads(answer)["errors"][0]["code"]

    def push_blob(self, data: bytes) -> str:
        digest = sha256(data)
        status, headers, _ = self.ask("POST", f"blobs/uploads/?digest={digest}", data)
        assert status == 201, headers
        return digest

    def push_manifest(self, reference: str, document: dict[str, Any], media_type: str = OCI_MANIFEST) -> str:
        data = json.dumps(document).encode()
        status, headers, answer = self.ask("PUT", f"manifests/{reference}", data, Content_Type=media_type)
        assert status == 201, answer
        assert headers["docker-content-digest"] == sha256(data)
        return sha256(data)

    def image(self, seed: str = "", **more: Any) -> dict[str, Any]:
        """A manifest whose blobs are pushed."""
        config, layer = f'{{"{seed}": 1}}'.encode(), f"layer {seed}".encode()
        for data in (config, layer):
            self.push_blob(data)
        return manifest(config, layer, **more)


def manifest(config: bytes, *layers: bytes, **more: Any) -> dict[str, Any]:
    def descriptor(data: bytes, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}

    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(layer, "application/vnd.oci.image.layer.v1.tar") for layer in layers],
        **more,
    }


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DrayRegistry]:
    with DrayRegistry(tmp_path_factory.mktemp("registry")) as one:
        yield one


@pytest.fixture
def peer(registry: DrayRegistry, request: pytest.FixtureRequest) -> Peer:
    digits = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    return Peer(registry, f"test/{digits}")


Make = Callable[..., DrayRegistry]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Starts registries of the test's own."""
    made: list[DrayRegistry] = []

    def start(*options: str, **more: Any) -> DrayRegistry:
        made.append(DrayRegistry(tmp_path / f"registry{len(made)}", options=options, **more))
        return made[-1]

    yield start
    for one in made:
        one.stop()


# --- the base, names


def test_the_version_is_told(peer: Peer) -> None:
    status, headers, body = peer.ask("GET", "/v2/")
    assert (status, body) == (200, b"{}")
    assert headers["docker-distribution-api-version"] == "registry/2.0"


@pytest.mark.parametrize(
    "name", ["Upper", "a//b", "-a", "a-", "a/.b", "a___b", "..", "a/../b", "a%2F..%2Fb", "a b", "x" * 256]
)
def test_names_are_checked(registry: DrayRegistry, name: str) -> None:
    from urllib.parse import quote

    status, _, body = registry.request("GET", f"/v2/{quote(name, safe='/%')}/tags/list")
    assert (status, json.loads(body)["errors"][0]["code"]) == (400, "NAME_INVALID")


@pytest.mark.parametrize("name", ["a", "a/b/c", "a.b", "a__b", "a---b", "0"])
def test_good_names(registry: DrayRegistry, name: str) -> None:
    assert Peer(registry, name).code("GET", "tags/list") == (404, "NAME_UNKNOWN")


def test_a_path_that_is_none(registry: DrayRegistry) -> None:
    assert registry.request("GET", "/v3/")[0] == 404
    assert Peer(registry, "a").code("POST", "tags/list") == (405, "UNSUPPORTED")


# --- blobs out


def test_a_blob_comes_back(peer: Peer) -> None:
    digest = peer.push_blob(b"some bytes")
    status, headers, body = peer.ask("GET", f"blobs/{digest}")
    assert (status, body) == (200, b"some bytes")
    assert headers["docker-content-digest"] == digest
    status, headers, body = peer.ask("HEAD", f"blobs/{digest}")
    assert (status, headers["content-length"], body) == (200, "10", b"")
    assert headers["accept-ranges"] == "bytes"


def test_the_empty_blob(peer: Peer) -> None:
    digest = peer.push_blob(b"")
    assert peer.ask("GET", f"blobs/{digest}")[::2] == (200, b"")
    assert peer.code("GET", f"blobs/{digest}", Range="bytes=0-") == (416, "RANGE_INVALID")


def test_a_blob_that_is_not_there(peer: Peer) -> None:
    digest = sha256(b"never pushed")
    assert peer.code("GET", f"blobs/{digest}") == (404, "BLOB_UNKNOWN")
    assert peer.ask("HEAD", f"blobs/{digest}")[::2] == (404, b"")
    assert peer.code("GET", "blobs/sha256:abc") == (400, "DIGEST_INVALID")
    assert peer.code("GET", "blobs/md5:d41d8cd98f00b204e9800998ecf8427e") == (400, "DIGEST_INVALID")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=3-", 3, 10), ("bytes=2-5", 2, 6), ("bytes=-3", 7, 10), ("bytes=8-99", 8, 10),
     ("bytes=-99", 0, 10)],
)  # fmt: skip
def test_ranges(peer: Peer, asked: str, start: int, end: int) -> None:
    digest = peer.push_blob(b"0123456789")
    status, headers, body = peer.ask("GET", f"blobs/{digest}", Range=asked)
    assert (status, body) == (206, b"0123456789"[start:end])
    assert headers["content-range"] == f"bytes {start}-{end - 1}/10"


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=-0", "bytes=99-100"])
def test_ranges_outside(peer: Peer, asked: str) -> None:
    digest = peer.push_blob(b"0123456789")
    status, headers, _ = peer.ask("GET", f"blobs/{digest}", Range=asked)
    assert (status, headers["content-range"]) == (416, "bytes */10")


@pytest.mark.parametrize("asked", ["bytes=0-1,3-4", "lines=1-2", "bytes=5-2", "bytes=-", "bytes=a-b"])
def test_ranges_that_are_ignored(peer: Peer, asked: str) -> None:
    digest = peer.push_blob(b"0123456789")
    assert peer.ask("GET", f"blobs/{digest}", Range=asked)[::2] == (200, b"0123456789")


def test_what_the_client_has_is_not_sent(peer: Peer) -> None:
    digest = peer.push_blob(b"0123456789")
    assert peer.ask("GET", f"blobs/{digest}", If_None_Match=f'"{digest}"')[::2] == (304, b"")
    assert peer.ask("GET", f"blobs/{digest}", If_None_Match='"other"')[0] == 200
    peer.push_manifest("t", peer.image())
    tag = peer.ask("GET", "manifests/t")[1]["etag"]
    assert peer.ask("GET", "manifests/t", If_None_Match=f'W/"x", {tag}')[::2] == (304, b"")


def test_the_access_log_tells_range_and_bytes(peer: Peer) -> None:
    digest = peer.push_blob(b"the access log")
    peer.ask("GET", f"blobs/{digest}", Range="bytes=2-5", User_Agent='a "quoted" agent')
    line = until(
        lambda: next((one for one in peer.registry.access_log() if one.range and digest in one.path), None)
    )
    assert (line.method, line.path, line.status, line.size) == ("GET", f"{peer.base}/blobs/{digest}", 206, 4)
    assert line.range == "bytes=2-5"


def test_a_blob_of_another_repository_is_not_readable(peer: Peer) -> None:
    digest = Peer(peer.registry, f"{peer.name}/other").push_blob(b"not yours " + peer.name.encode())
    assert peer.code("GET", f"blobs/{digest}") == (404, "BLOB_UNKNOWN")


# --- blobs in


def location(headers: dict[str, str]) -> str:
    return headers["location"]


def test_post_then_put(peer: Peer) -> None:
    status, headers, _ = peer.ask("POST", "blobs/uploads/")
    assert status == 202
    data = random.Random(1).randbytes(3_000_000)
    digest = sha256(data)
    status, headers, _ = peer.ask("PUT", f"{location(headers)}?digest={digest}", data)
    assert (status, headers["docker-content-digest"]) == (201, digest)
    assert peer.ask("GET", location(headers))[2] == data


def test_chunks(peer: Peer) -> None:
    data = random.Random(2).randbytes(300_000)
    _, headers, _ = peer.ask("POST", "blobs/uploads/")
    place = location(headers)
    for start in range(0, len(data), 100_000):
        chunk = data[start : start + 100_000]
        status, headers, _ = peer.ask("PATCH", place, chunk, Content_Range=f"{start}-{start + len(chunk) - 1}")
        assert (status, headers["range"]) == (202, f"0-{start + len(chunk) - 1}")
        status, headers, _ = peer.ask("GET", place)
        assert (status, headers["range"]) == (204, f"0-{start + len(chunk) - 1}")
    status, headers, _ = peer.ask("PUT", f"{place}?digest={sha256(data)}")
    assert status == 201
    assert peer.ask("GET", f"blobs/{sha256(data)}")[2] == data
    assert peer.code("GET", place) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_the_last_chunk_with_the_put(peer: Peer) -> None:
    _, headers, _ = peer.ask("POST", "blobs/uploads/")
    place = location(headers)
    peer.ask("PATCH", place, b"first ")
    assert peer.ask("PUT", f"{place}?digest={sha256(b'first last')}", b"last", Content_Range="6-9")[0] == 201


def test_chunks_out_of_order(peer: Peer) -> None:
    _, headers, _ = peer.ask("POST", "blobs/uploads/")
    place = location(headers)
    peer.ask("PATCH", place, b"0123456789", Content_Range="0-9")
    status, headers, _ = peer.ask("PATCH", place, b"x", Content_Range="20-20")
    assert (status, headers["range"]) == (416, "0-9")
    assert peer.code("PATCH", place, b"x", Content_Range="0-0") == (416, "RANGE_INVALID")
    assert peer.code("PUT", f"{place}?digest={sha256(b'')}", b"x", Content_Range="3-3") == (416, "RANGE_INVALID")
    assert peer.code("PATCH", place, b"xy", Content_Range="10-10") == (400, "SIZE_INVALID")
    assert peer.code("PATCH", place, b"xy", Content_Range="some") == (400, "BLOB_UPLOAD_INVALID")
    assert peer.ask("GET", place)[1]["range"] == "0-9"


def test_a_wrong_digest(peer: Peer) -> None:
    wrong = sha256(b"something else")
    assert peer.code("POST", f"blobs/uploads/?digest={wrong}", b"data") == (400, "DIGEST_INVALID")
    _, headers, _ = peer.ask("POST", "blobs/uploads/")
    assert peer.code("PUT", f"{location(headers)}?digest={wrong}", b"data") == (400, "DIGEST_INVALID")
    assert peer.code("GET", f"blobs/{wrong}") == (404, "BLOB_UNKNOWN")
    assert peer.code("GET", location(headers)) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_a_put_without_a_digest(peer: Peer) -> None:
    _, headers, _ = peer.ask("POST", "blobs/uploads/")
    assert peer.code("PUT", location(headers), b"data") == (400, "DIGEST_INVALID")
    assert peer.code("PUT", f"{location(headers)}?digest=sha256:12", b"data") == (400, "DIGEST_INVALID")


def test_sha512(peer: Peer) -> None:
    data = random.Random(3).randbytes(2_500_000)
    digest = "sha512:" + hashlib.sha512(data).hexdigest()
    assert peer.ask("POST", f"blobs/uploads/?digest={digest}", data)[0] == 201
    assert peer.ask("GET", f"blobs/{digest}")[2] == data
    assert peer.code("POST", f"blobs/uploads/?digest={digest}", b"other") == (400, "DIGEST_INVALID")


def test_cancel(peer: Peer) -> None:
    _, headers, _ = peer.ask("POST", "blobs/uploads/")
    assert peer.ask("DELETE", location(headers))[0] == 204
    assert peer.code("PATCH", location(headers), b"x") == (404, "BLOB_UPLOAD_UNKNOWN")
    assert peer.code("DELETE", location(headers)) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_belongs_to_its_repository(peer: Peer) -> None:
    _, headers, _ = peer.ask("POST", "blobs/uploads/")
    identifier = location(headers).rpartition("/")[2]
    other = Peer(peer.registry, f"{peer.name}/other")
    assert other.code("PATCH", f"blobs/uploads/{identifier}", b"x") == (404, "BLOB_UPLOAD_UNKNOWN")
    assert other.code("GET", "blobs/uploads/..") == (404, "BLOB_UPLOAD_UNKNOWN")


def test_expect_100(registry: DrayRegistry, peer: Peer) -> None:
    with socket.create_connection((registry.host, registry.port), 10) as sock:
        head = f"POST {peer.base}/blobs/uploads/?digest={sha256(b'abc')} HTTP/1.1\r\nHost: x\r\n"
        sock.sendall(f"{head}Content-Length: 3\r\nExpect: 100-continue\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"abc")
        assert sock.recv(100).startswith(b"HTTP/1.1 201 ")


def test_a_broken_connection_keeps_what_arrived(registry: DrayRegistry, peer: Peer) -> None:
    data = random.Random(4).randbytes(3_000_000)
    _, headers, _ = peer.ask("POST", "blobs/uploads/")
    place = location(headers)
    with socket.create_connection((registry.host, registry.port), 10) as sock:
        sock.sendall(f"PATCH {place} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode())
        sock.sendall(data[:1_500_000])
        until(lambda: _arrived(peer, place) > 0, what="a part of the bytes")
    until(lambda: any(one.method == "PATCH" and one.path == place for one in registry.access_log()))
    arrived = _arrived(peer, place)
    assert 1 << 20 <= arrived <= 1_500_000
    assert peer.ask("PATCH", place, data[arrived:], Content_Range=f"{arrived}-{len(data) - 1}")[0] == 202
    assert peer.ask("PUT", f"{place}?digest={sha256(data)}")[0] == 201


def _arrived(peer: Peer, place: str) -> int:
    """How many bytes an upload has (0 and 1 look alike)."""
    last = int(peer.ask("GET", place)[1]["range"].removeprefix("0-"))
    return last + 1 if last else 0


def test_a_newer_request_takes_an_upload_over(registry: DrayRegistry, peer: Peer) -> None:
    """The older one's client hangs; were it waited for, the upload could not go on before its time is up."""
    _, headers, _ = peer.ask("POST", "blobs/uploads/")
    place = location(headers)
    with socket.create_connection((registry.host, registry.port), 10) as sock:
        sock.sendall(f"PATCH {place} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n0123".encode())
        status, headers, _ = peer.ask("PATCH", place, b"")
        kept = b"0123" if headers["range"] == "0-3" else b""
        assert status == 202
        assert peer.ask("PUT", f"{place}?digest={sha256(kept + b'rest')}", b"rest")[0] == 201


def test_mount(peer: Peer) -> None:
    source = Peer(peer.registry, f"{peer.name}/source")
    digest = source.push_blob(b"to be mounted " + peer.name.encode())
    status, headers, _ = peer.ask("POST", f"blobs/uploads/?mount={digest}&from={source.name}")
    assert (status, headers["docker-content-digest"]) == (201, digest)
    assert peer.ask("GET", location(headers))[0] == 200


def test_mount_without_a_source_finds_one(peer: Peer) -> None:
    digest = Peer(peer.registry, f"{peer.name}/source").push_blob(b"to be found " + peer.name.encode())
    assert peer.ask("POST", f"blobs/uploads/?mount={digest}")[0] == 201


def test_a_mount_that_cannot_be_begins_an_upload(peer: Peer) -> None:
    digest = sha256(b"nowhere")
    for query in (f"mount={digest}&from=no/such", f"mount={digest}"):
        status, headers, _ = peer.ask("POST", f"blobs/uploads/?{query}")
        assert status == 202
        assert peer.ask("PUT", f"{location(headers)}?digest={sha256(b'x')}", b"x")[0] == 201


def test_delete_a_blob(peer: Peer) -> None:
    digest = peer.push_blob(b"short life")
    assert peer.ask("DELETE", f"blobs/{digest}")[0] == 202
    assert peer.code("GET", f"blobs/{digest}") == (404, "BLOB_UNKNOWN")
    assert peer.code("DELETE", f"blobs/{digest}") == (404, "BLOB_UNKNOWN")


# --- manifests


def test_a_manifest_by_tag_and_digest(peer: Peer) -> None:
    document = peer.image()
    digest = peer.push_manifest("v1", document)
    for reference in ("v1", digest):
        status, headers, body = peer.ask("GET", f"manifests/{reference}")
        assert (status, json.loads(body), headers["content-type"]) == (200, document, OCI_MANIFEST)
        assert headers["docker-content-digest"] == digest
        status, headers, body = peer.ask("HEAD", f"manifests/{reference}")
        assert (status, headers["docker-content-digest"], body) == (200, digest, b"")
        assert int(headers["content-length"]) == len(json.dumps(document))


def test_a_manifest_pushed_by_digest_has_no_tag(peer: Peer) -> None:
    data = json.dumps(peer.image()).encode()
    peer.push_manifest(sha256(data), json.loads(data))
    assert json.loads(peer.ask("GET", "tags/list")[2])["tags"] == []
    assert peer.code("PUT", f"manifests/{sha256(b'')}", data) == (400, "DIGEST_INVALID")


def test_a_manifest_by_sha512(peer: Peer) -> None:
    data = json.dumps(peer.image()).encode()
    digest = "sha512:" + hashlib.sha512(data).hexdigest()
    assert peer.ask("PUT", f"manifests/{digest}", data, Content_Type=OCI_MANIFEST)[0] == 201
    assert peer.ask("GET", f"manifests/{digest}")[2] == data


def test_manifests_that_are_not_there(peer: Peer) -> None:
    assert peer.code("GET", "manifests/v1") == (404, "NAME_UNKNOWN")
    peer.push_manifest("v1", peer.image())
    assert peer.code("GET", "manifests/v2") == (404, "MANIFEST_UNKNOWN")
    assert peer.code("GET", f"manifests/{sha256(b'')}") == (404, "MANIFEST_UNKNOWN")
    assert peer.code("GET", "manifests/-wrong") == (404, "MANIFEST_UNKNOWN")


def test_missing_parts(peer: Peer) -> None:
    document = manifest(b"{}", b"never pushed")
    peer.push_blob(b"{}")
    data = json.dumps(document).encode()
    status, _, body = peer.ask("PUT", "manifests/v1", data, Content_Type=OCI_MANIFEST)
    error = json.loads(body)["errors"][0]
    assert (status, error["code"]) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert error["detail"]["digests"] == [sha256(b"never pushed")]
    index = {"schemaVersion": 2, "manifests": [{"mediaType": OCI_MANIFEST, "digest": sha256(b""), "size": 0}]}
    answer = peer.code("PUT", "manifests/v1", json.dumps(index).encode(), Content_Type=OCI_INDEX)
    assert answer == (404, "MANIFEST_BLOB_UNKNOWN")


def test_layers_with_addresses_need_not_be_there(peer: Peer) -> None:
    document = peer.image()
    document["layers"].append(
        {"mediaType": "application/octet-stream", "digest": sha256(b"far"), "size": 3, "urls": ["http://far/"]}
    )
    peer.push_manifest("v1", document)


def test_an_index(peer: Peer) -> None:
    digest = peer.push_manifest("one", peer.image())
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    ]}  # fmt: skip
    peer.push_manifest("both", index, OCI_INDEX)
    assert peer.ask("GET", "manifests/both")[1]["content-type"] == OCI_INDEX


AMBIGUOUS = [
    {"schemaVersion": 2, "config": {"digest": sha256(b""), "size": 0}, "layers": [], "manifests": []},
    {"schemaVersion": 2, "mediaType": OCI_INDEX, "config": {"digest": sha256(b""), "size": 0}, "layers": []},
    {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": []},
]


@pytest.mark.parametrize("document", AMBIGUOUS)
def test_ambiguous_manifests_are_refused(peer: Peer, document: dict[str, Any]) -> None:
    """CVE-2021-41190: what one client reads as an image and another as an index."""
    peer.push_blob(b"")
    data = json.dumps(document).encode()
    for media_type in (OCI_MANIFEST, OCI_INDEX):
        assert peer.code("PUT", "manifests/t", data, Content_Type=media_type) == (400, "MANIFEST_INVALID")


def test_the_media_type_sent_is_the_one_said(peer: Peer) -> None:
    data = json.dumps(peer.image()).encode()
    assert peer.code("PUT", "manifests/t", data, Content_Type=DOCKER_MANIFEST) == (400, "MANIFEST_INVALID")
    assert peer.code("PUT", "manifests/t", data, Content_Type=OCI_INDEX) == (400, "MANIFEST_INVALID")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"{}", b'{"schemaVersion": 1, "fsLayers": []}', b'{"schemaVersion": 2, "manifests": 3}',
     b'{"schemaVersion": 2, "mediaType": "text/plain", "config": {"digest": "sha256:%064d", "size": 1}}' % 0,
     b'{"schemaVersion": 2, "config": {"digest": "sha256:../../etc", "size": 1}}',
     b'{"schemaVersion": 2, "config": {"digest": "sha256:%064d", "size": -1}}' % 0],
)  # fmt: skip
def test_what_is_no_manifest(peer: Peer, data: bytes) -> None:
    assert peer.code("PUT", "manifests/t", data) == (400, "MANIFEST_INVALID")


def test_a_manifest_too_large(peer: Peer) -> None:
    assert peer.code("PUT", "manifests/t", b" " * ((4 << 20) + 1)) == (413, "SIZE_INVALID")


def test_a_tag_moves(peer: Peer) -> None:
    first, second = peer.push_manifest("t", peer.image("a")), peer.push_manifest("t", peer.image("b"))
    assert peer.ask("HEAD", "manifests/t")[1]["docker-content-digest"] == second
    assert peer.ask("HEAD", f"manifests/{first}")[0] == 200


def test_wrong_tags_cannot_be_pushed(peer: Peer) -> None:
    data = json.dumps(peer.image()).encode()
    assert peer.code("PUT", "manifests/.t", data)[0] == 400
    assert peer.code("PUT", f"manifests/{'x' * 129}", data)[0] == 400
    assert peer.code("PUT", "manifests/sha256:abc", data) == (400, "DIGEST_INVALID")


def test_delete_a_tag_and_a_manifest(peer: Peer) -> None:
    document = peer.image()
    digest = peer.push_manifest("a", document)
    for tag in ("b", "c"):
        peer.push_manifest(tag, document)
    assert peer.ask("DELETE", "manifests/a")[0] == 202
    assert peer.code("GET", "manifests/a") == (404, "MANIFEST_UNKNOWN")
    assert peer.ask("GET", f"manifests/{digest}")[0] == 200
    assert peer.ask("DELETE", f"manifests/{digest}")[0] == 202
    for reference in ("b", "c", digest):
        assert peer.ask("GET", f"manifests/{reference}")[0] == 404
    assert peer.ask("DELETE", f"manifests/{digest}")[0] == 404
    assert peer.ask("DELETE", "manifests/nosuch")[0] == 404


# --- tags, the catalogue, referrers


def test_tags_in_pages(peer: Peer) -> None:
    document = peer.image()
    for tag in ("b", "A", "c", "B", "_"):
        peer.push_manifest(tag, document)
    assert json.loads(peer.ask("GET", "tags/list")[2]) == {"name": peer.name, "tags": ["_", "A", "B", "b", "c"]}
    found, path = [], "tags/list?n=2"
    while path:
        _, headers, body = peer.ask("GET", path)
        found.append(json.loads(body)["tags"])
        link = headers.get("link", "")
        assert not link or link.endswith('; rel="next"')
        path = link.partition(">")[0].removeprefix("<")
    assert found == [["_", "A"], ["B", "b"], ["c"]]
    assert json.loads(peer.ask("GET", "tags/list?last=B")[2])["tags"] == ["b", "c"]
    assert json.loads(peer.ask("GET", "tags/list?n=0")[2])["tags"] == []
    assert peer.code("GET", "tags/list?n=-1") == (400, "PAGINATION_NUMBER_INVALID")
    assert peer.code("GET", "tags/list?n=x") == (400, "PAGINATION_NUMBER_INVALID")


def test_the_catalogue_in_pages(make: Make) -> None:
    registry = make()
    for name in ("b", "a/x", "a"):
        peer = Peer(registry, name)
        peer.push_manifest("t", peer.image())
    Peer(registry, "blobs/only").push_blob(b"x")
    status, headers, body = registry.request("GET", "/v2/_catalog?n=2")
    assert (status, json.loads(body)) == (200, {"repositories": ["a", "a/x"]})
    assert headers["link"] == '</v2/_catalog?last=a%2Fx&n=2>; rel="next"'
    body = registry.request("GET", "/v2/_catalog?last=a%2Fx&n=2")[2]
    assert json.loads(body) == {"repositories": ["b"]}


def test_referrers(peer: Peer) -> None:
    subject = sha256(b"not even there")
    empty = peer.ask("GET", f"referrers/{subject}")
    assert (empty[0], empty[1]["content-type"], json.loads(empty[2])["manifests"]) == (200, OCI_INDEX, [])
    about = {"subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 14}, "annotations": {"a": "b"}}
    first = json.dumps(peer.image("1", artifactType="text/sbom", **about)).encode()
    status, headers, _ = peer.ask("PUT", f"manifests/{sha256(first)}", first, Content_Type=OCI_MANIFEST)
    assert (status, headers["oci-subject"]) == (201, subject)
    second = peer.push_manifest("second", peer.image("2", **about))
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "artifactType": "text/index", "manifests": [], **about}
    third = peer.push_manifest("third", index, OCI_INDEX)
    _, headers, body = peer.ask("GET", f"referrers/{subject}")
    found = {one["digest"]: one for one in json.loads(body)["manifests"]}
    assert set(found) == {sha256(first), second, third}
    assert found[sha256(first)] == {
        "mediaType": OCI_MANIFEST, "digest": sha256(first), "size": len(first),
        "artifactType": "text/sbom", "annotations": {"a": "b"},
    }  # fmt: skip
    assert found[second]["artifactType"] == "application/vnd.oci.image.config.v1+json"
    assert "oci-filters-applied" not in headers
    _, headers, body = peer.ask("GET", f"referrers/{subject}?artifactType=text/sbom")
    assert headers["oci-filters-applied"] == "artifactType"
    assert [one["digest"] for one in json.loads(body)["manifests"]] == [sha256(first)]
    peer.ask("DELETE", f"manifests/{second}")
    left = json.loads(peer.ask("GET", f"referrers/{subject}")[2])["manifests"]
    assert second not in {one["digest"] for one in left}
    assert peer.code("GET", "referrers/sha256:abc") == (400, "DIGEST_INVALID")


# --- the server's life


def test_read_only(make: Make) -> None:
    registry = make()
    peer = Peer(registry, "a")
    peer.push_manifest("t", peer.image())
    registry.stop()
    registry.options.append("--read-only")
    registry.start()
    assert peer.ask("GET", "manifests/t")[0] == 200
    for method, path in (("POST", "blobs/uploads/"), ("PUT", "manifests/u"), ("DELETE", "manifests/t")):
        assert peer.code(method, path, b"") == (405, "UNSUPPORTED")


def test_uploads_survive_kill_9(make: Make) -> None:
    registry = make()
    peer = Peer(registry, "a")
    data = random.Random(5).randbytes(2_000_000)
    _, headers, _ = peer.ask("POST", "blobs/uploads/")
    place = location(headers)
    peer.ask("PATCH", place, data[:1_200_000])
    registry.kill()
    registry.start()
    status, headers, _ = peer.ask("GET", place)
    assert (status, headers["range"]) == (204, "0-1199999")
    assert peer.code("PATCH", place, b"x", Content_Range="0-0") == (416, "RANGE_INVALID")
    peer.ask("PATCH", place, data[1_200_000:], Content_Range="1200000-1999999")
    assert peer.ask("PUT", f"{place}?digest={sha256(data)}")[0] == 201
    assert peer.ask("GET", f"blobs/{sha256(data)}")[2] == data


def test_kill_9_while_pushing_leaves_nothing_half_visible(make: Make) -> None:
    registry = make()
    pick = random.Random(6)
    for turn in range(4):
        stop = threading.Event()

        def push(turn: int = turn, stop: threading.Event = stop) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                peer = Peer(registry, f"r{number % 3}")
                try:
                    peer.push_manifest(f"t{turn}-{number}", peer.image(f"{turn}-{number}" * 5000))
                except (OSError, http.client.HTTPException):
                    return

        threads = [threading.Thread(target=push) for _ in range(3)]
        for thread in threads:
            thread.start()
        stop.wait(0.1 + pick.random() * 0.2)
        registry.kill()
        stop.set()
        for thread in threads:
            thread.join()
        registry.start()
        for name in json.loads(registry.request("GET", "/v2/_catalog")[2])["repositories"]:
            peer = Peer(registry, name)
            for tag in json.loads(peer.ask("GET", "tags/list")[2])["tags"]:
                status, _, body = peer.ask("GET", f"manifests/{tag}")
                assert status == 200
                document = json.loads(body)
                for part in (document["config"], *document["layers"]):
                    assert sha256(peer.ask("GET", f"blobs/{part['digest']}")[2]) == part["digest"]
    assert not list((registry.data / "tmp").iterdir())


def test_an_end_by_sigterm_keeps_uploads(make: Make) -> None:
    registry = make()
    peer = Peer(registry, "a")
    place = location(peer.ask("POST", "blobs/uploads/")[1])
    peer.ask("PATCH", place, b"abc")
    assert registry.process is not None
    process = registry.process
    registry.stop()
    assert process.returncode == 0
    assert not (registry.data / "control.sock").exists()
    registry.start()
    assert peer.ask("GET", place)[1]["range"] == "0-2"


def test_one_registry_per_folder(make: Make) -> None:
    registry = make()
    with pytest.raises(AssertionError, match=r"another registry uses .*: stop it, or choose another folder"):
        DrayRegistry(registry.folder / "second", options=[f"--root={registry.data}"])
