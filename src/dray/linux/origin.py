"""Memory of forks that goes back to what they were forked from.

A forked interpreter writes to pages of its parent's objects wherever it counts a reference, and most of those counts
come back to what they were. The page stays a private copy all the same. Here the writable memory of the parent is
moved, once, into a sealed memfd and mapped privately from there (`Origin.capture`); a fork can then drop, with
madvise(2) MADV_DONTNEED, each of its copies that is byte for byte what the memfd has (`Origin.settle`), and shares
the page again.

No bytecode may run between the comparison of a page and its dropping, nor between the copying of a mapping and its
replacement: Python's own counting would be lost. Both are functions of machine code (`base.assembler`), which run
with all signals blocked.

Invariants
- Only for a process of one thread.
- A mapping that mremap(2) might enlarge must not be captured: behind it in the memfd there is another's content. The
  C library does so with large blocks that it has mapped one by one, so it must have been told to make none
  (`NO_MAPPED_BLOCKS` in the environment of the program's start); with another C library nothing is captured.
- Pages of 4 KiB on amd64; elsewhere nothing is captured, and forks keep what they have written to.

Sources: proc_pid_pagemap(5), madvise(2), memfd_create(2), mallopt(3).
"""

from __future__ import annotations

import fcntl
import os
import struct

from dray.base.assembler import A0, A1, A2, A3, A4, A5, RESULT, V0, V1, V2, V3, V4, V5, Assembler
from dray.linux.syscall import INT, LONG, POINTER, ULONG, Buffer, checked, declare, native

NO_MAPPED_BLOCKS = "glibc.malloc.mmap_max=0"

_PAGE = 4096
_BATCH = 512  # pages whose entries of the pagemap fit into a page
_MALLOPT_MMAP_MAX, _MAPPED_BLOCKS = -4, 65536  # M_MMAP_MAX and its default

_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE, _MAP_FIXED = 0x02, 0x10
_MADV_DONTNEED = 4
_SIG_SETMASK = 2
_MFD_EXEC, _MFD_NOEXEC_SEAL = 0x10, 0x08
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_OWN_COPY = 0x81  # the highest byte of an entry of the pagemap: present, of no file, mapped by nobody else

# What a function is called with: 8-byte words at these offsets.
_FILE, _START, _SIZE, _OFFSET, _MAP, _ENTRY, _COUNT, _ALL, _MASK = range(0, 72, 8)
_PARAMETERS = struct.Struct("<9q")

_MADV_POPULATE_READ = 22

_madvise = declare("madvise", ULONG, ULONG, INT)
_mmap = declare("mmap", POINTER, ULONG, INT, INT, INT, LONG)


class Origin:
    """The memfd, the mappings that were moved to it, and the function that lets go of copies."""

    def __init__(self, fd: int, mappings: list[tuple[int, int, int]], code: int) -> None:
        self._fd = fd
        self._mappings = mappings  # start, size, offset in the memfd
        self._settle = native(code)
        self._parameters = Buffer(bytes(_PARAMETERS.size))

    @classmethod
    def capture(cls) -> Origin | None:
        """Move this process's writable memory; None where that cannot be done. OSError if the kernel refuses."""
        if os.uname().machine != "x86_64" or os.sysconf("SC_PAGESIZE") != _PAGE or not _no_mapped_blocks():
            return None
        move, code = _functions()
        moving = native(move)
        fd = _memfd("dray-origin", _MFD_NOEXEC_SEAL)
        origin = cls(fd, [], code)
        try:
            offset = 0
            for start, size in _writable():
                os.ftruncate(fd, offset + size)
                if origin._call(moving, start, size, offset) == 0:
                    origin._mappings.append((start, size, offset))
                    offset += size
                    _madvise(
                        start, size, _MADV_POPULATE_READ
                    )  # for the forks; before Linux 5.14 they do it themselves
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)  # mappings that were moved keep the file
            raise
        return origin

    def settle(self) -> int:
        """Share again what is as it was; return the number of pages."""
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        settled = 0
        try:
            for start, size, offset in self._mappings:
                for done in range(0, size, _BATCH * _PAGE):
                    part = min(size - done, _BATCH * _PAGE)
                    settled += self._call(self._settle, start + done, part, offset + done, pagemap)
        finally:
            os.close(pagemap)
        return settled

    def _call(self, function: object, start: int, size: int, offset: int, pagemap: int = -1) -> int:
        values = (self._fd, start, size, offset, pagemap, start // _PAGE * 8, 0, -1, 0)
        self._parameters.raw = _PARAMETERS.pack(*values)
        result: int = function(self._parameters.address)  # type: ignore[operator]
        return result


def _no_mapped_blocks() -> bool:
    """Whether the C library has been told to map no block by itself; from here on it may again."""
    try:
        glibc = os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return False
    if not glibc or NO_MAPPED_BLOCKS not in os.environ.get("GLIBC_TUNABLES", "").split(":"):
        return False
    from dray.linux.syscall import LIBC

    LIBC["mallopt"](_MALLOPT_MMAP_MAX, _MAPPED_BLOCKS)
    return True


def _writable() -> list[tuple[int, int]]:
    """The private writable mappings but the stack, which grows: (start, size)."""
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, rights, _, _, _, *name = line.split(maxsplit=5)
            if rights == "rw-p" and not (name and name[0].startswith("[stack")):
                start, _, end = span.partition("-")
                found.append((int(start, 16), int(end, 16) - int(start, 16)))
    return found


def _functions() -> tuple[int, int]:
    """Put the two functions into memory of their own; return their addresses."""
    moving, settling = _moving(), _settling()
    fd = _memfd("dray-code", _MFD_EXEC)
    try:
        os.write(fd, moving + settling)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        size = len(moving) + len(settling)
        place = checked(_mmap(None, size, _PROT_READ | _PROT_EXEC, _MAP_PRIVATE, fd, 0), "mmap")
    finally:
        os.close(fd)
    return place, place + len(moving)


def _memfd(name: str, flag: int) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | flag)
    except OSError:  # before Linux 6.3, which knows no such flag
        return os.memfd_create(name, flags)


