"""The bundled hello-world: deterministic, and its programs run."""

from __future__ import annotations

import io
import os
import platform
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from dray.store import helloworld


def test_deterministic_and_small() -> None:
    assert helloworld.archive() == helloworld.archive()
    assert len(helloworld.archive()) < 20_000


def test_is_an_oci_layout_of_two_platforms() -> None:
    import json

    with tarfile.open(fileobj=io.BytesIO(helloworld.archive())) as tar:

        def read(name: str) -> dict[str, list[dict[str, object]]]:
            file = tar.extractfile(name)
            assert file
            return json.load(file)  # type: ignore[no-any-return]

        assert read("oci-layout") == {"imageLayoutVersion": "1.0.0"}
        (outer,) = read("index.json")["manifests"]
        inner = read("blobs/sha256/" + str(outer["digest"]).partition(":")[2])
        assert [item["platform"] for item in inner["manifests"]] == [
            {"architecture": "amd64", "os": "linux"},
            {"architecture": "arm64", "os": "linux"},
        ]


@pytest.mark.parametrize(("architecture", "machine"), [("amd64", 62), ("arm64", 183)])
def test_well_formed_elf(architecture: str, machine: int) -> None:
    data = helloworld.program(architecture)
    assert data[:7] == b"\x7fELF\x02\x01\x01"
    kind, found, _, entry, segments = struct.unpack_from("<HHIQQ", data, 16)
    assert (kind, found, segments) == (2, machine, 64)
    segment, flags, offset, address, _, in_file, in_memory, align = struct.unpack_from("<IIQQQQQQ", data, 64)
    assert (segment, flags, offset) == (1, 5, 0)
    assert in_file == in_memory == len(data)
    assert (address - offset) % align == 0
    assert address <= entry < address + len(data)


def _run(command: list[str | Path]) -> None:
    result = subprocess.run(command, capture_output=True, check=True)
    assert b"Hello from dray!" in result.stdout
    assert result.stdout.endswith(b"\n")
    assert result.stderr == b""


def test_amd64_runs(tmp_path: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("needs an amd64 machine")
    path = tmp_path / "hello"
    path.write_bytes(helloworld.program("amd64"))
    os.chmod(path, 0o755)
    _run([path])


def test_arm64_runs_or_reads_as_meant(tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(helloworld.program("arm64"))
    os.chmod(path, 0o755)
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if platform.machine() == "aarch64":
        _run([path])
    elif emulator:
        _run([emulator, path])
    words = struct.unpack_from("<9I", path.read_bytes(), 120)
    message = len(path.read_bytes()) - 120 - 36
    assert words[0] == 0x52800020  # mov w0, #1
    assert words[1] & 0xFFE0001F == 0x52800001  # movz w1, #low
    assert words[2] == 0x72A00801  # movk w1, #0x40, lsl #16
    assert (words[1] >> 5) & 0xFFFF == 120 + 36  # the message lies behind the code
    assert words[3] == 0x52800002 | message << 5  # mov w2, #length
    assert words[4:] == (0x52800808, 0xD4000001, 0x52800000, 0x52800BA8, 0xD4000001)
