"""Filters in the real kernel, on a forked child."""

import ctypes
import errno
import os
import signal

import pytest

from dray.linux import libc, seccomp

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="raw call numbers of x86_64")
syscall = ctypes.CDLL(None, use_errno=True).syscall

NR = {
    "getpid": 39,
    "socket": 41,
    "mkdir": 83,
    "personality": 135,
    "listns": 470,
    "getppid": 110,
    "kexec_load": 246,
}


def outcomes(profile, calls, *, flags=None):
    """Make the calls in a filtered child; return their errnos (0: success) or the signal that killed it."""
    code = seccomp.program(profile)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
            seccomp.install(code, flags=seccomp.filter_flags(profile) if flags is None else flags)
            for name, *args in calls:
                ctypes.set_errno(0)
                result = syscall(ctypes.c_long(NR[name]), *[ctypes.c_ulong(a) for a in args])
                os.write(writer, bytes([ctypes.get_errno() if result < 0 else 0]))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answers = list(file.read())
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else answers


def all_but(*rules):
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": list(rules)}


def test_errno_by_argument():
    refuse = {
        "names": ["socket"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": errno.EAFNOSUPPORT,
        "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_EQ"}],
    }
    assert outcomes(all_but(refuse), [("socket", 38, 5, 0), ("socket", 1, 1, 0)]) == [errno.EAFNOSUPPORT, 0]


def test_kill_process():
    refuse = {"names": ["getppid"], "action": "SCMP_ACT_KILL_PROCESS"}
    assert outcomes(all_but(refuse), [("getppid",)]) == -signal.SIGSYS


def test_notify_hands_out_a_listener():
    profile = all_but({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"})
    pid = os.fork()
    if pid == 0:
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        listener = seccomp.install(seccomp.program(profile), flags=seccomp.filter_flags(profile))
        kind = os.readlink(f"/proc/self/fd/{listener}")
        os._exit(0 if "seccomp notify" in kind else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_filter_needs_no_new_privs_or_the_capability():
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(65534)
            seccomp.install(seccomp.program(all_but()))
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
