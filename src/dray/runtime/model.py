"""What a runtime is asked, and the protocol that every runtime speaks.

Two implementations: `runtime.lifecycle.BuiltinRuntime` (ours) and `runtime.external.ExternalRuntime` (runc, crun,
runsc by their command line). Both are called from the shim, which is single-threaded, blocking, the parent or
subreaper of everything in the container, and the only one that reaps. A runtime therefore returns pids and
never waits for a container's process; helpers that it forks itself it reaps itself, by pid.

The sequence of a container is create → start → (exec | pause | resume | update | kill)* → delete. After
`create` the container's init stands in its finished environment, one step before `execve`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct, field

from dray.runtime import document
from dray.runtime.document import Document


class Mount(Struct, frozen=True):
    """One mount(8) line: how a snapshot becomes a directory, or an entry of the OCI spec.

    `options` are fstab words (`ro`, `rbind`, `lowerdir=…`). An overlay whose options exceed a page is mounted with
    fsconfig(2), one `lowerdir+` a layer. The type `fuse-overlayfs` has an overlay's options (see `served`).
    """

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""


class Stdio(Struct, frozen=True):
    """Descriptors that become the process's 0, 1, 2; -1 is /dev/null. With a terminal all three are -1."""

    stdin: int = -1
    stdout: int = -1
    stderr: int = -1


class CreateRequest(Struct, frozen=True):
    """A container to make.

    id: the container's id; names its cgroup leaf and its state directory
    bundle: directory that holds config.json (OCI runtime-spec 1.x)
    spec: config.json, parsed (plain dicts; the runtime never rewrites it) or as text; `document` parses it
    rootfs: mounts that make the root file system; done inside the container's own mount namespace, so that the
        host sees none of them. Empty: spec.root.path is already a root file system.
    stdio: the process's descriptors
    namespace_fds: namespaces to join by descriptor instead of by path (`{"network": fd}`); wins over the spec
    console_size: (rows, columns) of a new terminal
    preserve_fds: descriptors 3, 4, … of the caller that the program keeps, besides its stdio
    new_keyring: join a new session keyring; False: stay in the caller's
    """

    id: str
    bundle: Path
    spec: Document
    rootfs: Sequence[Mount] = ()
    stdio: Stdio = Stdio()
    namespace_fds: Mapping[str, int] = field(default_factory=dict)
    console_size: tuple[int, int] | None = None
    preserve_fds: int = 0
    new_keyring: bool = True

    @property
    def document(self) -> dict[str, Any]:
        """The spec, parsed."""
        return document.parsed(self.spec)


class ExecRequest(Struct, frozen=True):
    """A further process in a running container.

    process: the OCI `process` object (args, env, cwd, user, capabilities, terminal, noNewPrivileges, …)
    seccomp: the container's `linux.seccomp`, parsed or as text (None: unconfined)
    preserve_fds: see `CreateRequest`
    """

    id: str
    process: dict[str, Any]
    seccomp: Document | None = None
    stdio: Stdio = Stdio()
    console_size: tuple[int, int] | None = None
    preserve_fds: int = 0


class Started(Struct, frozen=True):
    """A process: its pid in the caller's pid namespace and, with a terminal, the pty's master descriptor
    (owned by the caller from here on)."""

    pid: int
    console: int | None = None


class Runtime(Protocol):
    """Verbs raise `base.errors.StartError` when the program cannot be run (127, 126, 128), `InvalidParameter`
    for a spec that makes no sense, `Unsupported` naming the option for what this kernel lacks, `NotFound` for a
    container that does not exist, `Internal` (with syscall and path) for the rest. A verb that fails leaves
    nothing behind."""

    def create(self, request: CreateRequest) -> Started:
        """Make namespaces, cgroup and root file system; return init's pid. Init waits for `start`."""

    def start(self, id: str) -> None:
        """Let init `execve` its program; returns when the program runs, StartError if execve failed."""

    def exec(self, request: ExecRequest) -> Started:
        """Run a process beside init; returns when it runs, StartError if execve failed."""

    def kill(self, id: str, signal: int, *, all_processes: bool = False) -> None:
        """Send a signal to init, or to every process of the container (SIGKILL: race-free, see cgroups)."""

    def pause(self, id: str) -> None:
        """Freeze every process (freezer)."""

    def resume(self, id: str) -> None:
        """Undo `pause`."""

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """Apply an OCI `linux.resources` object to the running container."""

    def pids(self, id: str) -> list[int]:
        """Return the pids (in the caller's namespace) of every process in the container."""

    def oom_kills(self, id: str) -> int:
        """Return how often the kernel's OOM killer struck in the container; 0 where it cannot be known."""

    def delete(self, id: str, *, force: bool = False) -> None:
        """Remove cgroup and state of a container whose processes are gone (`force`: kill them first)."""


@runtime_checkable
class Restoring(Protocol):
    """What a runtime that can bring containers back has besides `Runtime`'s verbs."""

    def restore(self, request: CreateRequest, images: Path) -> Started:
        """Instead of `create` and `start`: make the container with the processes of a checkpoint, which run."""
