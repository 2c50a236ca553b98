"""What is fuzzed: for each parser of hostile bytes a few seeds and a function that feeds it.

A target's function returns when the input was taken or refused, and raises for a defect. Refused means one of the
kinds of `base.errors` (or the parser's own error, named here). Everything else is a finding: any other exception, a
hang (the harness sets a timer), memory beyond the cap (the harness sets RLIMIT_AS).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dray.api import filters
from dray.base import digest, reference
from dray.base.errors import DrayError

REFUSED: tuple[type[BaseException], ...] = (DrayError,)


@dataclass(frozen=True)
class Target:
    """`run` takes one input; `seeds` are inputs to begin with; `words` are worth inserting."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()


# -- tars -------------------------------------------------------------------------------------------------------


def _tars() -> tuple[bytes, ...]:
    import tarfile

    from support.layers import entry, folder, hardlink, make, symlink

    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "9"}
    return (
        make(folder("d"), entry("d/f", b"data"), symlink("d/l", "../d"), hardlink("h", "d/f")),
        make(entry("a" * 200, b"x" * 700), entry("d/.wh.gone"), entry("d/.wh..wh..opq")),
        make(entry("x", b"1", pax={"SCHILY.xattr.user.a": "v", "mtime": "1.5", "path": "p" * 120})),
        make(entry("s", b"1\n0\n9\n" + b"\0" * 506 + b"y" * 9, pax=sparse)),
        make(entry("g" * 150, b"", link="k" * 150, kind=tarfile.SYMTYPE), form=tarfile.GNU_FORMAT),
        make(entry("n", kind=tarfile.CHRTYPE, device=(1, 3)), entry("p", kind=tarfile.FIFOTYPE)),
    )


_TAR_WORDS = (
    b"../", b"/", b".wh.", b".wh..wh..opq", b"ustar\x0000", b"ustar  \0", b"\x80\0\0\0\0\0\0\1", b"\xff" * 12, b"77777777777",
    b"30 path=../../etc/passwd\n", b"GNU.sparse.map=", b"GNU.sparse.numblocks=", b"SCHILY.xattr.", b"x", b"g", b"L", b"K", b"S",
)  # fmt: skip


