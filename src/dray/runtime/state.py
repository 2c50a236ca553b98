"""What a runtime remembers of a container, in memory and, for the `dray-runtime` command, on disk.

<state_dir>/<id>/            0700
    state.json               Saved, rewritten atomically
    start.sock               init listens here until it is started
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dray.base.errors import Conflict, InvalidParameter, NotFound
from dray.base.files import remove_tree, write_atomic
from dray.linux import cgroups, libc, processes
from dray.runtime.handshake import Channel

OCI_VERSION = "1.3.0"


class Saved(msgspec.Struct):
    """The part of a container's state that outlives a process.

    namespaces: the kinds in which init differs from the runtime, for exec to join
    keyring: the container has a session keyring of its own, which its execs join
    """

    id: str
    pid: int
    start_time: int
    bundle: str
    created: str
    spec: dict[str, Any]
    namespaces: list[str]
    started: bool = False
    keyring: bool = True


@dataclass(slots=True)
class Container:
    """A container that this process knows. Owns `pidfd` and `channel`."""

    saved: Saved
    pidfd: int
    cgroup: cgroups.Cgroup
    channel: Channel | None = None
    directory: Path | None = None
    paused: bool = field(default=False)

    @property
    def alive(self) -> bool:
        """Tell whether init still runs (a zombie does not)."""
        if self.pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    @property
    def status(self) -> str:
        """The status of runtime-spec's state: created, running, paused, stopped."""
        if not self.alive:
            return "stopped"
        if self.paused:
            return "paused"
        return "running" if self.saved.started else "created"

    def oci_state(self) -> dict[str, Any]:
        """Return the state object of runtime-spec."""
        return state_object(self.saved.id, self.status, self.saved.pid, self.saved.bundle, self.saved.spec)

    def require_alive(self) -> None:
        """Raise Conflict when init has ended."""
        if not self.alive:
            raise Conflict(f"container {self.saved.id} is not running")

    def save(self) -> None:
        """Write state.json, where there is a directory for it."""
        if self.directory is not None:
            write_atomic(self.directory / "state.json", msgspec.json.encode(self.saved), durable=False)

    def close(self) -> None:
        """Close what is held open."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if self.channel is not None:
            self.channel.close()
            self.channel = None


def state_object(id: str, status: str, pid: int, bundle: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the state object of runtime-spec ("State")."""
    state = {
        "ociVersion": OCI_VERSION,
        "id": id,
        "status": status,
        "pid": 0 if status == "stopped" else pid,
        "bundle": bundle,
    }
    if spec.get("annotations"):
        state["annotations"] = spec["annotations"]
    return state


def check_id(id: str) -> None:
    """Raise InvalidParameter unless the id can name a directory."""
    if not id or len(id) > 1024 or id in (".", "..") or not all(c.isalnum() or c in "_+-." for c in id):
        raise InvalidParameter(f"invalid container id {id!r}: use letters, digits, _ + - .")


def load(state_dir: Path, id: str) -> Container:
    """Return a container from its directory; NotFound when there is none."""
    check_id(id)
    directory = state_dir / id
    try:
        saved = msgspec.json.decode((directory / "state.json").read_bytes(), type=Saved)
    except FileNotFoundError:
        raise NotFound(f"container {id} does not exist") from None
    cgroup = cgroups.load((saved.spec.get("linux") or {}).get("cgroupsPath") or "", id)
    container = Container(saved, open_process(saved.pid, saved.start_time), cgroup, directory=directory)
    container.paused = container.alive and _frozen(cgroup)
    return container


def open_process(pid: int, start_time: int) -> int:
    """Return a pidfd of that very process, -1 when it is gone."""
    try:
        pidfd = libc.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    with contextlib.suppress(ProcessLookupError):
        if processes.start_time(pid) == start_time:
            return pidfd
    os.close(pidfd)
    return -1


def _frozen(cgroup: cgroups.Cgroup) -> bool:
    for controller, name, word in (("freezer", "freezer.state", "FROZEN"), ("", "cgroup.freeze", "1")):
        directory = cgroup.paths.get(controller)
        if directory is not None:
            with contextlib.suppress(OSError):
                return Path(directory, name).read_text().strip() == word
    return False


def make_directory(state_dir: Path, id: str) -> Path:
    """Make the directory of a new container; Conflict when the id is taken."""
    state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    directory = state_dir / id
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise Conflict(f"container with id exists: {id}") from None
    return directory


def remove_directory(directory: Path | None) -> None:
    """Remove a container's directory."""
    if directory is not None:
        remove_tree(directory)


def listen(directory: Path) -> socket.socket:
    """Bind the socket on which init waits to be started. Its path may exceed what an address holds: go by /proc."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(f"/proc/self/fd/{fd}/start.sock")
        listener.listen(1)
        return listener
    finally:
        os.close(fd)


def connect(directory: Path) -> Channel:
    """Reach an init that waits; Conflict when it does not (it was started already)."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(f"/proc/self/fd/{fd}/start.sock")
    except OSError as error:
        connection.close()
        raise Conflict(f"cannot start a container that has run: {error}") from error
    finally:
        os.close(fd)
    return Channel(connection)
