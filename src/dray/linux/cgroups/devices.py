"""Which devices a cgroup may use: the rules' meaning (pure), as v1 lines and as a v2 eBPF program.

A list of OCI rules comes down to a default (allow or deny) and exceptions to it, with the semantics of the v1
devices controller (Documentation/admin-guide/cgroup-v1/devices.rst): an `a` rule resets everything, whatever its
numbers; a rule against the default adds access to the exception of exactly its type and numbers, one along with
the default takes access away from it. v2 gets the same meaning, so that a rule list does the same on both.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dray.base.errors import InvalidParameter
from dray.linux import libc

Key = tuple[str, int | None, int | None]  # type b or c, major, minor; None is any


@dataclass(frozen=True, slots=True)
class Access:
    """What a rule list amounts to: the default, and exceptions (key → subset of "rwm", in that order)."""

    allow: bool
    exceptions: Mapping[Key, str]


def _rule(type: str, major: int | None, minor: int | None, access: str) -> dict[str, Any]:
    return {"allow": True, "type": type, "major": major, "minor": minor, "access": access}


# What every container may use besides its own rules, as with runc: any node may be made, the standard devices,
# its pseudo terminals.
STANDARD: tuple[Mapping[str, Any], ...] = (
    _rule("c", None, None, "m"),
    _rule("b", None, None, "m"),
    *(
        _rule("c", major, minor, "rwm")
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2))
    ),
    _rule("c", 136, None, "rwm"),
)


def resolve(rules: Iterable[Mapping[str, Any]], *, allow: bool = True) -> Access:
    """Reduce OCI `linux.resources.devices` rules, in order; `allow` is the default they start from."""
    exceptions: dict[Key, str] = {}
    for rule in rules:
        kind, granted = rule.get("type") or "a", bool(rule.get("allow"))
        access = rule.get("access") or "rwm"
        if kind not in ("a", "b", "c", "u", "p") or set(access) - set("rwm"):
            raise InvalidParameter(f"invalid device rule: type {kind!r}, access {access!r}")
        if kind == "a":
            allow, exceptions = granted, {}
            continue
        if kind == "p":
            continue  # a FIFO is no device
        numbers = (_number(rule.get("major")), _number(rule.get("minor")))
        key: Key = ("c" if kind == "u" else kind, *numbers)
        have = set(exceptions.get(key, ""))
        have = have | set(access) if granted != allow else have - set(access)
        exceptions[key] = "".join(letter for letter in "rwm" if letter in have)
        if not have:
            del exceptions[key]
    return Access(allow, exceptions)


def _number(value: int | None) -> int | None:
    if value is None or value == -1:
        return None
    if not 0 <= value < 1 << 32:
        raise InvalidParameter(f"invalid device number {value}")
    return value


# --- v1 -------------------------------------------------------------------------------------------------------


def lines(access: Access) -> list[str]:
    """Return the exceptions as lines of devices.allow or devices.deny."""
    return [
        f"{kind} {'*' if major is None else major}:{'*' if minor is None else minor} {letters}"
        for (kind, major, minor), letters in access.exceptions.items()
    ]


def parse_list(text: str) -> Access:
    """Read devices.list: `a *:* rwm` alone while everything is allowed by default, else what is allowed."""
    rules: list[dict[str, Any]] = []
    for line in text.splitlines():
        kind, numbers, letters = line.split()
        if kind == "a":
            return Access(True, {})
        major, minor = (None if number == "*" else int(number) for number in numbers.split(":"))
        rules.append(_rule(kind, major, minor, letters))
    return resolve(rules, allow=False)


def changes(have: Access, want: Access) -> list[tuple[str, str]]:
    """Return [(file, line)] that turn one access into another.

    Between two lists of what is allowed nothing in use is ever denied on the way; otherwise the default is set
    anew and the exceptions follow.
    """
    if have.allow or want.allow:
        reset, exceptions = ("devices.allow", "devices.deny") if want.allow else ("devices.deny", "devices.allow")
        return [(reset, "a"), *((exceptions, line) for line in lines(want))]
    steps = [("devices.allow", line) for line in lines(want)]
    gone = {}
    for key, letters in have.exceptions.items():
        extra = "".join(letter for letter in letters if letter not in want.exceptions.get(key, ""))
        if extra:
            gone[key] = extra
    return steps + [("devices.deny", line) for line in lines(Access(False, gone))]


# --- v2: bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE ------------------------------------------------------------------

_LDX_W, _AND32, _RSH32, _MOV32, _JNE, _JEQ, _MOV64, _EXIT = 0x61, 0x54, 0x74, 0xBC, 0x55, 0x15, 0xB7, 0x95
_BLOCK, _CHAR = 1, 2
_BITS = {"m": 1, "r": 2, "w": 4}

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_TYPE_CGROUP_DEVICE, _ATTACH_DEVICE, _ALLOW_MULTI = 15, 6, 2
_MOST_PROGRAMS = 64  # BPF_CGROUP_MAX_PROGS


def bpf_program(access: Access) -> bytes:
    """Return the eBPF program: 1 in r0 allows.

    The context (struct bpf_cgroup_dev_ctx) is three words: wanted access << 16 | type, major, minor. Against a
    default of deny one exception must cover all that is wanted; against allow it is enough that it touches it.
    """
    code: list[tuple[int, int, int, int, int]] = [
        (_LDX_W, 2, 1, 0, 0),
        (_MOV32, 3, 2, 0, 0),
        (_AND32, 2, 0, 0, 0xFFFF),  # r2 type
        (_RSH32, 3, 0, 0, 16),  # r3 access
        (_LDX_W, 4, 1, 4, 0),  # r4 major
        (_LDX_W, 5, 1, 8, 0),  # r5 minor
    ]
    for (kind, major, minor), letters in access.exceptions.items():
        bits = sum(_BITS[letter] for letter in letters)
        tests = [(2, _BLOCK if kind == "b" else _CHAR)]
        tests += [(4, major)] if major is not None else []
        tests += [(5, minor)] if minor is not None else []
        body: list[tuple[int, int, int, int, int]] = [
            (_MOV64, 0, 0, 0, int(not access.allow)),
            (_EXIT, 0, 0, 0, 0),
        ]
        mask = bits if access.allow else ~bits & 7
        if access.allow:
            body = [(_MOV32, 1, 3, 0, 0), (_AND32, 1, 0, 0, mask), (_JEQ, 1, 0, len(body), 0), *body]
        elif mask:
            body = [(_MOV32, 1, 3, 0, 0), (_AND32, 1, 0, 0, mask), (_JNE, 1, 0, len(body), 0), *body]
        for register, wanted in reversed(tests):
            body = [(_JNE, register, 0, len(body), wanted), *body]
        code += body
    code += [(_MOV64, 0, 0, 0, int(access.allow)), (_EXIT, 0, 0, 0, 0)]
    return b"".join(struct.pack("<BBhi", op, dst | src << 4, off, imm) for op, dst, src, off, imm in code)


def attach(directory: str, access: Access) -> None:
    """Make `access` the device filter of a v2 cgroup; filters of its own it had before go, after this one is on."""
    program = bpf_program(access)
    code, licence = libc.Buffer(program), libc.Buffer(b"Apache-2.0\0")
    load = struct.pack(
        "=IIQQIIQII16s",
        _TYPE_CGROUP_DEVICE, len(program) // 8, code.address, licence.address, 0, 0, 0, 0, 0, b"dray_devices",
    )  # fmt: skip
    cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        before = _attached(cgroup)
        new = libc.bpf(_PROG_LOAD, load)
        try:
            libc.bpf(_PROG_ATTACH, struct.pack("=IIII", cgroup, new, _ATTACH_DEVICE, _ALLOW_MULTI))
        finally:
            os.close(new)
        for old in before:
            fd = libc.bpf(_PROG_GET_FD_BY_ID, struct.pack("=III", old, 0, 0))
            try:
                libc.bpf(_PROG_DETACH, struct.pack("=III", cgroup, fd, _ATTACH_DEVICE))
            finally:
                os.close(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, directory) from None
    finally:
        os.close(cgroup)


def _attached(cgroup: int) -> Sequence[int]:
    """Return the ids of the device programs attached to the cgroup itself.

    The kernel also writes the count and flags into the query; the ids, never 0, are all that is read back.
    """
    ids = libc.Buffer(4 * _MOST_PROGRAMS)
    query = struct.pack("=IIIIQI4x", cgroup, _ATTACH_DEVICE, 0, 0, ids.address, _MOST_PROGRAMS)
    libc.bpf(_PROG_QUERY, query)
    return [number for (number,) in struct.iter_unpack("=I", ids.raw) if number]
