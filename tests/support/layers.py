"""Tars made entry by entry for the layer tests, and trees as comparable values."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path

from dray.store.layers.extract import Applied
from dray.store.layers.unpack import unpack_layer
from dray.store.snapshots import LayerSource


def entry(
    name: str,
    data: bytes | None = None,
    *,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: float = 1_600_000_000,
    device: tuple[int, int] = (0, 0),
    pax: dict[str, str] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, mode, mtime
    info.uid, info.gid, (info.devmajor, info.devminor) = uid, gid, device
    info.pax_headers = pax or {}
    info.size = len(data or b"")
    return info, data or b""


def folder(name: str, mode: int = 0o755, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.DIRTYPE, mode=mode, **fields)  # type: ignore[arg-type]


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.LNKTYPE, link=target)


def make(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def source(
    tar: bytes, folder: Path, *, chain_id: str = "", parent: str | None = None, diff_id: str = ""
) -> LayerSource:
    """Describe a blob (compressed or not) as a layer; `diff_id` is needed for a compressed one."""
    digest = "sha256:" + hashlib.sha256(tar).hexdigest()
    path = folder / digest.replace(":", "-")
    path.write_bytes(tar)
    diff_id = diff_id or digest
    return LayerSource(chain_id or diff_id, parent, diff_id, open=lambda: path.open("rb"), size=len(tar))


def unpack(tar: bytes, folder: Path, *, overlay: bool = True, diff_id: str = "") -> tuple[Path, Applied]:
    """Unpack into a fresh directory below `folder`."""
    target = folder / f"out-{len(list(folder.iterdir()))}"
    target.mkdir()
    return target, unpack_layer(source(tar, folder, diff_id=diff_id), target, overlay=overlay)


def describe(path: Path) -> dict[str, tuple[object, ...]]:
    """Return name → (type letter, mode, uid, gid, content or target or device) of a tree."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, folders, files in os.walk(path):
        for name in [*folders, *files]:
            full = os.path.join(directory, name)
            status = os.lstat(full)
            letter = stat.filemode(status.st_mode)[0]
            what: object = None
            if letter == "-":
                what = Path(full).read_bytes()
            elif letter == "l":
                what = os.readlink(full)
            elif letter in "cb":
                what = (os.major(status.st_rdev), os.minor(status.st_rdev))
            found[os.path.relpath(full, path)] = (
                letter, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, what
            )  # fmt: skip
    return found
