"""System call numbers and audit architectures.

The numbers are data, `syscalls.tsv`: one line a call, one column an architecture, made from the kernel's headers
by tools/syscall_table.py. A newer kernel's calls are added there.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

X32_BIT = 0x40000000
ARM_PRIVATE = 0x0F0000  # first of the ARM private calls (breakpoint, cacheflush, set_tls, …)

# The two multiplexed calls of i386 (net/socket.c, ipc/syscall.c): name → first argument.
SOCKETCALL = {
    "socket": 1,
    "bind": 2,
    "connect": 3,
    "listen": 4,
    "accept": 5,
    "getsockname": 6,
    "getpeername": 7,
    "socketpair": 8,
    "send": 9,
    "recv": 10,
    "sendto": 11,
    "recvfrom": 12,
    "shutdown": 13,
    "setsockopt": 14,
    "getsockopt": 15,
    "sendmsg": 16,
    "recvmsg": 17,
    "accept4": 18,
    "recvmmsg": 19,
    "sendmmsg": 20,
}
IPC = {
    "semop": 1,
    "semget": 2,
    "semctl": 3,
    "semtimedop": 4,
    "msgsnd": 11,
    "msgrcv": 12,
    "msgget": 13,
    "msgctl": 14,
    "shmat": 21,
    "shmdt": 22,
    "shmget": 23,
    "shmctl": 24,
}

# Arguments of which the kernel reads 32 bits only (an int, an unsigned int, an id), of the calls that profiles
# filter by argument. A comparison must not look at the rest: with it, socket(AF_ALG | 1 << 32) is "greater than
# 40" and ioctl(fd, TIOCSTI | 1 << 32) is "not TIOCSTI", while the kernel does what was to be refused.
NARROW: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("socket", "socketpair"), (0, 1, 2)),
    **dict.fromkeys(("setsockopt", "getsockopt"), (0, 1, 2)),
    **dict.fromkeys(("ioctl", "fcntl", "fcntl64", "setns", "kill", "tkill", "seccomp", "fanotify_init"), (0, 1)),
    **dict.fromkeys(("personality", "prctl", "keyctl", "bpf", "syslog", "quotactl", "io_uring_setup"), (0,)),
    **dict.fromkeys(("setuid", "setgid", "setuid32", "setgid32", "setfsuid", "setfsgid"), (0,)),
    **dict.fromkeys(
        ("setreuid", "setregid", "setreuid32", "setregid32", "sched_setscheduler", "prlimit64"), (0, 1)
    ),
    **dict.fromkeys(("setresuid", "setresgid", "setresuid32", "setresgid32", "tgkill", "reboot"), (0, 1, 2)),
    **dict.fromkeys(("chown", "lchown", "chown32", "lchown32", "futex"), (1, 2)),
    **dict.fromkeys(("fchown", "fchown32"), (0, 1, 2)),
    "fchownat": (0, 2, 3, 4),
    "open": (1,),
    "openat": (0, 2),
    "memfd_create": (1,),
    "perf_event_open": (1, 2, 3),
    "io_uring_enter": (0, 1, 2, 3),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One calling convention: its name in a profile, the value in `seccomp_data.arch`, its column of the table."""

    name: str
    audit: int
    column: str


ARCHITECTURES = {
    "SCMP_ARCH_X86_64": Architecture("SCMP_ARCH_X86_64", 0xC000003E, "x86_64"),
    "SCMP_ARCH_X32": Architecture("SCMP_ARCH_X32", 0xC000003E, "x32"),
    "SCMP_ARCH_X86": Architecture("SCMP_ARCH_X86", 0x40000003, "x86"),
    "SCMP_ARCH_AARCH64": Architecture("SCMP_ARCH_AARCH64", 0xC00000B7, "aarch64"),
    "SCMP_ARCH_ARM": Architecture("SCMP_ARCH_ARM", 0x40000028, "arm"),
}

# Architectures of the runtime specification that no kernel we run on can report: nothing to compile for them.
FOREIGN = frozenset(
    "SCMP_ARCH_" + name
    for name in [
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "MIPSEL",
        "MIPSEL64",
        "MIPSEL64N32",
        "PPC",
        "PPC64",
        "PPC64LE",
        "S390",
        "S390X",
        "PARISC",
        "PARISC64",
        "RISCV64",
        "LOONGARCH64",
        "M68K",
        "SH",
        "SHEB",
    ]
)

_NATIVE = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}


def native() -> str | None:
    """Return the profile's name of this machine's architecture, None where there is no table for it."""
    return _NATIVE.get(os.uname().machine)


@functools.cache
def table(column: str) -> dict[str, int]:
    """Return name → number of one architecture (`x86_64`, `x86`, `x32`, `aarch64`, `arm`)."""
    return _tables()[column]


@functools.cache
def _tables() -> dict[str, dict[str, int]]:
    with open(os.path.join(os.path.dirname(__file__), "syscalls.tsv"), encoding="ascii") as file:
        file.readline()
        columns = file.readline().split()[1:]
        tables: list[dict[str, int]] = [{} for _ in columns]
        for line in file:
            name, *numbers = line.split()
            for calls, number in zip(tables, numbers, strict=True):
                if number != "-1":
                    calls[name] = int(number)
    return dict(zip(columns, tables, strict=True))
