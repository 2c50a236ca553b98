"""Classic BPF, assembled from its end to its beginning.

A classic program only jumps forward, so what a jump leads to is always there before the jump itself: blocks are
asked for last-first and named by their place, counted from the end. Equal returns are shared, for they are what a
decision tree is mostly made of; the kernel compiles every filter anew when a container starts, and that time is
proportional to the length.
"""

from __future__ import annotations

import struct

# linux/bpf_common.h: class | size or operation | mode or source
LD_ABS, LD_IMM, JA, JEQ, JGT, JGE, AND, RET = 0x20, 0x00, 0x05, 0x15, 0x25, 0x35, 0x54, 0x06

_REACH = 255  # instructions that a conditional jump can skip; JA skips any number


class Assembler:
    """The program so far. A place stays valid for good; a block must not be entered from behind."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []  # struct sock_filter (code, jt, jf, k), last first
        self._returns: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._code)

    def program(self) -> bytes:
        """Return the array of struct sock_filter; its first instruction is the one emitted last."""
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in reversed(self._code))

    def _emit(self, code: int, jt: int, jf: int, k: int) -> int:
        self._code.append((code, jt, jf, k))
        return len(self._code) - 1

    def ret(self, value: int) -> int:
        """Return the place of a `ret value`, an earlier one if a jump from here reaches it."""
        place = self._returns.get(value)
        if place is None or len(self._code) - place > _REACH - 8:
            place = self._returns[value] = self._emit(RET, 0, 0, value)
        return place

    def then(self, code: int, k: int, following: int) -> int:
        """Emit an instruction that goes on at `following`."""
        if following != len(self._code) - 1:
            self._emit(JA, 0, 0, len(self._code) - 1 - following)
        return self._emit(code, 0, 0, k)

    def _reachable(self, place: int, spare: int) -> int:
        """Return `place`, or a stepping stone to it if a jump `spare` instructions from here could not reach it."""
        if len(self._code) + spare - 1 - place <= _REACH:
            return place
        code, _, _, k = self._code[place]
        if code == RET:
            self._returns[k] = self._emit(RET, 0, 0, k)
            return self._returns[k]
        return self._emit(JA, 0, 0, len(self._code) - 1 - place)

    def branch(self, code: int, k: int, yes: int, no: int) -> int:
        """Emit a conditional jump on the accumulator."""
        yes = self._reachable(yes, 1)
        no = self._reachable(no, 0)
        here = len(self._code)
        return self._emit(code, here - 1 - yes, here - 1 - no, k)
