"""The init of `--init`: a static ELF of less than a kilobyte, assembled here, shown as /sbin/docker-init.

    docker-init -- PROGRAM [ARGUMENT…]

It forks; the child becomes the leader of a process group, the terminal's foreground one where its standard input is
a terminal, and executes PROGRAM, searched along PATH. The parent, process 1 of the container, passes every signal on
to it, reaps whatever ends, and ends with the child: with its exit code, 128 + the signal that killed it, 127 for a
PROGRAM that is not there, 126 for one that cannot be executed.

All signals are blocked in the parent and taken with rt_sigtimedwait(2): a blocked signal reaches even a process 1
without a handler for it (pid_namespaces(7)).

The stack's frame, at V0:

    0   the mask of all signals     8   the mask of before      16  the status of wait4
    24  the child's own pid         32  exit code of a failure  64  a path of the search, in 512 KiB
"""

from __future__ import annotations

import os

from dray.base import assembler
from dray.base.assembler import A0, A1, A2, A3, MACHINES, RESULT, V0, V1, V2, V3, V4, V5, Assembler
from dray.base.files import write_atomic

_SIGCHLD, _SIG_BLOCK, _SIG_SETMASK, _WNOHANG = 17, 0, 2, 1
_TIOCSPGRP = 0x5410
_ENOENT, _ENOTDIR, _EACCES = 2, 20, 13
_FRAME = 1 << 19  # a directory of PATH and a name, each at most MAX_ARG_STRLEN (128 KiB)
_ALL, _OLD, _STATUS, _PID, _CODE, _BUFFER = 0, 8, 16, 24, 32, 64
_MESSAGE = b"docker-init: cannot execute "


def program(architecture: assembler.Architecture) -> bytes:
    """Return the executable for `amd64` or `arm64`."""
    asm = Assembler(architecture)
    _begin(asm)
    _parent(asm)
    _child(asm)
    _search(asm)
    _fail(asm)
    return assembler.executable(architecture, asm.program())


def install(path: str) -> str:
    """Write this machine's init to `path`, unless it is there; return the path, "" where there is none for the machine.

    Not for a path below a noexec mount, as /run often is: a bind of it could not be executed either.
    """
    machine = os.uname().machine
    found: dict[str, assembler.Architecture] = {"x86_64": "amd64", "aarch64": "arm64"}
    if machine not in found:
        return ""
    wanted = program(found[machine])
    try:
        with open(path, "rb") as file:
            if file.read() == wanted and os.fstat(file.fileno()).st_mode & 0o777 == 0o555:
                return path
    except FileNotFoundError:
        pass
    write_atomic(path, wanted, mode=0o555, durable=False)
    return path


def _begin(asm: Assembler) -> None:
    """V1 = &argv[2], V2 = envp; all signals blocked; fork."""
    asm.stack(V3)
    asm.load(V4, V3, 0)  # argc
    asm.move(V1, V3)
    asm.add(V1, 24)
    asm.move(V2, V3)
    asm.add_words(V2, V4)
    asm.add(V2, 16)
    asm.frame(_FRAME)
    asm.stack(V0)
    asm.set(V3, -1)
    asm.store(V3, V0, _ALL)
    asm.set(V3, 127)
    asm.store(V3, V0, _CODE)
    asm.jump_if(V4, "lt", 3, "give up")
    asm.set(A0, _SIG_BLOCK)
    asm.move(A1, V0)
    asm.move(A2, V0)
    asm.add(A2, _OLD)
    asm.set(A3, 8)
    asm.call("rt_sigprocmask")
    asm.set(A0, _SIGCHLD)
    for argument in (A1, A2, A3):
        asm.set(argument, 0)
    asm.call("clone")
    asm.move(V3, RESULT)
    asm.jump_if(V3, "eq", 0, "child")
    asm.jump_if(V3, "lt", 0, "fail")


def _parent(asm: Assembler) -> None:
    """V3 is the child: wait for signals, pass them on, reap."""
    asm.label("wait")
    asm.move(A0, V0)
    asm.set(A1, 0)
    asm.set(A2, 0)
    asm.set(A3, 8)
    asm.call("rt_sigtimedwait")
    asm.move(V4, RESULT)
    asm.jump_if(V4, "lt", 1, "wait")  # EINTR, after a stop
    asm.jump_if(V4, "eq", _SIGCHLD, "reap")
    asm.move(A0, V3)
    asm.move(A1, V4)
    asm.call("kill")
    asm.jump("wait")
    asm.label("reap")
    asm.set(A0, -1)
    asm.move(A1, V0)
    asm.add(A1, _STATUS)
    asm.set(A2, _WNOHANG)
    asm.set(A3, 0)
    asm.call("wait4")
    asm.move(V4, RESULT)
    asm.jump_if(V4, "lt", 1, "wait")
    asm.jump_if_same(V4, V3, "ended")
    asm.jump("reap")
    asm.label("ended")  # status: the signal and bit 7 for a core in the low byte, the exit code above it
    asm.load_byte(V4, V0, _STATUS)
    asm.load_byte(V5, V0, _STATUS + 1)
    asm.jump_if(V4, "eq", 0, "exit")
    asm.move(V5, V4)
    asm.jump_if(V5, "ge", 128, "exit")
    asm.add(V5, 128)
    asm.label("exit")
    asm.move(A0, V5)
    asm.call("exit_group")


