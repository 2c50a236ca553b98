"""Every target with a few hundred mutated inputs, in a process with capped memory; `make fuzz` goes on for longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dray.base.errors import DrayError, InvalidParameter
from dray.engine import security
from dray.oci.image import ContainerConfig, parse_config, parse_document
from dray.store.layers.headers import TarReader
from dray.store.layers.stream import ForwardReader
from dray.store.transfer.changes import apply_changes
from support.layers import entry, make

ROOT = Path(__file__).resolve().parents[2]
GROUPS = (
    (120, ("tar-headers", "tar-extract", "tar-copy-in", "load")),
    (300, ("passwd-group", "changes", "references", "filters", "seccomp", "dns", "challenges", "manifests")),
    (250, ("create-body", "request-head")),
)


@pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices of unpacked files need root")
@pytest.mark.parametrize(("examples", "names"), GROUPS, ids=["tars", "parsers", "api"])
def test_mutated_inputs_are_taken_or_refused(examples: int, names: tuple[str, ...], tmp_path: Path) -> None:
    paths = [str(ROOT / part) for part in ("src", "tests", "tests/unit", "tests/fuzz")]
    done = subprocess.run(
        [sys.executable, "-m", "fuzz_short", str(examples), *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "DRAY_FUZZ_DIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert len(done.stdout.splitlines()) == len(names)


# What was found, so that it stays found.


@pytest.mark.parametrize(
    "text",
    [
        '{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{}]}',
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"]}]}',
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[1]}',
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"SCMP_ACT_LOG","includes":{"minKernel":"x"}}]}',
        '{"defaultAction":7}',
    ],
)
def test_profiles_of_the_wrong_shape_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="decoding seccomp profile failed"):
        security.parse_profile(text)


@pytest.mark.parametrize("data", [b'{"os":"\x80"}', b'{"config":' + b"[" * 100_000, b"\xff"])
def test_documents_that_are_no_text_are_refused(data: bytes) -> None:
    for parse in (parse_document, parse_config):
        with pytest.raises(DrayError):
            parse(data)


@pytest.mark.parametrize("start", [b"7", b"7\n1", b"1" * 600, b""])
def test_a_sparse_map_that_ends_with_the_tar(start: bytes) -> None:
    """Was waited for without end."""
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "9"}
    tar = make(entry("s", start.ljust(1 << 16, b"1"), pax=sparse))
    cut = tar[: tar.index(start.ljust(512, b"1")) + 512]
    with pytest.raises(InvalidParameter, match="sparse"):
        list(TarReader(ForwardReader(iter([cut]))))


def test_a_working_directory_with_a_blank() -> None:
    config = ContainerConfig()
    apply_changes(config, ["WORKDIR a b"])
    assert config.working_dir == "/a b"
