"""A container's root file system as the daemon sees it: for /etc/passwd, volume copy-up, and archives.

A root is mounted only inside its container's own mount namespace. The daemon looks at it through a descriptor: of
a running container by /proc/<pid>/root, of any other by a *detached* mount (fsmount(2)), which is attached to no
path, seen by nobody else, and gone with its descriptor, so that a killed daemon leaves no mount behind.

Every path inside is resolved with openat2(2) RESOLVE_IN_ROOT: a symbolic link never leads out.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence

from dray.base.errors import InvalidParameter
from dray.base.files import owned_fd
from dray.linux import libc
from dray.linux import mounts as mounts_of
from dray.runtime.model import Mount
from dray.runtime.served import FUSE_OVERLAY, serve

RESOLVE = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS


@contextlib.contextmanager
def mounted(mounts: Sequence[Mount], *, read_only: bool = True) -> Iterator[int]:
    """Yield a descriptor of the root that a snapshot's mounts make, for a container that does not run.

    Read-only roots are mounted without an upper directory: its content becomes the topmost lower layer.
    """
    mount = without_upper(mounts[0]) if read_only else mounts[0]
    if mount.type == FUSE_OVERLAY:
        fd = _opened(served(mount))
    else:
        fd = _detached(mount) if mount.type == "overlay" else os.open(mount.source, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def without_upper(mount: Mount) -> Mount:
    """Return a mount of the same root that takes no writes: an overlay's upper directory becomes its top layer."""
    if mount.type not in ("overlay", FUSE_OVERLAY):
        return mount
    words = dict(word.partition("=")[::2] for word in mount.options)
    upper = words.pop("upperdir", "")
    words.pop("workdir", None)
    if upper:
        words["lowerdir"] = f"{upper}:{words['lowerdir']}"
    if ":" not in words["lowerdir"] and "uidmapping" not in words:
        return Mount("bind", words["lowerdir"], ("rbind", "ro"))
    options = tuple(f"{key}={value}" if value else key for key, value in words.items())
    return Mount(mount.type, mount.source, options)


def served(mount: Mount) -> int:
    """Mount by fuse-overlayfs; return the detached mount. Its server ends with it, and is waited for."""
    tree, pid = serve(mount)
    threading.Thread(target=os.waitpid, args=(pid, 0), name="fuse-overlayfs", daemon=True).start()
    return tree


def _opened(detached: int) -> int:
    """Open the root of a detached mount, and close the mount's own descriptor: it lives as long as the other."""
    try:
        return os.open(f"/proc/self/fd/{detached}", _DIRECTORY)
    finally:
        os.close(detached)


def _detached(mount: Mount) -> int:
    lower: list[str] = []
    upper = work = ""
    for word in mount.options:
        key, _, value = word.partition("=")
        if key == "lowerdir":
            lower = value.split(":")
        elif key == "upperdir":
            upper = value
        elif key == "workdir":
            work = value
    context = libc.fsopen("overlay")
    try:
        libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "source", "overlay")
        if not mounts_of.add_lower_layers(context, lower):
            return _briefly_attached(mount)
        if upper:
            libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "upperdir", upper)
            libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "workdir", work)
        libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE)
        return _opened(libc.fsmount(context))
    finally:
        os.close(context)


def _briefly_attached(mount: Mount) -> int:
    """Mount at a directory of our own, open the root and unmount at once: the descriptor keeps it."""
    with tempfile.TemporaryDirectory(prefix="dray-root-") as place:
        mounts_of.mount_filesystem("overlay", "overlay", place, mounts_of.parse_options(mount.options))
        try:
            return os.open(place, _DIRECTORY)
        finally:
            libc.umount2(place, libc.MNT_DETACH)


@contextlib.contextmanager
def of_process(pid: int) -> Iterator[int]:
    """Yield a descriptor of a running container's root, mounts included."""
    fd = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def open_in(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open a path inside a root; links are resolved inside it."""
    return libc.openat2(root, path.lstrip("/") or ".", flags | os.O_CLOEXEC, resolve=RESOLVE)


def read_small_file(root: int, path: str, *, limit: int = 1 << 20) -> str:
    """Return a text file of the root, "" if there is none.

    Only a regular file counts (a FIFO would block us for ever); one larger than `limit` bytes is an
    InvalidParameter (CVE-2024-9676).
    """
    try:
        fd = open_in(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    with owned_fd(fd):
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return ""
        if status.st_size > limit:
            raise InvalidParameter(f"{path} of the container is larger than {limit} bytes; it is not read")
        return os.read(fd, limit).decode(errors="surrogateescape")


def make_directories(root: int, path: str) -> None:
    """Make a directory of the root and what is missing above it (mode 0755), links resolved inside the root; OSError
    if something that is no directory stands there."""
    here = os.dup(root)
    done = ""
    try:
        for name in (part for part in path.split("/") if part not in ("", ".")):
            done += f"/{name}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=here)
            deeper = open_in(root, done, os.O_PATH | os.O_DIRECTORY)
            os.close(here)
            here = deeper
    finally:
        os.close(here)
