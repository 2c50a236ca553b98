"""An external OCI runtime (runc, crun, runsc, …) by its command line.

The caller becomes a subreaper, so that init, whose parent is the runtime's short-lived command, becomes its child
and can be waited for. The root file system is mounted in a mount namespace of the caller's own, made once
(recursively slave: the host's later mounts still arrive, ours never leave).

    <bundle>/runtime/        0700, made by create, removed by delete
        config.json          the spec with absolute root and namespaces by path: the bundle handed to the runtime
        log.json             the runtime's log of the last verb
        pid, exec.pid        pid files
        console.sock         receives a pty's master (runc's "console socket": one message with SCM_RIGHTS)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal as signals
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dray.base.errors import Conflict, Internal, NotFound, StartError
from dray.base.files import remove_tree
from dray.linux import cgroups, libc
from dray.runtime import operations, state
from dray.runtime.console import set_size
from dray.runtime.model import CreateRequest, ExecRequest, Started, Stdio
from dray.runtime.served import attachable
from dray.runtime.stage import Stage

_CONSOLE_PATIENCE = 10.0  # seconds for a runtime that has already exited with success to have sent the master


@dataclass(frozen=True, slots=True)
class _Known:
    directory: Path
    root: str
    mounted: bool
    cgroups_path: str


class ExternalRuntime:
    """The `Runtime` protocol by a program.

    binary: the program, a path or a name in PATH
    args: its own global arguments, before the verb
    state_root: its `--root`; containers of one `ExternalRuntime` are the caller's, the files are the program's
    """

    def __init__(self, binary: str, args: Sequence[str] = (), *, state_root: Path) -> None:
        self._binary = binary
        self._args = tuple(args)
        self._root = state_root
        self._own_mounts = False
        self._containers: dict[str, _Known] = {}

    def create(self, request: CreateRequest) -> Started:
        """See `Runtime.create`."""
        state.check_id(request.id)
        if request.id in self._containers:
            raise Conflict(f"container with id exists: {request.id}")
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        directory = Path(request.bundle) / "runtime"
        spec = request.document
        root = os.path.normpath(os.path.join(request.bundle, (spec.get("root") or {}).get("path") or ""))
        with contextlib.ExitStack() as undo:
            directory.mkdir(mode=0o700, exist_ok=True)
            undo.callback(remove_tree, directory)
            if request.rootfs:
                self._mount_root(root, request)
                undo.callback(_unmount, root)
            config = external_spec(spec, root, request.namespace_fds)
            config["process"] = _sized(config.get("process") or {}, request.console_size)
            (directory / "config.json").write_text(json.dumps(config))
            terminal = bool((spec.get("process") or {}).get("terminal"))
            started = self._launch(
                directory,
                ["create", "--bundle", str(directory)],
                request.id,
                request.stdio,
                "pid",
                terminal=terminal,
            )
            undo.pop_all()
        if started.console is not None and request.console_size is not None:
            set_size(started.console, request.console_size)
        cgroups_path = (spec.get("linux") or {}).get("cgroupsPath") or ""
        self._containers[request.id] = _Known(directory, root, bool(request.rootfs), cgroups_path)
        return started

    def start(self, id: str) -> None:
        """See `Runtime.start`."""
        self._verb(id, "start", id, start=True)

    def exec(self, request: ExecRequest) -> Started:
        """See `Runtime.exec`; the seccomp filter is the container's, which the program knows."""
        known = self._find(request.id)
        terminal = bool(request.process.get("terminal"))
        process = os.memfd_create("process.json", os.MFD_CLOEXEC)
        try:
            os.write(process, json.dumps(_sized(request.process, request.console_size)).encode())
            arguments = ["exec", "--detach", "--process", f"/proc/{os.getpid()}/fd/{process}"]
            started = self._launch(
                known.directory, arguments, request.id, request.stdio, "exec.pid", terminal=terminal
            )  # fmt: skip
        finally:
            os.close(process)
        if started.console is not None and request.console_size is not None:
            set_size(started.console, request.console_size)
        return started

    def kill(self, id: str, signal: int, *, all_processes: bool = False) -> None:
        """See `Runtime.kill`."""
        if all_processes:
            known = self._find(id)
            cgroup = cgroups.load(known.cgroups_path, id)
            if signal == signals.SIGKILL:
                cgroup.kill()
            else:
                for pid in cgroup.pids():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal)
            return
        self._verb(id, "kill", id, str(int(signal)))

    def pause(self, id: str) -> None:
        """See `Runtime.pause`."""
        self._verb(id, "pause", id)

    def resume(self, id: str) -> None:
        """See `Runtime.resume`."""
        self._verb(id, "resume", id)

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """See `Runtime.update`."""
        known = self._find(id)
        path = known.directory / "resources.json"
        path.write_text(json.dumps(resources))
        try:
            self._verb(id, "update", "--resources", str(path), id)
        finally:
            path.unlink()

    def pids(self, id: str) -> list[int]:
        """See `Runtime.pids`."""
        return [int(pid) for pid in json.loads(self._verb(id, "ps", "--format", "json", id) or "[]") or ()]

    def oom_kills(self, id: str) -> int:
        """See `Runtime.oom_kills`."""
        return cgroups.load(self._find(id).cgroups_path, id).oom_kills()

    def delete(self, id: str, *, force: bool = False) -> None:
        """See `Runtime.delete`."""
        known = self._find(id)
        self._verb(id, "delete", *(["--force"] if force else []), id)
        if known.mounted:
            _unmount(known.root)
        remove_tree(known.directory)
        del self._containers[id]

    def _find(self, id: str) -> _Known:
        known = self._containers.get(id)
        if known is None:
            raise NotFound(f"container {id} does not exist")
        return known

    def _mount_root(self, root: str, request: CreateRequest) -> None:
        try:
            if not self._own_mounts:
                libc.unshare(libc.CLONE_NEWNS)
                self._own_mounts = True
                operations.Propagate(libc.MS_SLAVE | libc.MS_REC).execute(_no_stage())
            os.makedirs(root, exist_ok=True)
            stage = _no_stage()
            with attachable(request.rootfs) as layers:
                operations.MountRoot(root, layers).execute(stage)
            os.close(stage.root)
        except OSError as error:
            raise Internal(f"root file system of {request.id}: {error}") from error

    def _launch(
        self, directory: Path, arguments: list[str], id: str, stdio: Stdio, pid_file: str, *, terminal: bool
    ) -> Started:
        """Run a verb that leaves a process behind, and return it."""
        pid_path = directory / pid_file
        pid_path.unlink(missing_ok=True)
        arguments = [*arguments, "--pid-file", str(pid_path)]
        with contextlib.ExitStack() as scope:
            listener = None
            if terminal:
                listener = scope.enter_context(_listen(directory))
                fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                scope.callback(os.close, fd)
                scope.callback((directory / "console.sock").unlink)
                # An address holds 107 bytes: reach the directory by a descriptor of ours.
                arguments += ["--console-socket", f"/proc/{os.getpid()}/fd/{fd}/console.sock"]
                stdio = Stdio()
            self._run(directory, [*arguments, id], stdio, start=True)
            console = None if listener is None else _receive_console(listener)
        pid = int(pid_path.read_text())
        pid_path.unlink()
        return Started(pid, console)

    def _verb(self, id: str, *arguments: str, start: bool = False) -> str:
        """Run a verb; its standard output."""
        known = self._find(id)
        output = os.memfd_create("output", os.MFD_CLOEXEC)
        try:
            self._run(known.directory, list(arguments), Stdio(-1, output, output), start=start)
            with open(output, "rb", closefd=False) as file:
                file.seek(0)
                return file.read().decode(errors="replace")
        finally:
            os.close(output)

    def _run(self, directory: Path, arguments: list[str], stdio: Stdio, *, start: bool) -> None:
        """Run the program to its end; its logged error becomes StartError (`start`) or Internal."""
        log = directory / "log.json"
        log.unlink(missing_ok=True)
        argv = [self._binary, *self._args, "--root", str(self._root)]
        argv += ["--log", str(log), "--log-format", "json", *arguments]
        actions: list[Any] = []
        for number, fd in enumerate((stdio.stdin, stdio.stdout, stdio.stderr)):
            if fd < 0:
                actions.append((os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0))
            else:
                actions.append((os.POSIX_SPAWN_DUP2, fd, number))
        try:
            pid = os.posix_spawnp(
                self._binary,
                argv,
                os.environ,
                file_actions=actions,
                setsigmask=(),
                setsigdef=(signals.SIGPIPE, signals.SIGXFSZ),
            )
        except OSError as error:
            raise StartError(f"runtime {self._binary}: {error.strerror}", 128) from error
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            return
        text = log.read_text(errors="replace") if log.exists() else ""
        message = (
            in_clients_words(logged_error(text)) or f"{self._binary} {arguments[0]} failed and logged no reason"
        )
        if start:
            raise StartError(message, exit_code_of(message))
        if "does not exist" in message:
            raise NotFound(message)
        raise Internal(message)


