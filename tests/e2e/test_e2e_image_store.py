"""The image store to the byte: disk usage, prune, rmi of names, ids, digests and platforms, save and load with other
tools' archives, import from a URL, attestations, and a disk that becomes full."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import pytest

from images import archive, busybox
from images.archive import CONFIG, INDEX, MANIFEST, Image, layer_tar, sha256, text
from support.engines import Drayd, Engine
from support.world import World

pytestmark = pytest.mark.drayd_only("dockerd 20.10 keeps images in another store, with other ids")

API = "/v1.52"
STATEMENT = {"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://slsa.dev/provenance/v0.2"}


@pytest.fixture
def fresh(engine: Engine) -> Iterator[Engine]:
    """The engine; images that the test adds go afterwards."""
    before = {image["Id"]: set(image["RepoTags"]) for image in engine.get("/images/json?all=1")}
    yield engine
    engine.remove_everything()
    for image in engine.get("/images/json?all=1"):
        for tag in set(image["RepoTags"]) - before.get(image["Id"], set()):
            engine.api("DELETE", f"/images/{tag}?force=1")
        if image["Id"] not in before:
            engine.api("DELETE", f"/images/{image['Id']}?force=1")


def write(engine: Engine, *images: Image, name: str = "store.tar") -> Path:
    path = engine.base / name
    archive.write_docker_archive(images, path)
    return path


def own(name: str, size: int, *tags: str, **config: Any) -> Image:
    """An image of busybox's layer and one of its own."""
    return Image(
        [busybox.base_layer(), layer_tar([text(f"own/{name}", name * (size // len(name)))])], config, tags
    )


def image_id(engine: Engine, name: str) -> str:
    found: str = engine.inspect(name, kind="image")["Id"]
    return found


def df(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = engine.get(f"{API}/system/df?verbose=1")
    return found


def files(folder: Path) -> int:
    """The bytes of the regular files of a tree, hard links once."""
    seen: dict[tuple[int, int], int] = {}
    for directory, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(directory, name))
            if os.path.isfile(os.path.join(directory, name)) and not os.path.islink(os.path.join(directory, name)):
                seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


# --- disk usage


def test_df_is_what_is_on_the_disk(fresh: Engine) -> None:
    fresh.load(write(fresh, own("a", 300_000, "a:1"), own("b", 200_000, "b:1")))
    fresh.ok(
        "run", "--name", "box", "-v", "data:/data", "a:1", "sh", "-c", "yes | head -c 5000 > /w; cp /w /data/w"
    )
    fresh.ok("create", "--name", "orphan", "b:1", "true")
    fresh.ok("rmi", "-f", image_id(fresh, "b:1"))  # its layers are the container's alone now
    found = df(fresh)
    content, layers = fresh.data_root / "content", fresh.data_root / "overlay2"
    snapshots = {one["Id"]: one.get("SizeRw") or 0 for one in found["ContainerUsage"]["Items"]}
    assert sum(snapshots.values()) == found["ContainerUsage"]["TotalSize"] >= 5000
    spent = files(content / "blobs") + files(content / "ingest") + files(layers)
    assert found["ImageUsage"]["TotalSize"] + found["ContainerUsage"]["TotalSize"] == spent
    assert found["VolumeUsage"]["TotalSize"] == files(fresh.data_root / "volumes") == 5000
    assert found["BuildCacheUsage"] == {}
    assert found["ImageUsage"]["ActiveCount"] == 1
    assert found["ImageUsage"]["TotalCount"] == len(found["ImageUsage"]["Items"])
    old = fresh.get("/v1.41/system/df")
    assert old["LayersSize"] == found["ImageUsage"]["TotalSize"]
    assert {one["Containers"] for one in old["Images"]} == {0, 1}
    assert old["BuildCache"] == []
    rows = dict(
        line.split(None, 1) for line in fresh.ok("system", "df", "--format", "{{.Type}} {{.Active}}").splitlines()
    )
    assert rows["Images"] == "1"


def test_the_unique_size_is_what_a_removal_frees(fresh: Engine) -> None:
    fresh.load(write(fresh, own("a", 300_000, "a:1"), own("b", 100_000, "b:1")))
    before = df(fresh)["ImageUsage"]
    (one,) = [item for item in before["Items"] if item["RepoTags"] == ["a:1"]]
    fresh.ok("rmi", "a:1")
    assert before["TotalSize"] - df(fresh)["ImageUsage"]["TotalSize"] == one["Size"] - one["SharedSize"]
    assert one["Size"] - one["SharedSize"] >= 600_000  # its blob and its layer


def test_reclaimable_is_what_prune_reclaims(fresh: Engine) -> None:
    fresh.load(write(fresh, own("a", 300_000, "a:1"), own("b", 100_000, "b:1")))
    fresh.ok("create", "--name", "box", "a:1", "true")
    for image in fresh.get("/images/json"):  # the others of the session shall stay
        for tag in image["RepoTags"]:
            if not tag.startswith(("a:", "b:")):
                fresh.ok("create", tag, "true")
    before = df(fresh)["ImageUsage"]
    asked = urlencode({"filters": json.dumps({"dangling": ["false"]})})
    status, _, body = fresh.api("POST", f"/images/prune?{asked}")
    report = json.loads(body)
    assert status == 200
    assert report["SpaceReclaimed"] == before["Reclaimable"] > 200_000
    assert before["TotalSize"] - df(fresh)["ImageUsage"]["TotalSize"] == report["SpaceReclaimed"]
    assert [line for line in report["ImagesDeleted"] if "Untagged" in line] == [{"Untagged": "b:1"}]


def test_a_broken_off_download_is_in_df(fresh: Engine) -> None:
    before = df(fresh)["ImageUsage"]["TotalSize"]
    folder = fresh.data_root / "content" / "ingest" / "0123456789abcdef"
    folder.mkdir()
    try:
        (folder / "ref").write_text("sha256:" + 64 * "0")
        (folder / "data").write_bytes(bytes(5000))
        assert df(fresh)["ImageUsage"]["TotalSize"] - before == 5000
    finally:
        shutil.rmtree(folder)


# --- prune and list


def test_prune_filters(fresh: Engine) -> None:
    fresh.load(
        write(fresh, own("a", 1000, Labels={"keep": "yes"}), own("b", 1000, Labels={"drop": "1"}), own("c", 1000))
    )
    count = len(fresh.ok("images", "-q", "-f", "dangling=true").split())
    assert count == 3

    def prune(**filters: list[str]) -> tuple[int, list[Any]]:
        status, _, body = fresh.api("POST", f"/images/prune?{urlencode({'filters': json.dumps(filters)})}")
        return status, json.loads(body).get("ImagesDeleted") or []

    for wrong in ({"nosuch": ["x"]}, {"dangling": ["perhaps"]}, {"until": ["yesterday"]}):
        assert prune(**wrong)[0] == 400
        assert len(fresh.ok("images", "-q", "-f", "dangling=true").split()) == 3
    assert prune(until=["2001-01-01"]) == (200, [])
    assert len(prune(label=["drop"])[1]) == 1
    assert len(prune(**{"label!": ["keep=yes"]})[1]) == 1
    assert fresh.ok("images", "-q", "-f", "dangling=true", "-f", "label=keep=yes").count("\n") == 0
    fresh.ok("image", "prune", "-f")
    assert fresh.ok("images", "-q", "-f", "dangling=true") == ""


def test_reference_patterns_are_gos(fresh: Engine) -> None:
    for name in ("mine/box:1", "mine/deep/box:2", "box:3", "reg.example.org/mine/box:4"):
        fresh.ok("tag", "busybox", name)

    def names(pattern: str) -> set[str]:
        lines = fresh.ok("images", "--format", "{{.Repository}}:{{.Tag}}", "-f", f"reference={pattern}").split()
        return set(lines)

    assert names("mine/*") == {"mine/box:1"}
    assert names("mine/*/*") == {"mine/deep/box:2"}
    assert names("b?x") == {"box:3"}
    assert names("*:[1-3]") == {"box:3"}
    assert names("reg.example.org/*/*:?") == {"reg.example.org/mine/box:4"}
    assert names("busybox@sha256:*") <= {"busybox:<none>"}
    assert names("box:[^3]") == set()
    assert "syntax error in pattern" in fresh.fails("images", "-f", "reference=[")


def test_before_since_until_and_digests(fresh: Engine) -> None:
    fresh.load(write(fresh, own("a", 1000, "a:1")))
    fresh.ok("create", "--name", "box", "a:1", "true")
    fresh.ok("commit", "box", "newer:1")

    def names(*flags: str) -> set[str]:
        return set(fresh.ok("images", "--format", "{{.Repository}}:{{.Tag}}", *flags).split())

    assert names("-f", "since=a:1") == {"newer:1"}
    assert "newer:1" not in names("-f", "before=newer:1")
    assert "a:1" in names("-f", "before=newer:1")
    assert "newer:1" not in names("-f", "until=10m")
    assert "No such image: nosuch:latest" in fresh.fails("images", "-f", "before=nosuch")
    line = fresh.ok("images", "--digests", "--no-trunc", "--format", "{{.Digest}} {{.ID}}", "a:1").split()
    assert line[0] == line[1] == image_id(fresh, "a:1")
    tree = fresh.ok("images", "--tree", "a:1")
    assert "linux/amd64" in tree


# --- rmi


def test_rmi_by_digest_takes_all_tags_of_the_repository(fresh: Engine) -> None:
    fresh.load(write(fresh, own("a", 1000, "a:1", "a:2", "other:1")))
    digest = image_id(fresh, "a:1")
    assert set(fresh.ok("rmi", f"a@{digest}").splitlines()) == {"Untagged: a:1", "Untagged: a:2"}
    assert fresh.inspect("other:1", kind="image")["RepoTags"] == ["other:1"]
    assert set(fresh.ok("rmi", f"other@{digest}").splitlines()) == {"Untagged: other:1", f"Deleted: {digest}"}


def test_rmi_of_several_goes_on_after_one_that_fails(fresh: Engine) -> None:
    fresh.load(write(fresh, own("a", 1000, "a:1"), own("b", 1000, "b:1")))
    done = fresh.docker("rmi", "a:1", "nosuch:1", "b:1")
    assert done.returncode == 1
    assert "Untagged: a:1" in done.stdout
    assert "Untagged: b:1" in done.stdout
    assert "No such image: nosuch:1" in done.stderr
    assert fresh.ok("rmi", "-f", "nosuch:1") == ""


def test_rmi_of_an_image_in_use_by_id(fresh: Engine) -> None:
    fresh.load(write(fresh, own("a", 1000, "a:1")))
    found = image_id(fresh, "a:1")
    short = found.removeprefix("sha256:")[:12]
    fresh.ok("run", "-d", "--name", "box", "a:1", "sleep", "600")
    message = fresh.fails("rmi", "-f", short)
    assert f"unable to delete {short} (cannot be forced) - image is being used by running container" in message
    fresh.ok("kill", "box")
    assert "(must be forced) - image is being used by stopped container" in fresh.fails("rmi", short)
    assert f"Deleted: {found}" in fresh.ok("rmi", "-f", short)
    fresh.ok("start", "box")  # its layers are its own now
    fresh.ok("rm", "-f", "box")


def test_rmi_no_prune_keeps_dangling_parents(fresh: Engine) -> None:
    def chain() -> tuple[str, str]:
        fresh.load(write(fresh, own("a", 1000, "chain:1")))
        parent = image_id(fresh, "chain:1")
        fresh.ok("create", "--name", "box", "chain:1", "true")
        fresh.ok("cp", str(Path(__file__)), "box:/file")
        fresh.ok("commit", "box", "chain:1")  # takes the name
        fresh.ok("rm", "box")
        return parent, image_id(fresh, "chain:1")

    parent, child = chain()
    assert parent[7:19] in fresh.ok("images", "-q", "-f", "dangling=true")
    lines = fresh.ok("rmi", "--no-prune", "chain:1").splitlines()
    assert lines == ["Untagged: chain:1", f"Deleted: {child}"]
    assert parent[7:19] in fresh.ok("images", "-qa")
    fresh.ok("rmi", parent)
    parent, child = chain()
    assert fresh.ok("rmi", "chain:1").splitlines() == [
        "Untagged: chain:1",
        f"Deleted: {child}",
        f"Deleted: {parent}",
    ]


def test_rmi_tells_events(fresh: Engine) -> None:
    fresh.load(write(fresh, own("a", 1000, "a:1", "a:2")))
    found = image_id(fresh, "a:1")
    since = fresh.get("/info")["SystemTime"]
    fresh.ok("save", "-o", str(fresh.base / "saved.tar"), "a:1")
    fresh.ok("rmi", "a:1", "a:2")
    until = fresh.get("/info")["SystemTime"]
    told = fresh.ok(
        "events", "--since", since, "--until", until, "--format", "{{.Action}} {{.Actor.ID}}"
    ).splitlines()
    assert told == [f"save {found}", f"untag {found}", f"untag {found}", f"delete {found}"]


def test_short_and_ambiguous_ids(fresh: Engine) -> None:
    ids = [image["Id"].removeprefix("sha256:") for image in fresh.get("/images/json?all=1")]
    letters: dict[str, list[str]] = {}
    number = 0
    while not (twice := [found for found in letters.values() if len(found) > 1]):
        letters = {}
        for one in ids:
            letters.setdefault(one[0], []).append(one)
        fresh.load(write(fresh, own(f"n{number}", 100, f"n:{number}")))
        ids = [image["Id"].removeprefix("sha256:") for image in fresh.get("/images/json?all=1")]
        number += 1
    assert "ambiguous" in fresh.fails("rmi", f"sha256:{twice[0][0][0]}")
    assert fresh.inspect(twice[0][0][:20], kind="image")["Id"] == f"sha256:{twice[0][0]}"


# --- several platforms, attestations


def multi(engine: Engine) -> Path:
    """An OCI layout with an index of two platforms and an attestation about the first."""
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        digest = sha256(data)
        blobs[digest] = data
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data), **more}

    def manifest(layers: list[dict[str, Any]], config: bytes, **more: Any) -> dict[str, Any]:
        body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": blob(config, CONFIG), "layers": layers}
        return blob(json.dumps(body).encode(), MANIFEST, **more)

    here = Image([busybox.base_layer(), layer_tar([text("here", "x" * 1000)])], {"Cmd": ["true"]}, [])
    there = Image([layer_tar([text("there", "y" * 1000)])], {}, [])
    kind = f"{archive.LAYER}+gzip"
    both = []
    for image, machine in ((here, "amd64"), (there, "arm64")):
        layers = [blob(gzip.compress(layer, 1, mtime=0), kind) for layer in image.layers]
        config = image.configuration().replace(b'"amd64"', f'"{machine}"'.encode())
        both.append(manifest(layers, config, platform={"os": "linux", "architecture": machine}))
    statement = json.dumps(STATEMENT).encode()
    about = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": both[0]["digest"]}
    layer = blob(
        statement,
        "application/vnd.in-toto+json",
        annotations={"in-toto.io/predicate-type": STATEMENT["predicateType"]},
    )
    config = Image([statement], {}, []).configuration()
    both.append(
        manifest([layer], config, platform={"os": "unknown", "architecture": "unknown"}, annotations=about)
    )
    index = blob(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": both}).encode(), INDEX)
    index["annotations"] = {"io.containerd.image.name": "docker.io/library/multi:1"}
    path = engine.base / "multi.tar"
    with tarfile.open(path, "w") as tar:
        archive._add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        archive._add(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [index]}).encode())
        for digest, data in blobs.items():
            archive._add(tar, f"blobs/sha256/{digest}", data)
    return path


def test_attestations_are_listed_and_read(fresh: Engine) -> None:
    fresh.load(multi(fresh))
    shown = fresh.get(f"{API}/images/multi:1/json?manifests=1")["Manifests"]
    assert [one["Kind"] for one in shown] == ["image", "image", "attestation"]
    assert shown[2]["AttestationData"]["For"] == shown[0]["ID"]
    (entry,) = fresh.get("/v1.55/images/multi:1/attestations")
    assert entry["PredicateType"] == STATEMENT["predicateType"]
    assert entry["Descriptor"]["mediaType"] == "application/vnd.in-toto+json"
    assert "Statement" not in entry
    (entry,) = fresh.get("/v1.55/images/multi:1/attestations?statement=1")
    assert entry["Statement"] == STATEMENT
    assert fresh.get("/v1.55/images/multi:1/attestations?type=https://other") == []
    arm = quote(json.dumps({"os": "linux", "architecture": "arm64"}))
    assert fresh.get(f"/v1.55/images/multi:1/attestations?platform={arm}") == []
    assert fresh.get("/v1.55/images/busybox/attestations") == []
    assert fresh.api("GET", "/v1.55/images/nosuch/attestations")[0] == 404
    assert fresh.api("GET", "/v1.55/images/multi:1/attestations?platform=linux/s390x")[0] == 404
    assert fresh.api("GET", "/v1.55/images/multi:1/attestations?platform=a/b/c/d")[0] == 400


def test_one_platform_is_removed_and_comes_back(fresh: Engine) -> None:
    path = multi(fresh)
    fresh.load(path)
    found = image_id(fresh, "multi:1")
    assert fresh.docker("history", "--platform", "linux/arm64", "multi:1").returncode == 0
    assert "Use --force" in fresh.fails("rmi", "--platform", "linux/arm64", "multi:1")
    before = df(fresh)["ImageUsage"]["TotalSize"]
    (arm,) = [
        one["ID"]
        for one in fresh.get(f"{API}/images/multi:1/json?manifests=1")["Manifests"]
        if one["Descriptor"]["platform"]["architecture"] == "arm64"
    ]
    assert fresh.ok("rmi", "-f", "--platform", "linux/arm64", "multi:1") == f"Deleted: {arm}"
    assert image_id(fresh, "multi:1") == found
    assert df(fresh)["ImageUsage"]["TotalSize"] < before
    assert fresh.docker("image", "inspect", "--platform", "linux/arm64", "multi:1").returncode == 1
    assert "does not provide the platform" in fresh.fails(
        "save", "--platform", "linux/arm64", "multi:1", "-o", str(fresh.base / "none.tar")
    )
    assert fresh.ok("run", "--rm", "multi:1", "cat", "/here") == "x" * 1000
    shown = {
        one["ID"]: one["Available"] for one in fresh.get(f"{API}/images/multi:1/json?manifests=1")["Manifests"]
    }
    assert shown[arm] is False
    # What is left of it is saved, and loaded again under the same id.
    saved = fresh.base / "saved.tar"
    fresh.ok("save", "-o", str(saved), "multi:1")
    fresh.ok("rmi", "multi:1")
    fresh.load(saved)
    assert image_id(fresh, "multi:1") == found
    fresh.load(path)
    assert fresh.docker("image", "inspect", "--platform", "linux/arm64", "multi:1").returncode == 0
    assert "alone" in fresh.fails("rmi", "-f", "--platform", "linux/amd64", "busybox")


# --- save and load


def test_a_bare_repository_means_all_its_tags(fresh: Engine) -> None:
    fresh.load(write(fresh, own("a", 1000, "many:1"), own("b", 1000, "many:2")))
    saved = fresh.base / "saved.tar"
    fresh.ok("save", "-o", str(saved), "many")  # there is no many:latest
    ids = {tag: image_id(fresh, tag) for tag in ("many:1", "many:2")}
    fresh.ok("rmi", "many:1", "many:2")
    assert sorted(fresh.ok("load", "-i", str(saved)).splitlines()) == [
        "Loaded image: many:1",
        "Loaded image: many:2",
    ]
    assert {tag: image_id(fresh, tag) for tag in ids} == ids
    fresh.ok("save", "-o", str(saved), f"many@{ids['many:1']}", ids["many:2"])
    with tarfile.open(saved) as tar:
        listed = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert [item["RepoTags"] for item in listed] == [None, None]
    assert "No such image: nosuch:latest" in fresh.fails("save", "nosuch", "-o", str(fresh.base / "none.tar"))


@pytest.mark.parametrize("how", ["xz", "bz2"])
def test_compressed_archives(fresh: Engine, how: str) -> None:
    data = write(fresh, Image([layer_tar([text("x", "x")])], {}, ["packed:1"])).read_bytes()
    import bz2

    path = fresh.base / f"archive.{how}"
    path.write_bytes(lzma.compress(data) if how == "xz" else bz2.compress(data))
    assert "Loaded image: packed:1" in fresh.ok("load", "-i", str(path))


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_and_writes_the_same_archives(fresh: Engine) -> None:
    def skopeo(*words: str) -> str:
        done = subprocess.run(["skopeo", *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    fresh.load(write(fresh, own("a", 100_000, "a:1")))
    config = fresh.get("/images/a:1/json")["RootFS"]["Layers"]
    saved, docker, oci = (fresh.base / name for name in ("saved.tar", "skopeo-docker.tar", "skopeo-oci.tar"))
    for path in (docker, oci):
        path.unlink(missing_ok=True)
    fresh.ok("save", "-o", str(saved), "a:1")
    assert json.loads(skopeo("inspect", "--config", f"docker-archive:{saved}"))["rootfs"]["diff_ids"] == config
    assert json.loads(skopeo("inspect", "--config", f"oci-archive:{saved}"))["rootfs"]["diff_ids"] == config
    skopeo("copy", f"docker-archive:{saved}:a:1", f"docker-archive:{docker}:b:1")
    skopeo("copy", f"oci-archive:{saved}", f"oci-archive:{oci}:docker.io/library/c:1")
    assert "Loaded image: b:1" in fresh.ok("load", "-i", str(docker))
    assert "Loaded image: c:1" in fresh.ok("load", "-i", str(oci))
    for name in ("b:1", "c:1"):
        assert fresh.get(f"/images/{name}/json")["RootFS"]["Layers"] == config
        assert fresh.ok("run", "--rm", name, "wc", "-c", "/own/a").split()[0] == "100000"


@pytest.mark.parametrize("where", ["index.json", "manifest"])
def test_ambiguous_manifests_are_not_loaded(fresh: Engine, where: str) -> None:
    """CVE-2021-41190: what could be read as a manifest and as an index is neither."""
    path = fresh.base / "plain.tar"
    archive.write_oci_layout([Image([layer_tar([text("x", "x")])], {}, ["amb:1"])], path)
    with tarfile.open(path) as tar:
        members = {one.name: tar.extractfile(one).read() for one in tar if one.isfile()}  # type: ignore[union-attr]
    index = json.loads(members["index.json"])
    entry = index["manifests"][0]
    if where == "index.json":
        name = "blobs/sha256/" + entry["digest"].partition(":")[2]
        index |= {key: json.loads(members[name])[key] for key in ("config", "layers")}
    else:
        document = json.loads(members.pop("blobs/sha256/" + entry["digest"].partition(":")[2]))
        data = json.dumps({**document, "manifests": [entry]}).encode()
        members[f"blobs/sha256/{sha256(data)}"] = data
        entry |= {"digest": f"sha256:{sha256(data)}", "size": len(data)}
    members["index.json"] = json.dumps(index).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            archive._add(tar, name, data)
    assert "ambiguous" in fresh.fails("load", "-i", str(path))
    assert fresh.docker("image", "inspect", "amb:1").returncode == 1


# --- import


class _Files(http.server.BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to"))
            self.end_headers()
            return
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if self.path == "/cut" else data)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(files: dict[str, bytes]) -> Iterator[str]:
    """A web server with these files: its address."""
    handler = type("Handler", (_Files,), {"files": files})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_import_from_a_url(fresh: Engine) -> None:
    tar = gzip.compress(busybox.base_layer(), 1)
    with served({"/root.tgz": tar, "/cut": tar}) as address:
        flags = ("-c", 'CMD ["sh"]', "--platform", "linux/amd64")
        done = fresh.ok("import", *flags, f"http://{address}/to/root.tgz", "fetched:1")
        assert f"Downloading from http://{address}/to/root.tgz" in done
        assert fresh.ok("run", "--rm", "fetched:1", "sh", "-c", "echo runs") == "runs"
        assert (
            fresh.ok("history", "--format", "{{.Comment}}", "fetched:1")
            == f"Imported from http://{address}/to/root.tgz"
        )
        asked = urlencode({"fromSrc": f"{address}/root.tgz", "repo": "fetched", "tag": "2"})
        assert fresh.api("POST", f"/images/create?{asked}")[0] == 200  # http where no scheme is told
        assert image_id(fresh, "fetched:2")
        assert "404" in fresh.fails("import", f"http://{address}/nosuch", "failed:1")
        assert "broke off" in fresh.fails("import", f"http://{address}/cut", "failed:1")
        status, _, body = fresh.api("POST", f"/images/create?{urlencode({'fromSrc': 'ftp://127.0.0.1/x'})}")
        assert (status, b"only http and https" in body) == (400, True)
        message = fresh.fails("import", "http://me:secret@127.0.0.1:1/x", "failed:1")
    assert "secret" not in message
    assert "cannot fetch" in message
    assert fresh.docker("image", "inspect", "failed:1").returncode == 1


# --- commit


def test_commit_of_many_changes(fresh: Engine) -> None:
    script = "mkdir /many && cd /many && i=0; while [ $i -lt 2000 ]; do : > f$i; i=$((i+1)); done"
    fresh.ok("run", "--name", "box", "busybox", "sh", "-c", script)
    changes = ("ENV A=1", 'CMD ["ls","/many"]', "EXPOSE 80/tcp", "LABEL l=v", "USER 1", "WORKDIR /many", "VOLUME /v",
               'ENTRYPOINT ["env"]', "ONBUILD RUN true", "STOPSIGNAL SIGINT", "HEALTHCHECK --retries=2 CMD true")  # fmt: skip
    flags = [word for change in changes for word in ("-c", change)]
    made = fresh.ok("commit", "-a", "An Author", "-m", "a note", *flags, "box", "many:1")
    body = fresh.inspect("many:1", kind="image")
    assert body["Id"] == made
    assert (body["Author"], body["Comment"]) == ("An Author", "a note")
    config = body["Config"]
    assert "A=1" in config["Env"]
    assert config["Entrypoint"] == ["env"]
    assert (config["User"], config["WorkingDir"], config["StopSignal"]) == ("1", "/many", "SIGINT")
    assert config["Volumes"] == {"/v": {}}
    assert config["Labels"] == {"l": "v"}
    assert config["OnBuild"] == ["RUN true"]
    assert config["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Retries": 2}
    assert fresh.ok("run", "--rm", "--entrypoint", "sh", "many:1", "-c", "ls /many | wc -l") == "2000"
    assert "not a valid change command" in fresh.fails("commit", "-c", "RUN true", "box", "bad:1")


def test_commit_of_a_running_container_with_and_without_pause(fresh: Engine) -> None:
    fresh.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", "echo kept > /file; sleep 600")
    since = fresh.get("/info")["SystemTime"]
    for flags in ((), ("--pause=false",)):
        fresh.ok("commit", *flags, "box", "live:1")
        assert fresh.state("box")["Status"] == "running"
    until = fresh.get("/info")["SystemTime"]
    told = fresh.ok(
        "events", "--since", since, "--until", until, "-f", "container=box", "--format", "{{.Action}}"
    ).splitlines()
    assert told == ["pause", "unpause", "commit", "commit"]
    assert fresh.ok("run", "--rm", "live:1", "cat", "/file") == "kept"


# --- a full disk


@pytest.fixture
def small(world: World, tmp_path: Path) -> Iterator[Engine]:
    """A daemon whose data root has room for little."""
    base = tmp_path / "small"
    base.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", str(base)], check=True)
    engine = Drayd(base, flags=["--bridge", "dray-full0", "--bip", "172.29.78.1/24"])
    try:
        engine.start()
        engine.load(
            write(engine, Image([busybox.base_layer()], {"Cmd": ["sh"]}, ["busybox:latest"]), name="b.tar")
        )
        yield engine
        engine.remove_everything()
        engine.stop()
    finally:
        subprocess.run(["umount", "-l", str(base)], check=True)


def test_a_disk_that_becomes_full(small: Engine, tmp_path: Path) -> None:
    large = tmp_path / "large.tar"
    blob = os.urandom(60 << 20)
    archive.write_docker_archive([Image([layer_tar([archive.Entry("large", data=blob)])], {}, ["large:1"])], large)
    root = tmp_path / "root.tar"
    root.write_bytes(layer_tar([archive.Entry("large", data=blob)]))
    before = df(small)["ImageUsage"]["TotalSize"]
    small.ok("run", "--name", "box", "busybox", "sh", "-c", "head -c 40000000 /dev/urandom > /large")
    for command in (["load", "-i", str(large)], ["import", str(root), "large:1"], ["commit", "box", "large:1"]):
        message = small.fails(*command)
        assert "space" in message, message
        assert small.ok("images", "--format", "{{.Repository}}") == "busybox", command
    small.ok("rm", "box")
    small.ok("image", "prune", "-f")
    assert df(small)["ImageUsage"]["TotalSize"] == before
    assert small.ok("run", "--rm", "busybox", "echo", "well") == "well"
