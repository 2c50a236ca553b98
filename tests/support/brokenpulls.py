"""One pull of a large layer, broken at random moments, until it is whole: what was downloaded twice?

Moments are amounts of data: each interruption comes when so many bytes of the layer have left the registry. Kinds:

    daemon    kill -9 of the daemon; it starts again, the client asks again
    registry  kill -9 of the registry; it starts again a little later, the pull goes on by itself
    network   a silent cut; the user gives up (Ctrl-C), the line comes back, the client asks again
    blip      a silent cut of two seconds; the pull goes on by itself
    outage    a silent cut that lasts until the daemon must have noticed that nobody is there; it goes on by itself
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from images.archive import MANIFEST, Entry, Image, layer_tar, sha256
from support.accesspoint import AccessPoint, Sent, repeated
from support.engines import Drayd, until
from support.line import WAYS, Line
from support.registries import DebianRegistry

ALLOWED = 8 << 20  # bytes of each part that may come twice
OCTETS = "application/vnd.oci.image.layer.v1.tar"
PART = 32 << 20  # of a layer, as drayd cuts it
OUTAGE = 26.0  # seconds; dray notices a dead host after 20
KINDS = ("daemon", "registry", "network", "blip", "outage")


@dataclass
class Told:
    """What a broken pull has cost. `repeated`: the answers that brought bytes once more, and how many."""

    size: int
    sent: int = 0
    tries: int = 0
    events: list[str] = field(default_factory=list)
    answers: int = 0
    repeated: list[tuple[Sent, int]] = field(default_factory=list)
    own_log: int = 0  # bytes of the layer in the registry's own access log, where killed requests are missing

    @property
    def worst(self) -> int:
        """The most that came twice of one part by one interruption."""
        return max((count for _, count in self.repeated), default=0)

    def __str__(self) -> str:
        lines = [
            *self.events,
            f"layer of {self.size} bytes in parts of {PART}: {self.answers} answers, {self.tries} tries of the client",
            f"sent {self.sent} bytes: {self.sent - self.size} more than the layer has "
            f"({100 * (self.sent - self.size) / self.size:.1f} %)",
            f"once more of one part at one interruption: at most {self.worst} bytes (allowed: {ALLOWED})",
            f"in the registry's own access log: {self.own_log} bytes (answers that died with it are not in it)",
        ]
        lines += [
            f"  part {entry.start // PART} from byte {entry.start}: {count} bytes once more"
            for entry, count in self.repeated
        ]
        return "\n".join(lines)


class BrokenPull:
    """An engine, a registry, the line between them, and an image whose one layer is `size` bytes of noise."""

    def __init__(
        self, engine: Drayd, registry: DebianRegistry, line: Line, *, size: int, rate: float, seed: int
    ) -> None:
        self.engine, self.registry, self.line, self.size = engine, registry, line, size
        self.rng = random.Random(seed)
        self.rate = rate
        self._client: subprocess.Popen[bytes] | None = None

    def fill(self) -> str:
        """Put the image into the registry; return the digest of its layer."""
        layer = layer_tar([Entry("noise", data=self.rng.randbytes(self.size - 10240), mode=0o644)])
        config = Image([layer], {"Cmd": ["/none"]}, []).configuration()
        self.size = len(layer)
        described = [self._blob(OCTETS, layer), self._blob("application/vnd.oci.image.config.v1+json", config)]
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[1], "layers": described[:1]}
        body = json.dumps(manifest).encode()
        assert self.registry.request("PUT", "/v2/noise/manifests/1", body, {"Content-Type": MANIFEST})[0] == 201
        return str(described[0]["digest"])

    def _blob(self, media_type: str, data: bytes) -> dict[str, Any]:
        digest = f"sha256:{sha256(data)}"
        _, headers, _ = self.registry.request("POST", "/v2/noise/blobs/uploads/")
        place = headers["location"].removeprefix(self.registry.url)
        place += f"{'&' if '?' in place else '?'}digest={digest}"
        kind = {"Content-Type": "application/octet-stream"}
        assert self.registry.request("PUT", place, data, kind)[0] == 201
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def run(self, digest: str, kinds: Sequence[str], *, say: Callable[[str], None] = lambda line: None) -> Told:
        """Pull, break it once for each of `kinds`, let it end, and count."""
        told = Told(self.size)
        moments = sorted(self.rng.sample(range(1 << 20, self.size - (2 << 20)), len(kinds)))
        with AccessPoint(self.registry, self.line.listener(), rate=self.rate) as point:
            name = f"{point.address}/noise:1"
            try:
                for kind, moment in zip(kinds, moments, strict=True):
                    self._reach(told, name, lambda m=moment: point.sent(digest) >= m)  # type: ignore[misc]
                    words = f"{point.sent(digest) / 1e6:7.1f} MB  {kind}"
                    words += getattr(self, f"_break_{kind}")()
                    told.events.append(words)
                    say(words)
                self._reach(told, name, lambda: False)
                assert name in self.engine.ok("images", "--format", "{{.Repository}}:{{.Tag}}").split()
                self.engine.ok("rmi", name)
            finally:
                self._end()
            log = [entry for entry in point.log if entry.digest == digest]
        told.answers, told.sent = len(log), sum(entry.count for entry in log)
        told.repeated = repeated(log)
        told.own_log = sum(
            access.size
            for access in self.registry.access_log()
            if access.method == "GET" and access.path.endswith(digest)
        )
        return told

    def _reach(self, told: Told, name: str, moment: Callable[[], bool]) -> None:
        """Have a client that pulls until the moment has come, or the image is here; ask again when it failed."""
        deadline = time.monotonic() + 240
        while True:
            if self._client is None:
                self._client = subprocess.Popen(
                    self.engine.argv("pull", name),
                    env=self.engine.env,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
                told.tries += 1
            until(lambda: moment() or self._client.poll() is not None, timeout=120, what="the pull")  # type: ignore[union-attr]
            if self._client.poll() is None:
                return
            said, _ = self._client.communicate()
            status, self._client = self._client.returncode, None
            if status == 0:
                if moment():
                    raise AssertionError("the pull was over before it could be broken")
                return
            assert time.monotonic() < deadline, said.decode()
            told.events.append(f"           the client ended: {said.decode().splitlines()[-1]}")
            time.sleep(0.5)

    def _end(self) -> None:
        if self._client is not None:
            self._client.kill()
            self._client.communicate()
            self._client = None

    def _break_daemon(self) -> str:
        self.engine.kill()
        self._end()
        self.engine.start()
        return ": kill -9"

    def _break_registry(self) -> str:
        pause = self.rng.uniform(0, 1)
        self.registry.kill()
        time.sleep(pause)
        self.registry.start()
        return f": kill -9, back after {pause:.1f} s"

    def _break_network(self) -> str:
        way = self.rng.choice(WAYS)
        assert self._client is not None
        with self._cut(way):
            time.sleep(0.5)
            self._client.send_signal(signal.SIGINT)
            assert self._client.wait(20) != 0
            self._end()
        return f" cut ({way}), Ctrl-C"

    def _break_blip(self) -> str:
        way = self.rng.choice(WAYS)
        with self._cut(way):
            time.sleep(2)
        return f" of the network for 2 s ({way})"

    def _break_outage(self) -> str:
        way = self.rng.choice(WAYS)
        with self._cut(way):
            time.sleep(OUTAGE)
        return f" of the network for {OUTAGE:.0f} s ({way})"

    @contextlib.contextmanager
    def _cut(self, way: str) -> Iterator[None]:
        self.line.cut(way)
        try:
            yield
        finally:
            self.line.mend()