def _sized(process: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """Return the process with its terminal's size, for programs that look at it (others get it afterwards)."""
    return process if size is None else {**process, "consoleSize": {"height": size[0], "width": size[1]}}


def _no_stage() -> Stage:
    return Stage(cgroup_paths={}, enter_cgroup=lambda: None)


def _unmount(root: str) -> None:
    with contextlib.suppress(OSError):  # not mounted any more
        libc.umount2(root, libc.MNT_DETACH)


def _listen(directory: Path) -> socket.socket:
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"/proc/self/fd/{fd}/console.sock")
        listener.listen(1)
        listener.settimeout(_CONSOLE_PATIENCE)
        return listener
    finally:
        os.close(fd)


def _receive_console(listener: socket.socket) -> int:
    try:
        connection, _ = listener.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, 4096, 1, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError:
        fds = []
    if not fds:
        raise Internal("the runtime sent no terminal")
    return fds[0]


def external_spec(spec: dict[str, Any], root: str, descriptors: Any) -> dict[str, Any]:
    """Return the spec for another program: absolute root, namespaces given by descriptor named by path."""
    linux = dict(spec.get("linux") or {})
    entries = [dict(entry) for entry in linux.get("namespaces") or () if entry.get("type") not in descriptors]
    entries += [{"type": kind, "path": f"/proc/{os.getpid()}/fd/{fd}"} for kind, fd in descriptors.items()]
    linux["namespaces"] = entries
    # Older programs refuse a newer version as unknown, and each ignores fields that it does not know.
    return {**spec, "ociVersion": "1.0.2", "root": {**(spec.get("root") or {}), "path": root}, "linux": linux}


def in_clients_words(message: str) -> str:
    """Return a runtime's message as runc would put it: Docker clients tell 126 and 127 by its words."""
    message = re.sub(
        r"executable file `([^`]*)` not found in \$PATH.*",
        r'exec: "\1": executable file not found in $PATH',
        message,
    )
    for words in ("No such file or directory", "Permission denied", "Is a directory"):
        message = message.replace(words, words.lower())
    return message


def logged_error(text: str) -> str:
    """Return the last error of a runtime's JSON log, "" without one."""
    message = ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, AttributeError):
            entry = json.loads(line)
            if entry.get("level") in ("error", "fatal", "panic"):
                message = str(entry.get("msg") or "")
    return message


def exit_code_of(message: str) -> int:
    """Return what `docker run` ends with for a runtime's message (moby daemon/errors.go: the texts are the API)."""
    lowered = message.lower()
    if any(t in lowered for t in ("executable file not found", "no such file or directory", "system cannot find")):
        return 127
    if any(t in lowered for t in ("permission denied", "not a directory", "is a directory")):
        return 126
    return 128