def _child(asm: Assembler) -> None:
    """Take the terminal, restore the signals, execute what is a path."""
    asm.label("child")
    asm.call("getpid")
    asm.move(V4, RESULT)
    asm.store(V4, V0, _PID)
    asm.set(A0, 0)
    asm.set(A1, 0)
    asm.call("setpgid")
    asm.set(A0, 0)
    asm.set(A1, _TIOCSPGRP)
    asm.move(A2, V0)
    asm.add(A2, _PID)
    asm.call("ioctl")  # while SIGTTOU is blocked
    asm.set(A0, _SIG_SETMASK)
    asm.move(A1, V0)
    asm.add(A1, _OLD)
    asm.set(A2, 0)
    asm.set(A3, 8)
    asm.call("rt_sigprocmask")
    asm.load(V4, V1, 0)  # the program's name
    asm.move(V5, V4)
    asm.label("slash")
    asm.load_byte(V3, V5)
    asm.jump_if(V3, "eq", 0, "path")
    asm.add(V5, 1)
    asm.jump_if(V3, "ne", ord("/"), "slash")
    asm.move(A0, V4)
    asm.move(A1, V1)
    asm.move(A2, V2)
    asm.call("execve")
    asm.move(V3, RESULT)
    asm.jump_if(V3, "eq", -_ENOENT, "fail")
    asm.jump("refused")


def _search(asm: Assembler) -> None:
    """Try NAME in each directory of PATH; V2 walks the environment while PATH is looked for, V5 writes."""
    asm.label("path")
    asm.move(V3, V2)
    asm.label("variable")
    asm.load(V5, V3, 0)
    asm.jump_if(V5, "eq", 0, "fail")
    asm.add(V3, 8)
    for place, letter in enumerate(b"PATH="):
        asm.load_byte(A3, V5, place)
        asm.jump_if(A3, "ne", letter, "variable")
    asm.move(V3, V5)
    asm.add(V3, 5)  # V3: where we are in PATH
    asm.label("directory")
    asm.move(V5, V0)
    asm.add(V5, _BUFFER)
    asm.label("copy directory")
    asm.load_byte(A3, V3)
    asm.jump_if(A3, "eq", 0, "copied")
    asm.jump_if(A3, "eq", ord(":"), "copied")
    asm.store_byte(A3, V5)
    asm.add(V5, 1)
    asm.add(V3, 1)
    asm.jump("copy directory")
    asm.label("copied")
    asm.move(A2, V0)
    asm.add(A2, _BUFFER)
    asm.set(A3, ord("."))
    asm.store_byte(A3, V5)  # an empty entry is the working directory
    asm.jump_if_same(A2, V5, "dot")
    asm.jump("named")
    asm.label("dot")
    asm.add(V5, 1)
    asm.label("named")
    asm.set(A3, ord("/"))
    asm.store_byte(A3, V5)
    asm.add(V5, 1)
    asm.load(A2, V1, 0)
    asm.label("copy name")
    asm.load_byte(A3, A2)
    asm.store_byte(A3, V5)
    asm.add(V5, 1)
    asm.add(A2, 1)
    asm.jump_if(A3, "ne", 0, "copy name")
    asm.move(A0, V0)
    asm.add(A0, _BUFFER)
    asm.move(A1, V1)
    asm.move(A2, V2)
    asm.call("execve")
    asm.move(V5, RESULT)
    asm.jump_if(V5, "eq", -_ENOENT, "next")
    asm.jump_if(V5, "eq", -_ENOTDIR, "next")
    asm.set(A3, 126)
    asm.store(A3, V0, _CODE)
    asm.jump_if(V5, "ne", -_EACCES, "fail")
    asm.label("next")
    asm.load_byte(A3, V3)
    asm.jump_if(A3, "eq", 0, "fail")
    asm.add(V3, 1)
    asm.jump("directory")


def _fail(asm: Assembler) -> None:
    """Say what cannot be executed, and exit with the code in the frame."""
    asm.label("refused")
    asm.set(A3, 126)
    asm.store(A3, V0, _CODE)
    asm.label("fail")
    asm.set(A0, 2)
    asm.address(A1, "message")
    asm.set(A2, len(_MESSAGE))
    asm.call("write")
    asm.load(V4, V1, 0)
    asm.jump_if(V4, "eq", 0, "give up")
    asm.move(V5, V4)
    asm.label("measure")
    asm.load_byte(A3, V5)
    asm.jump_if(A3, "eq", 0, "measured")
    asm.add(V5, 1)
    asm.jump("measure")
    asm.label("measured")
    asm.subtract(V5, V4)
    asm.set(A0, 2)
    asm.move(A1, V4)
    asm.move(A2, V5)
    asm.call("write")
    asm.label("give up")
    asm.set(A0, 2)
    asm.address(A1, "newline")
    asm.set(A2, 1)
    asm.call("write")
    asm.load(V5, V0, _CODE)
    asm.jump("exit")
    asm.label("message")
    asm.data(_MESSAGE)
    asm.label("newline")
    asm.data(b"\n")


__all__ = ["MACHINES", "install", "program"]
