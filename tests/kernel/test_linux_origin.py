"""Memory of forks that goes back to its origin: what is shared again, and that nothing is lost by it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dray.base import assembler
from dray.base.assembler import A4, A5, Assembler
from dray.linux import origin

SOURCE = Path(__file__).parents[2] / "src"

PROGRAM = """
import gc, json, os, sys
sys.path[:] = {path!r}
from dray.linux.origin import Origin

def private():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

data = [{{"number": number, "words": [str(number)] * 3}} for number in range(20_000)]
gc.collect()
gc.freeze()
origin = Origin.capture()
if origin is None:
    print("none")
    sys.exit()
if os.fork():
    _, status = os.wait()
    assert [one["number"] for one in data] == list(range(20_000))
    sys.exit(os.waitstatus_to_exitcode(status))
copies = [one["words"] for one in data]  # counts a reference on each
del copies
before = private()
pages = origin.settle()
after = private()
for turn in range(20):
    data[turn]["words"] = [turn]
    copies = [one["words"] for one in data]
    del copies
    origin.settle()
blocks = [bytearray(size) for size in (1 << 18, 1 << 20, 5 << 20)]  # the C library maps these by itself
for block in blocks:
    block.extend(bytes(1 << 20))
assert [one["words"] for one in data] == [[n] if n < 20 else [str(n)] * 3 for n in range(20_000)]
assert not any(any(block) for block in blocks)
print(json.dumps([before, pages, after]))
"""


def run(tunables: str) -> str:
    code = PROGRAM.format(path=[str(SOURCE), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "GLIBC_TUNABLES": tunables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="captures on amd64 with glibc only",
)
def test_pages_that_are_as_they_were_are_shared_again_and_the_others_keep_what_was_written() -> None:
    import json

    before, pages, after = json.loads(run(origin.NO_MAPPED_BLOCKS))
    assert before > 3000  # KB: the counting has made copies of the list's pages
    assert pages * 4 > before // 2
    assert after < before - 2 * pages


def test_nothing_is_captured_where_the_c_library_may_have_mapped_blocks() -> None:
    assert run("") == "none"


def test_functions_in_the_code_of_both_machines() -> None:
    """By the manuals' encodings, as `as` would write them."""

    def assembled(architecture: assembler.Architecture) -> str:
        asm = Assembler(architecture)
        asm.enter(8192)
        asm.move(A4, A5)
        asm.call("madvise")
        asm.leave(8192)
        return asm.program().hex()

    assert assembled("amd64") == (
        "535541544155415641574881ec00200000"  # push rbx … r15; sub rsp, 8192
        "4d89c8b81c0000000f05"  # mov r8, r9; mov eax, 28; syscall
        "4881c400200000415f415e415d415c5d5bc3"  # add rsp, 8192; pop r15 … rbx; ret
    )
    assert assembled("arm64") == (
        "f353bca9f55b01a9f76302a9ff0b40d1"  # stp x19, x20, [sp, #-64]!; …; sub sp, sp, #2, lsl 12
        "e40305aa281d80d2010000d4"  # mov x4, x5; mov x8, #233; svc 0
        "ff0b4091f76342a9f55b41a9f353c4a8c0035fd6"  # add sp, sp, #2, lsl 12; ldp …; ret
    )
