"""The default profile, as the kernel enforces it on a process that may do everything else."""

import ctypes
import errno
import os

import pytest

from dray.engine import security
from dray.engine.spec import machine as machines
from dray.linux import libc, seccomp
from dray.linux.seccomp.numbers import table

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or os.uname().machine != "x86_64", reason="needs root; raw call numbers of x86_64"
)
AF_UNIX, AF_ALG, AF_VSOCK = 1, 38, 40


def call(name, *args, caps=(), number=None):
    """Make one raw system call in a child under the default profile; return its errno."""
    machine = machines.read(1)
    profile = security.default_seccomp(
        (*security.defaults()["capabilities"], *caps), machine.architecture, machine.kernel
    )
    code, flags = seccomp.program(profile), seccomp.filter_flags(profile)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    number = table("x86_64")[name] if number is None else number
    pid = os.fork()
    if pid == 0:
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.install(code, flags=flags)
        result = syscall(ctypes.c_long(number), *[ctypes.c_ulong(arg) for arg in args])
        os._exit(ctypes.get_errno() if result < 0 else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("family", "refused"),
    [(AF_UNIX, False), (AF_ALG, True), (AF_VSOCK, True), (AF_ALG | 1 << 32, True), (AF_VSOCK | 1 << 63, True)],
)
def test_socket_families(family, refused):
    # The kernel reads 32 bits of a family: bits above them must not carry a refused one past `greater than 40`.
    found = call("socket", family, 5, 0)
    assert (found == errno.EPERM) is refused


@pytest.mark.parametrize(
    ("name", "args", "caps", "expected"),
    [
        ("getppid", (), (), 0),
        ("mount", (0, 0, 0, 0, 0), (), errno.EPERM),
        ("bpf", (99, 0, 0), (), errno.EPERM),
        ("io_uring_setup", (0, 0), (), errno.EPERM),
        ("keyctl", (0,), (), errno.EPERM),
        ("userfaultfd", (0,), (), errno.EPERM),
        ("personality", (0xFFFFFFFF,), (), 0),
        ("personality", (0x0400000,), (), errno.EPERM),
        ("unshare", (0x10000000,), (), errno.EPERM),
        ("clone3", (0, 0), (), errno.ENOSYS),
        ("clone3", (0, 0), ("CAP_SYS_ADMIN",), errno.EINVAL),
        ("clone", (0x10000000, 0, 0, 0, 0), (), errno.EPERM),
    ],
)
def test_calls(name, args, caps, expected):
    assert call(name, *args, caps=caps) == expected


def test_calls_younger_than_the_profile_do_not_exist():
    assert call("", number=4000) == errno.ENOSYS
