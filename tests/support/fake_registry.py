"""A registry in memory (`registry.model.Repository`), whose answers can be made to go wrong in every way."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from dray.base.errors import NotFound, Unavailable
from dray.base.reference import Reference
from dray.oci.image import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor
from images.archive import Entry, layer_tar, text


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class FakeBlob:
    """`registry.model.BlobStream`; counts what it gives out."""

    def __init__(self, server: FakeRegistry, digest: str, start: int, end: int, *, size: int | None) -> None:
        self.start, self.size, self.ranged = start, size, server.ranges
        self._server, self._digest, self._at, self._end = server, digest, start, end
        self.closed = False

    def read(self, size: int, /) -> bytes:
        self._server.before_read(self._digest, self._at)
        data = self._server.blobs[self._digest][
            self._at : min(self._at + min(size, self._server.piece), self._end)
        ]
        with self._server.lock:
            self._server.served[self._digest] += len(data)
        self._at += len(data)
        if not data and self._at == self._end and self._server.endless:
            return b"\0" * size
        return data

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FakeBlob:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FakeUpload:
    """`registry.model.Upload`."""

    def __init__(self, server: FakeRegistry) -> None:
        self.offset = 0
        self._server = server
        self._data = bytearray()

    def send(self, data: bytes | memoryview, /) -> None:
        half = len(data) // 2
        if self._server.break_uploads > 0:
            self._server.break_uploads -= 1
            self._data += data[:half]
            raise Unavailable("broken pipe")
        self._data += data
        self.offset = len(self._data)

    def resume(self) -> int:
        self.offset = len(self._data)
        return self.offset

    def commit(self, digest: str) -> None:
        assert sha256(bytes(self._data)) == digest
        self._server.add(bytes(self._data))
        self._server.log.append(("blob", digest))

    def cancel(self) -> None:
        self._data.clear()


class FakeRegistry:
    """One repository.

    ranges: it honours them; endless: more bytes come behind a blob's end; piece: bytes a read gives at most
    before_read(digest, offset): called before every read of a blob; it may raise, wait, or change what is served
    served: bytes given out by digest; log: what was stored, in order
    """

    def __init__(self, name: str = "example.com/app") -> None:
        domain, _, path = name.partition("/")
        self.name = Reference(domain, path)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.ranges = True
        self.endless = False
        self.piece = 64 << 10
        self.before_read: Callable[[str, int], None] = lambda digest, offset: None
        self.served: dict[str, int] = defaultdict(int)
        self.break_uploads = 0
        self.mounts: dict[str, set[str]] = {}  # repository: digests that can be mounted from it
        self.log: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.forbidden: BaseException | None = None

    # --- filling

    def add(self, data: bytes) -> str:
        digest = sha256(data)
        self.blobs[digest] = data
        return digest

    def manifest_of(
        self,
        layers: list[bytes],
        *,
        tag: str = "",
        architecture: str = "amd64",
        config_type: str = OCI_CONFIG,
        layer_type: str = OCI_LAYER_GZIP,
        **extra: Any,
    ) -> Descriptor:
        """Make an image of layers (tars); return its manifest's descriptor."""
        described = []
        for layer in layers:
            packed = gzip.compress(layer, 1, mtime=0)
            described.append({"mediaType": layer_type, "digest": self.add(packed), "size": len(packed), **extra})
        config = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Labels": {"made": "here"}},
                "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
            }
        ).encode()
        head = {"mediaType": config_type, "digest": self.add(config), "size": len(config)}
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": head, "layers": described}
        return self.store(OCI_MANIFEST, json.dumps(document).encode(), tag)

    def index_of(self, manifests: dict[str, Descriptor], *, tag: str = "") -> Descriptor:
        """Make an index: {architecture[/variant]: manifest}."""
        items = []
        for name, item in manifests.items():
            architecture, _, variant = name.partition("/")
            platform = {"architecture": architecture, "os": "linux"} | ({"variant": variant} if variant else {})
            items.append(
                {"mediaType": item.media_type, "digest": item.digest, "size": item.size, "platform": platform}
            )
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": items}
        return self.store(OCI_INDEX, json.dumps(document).encode(), tag)

    def store(self, media_type: str, data: bytes, tag: str = "") -> Descriptor:
        digest = sha256(data)
        self.manifests[digest] = (media_type, data)
        if tag:
            self.manifests[tag] = (media_type, data)
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    # --- Repository

    def resolve(self, reference: str) -> Descriptor:
        return self.manifest(reference)[0]

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        if reference not in self.manifests:
            raise NotFound(f"manifest for {self.name.familiar}:{reference} not found: manifest unknown")
        media_type, data = self.manifests[reference]
        return Descriptor(media_type=media_type, digest=sha256(data), size=len(data)), data

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> FakeBlob:
        if self.forbidden is not None:
            raise self.forbidden
        if descriptor.digest not in self.blobs:
            raise NotFound(f"blob unknown: {descriptor.digest}")
        size = len(self.blobs[descriptor.digest])
        if not self.ranges:
            start, end = 0, None
        return FakeBlob(self, descriptor.digest, start, size if end is None else end, size=size)

    def has_blob(self, digest: str) -> bool:
        return digest in self.blobs

    def upload(self, digest: str, *, mount_from: str | None = None) -> FakeUpload | None:
        if mount_from is not None and digest in self.mounts.get(mount_from, ()):
            self.log.append(("mount", digest))
            self.blobs[digest] = b""
            return None
        return FakeUpload(self)

    def put_manifest(self, reference: str, media_type: str, data: bytes) -> str:
        self.store(media_type, data, reference)
        self.log.append(("manifest", reference))
        return sha256(data)

    def tags(self) -> Iterator[str]:
        yield from (name for name in self.manifests if ":" not in name)

    def close(self) -> None:
        pass


def layer(seed: int, size: int = 300_000) -> bytes:
    """A layer with one file that does not compress."""
    data = b"".join(hashlib.sha256(b"%d %d" % (seed, n)).digest() for n in range(size // 32))
    return layer_tar([text(f"name{seed}", f"{seed}\n"), Entry(f"data{seed}", data=data, mode=0o644)])
