"""Processes: identity across pid reuse, what a fork must clean up before it runs another program.

A process is known by pid and start time (field 22 of /proc/<pid>/stat): the pair is never reused.
"""

from __future__ import annotations

# signal.getsignal makes an enum member of every answer: half a millisecond for all signals.
import _signal  # type: ignore[import-not-found]
import os
import signal

from dray.linux import libc

# Python ignores SIGPIPE and SIGXFSZ; an ignored signal stays ignored across execve.
_CATCHABLE = [number for number in range(1, 65) if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33)]
_THREAD_LIBRARYS = (32, 33)


def start_time(pid: int) -> int:
    """Return the process's start time in clock ticks since boot; ProcessLookupError when there is none."""
    return int(stat_fields(pid)[19])


def state(pid: int) -> str:
    """Return the state letter of proc(5) (`R`, `S`, `Z`…); ProcessLookupError when there is no such process."""
    return stat_fields(pid)[0]


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the third (state) on."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(3, "no such process", str(pid)) from None
    try:
        # The second field is the program's name in parentheses and may itself hold parentheses and spaces.
        return os.read(fd, 1024).decode(errors="replace").rpartition(")")[2].split()
    finally:
        os.close(fd)


def reset_signals() -> None:
    """Unblock every signal and stop ignoring any: what an ignored signal is stays across execve."""
    for number in _CATCHABLE:
        if _signal.getsignal(number) == _signal.SIG_IGN:  # handlers do not outlive execve
            signal.signal(number, signal.SIG_DFL)
    for number in _THREAD_LIBRARYS:
        libc.reset_signal(number)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def forget_wakeups() -> None:
    """Write no byte for a signal any more. The loop that was forked from has Python write to a pipe, and whatever
    is opened next may have the pipe's number: a socket pair with a stray byte in it ends with ECONNRESET."""
    _signal.set_wakeup_fd(-1)


def close_others(keep: set[int]) -> None:
    """Close every descriptor from 3 on but those of `keep`."""
    first = 3
    for fd in sorted(keep):
        if fd >= first:
            if fd > first:
                libc.close_range(first, fd - 1)
            first = fd + 1
    libc.close_range(first)


def close_on_exec(first: int = 3) -> None:
    """Mark every descriptor from `first` on close-on-exec: the next program has those before it."""
    libc.close_range(first, flags=libc.CLOSE_RANGE_CLOEXEC)


def reap(pid: int) -> int:
    """Wait for a child; its exit code, 128 + signal for a killed one."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
