"""Random work on an engine's image store, and the two things that must hold whenever it rests.

Threads pull, push, load, save, import, tag, commit, create, remove and prune at the same time, clients go away in the
middle, and now and then the daemon is killed with SIGKILL and started again. Between rounds all is quiet, and then

* nothing that is referenced is lost: every listed image can be saved with all its blobs, and run; every container
  that was created can be started;
* nothing that is not referenced is kept: after a collection every blob belongs to a listed image or is a broken-off
  transfer's, every layer belongs to a listed image or stands under a container; and when everything is removed and
  the transfers' time is over, the store is empty.

All randomness comes from one seed, but threads and kills make two runs of one seed alike, not equal.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import random
import re
import sqlite3
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from images import busybox
from images.archive import INDEX, MANIFEST, Image, layer_tar, sha256, text, write_docker_archive, write_oci_layout
from support.engines import Drayd, UnixConnection, until
from support.registries import DebianRegistry

WORKERS = 4
TAGS = 14
# What an answer may say when others remove, at the same time, what it is about.
RACES = re.compile(
    r"No such (image|container)|not found|conflict|Conflict|is gone|being removed|does not exist|"
    r"manifest unknown|name unknown|has no tags|in use|is not in it|being written already|content of the|"
    r"prune operation|marked for removal|choose one with|cannot be removed|is already|must be forced|context canceled|does not provide"
)


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass
class Stock:
    """What comes from outside: archives, and repositories of a registry that has been filled with them."""

    archives: list[bytes] = field(default_factory=list)
    remote: list[str] = field(default_factory=list)  # repository:tag


def images(rng: random.Random, count: int) -> list[Image]:
    """Images that share layers: all stand on busybox, many on one of a few layers above it."""
    shared = [_layer(rng, f"shared-{n}", rng.randrange(1000, 400_000)) for n in range(4)]
    made = []
    for number in range(count):
        layers = [busybox.base_layer(), *rng.sample(shared, rng.randrange(0, 3))]
        layers += [
            _layer(rng, f"own-{number}-{n}", rng.randrange(100, 900_000)) for n in range(rng.randrange(0, 3))
        ]
        made.append(Image(layers, {"Cmd": ["true"], "Labels": {"n": str(number)}}, [f"stock/i{number}:1"]))
    return made


def _layer(rng: random.Random, name: str, size: int) -> bytes:
    noise = rng.randbytes(size).hex()[:size]
    return layer_tar([text(f"files/{name}", noise)])


class Soak:
    """One engine, one registry, and work for them."""

    def __init__(
        self, engine: Drayd, registry: DebianRegistry, *, seed: int, images: int = 12, kills: bool = True
    ) -> None:
        self.engine, self.registry = engine, registry
        self.rng = random.Random(seed)
        self.kills = kills
        self._images = images
        self.done: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.rounds = 0
        self.stock = Stock()
        self._stop = threading.Event()
        self._up = threading.Event()

    # --- before

    def prepare(self) -> None:
        """Start the engine, fill the registry through it, and forget all images again."""
        if self.engine.daemon is None:
            self.engine.start(timeout=180)
        made = images(self.rng, self._images)
        for number, image in enumerate(made):
            target = io.BytesIO()
            if number % 3:
                write_docker_archive([image], target)
                self.stock.archives.append(target.getvalue())
            else:
                path = self.engine.base / "layout.tar"
                write_oci_layout([image], path, compression=("gzip", "zstd", "none")[number // 3 % 3])
                self.stock.archives.append(path.read_bytes())
            self._stream("POST", "/images/load", self.stock.archives[-1])
            name = f"{self.registry.address}/soak/i{number}"
            self._must("POST", f"/images/{image.tags[0]}/tag?{urlencode({'repo': name, 'tag': '1'})}")
            self._push(f"{name}:1")
            self.stock.remote.append(f"{name}:1")
        self._index(made)
        self.empty()

    def _index(self, made: Sequence[Image]) -> None:
        """Put an index of two platforms with an attestation beside the images in the registry."""
        repository = "soak/multi"

        def blob(data: bytes) -> str:
            digest = "sha256:" + sha256(data)
            status, headers, _ = self.registry.request("POST", f"/v2/{repository}/blobs/uploads/")
            assert status == 202, status
            where = re.sub(r"^https?://[^/]+", "", headers["location"])
            where += ("&" if "?" in where else "?") + urlencode({"digest": digest})
            length = {"Content-Type": "application/octet-stream", "Content-Length": str(len(data))}
            assert self.registry.request("PUT", where, data, length)[0] == 201
            return digest

        def manifest(document: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
            data = json.dumps(document).encode()
            path = f"/v2/{repository}/manifests/{name or 'sha256:' + sha256(data)}"
            status, _, body = self.registry.request("PUT", path, data, {"Content-Type": kind})
            assert status == 201, body
            return {"mediaType": kind, "digest": "sha256:" + sha256(data), "size": len(data)}

        def one(image: Image, config: bytes) -> dict[str, Any]:
            layers = [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": blob(layer), "size": len(layer)}
                for layer in image.layers
            ]
            described = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob(config)}
            body = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers}
            return manifest({**body, "config": {**described, "size": len(config)}}, "", MANIFEST)

        here = one(made[0], made[0].configuration())
        other = one(made[1], made[1].configuration().replace(b'"amd64"', b'"arm64"'))
        statement = json.dumps({"predicateType": "https://example.org/none", "predicate": {}}).encode()
        about = one(Image([statement], {}, []), Image([statement], {}, []).configuration())
        notes = {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": here["digest"],
        }
        listed = [
            {**here, "platform": {"os": "linux", "architecture": "amd64"}},
            {**other, "platform": {"os": "linux", "architecture": "arm64"}},
            {**about, "platform": {"os": "unknown", "architecture": "unknown"}, "annotations": notes},
        ]
        manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}, "1", INDEX)
        self.stock.remote.append(f"{self.registry.address}/{repository}:1")

    # --- the run

    def run(
        self, seconds: float, *, round_seconds: float = 20, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """Work and check in turns until the time is over; at the end remove everything and check again.

        Broken if an invariant does not hold, or an answer was one that nothing explains.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.work(min(round_seconds, max(1.0, end - time.monotonic())))
            self.check()
            self.rounds += 1
            say(f"round {self.rounds}: {sum(self.done.values())} operations, {dict(sorted(self.done.items()))}")
        self.empty()
        self.check_empty()

    def work(self, seconds: float) -> None:
        """Let the threads work, with kills of the daemon among it."""
        self._stop.clear()
        self._up.set()
        seeds = [self.rng.getrandbits(32) for _ in range(WORKERS)]
        threads = [threading.Thread(target=self._worker, args=(random.Random(seed),)) for seed in seeds]
        for thread in threads:
            thread.start()
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                self._stop.wait(min(max(0.0, end - time.monotonic()), self.rng.uniform(1, min(12, seconds / 2))))
                if self._stop.is_set():
                    break
                if self.kills and time.monotonic() < end:
                    self._up.clear()
                    self.engine.kill()
                    self.engine.start(timeout=180)
                    self._up.set()
                    self.done["kill"] += 1
        finally:
            self._stop.set()
            self._up.set()
            for thread in threads:
                thread.join()
        if self.unexpected:
            raise Broken("answers that nothing explains:\n" + "\n".join(self.unexpected))

    def _worker(self, rng: random.Random) -> None:
        verbs: list[tuple[int, Callable[[random.Random], None]]] = [
            (6, self.pull),
            (2, self.pull_cut),
            (3, self.push),
            (5, self.load),
            (2, self.load_cut),
            (4, self.save),
            (2, self.import_),
            (5, self.tag),
            (3, self.commit),
            (5, self.create),
            (3, self.run_one),
            (4, self.remove_container),
            (9, self.remove),
            (1, self.prune),
            (2, self.list),
        ]
        while not self._stop.is_set():
            verb = rng.choices([v for _, v in verbs], [w for w, _ in verbs])[0]
            try:
                verb(rng)
                self.done[verb.__name__] += 1
            except (OSError, http.client.HTTPException):
                self.done["cut off"] += 1  # the daemon was killed
                self._up.wait(30)
            except Exception as error:
                self.unexpected.append(f"{verb.__name__}: {error!r}")
                self._stop.set()

    # --- verbs

    def _names(self) -> list[str]:
        found = self._ask("GET", "/images/json")
        return [name for image in found for name in image["RepoTags"] or []] + [image["Id"] for image in found]

    def _some(self, rng: random.Random) -> str:
        names = self._names()
        return rng.choice(names) if names else "none:1"

    def _containers(self) -> list[str]:
        return [one["Id"] for one in self._ask("GET", "/containers/json?all=1")]

    def pull(self, rng: random.Random) -> None:
        name, tag = rng.choice(self.stock.remote).rsplit(":", 1)
        asked = {"fromImage": name, "tag": tag}
        if rng.random() < 0.2:
            asked["platform"] = rng.choice(["linux/amd64", "linux/arm64"])
        self._stream("POST", f"/images/create?{urlencode(asked)}")

    def pull_cut(self, rng: random.Random) -> None:
        """The client goes away while the pull goes on."""
        name, tag = rng.choice(self.stock.remote).rsplit(":", 1)
        path = f"/images/create?{urlencode({'fromImage': name, 'tag': tag})}"
        self._cut(rng, "POST", path, b"")

    def push(self, rng: random.Random) -> None:
        name = f"{self.registry.address}/soak/pushed{rng.randrange(4)}"
        source = self._some(rng)
        if self._call("POST", f"/images/{quote(source)}/tag?{urlencode({'repo': name, 'tag': '1'})}")[0] == 201:
            self._push(f"{name}:1")

    def _push(self, name: str) -> None:
        repository, tag = name.rsplit(":", 1)
        self._stream("POST", f"/images/{repository}/push?tag={tag}", headers={"X-Registry-Auth": "e30="})

    def load(self, rng: random.Random) -> None:
        self._stream("POST", "/images/load", rng.choice(self.stock.archives))

    def load_cut(self, rng: random.Random) -> None:
        data = rng.choice(self.stock.archives)
        self._cut(rng, "POST", "/images/load", data, upto=rng.randrange(len(data)))

    def save(self, rng: random.Random) -> None:
        status, body = self._call("GET", f"/images/get?{urlencode({'names': self._some(rng)})}")
        if status == 200:
            read_archive(body)

    def import_(self, rng: random.Random) -> None:
        tar = _layer(rng, "imported", rng.randrange(100, 50_000))
        asked = {"fromSrc": "-", "repo": f"imported{rng.randrange(3)}"}
        self._stream("POST", f"/images/create?{urlencode(asked)}", tar)

    def tag(self, rng: random.Random) -> None:
        asked = urlencode({"repo": f"local{rng.randrange(TAGS)}", "tag": rng.choice(["1", "2", "latest"])})
        self._call("POST", f"/images/{quote(self._some(rng))}/tag?{asked}")

    def commit(self, rng: random.Random) -> None:
        containers = self._containers()
        if containers:
            asked = {"container": rng.choice(containers), "repo": f"committed{rng.randrange(4)}"}
            self._call("POST", f"/commit?{urlencode(asked)}")

    def create(self, rng: random.Random) -> None:
        if len(self._containers()) < 12:
            body = {"Image": self._some(rng), "Cmd": ["/bin/true"], "HostConfig": {"NetworkMode": "none"}}
            self._call("POST", "/containers/create", body)

    def run_one(self, rng: random.Random) -> None:
        containers = self._containers()
        if containers:
            self._call("POST", f"/containers/{rng.choice(containers)}/start", expect=(500, 400))

    def remove_container(self, rng: random.Random) -> None:
        containers = self._containers()
        if containers:
            self._call("DELETE", f"/containers/{rng.choice(containers)}?force=1")

    def remove(self, rng: random.Random) -> None:
        flags = {"force": str(int(rng.random() < 0.4)), "noprune": str(int(rng.random() < 0.3))}
        self._call("DELETE", f"/images/{quote(self._some(rng))}?{urlencode(flags)}")

    def prune(self, rng: random.Random) -> None:
        dangling = rng.choice(["true", "true", "false"])
        self._call("POST", f"/images/prune?{urlencode({'filters': json.dumps({'dangling': [dangling]})})}")

    def list(self, rng: random.Random) -> None:
        self._call("GET", "/images/json?all=1&manifests=1&shared-size=1")
        self._call("GET", "/system/df")

    # --- asking

    def _request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = UnixConnection(self.engine.socket, timeout=120)
        try:
            raw = isinstance(body, bytes)
            data = body if raw or body is None else json.dumps(body).encode()
            kind = {} if body is None else {"Content-Type": "application/x-tar" if raw else "application/json"}
            connection.request(method, path, data, {**kind, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _call(self, method: str, path: str, body: Any = None, expect: Sequence[int] = ()) -> tuple[int, bytes]:
        """One request; an error must be one that a race explains."""
        status, answer = self._request(method, path, body)
        if status >= 400 and status not in expect:
            self._explain(f"{method} {path}: {status}", answer.decode(), status)
        return status, answer

    def _ask(self, method: str, path: str) -> Any:
        status, answer = self._request(method, path)
        assert status == 200, (path, status, answer)
        return json.loads(answer)

    def _must(self, method: str, path: str) -> None:
        status, answer = self._request(method, path)
        assert status < 300, (path, status, answer)

    def _stream(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """One request that is answered by progress lines; its error comes in the last one."""
        status, answer = self._request(method, path, body, headers)
        if status >= 400:
            self._explain(f"{method} {path}: {status}", answer.decode(), status)
        lines = answer.split(b"\r\n")
        if len(lines) > 1 and (error := json.loads(lines[-2]).get("error")):
            self._explain(f"{method} {path}", error)

    def _explain(self, what: str, error: str, status: int = 200) -> None:
        if not RACES.search(error) or status >= 500:
            raise Broken(f"{what}: {error}")
        self.done["races"] += 1

    def _cut(self, rng: random.Random, method: str, path: str, body: bytes, upto: int | None = None) -> None:
        """Send a request, perhaps not all of it, and go away."""
        connection = UnixConnection(self.engine.socket, timeout=30)
        try:
            connection.putrequest(method, path)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            connection.send(body[:upto])
            time.sleep(rng.choice([0.0, 0.01, 0.05, 0.2]))
        finally:
            connection.close()

    # --- invariants

    def check(self) -> None:
        """Everything referenced is whole, nothing else is kept."""
        self._settled()
        listed = self._ask("GET", "/images/json?all=1&manifests=1")
        blobs: set[str] = set()
        for image in listed:
            here = [m for m in image["Manifests"] if m["Kind"] == "image" and m["Available"]]
            if not here:
                raise Broken(f"image {image['Id']} {image['RepoTags']} has nothing that can be used")
            status, body = self._request("GET", f"/images/get?{urlencode({'names': image['Id']})}")
            if status != 200:
                raise Broken(f"image {image['Id']} cannot be saved: {body!r}")
            blobs |= read_archive(body)
            if any(m["ImageData"]["Platform"]["architecture"] == "amd64" for m in here):
                self._runs(image["Id"])
        for one in self._ask("GET", "/containers/json?all=1"):
            self._starts(one["Id"])
        self.nothing_more(blobs)

    def _settled(self) -> None:
        """Wait until what cancelled clients have left running is over, then collect."""
        time.sleep(0.5)
        asked = urlencode({"filters": json.dumps({"until": ["1"]})})
        for _ in range(2):  # a prune that a cut-off client asked for may be under way
            until(lambda: self._request("POST", f"/images/prune?{asked}")[0] == 200, what="a collection")

    def _runs(self, image: str) -> None:
        # An imported image has no program: that it can be created, and so has its layers, must do.
        body = {"Image": image, "Cmd": ["/bin/true"], "HostConfig": {"NetworkMode": "none"}}
        status, answer = self._request("POST", "/containers/create", body)
        if status != 201:
            raise Broken(f"no container can be made of {image}: {answer!r}")
        made = json.loads(answer)["Id"]
        try:
            self._starts(made)
        finally:
            self._request("DELETE", f"/containers/{made}?force=1")

    def _starts(self, container: str) -> None:
        status, answer = self._request("POST", f"/containers/{container}/start")
        if status not in (204, 304) and b"/bin/true" not in answer:
            raise Broken(f"container {container} cannot be started: {answer!r}")

    def nothing_more(self, wanted: set[str]) -> None:
        content = self.engine.data_root / "content"
        present = {f"sha256:{entry.name}" for entry in (content / "blobs" / "sha256").iterdir()}
        if lost := wanted - present:
            raise Broken(f"blobs of listed images are gone: {sorted(lost)}")
        bookmarks, open_ingests = set(), []
        for folder in (content / "ingest").iterdir():
            with contextlib.suppress(FileNotFoundError):
                ref = (folder / "ref").read_text()
                bookmarks.add(ref)
                continue
            open_ingests.append(folder.name)
        if open_ingests:
            raise Broken(f"ingests that nobody can go on with: {open_ingests}")
        referenced = wanted | self._named()
        if spare := present - referenced - bookmarks:
            raise Broken(f"blobs that nothing refers to: {sorted(spare)}")
        self._layers()

    def _named(self) -> set[str]:
        """Every blob that a name leads to, read from the files, not asked from the daemon."""
        names = self._records("image")
        found: set[str] = set()

        def follow(digest: str) -> None:
            path = self.engine.data_root / "content" / "blobs" / digest.replace(":", "/")
            if digest in found or not path.exists():
                return
            found.add(digest)
            if path.stat().st_size > 1 << 20:
                return
            with contextlib.suppress(ValueError, AttributeError, TypeError):
                document = json.loads(path.read_bytes())
                for item in [*(document.get("manifests") or ()), *(document.get("layers") or ())]:
                    follow(item["digest"])
                if isinstance(document.get("config"), dict) and "digest" in document["config"]:
                    follow(document["config"]["digest"])

        for value in names.values():
            follow(value["target"]["digest"])
        return found

    def _records(self, kind: str) -> dict[str, Any]:
        with contextlib.closing(sqlite3.connect(f"file:{self.engine.data_root}/dray.db?mode=ro", uri=True)) as db:
            rows = db.execute("SELECT key, value FROM record WHERE kind = ?", (kind,)).fetchall()
        return {key: json.loads(value) for key, value in rows}

    def _layers(self) -> None:
        """Every layer belongs to a listed image, or is under a container; every folder to a record."""
        layers, snapshots = self._records("layer.overlay2"), self._records("snapshot.overlay2")
        wanted: set[str] = set()
        for image in self._ask("GET", "/images/json?all=1&manifests=1"):
            for manifest in image["Manifests"]:
                if manifest["Kind"] == "image" and manifest["Available"]:
                    wanted |= self._chain(manifest["Descriptor"]["digest"])
        for snapshot in snapshots.values():
            key = snapshot.get("parent")
            while key:
                wanted.add(key)
                key = layers[key].get("parent")
        if spare := set(layers) - wanted:
            raise Broken(f"layers that nothing refers to: {sorted(spare)}")
        known = {record["folder"] for record in [*layers.values(), *snapshots.values()]}
        folders = {entry.name for entry in (self.engine.data_root / "overlay2").iterdir()} - {"trash"}
        if missing := known - folders:
            raise Broken(f"folders of layers are gone: {sorted(missing)}")
        self.spare_folders = folders - known

    def _chain(self, manifest: str) -> set[str]:
        blobs = self.engine.data_root / "content" / "blobs"
        config = json.loads((blobs / manifest.replace(":", "/")).read_bytes())["config"]["digest"]
        diff_ids = json.loads((blobs / config.replace(":", "/")).read_bytes())["rootfs"]["diff_ids"]
        chain = diff_ids[:1]
        for diff_id in diff_ids[1:]:
            chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest())
        return set(chain)

    # --- the end

    def empty(self) -> None:
        """Remove all containers and images."""
        self.engine.remove_everything()
        for image in self._ask("GET", "/images/json?all=1"):
            for _ in range(2):
                self._request("DELETE", f"/images/{image['Id']}?force=1")
        left = self._ask("GET", "/images/json?all=1")
        if left:
            raise Broken(f"images that cannot be removed: {left}")

    def check_empty(self) -> None:
        """With nothing named and the time of broken-off transfers over, the store is empty."""
        self._settled()
        self.nothing_more(set())
        self.engine.stop()
        ingests = self.engine.data_root / "content" / "ingest"
        long_ago = time.time() - 3 * 86400
        for file in ingests.rglob("*"):
            os.utime(file, (long_ago, long_ago))
        self.engine.start(timeout=180)
        deadline = time.monotonic() + 20
        while left := self._left():
            if time.monotonic() > deadline:
                raise Broken(f"left in the empty store: {left}")
            time.sleep(0.05)

    def _left(self) -> list[str]:
        content = self.engine.data_root / "content"
        files = [str(path) for path in content.rglob("*") if path.is_file()]
        return files + sorted(self._records("layer.overlay2")) + sorted(self._records("snapshot.overlay2"))


def read_archive(body: bytes) -> set[str]:
    """Return the digests of an archive's blobs, each checked; Broken if one that it needs is not in it."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        for member in tar:
            if member.isfile():
                source = tar.extractfile(member)
                assert source is not None
                found[member.name] = source.read()
    digests = set()
    for name, data in found.items():
        if name.startswith("blobs/sha256/"):
            if sha256(data) != Path(name).name:
                raise Broken(f"{name} of a saved image has other content")
            digests.add("sha256:" + Path(name).name)
    for item in json.loads(found["manifest.json"]):
        for name in [item["Config"], *item["Layers"]]:
            if name not in found:
                raise Broken(f"{name} is not in the saved image")
    return digests
