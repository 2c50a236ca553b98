"""Checkpoints: a container's processes written down by criu(8), and brought back from what it wrote.

    <images>/            0700, one checkpoint
        *.img            criu's
        dray.json        Outside: what the processes had that is not theirs and must be given to them again; written
                         last, so that a folder without it is no checkpoint

What is the container's own (processes, memory, files in its tmpfs, sockets, its mounts of proc, sysfs, tmpfs…) is
criu's work. What reaches in from outside is handed over anew: its root file system, bind mounts, network namespace,
the pipes of its output, its cgroup. Connections to the outside are found closed afterwards.
"""

from __future__ import annotations

import os
import signal as signals
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from dray.base.errors import Internal, InvalidParameter, NotFound, Unsupported
from dray.base.files import sync_file, write_atomic
from dray.base.malformed import MALFORMED
from dray.linux import libc, namespaces, processes
from dray.runtime import document
from dray.runtime.hooks import hooks_of

PROGRAM = "criu"
DESCRIPTION = "dray.json"
LOG = "criu.log"
NETWORK = "network"  # the name under which criu knows the network namespace


class OutsideMount(msgspec.Struct, frozen=True):
    """A mount whose files come from outside: `mounts` of the spec has `destination`; `below` is the path of a mount
    that came with a recursive bind, "" for the bind itself."""

    key: str
    destination: str
    below: str = ""


class Outside(msgspec.Struct, frozen=True):
    """What a checkpoint has of the host; `stdio`: what init's 0, 1, 2 were, `pipe:[N]` or ""."""

    stdio: list[str]
    mounts: list[OutsideMount]
    network: bool


class MountLine(msgspec.Struct, frozen=True):
    """A line of mountinfo (proc(5))."""

    id: int
    parent: int
    point: str


def check(_arguments: dict[str, Any], _fds: list[int]) -> str:
    """Return why there can be no checkpoints on this host: in criu's words; "" when there can."""
    code, lines = _run(["check"])
    if code == 127:
        return "there is no criu in PATH: install the package criu"
    return "" if code == 0 else f"criu check says: {next((line for line in lines if line), 'nothing')}"


def write(arguments: dict[str, Any], _fds: list[int]) -> None:
    """Write a container's processes down: `dump` for a process that is asked to (`shim.zygote`).

    arguments: pid, bundle, images, leave_running
    """
    dump(
        arguments["pid"],
        Path(arguments["bundle"]),
        Path(arguments["images"]),
        leave_running=arguments["leave_running"],
    )


def dump(pid: int, bundle: Path, images: Path, *, leave_running: bool) -> None:
    """Write the processes of a running container into the folder `images`; they are killed unless `leave_running`.

    Never called by the parent of the container's processes: they end for criu when their parent has reaped them.
    Unsupported for a container that is interwoven with what is not its own, Internal with criu's reason.
    """
    spec = document.parsed((bundle / "config.json").read_bytes())
    refuse(spec)
    placed = _outside_mounts(pid, spec)
    outside = Outside(
        stdio=[_pipe(pid, number) for number in range(3)],
        mounts=[entry for entry, _ in placed],
        network=_differs("network", pid),
    )
    words = ["dump", "--tree", str(pid), "--images-dir", str(images), "--manage-cgroups=ignore"]
    words += ["--tcp-close", "--file-locks", "--link-remap"]
    if leave_running:
        words.append("--leave-running")
    for entry, point in placed:
        words += ["--external", f"mnt[{point}]:{entry.key}"]
    if outside.network:
        words += ["--external", f"net[{os.stat(f'/proc/{pid}/ns/net').st_ino}]:{NETWORK}"]
    _criu(words, bundle / LOG)
    for path in images.iterdir():
        sync_file(path)
    write_atomic(images / DESCRIPTION, msgspec.json.encode(outside))


def refuse(spec: dict[str, Any]) -> None:
    """Raise Unsupported, naming the option, for a container that criu cannot separate from what is around it."""
    linux = spec.get("linux") or {}
    kinds = {entry["type"]: entry.get("path") or "" for entry in linux.get("namespaces") or ()}
    if (spec.get("process") or {}).get("terminal"):
        raise Unsupported("checkpoint: a container with a terminal (--tty) cannot be written down")
    if "user" in kinds:
        raise Unsupported("checkpoint: not in a user namespace: run the container with --userns=host")
    for kind in ("pid", "ipc", "uts"):
        if kinds.get(kind):
            raise Unsupported(f"checkpoint: the container shares its {kind} namespace with another container")
    if "pid" not in kinds:
        raise Unsupported("checkpoint: the container shares its pid namespace with the host (--pid=host)")
    if linux.get("timeOffsets"):
        raise Unsupported("checkpoint: not with time offsets")
    if hooks_of(spec, "prestart", "createRuntime", "createContainer", "startContainer"):
        raise Unsupported("checkpoint: not with hooks that take part in the making of the container")


