"""The init of `--init`: the assembled program run on this machine, its bytes for the other."""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import subprocess
from pathlib import Path

import pytest

from dray.base import assembler
from dray.base.assembler import A0, RESULT, V0, V1, Assembler
from dray.runtime import tinyinit


def words(*instructions: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in instructions)


def assembled(architecture: assembler.Architecture) -> bytes:
    """One of each kind of instruction."""
    asm = Assembler(architecture)
    asm.label("start")
    asm.set(V0, 0x15410)
    asm.set(A0, -1)
    asm.move(V1, RESULT)
    asm.add(V1, 24)
    asm.load(V0, V1, 16)
    asm.jump_if(V0, "eq", -2, "start")
    asm.jump("start")
    asm.call("exit_group")
    return asm.program()


def test_instructions_of_arm64() -> None:
    """By the manual's encodings (C6.2), as `as` would write them."""
    assert assembled("arm64") == words(
        0xD28A8213,  # mov  x19, #0x5410
        0xF2A00033,  # movk x19, #1, lsl 16
        0x92800000,  # mov  x0, #-1
        0xAA0003F4,  # mov  x20, x0
        0x91006294,  # add  x20, x20, #24
        0xF9400A93,  # ldr  x19, [x20, #16]
        0xB1000A7F,  # cmn  x19, #2
        0x54FFFF20,  # b.eq start
        0x17FFFFF8,  # b    start
        0xD2800BC8,  # mov  x8, #94
        0xD4000001,  # svc  0
    )


def test_the_program_for_arm64_is_the_one_that_was_seen_to_work() -> None:
    """It was run in an emulator, each branch of it. Whoever changes it does so again."""
    digest = hashlib.sha256(tinyinit.program("arm64")).hexdigest()
    assert digest == "2b1ce7a2b42320fca8f559fdb9de08c03cb24d905b7965bf7de3e3d923079195"
    assert len(tinyinit.program("arm64")) < 1400


def test_installing_is_done_once(tmp_path: Path) -> None:
    path = tmp_path / "init"
    assert tinyinit.install(str(path)) == str(path)
    assert path.stat().st_mode & 0o777 == 0o555
    inode = path.stat().st_ino
    tinyinit.install(str(path))
    assert path.stat().st_ino == inode
    path.unlink()
    path.write_bytes(b"other")
    tinyinit.install(str(path))
    assert path.read_bytes()[:4] == b"\x7fELF"


@pytest.fixture
def init(tmp_path: Path) -> str:
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("no init for this machine")
    return tinyinit.install(str(tmp_path / "init"))


def run(init: str, *command: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [init, "--", *command], env={"A": "b", "PATH": path}, capture_output=True, text=True, timeout=20, check=False
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("/bin/sh", "-c", "exit 0"), 0),
        (("sh", "-c", "kill -9 $$"), 137),
        (("nosuch",), 127),
        (("/no/such",), 127),
        (("/etc/passwd",), 126),
        (("/etc",), 126),
    ],
)
def test_exit_codes(init: str, command: tuple[str, ...], code: int) -> None:
    done = run(init, *command)
    assert done.returncode == code
    assert done.stderr == ("" if code not in (126, 127) else f"docker-init: cannot execute {command[0]}\n")


def test_the_search_goes_along_path(init: str, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked/tool").write_text("#!/bin/sh\n")
    (tmp_path / "open").mkdir()
    (tmp_path / "open/tool").write_text("#!/bin/sh\necho tool $1 $A\n")
    (tmp_path / "open/tool").chmod(0o755)
    folders = f"/nonexistent:/etc/passwd:{tmp_path}/locked:{tmp_path}/open"
    assert run(init, "tool", "x", path=folders).stdout == "tool x b\n"
    assert run(init, "tool", path=f"{tmp_path}/locked:/nonexistent").returncode == 126
    before = os.getcwd()
    os.chdir(tmp_path / "open")
    try:
        assert run(init, "tool", "y", path="/nonexistent::").stdout == "tool y b\n"
    finally:
        os.chdir(before)
    assert run(init, "sh", "-c", "echo", "x" * 100_000).returncode == 0
    assert run(init, "y" * 100_000).returncode == 126  # ENAMETOOLONG


def test_without_arguments(init: str) -> None:
    assert subprocess.run([init], capture_output=True, timeout=20, check=False).returncode == 127


def test_signals_are_passed_on(init: str) -> None:
    script = 'trap "echo usr1" USR1; trap "echo term; exit 5" TERM; echo ready; while :; do sleep 0.05; done'
    with subprocess.Popen([init, "--", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number, word in ((None, "ready"), (signal.SIGUSR1, "usr1"), (signal.SIGTERM, "term")):
            if number is not None:
                process.send_signal(number)
            assert process.stdout.readline() == f"{word}\n"
        assert process.wait(20) == 5


def test_the_childs_signals_are_as_before(init: str) -> None:
    done = run(init, "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")
    masks = {line.split()[0]: int(line.split()[1], 16) for line in done.stdout.splitlines()}
    assert masks["SigBlk:"] == 0
