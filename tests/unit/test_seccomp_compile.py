"""The compiler against an evaluation of the profile's text, by an interpreter of classic BPF."""

import errno
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dray.base.errors import InvalidParameter
from dray.linux import seccomp
from dray.linux.seccomp import compile as compiler
from dray.linux.seccomp import numbers

X86_64, I386, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
ALLOW, KILL = 0x7FFF0000, 0
U64 = (1 << 64) - 1


def errno_(number: int) -> int:
    return 0x00050000 | number


def run(code: bytes, audit: int, nr: int, args=()) -> int:
    """Interpret the program on one struct seccomp_data, checking every jump."""
    args = (*args, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", nr, audit, 0, *args)
    program = list(struct.iter_unpack("<HBBI", code))
    pc, accumulator, steps = 0, 0, 0
    while True:
        op, jt, jf, k = program[pc]
        pc += 1
        steps += 1
        assert steps < 4096
        match op:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, k)[0]
            case 0x00:
                accumulator = k
            case 0x05:
                pc += k
            case 0x15:
                pc += jt if accumulator == k else jf
            case 0x25:
                pc += jt if accumulator > k else jf
            case 0x35:
                pc += jt if accumulator >= k else jf
            case 0x54:
                accumulator &= k
            case 0x06:
                return k
            case _:
                raise AssertionError(f"unknown instruction {op:#x}")


def profile(*rules, default="SCMP_ACT_ERRNO", **fields):
    return {"defaultAction": default, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": list(rules), **fields}


def allow(*names, **fields):
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", **fields}


def arg(index, op, value, second=0):
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": second}


@pytest.fixture(autouse=True)
def on_x86_64(monkeypatch):
    monkeypatch.setattr(numbers, "native", lambda: "SCMP_ARCH_X86_64")


def holds(op, value, second, actual):
    return {
        "EQ": actual == value,
        "NE": actual != value,
        "LT": actual < value,
        "LE": actual <= value,
        "GT": actual > value,
        "GE": actual >= value,
        "MASKED_EQ": actual & value == second & value,
    }[op]


words = st.one_of(
    st.sampled_from([0, 1, 2, 0xFFFFFFFF, 0x100000000, 0x100000001, U64, U64 - 1, 1 << 63, 0x7E020000]),
    st.integers(0, U64),
)
conditions = st.tuples(
    st.integers(0, 5), st.sampled_from(["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"]), words, words
)
NAMES = ["read", "write", "close", "socket", "clone", "personality", "mseal", "removexattrat", "no_such_call"]
ACTIONS = ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRAP", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL"]
rules = st.fixed_dictionaries(
    {
        "names": st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
        "action": st.sampled_from(ACTIONS),
        "args": st.lists(conditions.map(lambda c: arg(*c)), max_size=3),
    }
)


def reference(wanted, nr, args):
    """What the profile says in words, for x86_64 without x32."""
    table = numbers.table("x86_64")
    named = [name for rule in wanted["syscalls"] for name in rule["names"] if name in table]
    if nr >= 0x40000000 and nr != 0xFFFFFFFF:
        return KILL
    if named and nr > max(table[name] for name in named) and nr != 0xFFFFFFFF:
        return errno_(errno.ENOSYS)
    matching = [rule for rule in wanted["syscalls"] if any(table.get(name) == nr for name in rule["names"])]
    plain = [rule for rule in matching if not rule["args"]]
    for rule in plain or matching:
        narrow = numbers.NARROW.get(next(name for name in rule["names"] if table.get(name) == nr), ())
        seen = [value & 0xFFFFFFFF if index in narrow else value for index, value in enumerate(args)]
        tests = [holds(a["op"][9:], a["value"], a["valueTwo"], seen[a["index"]]) for a in rule["args"]]
        repeated = len({a["index"] for a in rule["args"]}) < len(rule["args"])
        if (any if repeated else all)(tests):
            return compiler.action(rule["action"], None)
    return errno_(errno.EPERM)


@settings(max_examples=150, deadline=None)
@given(st.lists(rules, max_size=6), st.data())
def test_program_does_what_the_profile_says(entries, data):
    wanted = profile(*entries)
    code = compiler.compile_profile(wanted)
    values = [a["value"] for rule in entries for a in rule["args"]] or [0]
    candidates = st.one_of(words, st.sampled_from(values), st.sampled_from(values).map(lambda v: (v + 1) & U64))
    for name in [*NAMES[:-1], None]:
        nr = data.draw(st.integers(0, 0xFFFFFFFF)) if name is None else numbers.table("x86_64")[name]
        args = data.draw(st.tuples(*[candidates] * 6))
        assert run(code, X86_64, nr, args) == reference(wanted, nr, args)


