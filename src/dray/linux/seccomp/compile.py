"""From an OCI `linux.seccomp` object to a classic BPF program.

The program, for each architecture of the profile:

    ld arch; jeq ARCH …; ret KILL_THREAD            an architecture that the profile does not name
    ld nr; a balanced tree of `jge` over ranges     numbers with the same fate are one range
    leaf: ret ACTION  |  compare arguments, first matching rule wins, else the default action

which costs about log2(ranges) comparisons a call; calls that are always allowed the kernel recognises and does
not run the program for at all (its action cache reads the same instructions).

The meaning is that of libseccomp as runc drives it:
- a name that an architecture does not have is ignored; a rule whose action is the default one is dropped;
- a rule without conditions beats those with conditions, whatever their order; the first of several wins;
- conditions of one rule must all hold; a rule that names one argument twice stands for one rule a condition;
- calls newer than the newest one the profile names fail with ENOSYS instead of a refusing default action, so
  that programs fall back to what they used before (not where the default is allow, log or trace);
- comparisons are of unsigned 64-bit values; `SCMP_CMP_MASKED_EQ` is (argument & value) == valueTwo. Unlike with
  libseccomp, of an argument that the kernel reads 32 bits of the others count as 0 (`numbers.NARROW`);
- on i386, a rule without conditions for a socket or System V call covers its form in the multiplexed
  `socketcall` or `ipc`. A rule with conditions cannot: those arguments lie behind a pointer.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dray.base.errors import InvalidParameter, Unsupported
from dray.linux.seccomp import numbers
from dray.linux.seccomp.assemble import AND, JEQ, JGE, JGT, LD_ABS, LD_IMM, Assembler

RET_KILL_PROCESS = 0x80000000
RET_KILL_THREAD = 0x00000000
RET_TRAP = 0x00030000
RET_ERRNO = 0x00050000
RET_USER_NOTIF = 0x7FC00000
RET_TRACE = 0x7FF00000
RET_LOG = 0x7FFC0000
RET_ALLOW = 0x7FFF0000

_ACTIONS = {
    "SCMP_ACT_KILL": RET_KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": RET_KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": RET_KILL_PROCESS,
    "SCMP_ACT_TRAP": RET_TRAP,
    "SCMP_ACT_ERRNO": RET_ERRNO,
    "SCMP_ACT_NOTIFY": RET_USER_NOTIF,
    "SCMP_ACT_TRACE": RET_TRACE,
    "SCMP_ACT_LOG": RET_LOG,
    "SCMP_ACT_ALLOW": RET_ALLOW,
}

_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data; an argument is 8 bytes, low word first
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_TOP = 1 << 32
_U64 = (1 << 64) - 1

Condition = tuple[int, str, int, int]  # argument (~argument: its low 32 bits), operator, value, valueTwo
Rule = tuple[tuple[Condition, ...], int]
Fate = int | tuple[Rule, ...]  # what SECCOMP_RET_… a number gets, or the rules that decide

_OPERATORS = frozenset("SCMP_CMP_" + op for op in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))


def compile_profile(profile: Mapping[str, Any]) -> bytes:
    """Return the program (an array of struct sock_filter).

    Raises InvalidParameter for a profile that makes no sense, Unsupported on a machine whose system calls have
    no table here.
    """
    default = action(profile.get("defaultAction", ""), profile.get("defaultErrnoRet"))
    if default == RET_USER_NOTIF:
        raise InvalidParameter("seccomp: SCMP_ACT_NOTIFY cannot be used as default action")
    rules = list(_rules(profile.get("syscalls") or (), default))
    enosys = None
    if default & ~0xFFFF not in (RET_ALLOW, RET_LOG, RET_TRACE) and default != RET_ERRNO | errno.ENOSYS:
        enosys = RET_ERRNO | errno.ENOSYS
    named = [name for entry in profile.get("syscalls") or () for name in _names(entry)]
    enabled = _architectures(profile.get("architectures") or ())
    audits: dict[int, list[numbers.Architecture]] = {}
    for architecture in enabled:
        audits.setdefault(architecture.audit, []).append(architecture)

    code = Assembler()
    entry = code.ret(RET_KILL_THREAD)
    for audit, members in reversed(audits.items()):
        ranges: list[tuple[int, Fate]] = []
        for architecture in members:
            ranges += _ranges(architecture, rules, named, default, enosys)
        if members[0].column == "x86_64" and len(members) == 1:
            # Without the x32 architecture its calls are foreign; -1 is what a tracer sets to skip a call.
            ranges += [(numbers.X32_BIT, RET_KILL_THREAD), (_TOP - 1, default)]
        calls = code.then(LD_ABS, _NR, _tree(code, _merged(ranges), default))
        entry = code.branch(JEQ, audit, calls, entry)
    code.then(LD_ABS, _ARCH, entry)
    if len(code) > _MAX_INSTRUCTIONS:
        raise InvalidParameter(
            f"seccomp: the profile needs {len(code)} instructions, the kernel takes {_MAX_INSTRUCTIONS}: "
            "use fewer rules with arguments"
        )
    return code.program()


def action(name: str, errno_ret: int | None) -> int:
    """Return the SECCOMP_RET_… value of an action of the runtime specification."""
    value = _ACTIONS.get(name)
    if value is None:
        raise InvalidParameter(f"seccomp: unknown action {name!r}")
    if value in (RET_ERRNO, RET_TRACE):
        data = errno.EPERM if errno_ret is None else errno_ret
        if not 0 <= data <= 0xFFFF:
            raise InvalidParameter(f"seccomp: errnoRet {data} is not between 0 and 65535")
        return value | data
    if errno_ret is not None:
        raise InvalidParameter(f"seccomp: action {name} takes no errnoRet")
    return value


def _names(entry: Mapping[str, Any]) -> list[str]:
    names = entry.get("names")
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidParameter("seccomp: a syscall rule without names")
    return list(names)


def _rules(entries: Iterable[Mapping[str, Any]], default: int) -> Iterable[tuple[str, tuple[Condition, ...], int]]:
    """Yield (name, conditions, action) in the profile's order, without those that say what the default says."""
    for entry in entries:
        verdict = action(entry.get("action", ""), entry.get("errnoRet"))
        names = _names(entry)
        if verdict == RET_USER_NOTIF and "write" in names:
            # The agent that answers could not be told: the container's own write(2) would wait for it.
            raise InvalidParameter("seccomp: SCMP_ACT_NOTIFY cannot be used for the write syscall")
        conditions = tuple(_condition(argument) for argument in entry.get("args") or ())
        if verdict == default:
            continue
        indexes = {condition[0] for condition in conditions}
        alternatives = [conditions] if len(indexes) == len(conditions) else [(one,) for one in conditions]
        for name in names:
            for alternative in alternatives:
                narrow = numbers.NARROW.get(name, ())
                yield (
                    name,
                    tuple((~one[0] if one[0] in narrow else one[0], *one[1:]) for one in alternative),
                    verdict,
                )


