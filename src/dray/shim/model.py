"""The messages between the daemon, the zygote and the shims.

Every message is one SOCK_SEQPACKET datagram of JSON (see `wire.rpc`), with descriptors beside it (SCM_RIGHTS).
These structs are the vocabulary; `shim.tasks` is the daemon's side, `shim.zygote` and `shim.shim` the other.

On disk, `run_dir` (volatile: /run/dray/tasks/<id>, gone after a reboot):

    config.json   the OCI spec (the bundle)
    task.json     the TaskCreate message: what a restarted daemon needs to know
    shim.sock     the shim's listening socket, 0600, for a daemon that comes back
    shim.pid      the shim's pid
    shim.log      tracebacks of the shim, if there ever were any

and `state_dir` (durable: <data-root>/containers/<id>):

    exit.json     ExitStatus of the last run, fsynced before anybody is told
    <id>-json.log the log, written by the shim
"""

from __future__ import annotations

from typing import Any

import msgspec


class ExitStatus(msgspec.Struct, frozen=True):
    """How a process ended. `exit_code` is 128 + signal for a killed process; `finished_at` is unix nanoseconds."""

    exit_code: int
    finished_at: int
    oom_killed: bool = False
    pid: int = 0
    error: str = ""


class MountSpec(msgspec.Struct, frozen=True):
    """`runtime.model.Mount` as a message."""

    type: str
    source: str
    options: list[str] = []
    target: str = ""


class LogSpec(msgspec.Struct, frozen=True):
    """Which logging driver the shim writes with: `json-file`, `local` or `none`, its options (`max-size`,
    `max-file`, `compress`, `mode`…), the file's path, and the attributes (labels, tag) put on every record."""

    driver: str = "json-file"
    path: str = ""
    options: dict[str, str] = {}
    attributes: dict[str, str] = {}


class TaskCreate(msgspec.Struct, frozen=True):
    """Everything a shim needs to run a container.

    Descriptors beside the message: those of `fds`, in its order, e.g. ["network", "hold", "hold", "log"…]:
    `network`, `user` namespaces to join; `hold` a descriptor that is only kept open while the container lives (a port
    reservation; a network namespace).
    owner: who the container's root is on the host (uid, gid): in a user namespace another than (0, 0)
    runtime: "" for the built-in one, else the path of an OCI runtime; runtime_args its global arguments.
    restore: a checkpoint's folder, to go on from instead of starting the program; "" for none
    """

    id: str
    run_dir: str
    state_dir: str
    rootfs: list[MountSpec]
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    console_size: tuple[int, int] | None = None
    log: LogSpec = LogSpec()
    owner: tuple[int, int] = (0, 0)
    runtime: str = ""
    runtime_args: list[str] = []
    fds: list[str] = []
    start: bool = True
    # Forward these published ports in user space (IPv6 host address, container without IPv6):
    # (protocol, index into fds of the listening/bound socket, container address, container port).
    forwards: list[tuple[str, int, str, int]] = []
    restore: str = ""


class AttachRequest(msgspec.Struct, frozen=True):
    """Connect a client's socket (the descriptor beside the message) to a process's stdio.

    framed: stdout and stderr in stdcopy frames (no terminal); websocket: in RFC 6455 binary frames instead
    leftover: bytes that the client sent behind its HTTP request and the server had already read
    detach_keys: the byte sequence that detaches (read from the client's input), b"" none
    stdin: forward the client's input; the client's half-close ends the process's stdin only if `stdin_once`
    exec_id: "" for the container itself
    """

    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    framed: bool = True
    websocket: bool = False
    leftover: bytes = b""
    detach_keys: bytes = b""
    exec_id: str = ""


class ExecCreate(msgspec.Struct, frozen=True):
    """Run a further process. `process` is the OCI process object; with an `attach`, the client's socket is the
    descriptor beside the message and is connected before the process runs."""

    exec_id: str
    process: dict[str, Any]
    tty: bool = False
    console_size: tuple[int, int] | None = None
    attach: AttachRequest | None = None


class LogRequest(msgspec.Struct, frozen=True):
    """Write a container's log to a client's socket (the descriptor beside the message).

    running: the container runs; only then is `follow` obeyed, until its exit.json is in `state_dir`
    tail: the last so many records, None all; since, until: unix nanoseconds, 0 open
    framed: stdcopy frames (no terminal); chunked: as a chunked HTTP/1.1 body (the head is written already)
    """

    driver: str
    path: str
    state_dir: str
    running: bool = False
    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    timestamps: bool = False
    details: bool = False
    tail: int | None = None
    since: int = 0
    until: int = 0
    framed: bool = True
    chunked: bool = True