def test_every_number_of_a_large_profile():
    table = numbers.table("x86_64")
    chosen = sorted(table)[::2]
    wanted = profile(allow(*chosen))
    code = compiler.compile_profile(wanted)
    for number in range(600):
        assert run(code, X86_64, number, ()) == reference(
            {**wanted, "syscalls": [{**wanted["syscalls"][0], "args": []}]}, number, (0,) * 6
        )


def test_long_branches_are_reached():
    many = [allow("socket", args=[arg(0, "EQ", value)]) for value in range(200)]
    code = compiler.compile_profile(profile(allow("read"), *many, allow("mseal")))
    assert len(code) // 8 > 600
    assert run(code, X86_64, 0) == ALLOW
    assert run(code, X86_64, 41, (199,)) == ALLOW
    assert run(code, X86_64, 41, (200,)) == errno_(1)
    assert run(code, X86_64, 462) == ALLOW
    assert run(code, X86_64, 461) == errno_(1)


def test_bits_that_the_kernel_does_not_read_do_not_count():
    over = allow("socket", args=[arg(0, "GT", 40)])
    code = compiler.compile_profile(profile(over, allow("clone", args=[arg(0, "GT", 40)])))
    assert run(code, X86_64, 41, (38 | 1 << 32,)) == errno_(1)
    assert run(code, X86_64, 41, (41 | 1 << 32,)) == ALLOW
    assert run(code, X86_64, 56, (38 | 1 << 32,)) == ALLOW


def test_too_many_rules_are_refused_by_size():
    many = [allow("socket", args=[arg(0, "EQ", value)]) for value in range(3000)]
    with pytest.raises(InvalidParameter, match="4096"):
        compiler.compile_profile(profile(*many))


def test_foreign_architectures_and_x32():
    code = compiler.compile_profile(profile(allow("read")))
    assert run(code, I386, 3) == KILL
    assert run(code, X86_64, 0x40000000) == KILL
    assert run(code, X86_64, 0xFFFFFFFF) == errno_(1)
    every = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_MIPS"]
    code = compiler.compile_profile(profile(allow("read", "execveat"), architectures=every))
    assert run(code, X86_64, 0) == ALLOW
    assert run(code, X86_64, 0x40000000) == ALLOW
    assert run(code, X86_64, 0x40000000 + 545) == ALLOW
    assert run(code, X86_64, 0x40000000 + 546) == errno_(errno.ENOSYS)
    assert run(code, X86_64, 0x40000000 + 1) == errno_(1)
    assert run(code, X86_64, 323) == errno_(errno.ENOSYS)
    assert run(code, I386, 3) == ALLOW
    assert run(code, I386, 4) == errno_(1)
    assert run(code, ARM, 3) == KILL


def test_multiplexed_calls_of_i386():
    both = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    limited = allow("socket", args=[arg(0, "EQ", 2)])
    code = compiler.compile_profile(profile(allow("connect", "shmget"), limited, architectures=both))
    assert run(code, I386, 102, (3, 0xBEEF)) == ALLOW
    assert run(code, I386, 102, (1, 0xBEEF)) == errno_(1)
    assert run(code, I386, 362) == ALLOW
    assert run(code, I386, 359, (2,)) == ALLOW
    assert run(code, I386, 359, (38,)) == errno_(1)
    assert run(code, I386, 117, (23,)) == ALLOW
    assert run(code, I386, 117, (24,)) == errno_(1)


def test_arm64_with_its_32_bit_architecture(monkeypatch):
    monkeypatch.setattr(numbers, "native", lambda: "SCMP_ARCH_AARCH64")
    wanted = profile(allow("read", "openat", "set_tls"), architectures=["SCMP_ARCH_ARM"])
    code = compiler.compile_profile(wanted)
    assert run(code, AARCH64, 63) == ALLOW
    assert run(code, AARCH64, 56) == ALLOW
    assert run(code, AARCH64, 64) == errno_(errno.ENOSYS)
    assert run(code, AARCH64, 62) == errno_(1)
    assert run(code, ARM, 3) == ALLOW
    assert run(code, ARM, 0x0F0005) == ALLOW
    assert run(code, ARM, 0x0F0006) == errno_(1)
    assert run(code, ARM, 400) == errno_(errno.ENOSYS)
    assert run(code, X86_64, 0) == KILL