def _condition(argument: Mapping[str, Any]) -> Condition:
    index, operator = argument.get("index", 0), argument.get("op", "")
    value, second = argument.get("value", 0), argument.get("valueTwo") or 0
    if not 0 <= index <= 5:
        raise InvalidParameter(f"seccomp: a system call has no argument {index}")
    if operator not in _OPERATORS:
        raise InvalidParameter(f"seccomp: unknown operator {operator!r}")
    if not (0 <= value <= _U64 and 0 <= second <= _U64):
        raise InvalidParameter(f"seccomp: value {value} or valueTwo {second} is not an unsigned 64-bit number")
    return index, operator.removeprefix("SCMP_CMP_"), value, second


def _architectures(names: Sequence[str]) -> list[numbers.Architecture]:
    """Return the architectures to compile for: this machine's own first, then those that the profile adds."""
    native = numbers.native()
    if native is None:
        raise Unsupported("seccomp: no system call table for this machine; use --security-opt seccomp=unconfined")
    enabled = {native: numbers.ARCHITECTURES[native]}
    for name in names:
        known = numbers.ARCHITECTURES.get(name)
        if known is not None:
            enabled[name] = known
        elif name not in numbers.FOREIGN:
            raise InvalidParameter(f"seccomp: unknown architecture {name!r}")
    order = {architecture.audit: place for place, architecture in reversed(list(enumerate(enabled.values())))}
    return sorted(enabled.values(), key=lambda one: (order[one.audit], one.column != "x86_64"))