def _pipe(pid: int, number: int) -> str:
    try:
        target = os.readlink(f"/proc/{pid}/fd/{number}")
    except OSError:
        return ""
    return target if target.startswith("pipe:[") else ""


def _differs(kind: str, pid: int) -> bool:
    ours, theirs = (os.stat(namespaces.file(kind, one)) for one in ("self", pid))
    return ours.st_ino != theirs.st_ino


# -- mounts from outside


def parse_mounts(text: str) -> list[MountLine]:
    """Read /proc/<pid>/mountinfo."""
    lines = []
    for line in text.splitlines():
        fields = line.split(" ")
        lines.append(MountLine(int(fields[0]), int(fields[1]), _unescaped(fields[4])))
    return lines


def _unescaped(path: str) -> str:
    for code in ("040", "011", "012", "134"):
        path = path.replace(f"\\{code}", chr(int(code, 8)))
    return path


def binds_of(spec: dict[str, Any]) -> dict[str, str]:
    """Return destination → source of a spec's bind mounts."""
    found = {}
    for entry in spec.get("mounts") or ():
        words = entry.get("options") or ()
        if entry.get("type") == "bind" or "bind" in words or "rbind" in words:
            found[str(entry["destination"])] = str(entry.get("source") or "")
    return found


def _outside_mounts(pid: int, spec: dict[str, Any]) -> list[tuple[OutsideMount, str]]:
    """Return the mounts of a running container that its spec binds from outside and those below them, each with its
    mount point as the container sees it."""
    lines = parse_mounts(Path(f"/proc/{pid}/mountinfo").read_text())
    known = {line.id for line in lines}
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tops = {_mount_at(root, destination): destination for destination in binds_of(spec)}
    finally:
        os.close(root)
    return sort_out(lines, {mount: destination for mount, destination in tops.items() if mount in known})


def _mount_at(root: int, path: str) -> int:
    """Return the id of the mount that a path of the container leads to; a link may be on the way. -1: none."""
    try:
        fd = libc.openat2(root, path.lstrip("/"), os.O_PATH, resolve=libc.RESOLVE_IN_ROOT)
    except OSError:
        return -1
    try:
        shown = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    return next((int(line.split()[1]) for line in shown.splitlines() if line.startswith("mnt_id:")), -1)


def sort_out(lines: Sequence[MountLine], tops: dict[int, str]) -> list[tuple[OutsideMount, str]]:
    """Return the mounts of a container that are those of `tops` (id → destination in the spec) or came with them,
    each with its mount point."""
    parents = {line.id: line for line in lines}
    found: list[tuple[OutsideMount, str]] = []
    for line in lines:
        top: MountLine | None = line
        while top is not None and top.id not in tops:
            top = parents.get(top.parent)
        if top is not None:
            below = "" if top is line else line.point.removeprefix(top.point)
            found.append((OutsideMount(f"m{len(found)}", tops[top.id], below), line.point))
    return found


def described(images: Path) -> Outside:
    """Return what a checkpoint says of itself; NotFound for a folder that is none."""
    try:
        return msgspec.json.decode((images / DESCRIPTION).read_bytes(), type=Outside)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"there is no checkpoint of this runtime in {images}") from None
    except MALFORMED as error:
        raise InvalidParameter(f"{images}/{DESCRIPTION}: {error}") from None


# -- the program


def _criu(words: list[str], log: Path) -> None:
    log.unlink(missing_ok=True)
    code, _ = _run([*words, "--log-file", str(log), "-v2"])
    if code == 127:
        raise Unsupported("checkpoint: there is no criu in PATH: install the package criu")
    if code:
        raise Internal(f"criu could not write the container down: {reason(log, code)}")


def reason(log: Path, code: int) -> str:
    """Return the first error of criu's log, which is the one that the others follow from."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    errors = [line.partition("Error ")[2] for line in lines if "Error (" in line]
    return errors[0] if errors else f"it ended with {code} and said nothing"


def _run(words: list[str]) -> tuple[int, list[str]]:
    """Run criu to its end; (exit code, 127 without a program; what it printed)."""
    output = os.memfd_create("criu", os.MFD_CLOEXEC)
    actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
    actions += [(os.POSIX_SPAWN_DUP2, output, number) for number in (1, 2)]
    try:
        pid = os.posix_spawnp(
            PROGRAM, [PROGRAM, *words], os.environ, file_actions=actions, setsigmask=(),
            setsigdef=(signals.SIGPIPE, signals.SIGXFSZ),
        )  # fmt: skip
        code = processes.reap(pid)
        with open(output, "rb", closefd=False) as file:
            file.seek(0)
            lines = file.read(1 << 16).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return 127, []
    finally:
        os.close(output)
    return code, [line.strip() for line in lines]
