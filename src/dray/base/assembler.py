"""A very small assembler: one program, written once, as a static ELF executable for amd64 and for arm64.

Or as a function that C may call (`enter`, `leave`).

The machine that programs are written for has the registers below, which no system call changes but RESULT, and the
dozen instructions that `Assembler` has as methods. Each is one or two instructions of the real machine:

    V0 … V5      rbx rbp r12 r13 r14 r15        x19 … x24     variables
    A0 … A5      rdi rsi rdx r10 r8 r9          x0 … x5       arguments of a system call
    RESULT       rax                            x0            its result, or -errno

On arm64 RESULT is A0: a result is moved away before the next argument is set. Numbers are 64-bit.
Sources: Intel SDM volume 2, Arm ARM (DDI 0487) section C6, elf(5), syscall(2).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Literal

Architecture = Literal["amd64", "arm64"]
Condition = Literal["eq", "ne", "lt", "ge"]

V0, V1, V2, V3, V4, V5, A0, A1, A2, A3, RESULT, A4, A5 = range(13)

_AMD64 = (3, 5, 12, 13, 14, 15, 7, 6, 2, 10, 0, 8, 9)
_ARM64 = (19, 20, 21, 22, 23, 24, 0, 1, 2, 3, 0, 4, 5)
_RSP, _SP = 4, 31
_JUMPS = {"eq": 0x84, "ne": 0x85, "lt": 0x8C, "ge": 0x8D}  # the second byte of jcc rel32, signed
_CONDITIONS = {"eq": 0, "ne": 1, "lt": 11, "ge": 10}

# Numbers of system calls: (amd64, arm64), asm/unistd.h.
_CALLS = {
    "write": (1, 64),
    "mmap": (9, 222),
    "rt_sigprocmask": (14, 135),
    "ioctl": (16, 29),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "clone": (56, 220),
    "execve": (59, 221),
    "wait4": (61, 260),
    "kill": (62, 129),
    "setpgid": (109, 154),
    "rt_sigtimedwait": (128, 137),
    "exit_group": (231, 94),
}

_BASE = 0x400000
_HEADERS = 64 + 56
_ELF = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_MACHINES = {"amd64": 62, "arm64": 183}  # EM_X86_64, EM_AARCH64 (elf.h)


def executable(architecture: Architecture, content: bytes) -> bytes:
    """Return a static ELF with one segment, readable and executable, that begins to run at content's first byte."""
    size = _HEADERS + len(content)
    ident = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    header = _ELF.pack(ident, 2, _MACHINES[architecture], 1, ENTRY, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + _SEGMENT.pack(1, 5, 0, _BASE, _BASE, size, size, 0x10000) + content


ENTRY = _BASE + _HEADERS  # the address of content's first byte
MACHINES: tuple[Architecture, ...] = ("amd64", "arm64")


@dataclass
class Assembler:
    """Instructions in order; `program()` resolves the labels."""

    architecture: Architecture
    _code: bytearray = field(default_factory=bytearray)
    _labels: dict[str, int] = field(default_factory=dict)
    _fixups: list[tuple[int, str, str]] = field(default_factory=list)  # place, label, kind

    @property
    def _intel(self) -> bool:
        return self.architecture == "amd64"

    def program(self) -> bytes:
        """Return the machine code; KeyError names a label that was not placed."""
        code = bytearray(self._code)
        for place, label, kind in self._fixups:
            distance = self._labels[label] - place
            if kind == "rel32":
                struct.pack_into("<i", code, place, distance - 4)
                continue
            (word,) = struct.unpack_from("<I", code, place)
            if kind == "b":
                word |= distance >> 2 & 0x3FFFFFF
            elif kind == "b.cond":
                word |= (distance >> 2 & 0x7FFFF) << 5
            else:  # adr
                word |= (distance & 3) << 29 | (distance >> 2 & 0x7FFFF) << 5
            struct.pack_into("<I", code, place, word)
        return bytes(code)

    def label(self, name: str) -> None:
        """Name this place."""
        assert name not in self._labels
        self._labels[name] = len(self._code)

    def data(self, content: bytes) -> None:
        """Put bytes here, which nothing must run into."""
        self._code += content + bytes(-len(content) % 4)

    # --- registers and memory ---

    def set(self, target: int, value: int) -> None:
        """target = value (signed 32 bits)."""
        if self._intel:
            self._rm(0xC7, 0, _AMD64[target])
            self._code += struct.pack("<i", value)
        elif value < 0:
            self._word(0x92800000 | (~value & 0xFFFF) << 5 | _ARM64[target])  # movn
            assert ~value < 1 << 16
        else:
            self._word(0xD2800000 | (value & 0xFFFF) << 5 | _ARM64[target])  # movz
            if value >> 16:
                self._word(0xF2A00000 | (value >> 16) << 5 | _ARM64[target])  # movk, lsl 16

    def move(self, target: int, source: int) -> None:
        """target = source."""
        if self._intel:
            self._rm(0x89, _AMD64[source], _AMD64[target])
        else:
            self._word(0xAA0003E0 | _ARM64[source] << 16 | _ARM64[target])  # orr target, xzr, source

    def stack(self, target: int) -> None:
        """target = the stack pointer."""
        if self._intel:
            self._rm(0x89, _RSP, _AMD64[target])
        else:
            self._word(0x91000000 | _SP << 5 | _ARM64[target])

    def frame(self, size: int) -> None:
        """Take `size` bytes (a multiple of 4096) of stack."""
        if self._intel:
            self._code += b"\x48\x81\xec" + struct.pack("<i", size)
        else:
            self._word(0xD1400000 | (size >> 12) << 10 | _SP << 5 | _SP)  # sub sp, sp, #size >> 12, lsl 12

    def enter(self, size: int) -> None:
        """Begin a function of one argument, A0: save V0 … V5, take `size` bytes (a multiple of 4096) of stack."""
        if self._intel:
            self._code += bytes.fromhex("5355415441554156 4157")  # push rbx, rbp, r12, r13, r14, r15
        else:
            self._word(0xA9BC53F3)  # stp x19, x20, [sp, #-64]!
            self._word(0xA9015BF5)  # stp x21, x22, [sp, #16]
            self._word(0xA90263F7)  # stp x23, x24, [sp, #32]
        self.frame(size)

    def leave(self, size: int) -> None:
        """Return from a function that has entered with `size`; RESULT is its value."""
        if self._intel:
            self._code += b"\x48\x81\xc4" + struct.pack("<i", size)
            self._code += bytes.fromhex("415f415e415d415c5d5bc3")  # pop what was pushed, ret
        else:
            self._word(0x91400000 | (size >> 12) << 10 | _SP << 5 | _SP)  # add sp, sp, #size >> 12, lsl 12
            self._word(0xA94263F7)  # ldp x23, x24, [sp, #32]
            self._word(0xA9415BF5)  # ldp x21, x22, [sp, #16]
            self._word(0xA8C453F3)  # ldp x19, x20, [sp], #64
            self._word(0xD65F03C0)  # ret

    def address(self, target: int, label: str) -> None:
        """target = the address of a label."""
        if self._intel:
            register = _AMD64[target]
            self._code += bytes((0x48 | register >> 3 << 2, 0x8D, (register & 7) << 3 | 5))
            self._fix(label, "rel32", 4)
        else:
            self._fix(label, "adr", 0)
            self._word(0x10000000 | _ARM64[target])

    def load(self, target: int, base: int, offset: int) -> None:
        """target = the 8 bytes at base + offset (a multiple of 8, below 32 KiB)."""
        if self._intel:
            self._memory(b"\x8b", _AMD64[target], _AMD64[base], offset, wide=True)
        else:
            self._word(0xF9400000 | (offset // 8) << 10 | _ARM64[base] << 5 | _ARM64[target])

    def store(self, source: int, base: int, offset: int) -> None:
        """The 8 bytes at base + offset = source."""
        if self._intel:
            self._memory(b"\x89", _AMD64[source], _AMD64[base], offset, wide=True)
        else:
            self._word(0xF9000000 | (offset // 8) << 10 | _ARM64[base] << 5 | _ARM64[source])

    def load_byte(self, target: int, base: int, offset: int = 0) -> None:
        """target = the byte at base + offset."""
        if self._intel:
            self._memory(b"\x0f\xb6", _AMD64[target], _AMD64[base], offset, wide=True)
        else:
            self._word(0x39400000 | offset << 10 | _ARM64[base] << 5 | _ARM64[target])

    def store_byte(self, source: int, base: int) -> None:
        """The byte at base = source's lowest."""
        if self._intel:
            self._memory(b"\x88", _AMD64[source], _AMD64[base], 0, wide=True)
        else:
            self._word(0x39000000 | _ARM64[base] << 5 | _ARM64[source])

    def add(self, target: int, value: int) -> None:
        """target += value (0 … 4095)."""
        if self._intel:
            self._rm(0x81, 0, _AMD64[target])
            self._code += struct.pack("<i", value)
        else:
            self._word(0x91000000 | value << 10 | _ARM64[target] << 5 | _ARM64[target])

    def add_words(self, target: int, source: int) -> None:
        """target += 8 * source."""
        if self._intel:  # lea target, [target + source * 8 + 0]
            t, s = _AMD64[target], _AMD64[source]
            prefix = 0x48 | t >> 3 << 2 | s >> 3 << 1 | t >> 3
            self._code += bytes((prefix, 0x8D, 0x44 | (t & 7) << 3, 0xC0 | (s & 7) << 3 | t & 7, 0))
        else:
            self._word(0x8B000C00 | _ARM64[source] << 16 | _ARM64[target] << 5 | _ARM64[target])

    def subtract(self, target: int, source: int) -> None:
        """target -= source."""
        if self._intel:
            self._rm(0x29, _AMD64[source], _AMD64[target])
        else:
            self._word(0xCB000000 | _ARM64[source] << 16 | _ARM64[target] << 5 | _ARM64[target])

    # --- control ---

    def jump(self, label: str) -> None:
        """Go on at a label."""
        if self._intel:
            self._code += b"\xe9"
            self._fix(label, "rel32", 4)
        else:
            self._fix(label, "b", 0)
            self._word(0x14000000)

    def jump_if(self, register: int, condition: Condition, value: int, label: str) -> None:
        """Go on at a label if the register is equal, not equal, less or not less than value (|value| < 4096)."""
        if self._intel:
            self._rm(0x81, 7, _AMD64[register])
            self._code += struct.pack("<i", value)
        elif value < 0:
            self._word(0xB1000000 | -value << 10 | _ARM64[register] << 5 | 31)  # cmn
        else:
            self._word(0xF1000000 | value << 10 | _ARM64[register] << 5 | 31)  # cmp
        self._conditional(condition, label)

    def jump_if_same(self, register: int, other: int, label: str) -> None:
        """Go on at a label if two registers are equal."""
        if self._intel:
            self._rm(0x39, _AMD64[other], _AMD64[register])
        else:
            self._word(0xEB000000 | _ARM64[other] << 16 | _ARM64[register] << 5 | 31)
        self._conditional("eq", label)

    def call(self, name: str) -> None:
        """Make the system call of that name with A0 … A5."""
        numbers = _CALLS[name]
        if self._intel:
            self._code += b"\xb8" + struct.pack("<I", numbers[0]) + b"\x0f\x05"  # mov eax, n; syscall
        else:
            self._word(0xD2800000 | numbers[1] << 5 | 8)  # mov x8, n
            self._word(0xD4000001)  # svc 0

    def _conditional(self, condition: Condition, label: str) -> None:
        if self._intel:
            self._code += bytes((0x0F, _JUMPS[condition]))
            self._fix(label, "rel32", 4)
        else:
            self._fix(label, "b.cond", 0)
            self._word(0x54000000 | _CONDITIONS[condition])

    def _word(self, word: int) -> None:
        self._code += struct.pack("<I", word)

    def _rm(self, opcode: int, register: int, target: int) -> None:
        """One instruction on two 64-bit registers (or with an opcode's extension for the first)."""
        self._code += bytes(
            (0x48 | register >> 3 << 2 | target >> 3, opcode, 0xC0 | (register & 7) << 3 | target & 7)
        )

    def _memory(self, opcode: bytes, register: int, base: int, offset: int, *, wide: bool) -> None:
        """[base + disp32]; r12 as a base takes a SIB byte."""
        prefix = (0x48 if wide else 0x40) | register >> 3 << 2 | base >> 3
        sib = b"\x24" if base & 7 == 4 else b""
        self._code += bytes((prefix,)) + opcode + bytes((0x80 | (register & 7) << 3 | base & 7,)) + sib
        self._code += struct.pack("<i", offset)

    def _fix(self, label: str, kind: str, space: int) -> None:
        self._fixups.append((len(self._code), label, kind))
        self._code += bytes(space)