def _checksummed(data: bytes) -> bytes:
    """The same with right checksums in every block that could be a header: mutations get past the first check."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - 511, 512):
        block = blocks[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(blocks)


def tar_headers(data: bytes) -> None:
    from dray.store.layers.headers import TarReader
    from dray.store.layers.stream import ForwardReader

    for whole in (data, _checksummed(data)):
        total = 0
        with contextlib.suppress(*REFUSED):
            for found in (reader := TarReader(ForwardReader(iter([whole])))):
                for piece in reader.data(found):
                    total += len(piece)
        assert total <= len(whole) + 4096, "more data than there was"


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dray-fuzz-", dir=os.environ.get("DRAY_FUZZ_DIR")))
    try:
        (path / "out").mkdir()
        (path / "victim").write_bytes(b"untouched")
        yield path
        assert sorted(os.listdir(path)) == ["out", "victim"], "something was written outside"
        assert (path / "victim").read_bytes() == b"untouched"
    finally:
        subprocess.run(["rm", "-rf", str(path)], check=False)  # shutil gives up where a tree is deep


def _again(blob: Any) -> Any:
    blob.flush()
    return open(f"/proc/self/fd/{blob.fileno()}", "rb")


def tar_extract(data: bytes) -> None:
    from dray.store.layers.extract import NeedsLower
    from dray.store.layers.unpack import unpack_layer
    from dray.store.snapshots import LayerSource

    data = _checksummed(data)
    for overlay in (True, False):
        with _folder() as path:
            name = digest.of(data)
            with tempfile.TemporaryFile(dir=os.environ.get("DRAY_FUZZ_DIR")) as blob:
                blob.write(data)
                layer = LayerSource(name, None, name, open=functools.partial(_again, blob), size=len(data))
                with contextlib.suppress(*REFUSED, NeedsLower):
                    unpack_layer(layer, path / "out", overlay=overlay)


def tar_copy_in(data: bytes) -> None:
    from dray.store.layers.copyin import copy_in

    data = _checksummed(data)
    with _folder() as path:
        root = os.open(path / "out", os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(*REFUSED):
                copy_in(io.BytesIO(data), root, b"/", guard=lambda _fd: None)
        finally:
            os.close(root)


def _archives() -> tuple[bytes, ...]:
    from support.layers import entry, make

    layer = make(entry("f", b"1"))
    config = json.dumps({"os": "linux", "architecture": "amd64", "config": {},
                         "rootfs": {"type": "layers", "diff_ids": [digest.of(layer)]}}).encode()  # fmt: skip
    listed = [{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l/layer.tar"]}]
    blobs = [layer, config]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest.of(config), "size": len(config)},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest.of(layer), "size": len(layer)}],
    }  # fmt: skip
    blobs.append(json.dumps(manifest).encode())
    index = {"schemaVersion": 2, "manifests": [
        {"mediaType": manifest["mediaType"], "digest": digest.of(blobs[2]), "size": len(blobs[2]),
         "annotations": {"io.containerd.image.name": "docker.io/library/a:1"}}]}  # fmt: skip
    return (
        make(entry("manifest.json", json.dumps(listed).encode()), entry("c.json", config), entry("l/layer.tar", layer)),
        make(entry("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), entry("index.json", json.dumps(index).encode()),
             *(entry("blobs/" + digest.of(blob).replace(":", "/"), blob) for blob in blobs)),
    )  # fmt: skip


def load_archive(data: bytes) -> None:
    """`docker load`, into a store of its own."""
    from dray.store.content import ContentStore
    from dray.store.images.service import Images
    from dray.store.metadata import Metadata
    from dray.store.transfer.load import load
    from dray.store.vfs import Vfs

    data = _checksummed(data)
    with _folder() as folder:
        root = folder / "out"
        metadata = Metadata(root / "db")
        snapshots = Vfs(root / "vfs", metadata)
        try:
            images = Images(metadata, ContentStore(root / "content"), snapshots)
            with contextlib.suppress(*REFUSED):
                load(images, io.BytesIO(data))
        finally:
            snapshots.close()
            metadata.close()


# -- text -------------------------------------------------------------------------------------------------------


def users(data: bytes) -> None:
    from dray.engine.spec.users import resolve_user

    text = data.decode("utf-8", "surrogateescape")
    user, _, rest = text.partition("\n")
    passwd, _, group = rest.partition("\n\n")
    with contextlib.suppress(*REFUSED):
        found = resolve_user(passwd, group, user, user.split(",")[:20])
        numbers = (found.uid, found.gid, *found.groups)
        assert all(0 <= number < 1 << 32 for number in numbers)
        name = user.split(":")[0]
        entries = {line.split(":")[2].strip() for line in passwd.splitlines() if line.count(":") >= 3}
        if found.uid == 0 and name not in ("", "root"):
            assert any(not word.strip("+-0_ ") or not word.isascii() for word in (*entries, name)), (
                "root by accident"
            )


def changes(data: bytes) -> None:
    from dray.oci.image import ContainerConfig
    from dray.store.transfer.changes import apply_changes

    with contextlib.suppress(*REFUSED):
        apply_changes(ContainerConfig(), data.decode("utf-8", "replace").splitlines())


def references(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(*REFUSED):
        found = reference.parse(text)
        assert reference.parse(found.canonical) == found


def filter_query(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(*REFUSED):
        found = filters.parse(text, filters.CONTAINERS)
        for key in filters.CONTAINERS:
            found.matches_text(key, "some-name")
            found.matches_pattern(key, "some-name")
            found.matches_exactly(key, "some-name")
        found.matches_labels({"a": "b"})


def seccomp_profile(data: bytes) -> None:
    from dray.engine import security
    from dray.linux.seccomp import filter_flags
    from dray.linux.seccomp.compile import compile_profile

    text = data.decode("utf-8", "replace")
    with contextlib.suppress(*REFUSED):
        parsed = security.parse_profile(text)
        found = security.seccomp(parsed, capabilities=("CAP_SYS_ADMIN",), architecture="amd64", kernel=(6, 1))
        compile_profile(found)
        filter_flags(found)


# -- the network ------------------------------------------------------------------------------------------------


def dns_query(data: bytes) -> None:
    from dray.network.dns import message

    with contextlib.suppress(message.Malformed):
        query = message.parse_query(data)
        message.opcode(query)
        assert len(message.answer(query, rcode=3, limit=512)) <= 512
    if len(data) >= 12:
        message.refusal(data, 1)
        message.is_query(data)
        message.rcode(data)
        message.matches(data, data[:2], data[12:40])
        message.truncated(data, data[12:40])


def challenges(data: bytes) -> None:
    from dray.registry.challenges import parse_challenges

    lines = data.decode("latin-1").splitlines()
    with contextlib.suppress(*REFUSED):
        parse_challenges(lines)


def manifests(data: bytes) -> None:
    from dray.oci import image

    with contextlib.suppress(*REFUSED):
        image.parse_document(data, "")
    with contextlib.suppress(*REFUSED):
        image.parse_document(data, "application/vnd.oci.image.index.v1+json")
    with contextlib.suppress(*REFUSED):
        found = image.parse_config(data)
        assert found.platform
        image.chain_ids(found.rootfs.diff_ids or [])


# -- the API ----------------------------------------------------------------------------------------------------


@functools.cache
def _server() -> Any:
    from fuzz_api import Server

    return Server()


def create_body(data: bytes) -> None:
    """See `fuzz_api`."""
    from fuzz_api import body_of
    from server_fakes import post

    body = body_of(data)
    status = _server().ask(post("/containers/create", body))
    assert status < 500 or status == 501, f"{status} for {body[:2000]!r}"


def request_head(data: bytes) -> None:
    """Anything at all on the socket: one request line and its headers, or none."""
    server = _server()
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError, ValueError):
        line = data.replace(b"\r\n\r\n", b"")
        status = server.ask(line + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        assert status < 500 or status == 501, f"{status} for {line[:500]!r}"


# -- all of them ------------------------------------------------------------------------------------------------

_PASSWD = (
    b"app:1\nroot:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n\nroot:x:0:\napp:x:1000:a,b\n"
)
_PROFILE = (
    b'{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"archMap":[{"architecture":"SCMP_ARCH_X86_64",'
    b'"subArchitectures":["SCMP_ARCH_X86"]}],"flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"names":["read","clone"],'
    b'"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"valueTwo":2,"op":"SCMP_CMP_MASKED_EQ"}],'
    b'"includes":{"caps":["CAP_SYS_ADMIN"],"arches":["amd64"],"minKernel":"4.8"},"excludes":{"caps":["CAP_BPF"]}}]}'
)
_DIGEST = b"sha256:" + b"ab" * 32
_MANIFEST = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"a/b","digest":"'
    + _DIGEST + b'","size":1},"layers":[{"mediaType":"a/b","digest":"' + _DIGEST + b'","size":2,"urls":["x"]}]}'
)  # fmt: skip
_INDEX = (
    b'{"schemaVersion":2,"manifests":[{"mediaType":"a/b","digest":"' + _DIGEST
    + b'","size":3,"platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}'
)  # fmt: skip
_CONFIG = (
    b'{"os":"linux","architecture":"amd64","created":"2024-01-01T00:00:00Z","config":{"Cmd":["x"],"Env":["A=B"],'
    b'"Healthcheck":{"Test":["CMD","x"],"Interval":1}},"rootfs":{"type":"layers","diff_ids":["' + _DIGEST + b'"]}}'
)
_QUERY = b"\x12\x34\x01\0\0\1\0\0\0\0\0\1\3www\7example\3org\0\0\1\0\1\0\0\x29\x10\0\0\0\0\0\0\0"


def _lines(*lines: str) -> tuple[bytes, ...]:
    return tuple(line.encode() for line in lines)


@functools.cache
def targets() -> dict[str, Target]:
    """All targets by name."""
    tars = _tars()
    return {
        "tar-headers": Target(tar_headers, tars, _TAR_WORDS),
        "tar-extract": Target(tar_extract, tars, _TAR_WORDS),
        "tar-copy-in": Target(tar_copy_in, tars, _TAR_WORDS),
        "load": Target(load_archive, _archives(), _TAR_WORDS),
        "passwd-group": Target(users, (_PASSWD, b"1000:app\n" + _PASSWD), (b":", b"4294967296", b"-1", b"\0", b"+")),
        "changes": Target(changes, _lines(
            'CMD ["a"]\nENV A=1 B=\'x y\'', "EXPOSE 80-90/tcp 1", "HEALTHCHECK --interval=1m --retries=3 CMD x",
            'LABEL a="b"\nVOLUME ["/a"]\nWORKDIR a/../b\nUSER x:y\nONBUILD RUN x\nSTOPSIGNAL 9')),
        "references": Target(references, _lines("a", "host:5000/a/b:tag", f"a@{_DIGEST.decode()}", "[::1]:5000/a", "a__b/c-d")),
        "filters": Target(filter_query, _lines(
            '{"name":["a.*"],"label":["a=b"]}', '{"status":{"running":true}}', '{"name":["(a+)+$"],"since":["x"]}')),
        "seccomp": Target(seccomp_profile, (_PROFILE,), (b"SCMP_ACT_NOTIFY", b"null", b"[]", b"{}", b"-1", b"1e9")),
        "dns": Target(dns_query, (_QUERY, _QUERY[:12] + b"\xc0\x0c\0\1\0\1"), (b"\xc0\x0c", b"\x3f", b"\xff\xff")),
        "challenges": Target(challenges, _lines(
            'Bearer realm="https://a/b",service="c",scope="d:e:f,g"', 'Basic realm="x", Negotiate, Bearer realm=y')),
        "manifests": Target(manifests, (_MANIFEST, _INDEX, _CONFIG), (b"null", b"[]", b"1e400", b"9" * 30, b"\\ud800")),
        "create-body": Target(create_body, (
            *(b"\1" + bytes([seed]) for seed in range(64)), b"\0" + json.dumps({"Image": "a", "HostConfig": {"Binds": ["/a:/b"]}}).encode(),
            b"\0" + b'{"Image":"a",' * 400, b"\0" + b"[" * 100_000)),
        "request-head": Target(request_head, _lines(
            "GET /_ping HTTP/1.1\r\nHost: docker", "POST /v1.43/containers/x/start?t=1 HTTP/1.1\r\nHost: docker",
            "GET /containers/json?filters=%7B%7D&limit=9 HTTP/1.1\r\nHost: docker",
            "GET /containers/x/logs?since=1&tail=all HTTP/1.1\r\nHost: docker"),
            (b"%00", b"%ff", b"?", b"&", b"v1.99", b"limit=-1", b"limit=9999999999999999999999", b"Transfer-Encoding: chunked")),
    }  # fmt: skip