@pytest.mark.parametrize("default", ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"])
def test_permissive_defaults_get_no_enosys(default):
    refuse = {"names": ["mseal"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}
    code = compiler.compile_profile(profile(refuse, default=default))
    assert run(code, X86_64, 462) == errno_(13)
    assert run(code, X86_64, 463) == compiler.action(default, None)


def test_first_rule_without_conditions_wins():
    code = compiler.compile_profile(
        profile(
            allow("socket", args=[arg(0, "EQ", 1)]),
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            allow("socket"),
        )
    )
    assert run(code, X86_64, 41, (1,)) == errno_(5)


@pytest.mark.parametrize(
    ("name", "ret", "value"),
    [
        ("SCMP_ACT_KILL", None, 0),
        ("SCMP_ACT_KILL_THREAD", None, 0),
        ("SCMP_ACT_KILL_PROCESS", None, 0x80000000),
        ("SCMP_ACT_TRAP", None, 0x00030000),
        ("SCMP_ACT_ERRNO", None, 0x00050001),
        ("SCMP_ACT_ERRNO", 38, 0x00050026),
        ("SCMP_ACT_TRACE", 7, 0x7FF00007),
        ("SCMP_ACT_NOTIFY", None, 0x7FC00000),
        ("SCMP_ACT_LOG", None, 0x7FFC0000),
        ("SCMP_ACT_ALLOW", None, 0x7FFF0000),
    ],
)
def test_actions(name, ret, value):
    assert compiler.action(name, ret) == value


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (profile(default="SCMP_ACT_NOTIFY"), "default action"),
        (profile({"names": ["write"], "action": "SCMP_ACT_NOTIFY"}), "write"),
        (profile(default="SCMP_ACT_MAYBE"), "SCMP_ACT_MAYBE"),
        (profile(allow("read", args=[arg(6, "EQ", 0)])), "argument 6"),
        (profile(allow("read", args=[arg(0, "ABOUT", 0)])), "ABOUT"),
        (profile(allow("read", args=[arg(0, "EQ", 1 << 64)])), "64-bit"),
        (profile(allow()), "names"),
        (profile(architectures=["SCMP_ARCH_PDP11"]), "PDP11"),
        (profile(allow("read", errnoRet=1)), "errnoRet"),
    ],
)
def test_nonsense_is_refused_by_name(wanted, words):
    with pytest.raises(InvalidParameter, match=words):
        compiler.compile_profile(wanted)


def test_flags():
    assert seccomp.filter_flags({}) == 4
    assert seccomp.filter_flags({"flags": []}) == 0
    assert seccomp.filter_flags({"flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]}) == 3
    notify = {"flags": [], "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}
    assert seccomp.filter_flags(notify) == 8
    with pytest.raises(InvalidParameter, match="FLAG_NOPE"):
        seccomp.filter_flags({"flags": ["FLAG_NOPE"]})


def test_cache_on_disk(tmp_path: Path, monkeypatch):
    wanted = profile(allow("read", "write"))
    first = seccomp.program(wanted, cache_dir=tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.read_bytes() == first
    seccomp._programs.clear()
    monkeypatch.setattr(compiler, "compile_profile", lambda _: pytest.fail("compiled again"))
    assert seccomp.program(json.loads(json.dumps(wanted)), cache_dir=tmp_path / "cache") == first
    assert seccomp.program(wanted) == first
    monkeypatch.undo()
    monkeypatch.setattr(numbers, "native", lambda: "SCMP_ARCH_X86_64")
    seccomp._programs.clear()
    entry.write_bytes(b"torn")
    assert seccomp.program(wanted, cache_dir=tmp_path / "cache") == first
    assert entry.read_bytes() == first


def test_table_agrees_with_libc():
    from dray.linux import libc

    for name in ("mount", "seccomp", "openat2", "clone3", "bpf"):
        index = 0 if numbers.table("x86_64")[name] == libc.number(name) else 1
        assert (numbers.table("x86_64")[name], numbers.table("aarch64")[name])[index] == libc.number(name)
    assert numbers.table("x32")["read"] == 0x40000000