def _begin(asm: Assembler) -> None:
    """V0 = the parameters, all signals blocked."""
    asm.enter(2 * _PAGE)
    asm.move(V0, A0)
    asm.set(A0, _SIG_SETMASK)
    _mask(asm, A1, _ALL)
    _mask(asm, A2, _MASK)
    asm.set(A3, 8)
    asm.call("rt_sigprocmask")


def _end(asm: Assembler) -> None:
    """The mask of before; return what _COUNT says."""
    asm.set(A0, _SIG_SETMASK)
    _mask(asm, A1, _MASK)
    asm.set(A2, 0)
    asm.set(A3, 8)
    asm.call("rt_sigprocmask")
    asm.load(RESULT, V0, _COUNT)
    asm.leave(2 * _PAGE)


def _mask(asm: Assembler, target: int, offset: int) -> None:
    asm.move(target, V0)
    asm.add(target, offset)


def _moving() -> bytes:
    """Copy a mapping into the file and map the file in its place. Returns 0, or 1 if it was left as it is."""
    asm = Assembler("amd64")
    _begin(asm)
    asm.load(A0, V0, _FILE)
    asm.load(A1, V0, _START)
    asm.load(A2, V0, _SIZE)
    asm.load(A3, V0, _OFFSET)
    asm.call("pwrite64")
    asm.move(V4, RESULT)
    asm.load(V3, V0, _SIZE)
    asm.set(V1, 1)
    asm.jump_if_same(V4, V3, "copied")
    asm.jump("end")
    asm.label("copied")
    asm.load(A0, V0, _START)
    asm.load(A1, V0, _SIZE)
    asm.set(A2, _PROT_READ | _PROT_WRITE)
    asm.set(A3, _MAP_PRIVATE | _MAP_FIXED)
    asm.load(A4, V0, _FILE)
    asm.load(A5, V0, _OFFSET)
    asm.call("mmap")
    asm.move(V4, RESULT)
    asm.load(V3, V0, _START)
    asm.jump_if_same(V4, V3, "mapped")
    asm.jump("end")
    asm.label("mapped")
    asm.set(V1, 0)
    asm.label("end")
    asm.store(V1, V0, _COUNT)
    _end(asm)
    return asm.program()


def _settling() -> bytes:
    """Drop the copies that are as the file is, among at most _BATCH pages. Returns how many they were.

    On the stack, at V5: a page of the file, and behind it the entries of the pagemap. V1 walks through the memory,
    V2 through the file, V3 through the entries.
    """
    asm = Assembler("amd64")
    _begin(asm)
    asm.stack(V5)
    asm.load(V1, V0, _START)
    asm.load(V2, V0, _OFFSET)
    asm.move(V3, V5)
    asm.add(V3, 2048)
    asm.add(V3, 2048)
    asm.load(A0, V0, _MAP)
    asm.move(A1, V3)
    asm.set(A2, _PAGE)
    asm.load(A3, V0, _ENTRY)
    asm.call("pread64")
    asm.move(V4, RESULT)
    asm.jump_if(V4, "lt", 1, "end")
    asm.label("page")
    asm.load_byte(V4, V3, 7)
    asm.jump_if(V4, "ne", _OWN_COPY, "next")
    asm.load(A0, V0, _FILE)
    asm.move(A1, V5)
    asm.set(A2, _PAGE)
    asm.move(A3, V2)
    asm.call("pread64")
    asm.move(V4, RESULT)
    asm.jump_if_same(V4, A2, "read")
    asm.jump("end")
    asm.label("read")
    asm.move(A0, V1)
    asm.move(A1, V5)
    asm.move(A2, V1)
    asm.add(A2, 2048)
    asm.add(A2, 2048)
    asm.label("word")
    asm.load(A3, A0, 0)
    asm.load(V4, A1, 0)
    asm.jump_if_same(A3, V4, "same")
    asm.jump("next")
    asm.label("same")
    asm.add(A0, 8)
    asm.add(A1, 8)
    asm.jump_if_same(A0, A2, "drop")
    asm.jump("word")
    asm.label("drop")
    asm.move(A0, V1)
    asm.set(A1, _PAGE)
    asm.set(A2, _MADV_DONTNEED)
    asm.call("madvise")
    asm.load(V4, V0, _COUNT)
    asm.add(V4, 1)
    asm.store(V4, V0, _COUNT)
    asm.label("next")
    asm.add(V1, 2048)
    asm.add(V1, 2048)
    asm.add(V2, 2048)
    asm.add(V2, 2048)
    asm.add(V3, 8)
    asm.load(V4, V0, _START)
    asm.load(A3, V0, _SIZE)
    asm.move(A2, V1)
    asm.subtract(A2, V4)
    asm.jump_if_same(A2, A3, "end")
    asm.jump("page")
    asm.label("end")
    _end(asm)
    return asm.program()