def _ranges(
    architecture: numbers.Architecture,
    rules: Sequence[tuple[str, tuple[Condition, ...], int]],
    named: Iterable[str],
    default: int,
    enosys: int | None,
) -> list[tuple[int, Fate]]:
    """Return [(first number, fate)], ascending; each range ends where the next begins."""
    calls = numbers.table(architecture.column)
    fates: dict[int, Fate] = {}

    def add(number: int, conditions: tuple[Condition, ...], verdict: int) -> None:
        fate = fates.get(number, ())
        if isinstance(fate, tuple):
            fates[number] = (*fate, (conditions, verdict)) if conditions else verdict

    for name, conditions, verdict in rules:
        number = calls.get(name)
        if number is not None:
            add(number, conditions, verdict)
        if architecture.column == "x86" and not conditions:
            for many, members in (("socketcall", numbers.SOCKETCALL), ("ipc", numbers.IPC)):
                if name in members:
                    add(calls[many], ((0, "EQ", members[name], 0),), verdict)

    start = numbers.X32_BIT if architecture.column == "x32" else 0
    known = [calls[name] for name in named if name in calls and calls[name] < start + numbers.ARM_PRIVATE]
    points: dict[int, Fate] = {start: default}
    for number in sorted(fates):
        points[number] = fates[number]
        if number + 1 not in fates:
            points[number + 1] = default
    if enosys is not None and known:
        points[max(known) + 1] = enosys
    return sorted(points.items())


def _merged(ranges: Sequence[tuple[int, Fate]]) -> list[tuple[int, Fate]]:
    """Join neighbours with the same fate."""
    joined: list[tuple[int, Fate]] = []
    for first, fate in ranges:
        if not joined or joined[-1][1] != fate:
            joined.append((first, fate))
    return joined


def _tree(code: Assembler, ranges: Sequence[tuple[int, Fate]], default: int) -> int:
    """Emit the search over ranges, the number in the accumulator; return its place."""
    if len(ranges) == 1:
        return _leaf(code, ranges[0][1], default)
    middle = len(ranges) // 2
    high = _tree(code, ranges[middle:], default)
    low = _tree(code, ranges[:middle], default)
    return code.branch(JGE, ranges[middle][0], high, low)


def _leaf(code: Assembler, fate: Fate, default: int) -> int:
    """Emit what becomes of one range: an action, or rules of which the first that holds counts."""
    if isinstance(fate, int):
        return code.ret(fate)
    otherwise = code.ret(default)
    for conditions, verdict in reversed(fate):
        holds = code.ret(verdict)
        for condition in reversed(conditions):
            holds = _compare(code, condition, holds, otherwise)
        otherwise = holds
    return otherwise


def _compare(code: Assembler, condition: Condition, yes: int, no: int) -> int:
    """Emit one 64-bit comparison, high word first."""
    index, operator, value, second = condition
    load_low = (LD_ABS, _ARGS + 8 * (index if index >= 0 else ~index))
    load_high = (LD_ABS, load_low[1] + 4) if index >= 0 else (LD_IMM, 0)
    high, low = value >> 32, value & 0xFFFFFFFF
    if operator == "MASKED_EQ":
        wanted = second & value
        for load, mask, word in ((load_low, low, wanted & 0xFFFFFFFF), (load_high, high, wanted >> 32)):
            if mask:
                yes = code.branch(JEQ, word, yes, no)
                if mask != 0xFFFFFFFF:
                    yes = code.then(AND, mask, yes)
                yes = code.then(*load, yes)
        return yes
    if operator in ("NE", "LT", "LE"):  # the opposites of EQ, GE, GT
        yes, no = no, yes
    if operator in ("EQ", "NE"):
        equal = code.then(*load_low, code.branch(JEQ, low, yes, no))
        return code.then(*load_high, code.branch(JEQ, high, equal, no))
    test = JGE if operator in ("GE", "LT") else JGT
    equal = code.then(*load_low, code.branch(test, low, yes, no))
    return code.then(*load_high, code.branch(JGT, high, yes, code.branch(JEQ, high, equal, no)))
