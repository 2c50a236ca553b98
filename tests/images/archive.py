"""Writers of image archives: layers as tars, images as a Docker archive or an OCI layout.

Everything is deterministic: the same entries give the same bytes, so digests can be compared between runs and
engines. Formats: Docker Image Specification v1.2 ("combined" archive: manifest.json, one JSON per image, one
folder per layer) and OCI Image Layout 1.0 (oci-layout, index.json, blobs/).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

CREATED = "2024-02-03T04:05:06Z"
MTIME = 1706933106

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

TYPES = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a layer's tar. `path` is written as it stands, however odd."""

    path: str
    kind: str = "file"
    data: bytes = b""
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, str] = field(default_factory=dict)
    mtime: int = MTIME


def text(path: str, content: str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    """A text file."""
    return Entry(path, data=content.encode(), mode=mode, uid=uid, gid=gid)


def folder(path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    """A directory."""
    return Entry(path, "dir", mode=mode, uid=uid, gid=gid)


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, "symlink", target=target, mode=0o777)


def layer_tar(entries: Iterable[Entry]) -> bytes:
    """The entries as a PAX tar, in the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo()
            # Set behind the constructor's back: it would take a leading "/" or a trailing one away.
            info.name = entry.path
            info.type = TYPES[entry.kind]
            info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, entry.mtime
            info.size = len(entry.data)
            info.linkname = entry.target
            info.devmajor, info.devminor = entry.device
            info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in entry.xattrs.items()}
            tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Image:
    """An image to write: uncompressed layer tars, lowest first, and what its configuration says."""

    layers: Sequence[bytes]
    config: Mapping[str, Any]
    tags: Sequence[str]
    history: Sequence[str] = ()

    def configuration(self) -> bytes:
        """The configuration's JSON; the digest of it is the image's ID for a classic engine."""
        lines = list(self.history) or [f"/bin/sh -c #(nop) ADD layer {n} in /" for n in range(len(self.layers))]
        history = [{"created": CREATED, "created_by": line} for line in lines]
        history.append({"created": CREATED, "created_by": "/bin/sh -c #(nop) CONFIG", "empty_layer": True})
        body = {
            "architecture": "amd64",
            "config": dict(self.config),
            "created": CREATED,
            "history": history,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(one)}" for one in self.layers]},
        }
        return json.dumps(body, separators=(",", ":"), sort_keys=True).encode()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), MTIME, 0o644
    tar.addfile(info, io.BytesIO(data))


def write_docker_archive(images: Sequence[Image], target: Path | BinaryIO) -> None:
    """Write images as one Docker archive, as `docker save` of a classic engine does."""
    out = target.open("wb") if isinstance(target, Path) else target
    try:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
            manifest, written = [], set()
            for image in images:
                paths = []
                for layer in image.layers:
                    digest = sha256(layer)
                    paths.append(f"{digest}/layer.tar")
                    if digest not in written:
                        written.add(digest)
                        _add(tar, f"{digest}/VERSION", b"1.0")
                        _add(tar, f"{digest}/layer.tar", layer)
                config = image.configuration()
                name = f"{sha256(config)}.json"
                if name not in written:
                    written.add(name)
                    _add(tar, name, config)
                manifest.append({"Config": name, "RepoTags": list(image.tags) or None, "Layers": paths})
            _add(tar, "manifest.json", json.dumps(manifest).encode())
    finally:
        if isinstance(target, Path):
            out.close()


def write_oci_layout(images: Sequence[Image], target: Path, *, compression: str = "gzip") -> None:
    """Write images as a tar of an OCI layout; layers gzip'ed, zstd'ed or plain (`gzip`, `zstd`, `none`)."""
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        written: set[str] = set()

        def blob(data: bytes, media: str) -> dict[str, Any]:
            digest = sha256(data)
            if digest not in written:
                written.add(digest)
                _add(tar, f"blobs/sha256/{digest}", data)
            return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

        _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        entries = []
        for image in images:
            layers = [blob(*_compressed(layer, compression)) for layer in image.layers]
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": blob(image.configuration(), CONFIG),
                "layers": layers,
            }
            descriptor = blob(json.dumps(manifest, separators=(",", ":")).encode(), MANIFEST)
            for tag in image.tags:
                notes = {"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": tag.rsplit(":")[-1]}
                entries.append({**descriptor, "annotations": notes})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        _add(tar, "index.json", json.dumps(index).encode())


def _compressed(layer: bytes, compression: str) -> tuple[bytes, str]:
    if compression == "gzip":
        return gzip.compress(layer, 6, mtime=0), f"{LAYER}+gzip"
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=3).compress(layer), f"{LAYER}+zstd"
    return layer, LAYER
