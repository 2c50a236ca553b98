"""A container's root file system as the daemon sees it: for /etc/passwd, volume copy-up, and archives.

A root is mounted only inside its container's own mount namespace. The daemon looks at it through a descriptor: of
a running container by /proc/<pid>/root, of any other by a *detached* mount (fsmount(2)), which is attached to no
path, seen by nobody else, and gone with its descriptor, so that a killed daemon leaves no mount behind.

Every path inside is resolved with openat2(2) RESOLVE_IN_ROOT: a symbolic link never leads out.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence

from dray.base.errors import InvalidParameter, Unsupported
from dray.base.files import owned_fd
from dray.engine.remap import Remap
from dray.linux import libc, mappedroots
from dray.runtime.model import Mount

RESOLVE = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS


@contextlib.contextmanager
def mounted(mounts: Sequence[Mount], *, read_only: bool = True) -> Iterator[int]:
    """Yield a descriptor of the root that a snapshot's mounts make, for a container that does not run.

    Read-only roots are mounted without an upper directory: its content becomes the topmost lower layer.
    """
    fd = _detached(mounts[0], read_only) if mounts[0].type == "overlay" else os.open(mounts[0].source, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _detached(mount: Mount, read_only: bool) -> int:
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
    if read_only and upper:
        lower.insert(0, upper)
        upper = work = ""
    if len(lower) == 1 and not upper:
        return os.open(lower[0], _DIRECTORY)
    context = libc.fsopen("overlay")
    try:
        libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "source", "overlay")
        if not _add_layers(context, lower):
            return _briefly_attached(lower, upper, work)
        if upper:
            libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "upperdir", upper)
            libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "workdir", work)
        libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE)
        detached = libc.fsmount(context)
    finally:
        os.close(context)
    try:
        return os.open(f"/proc/self/fd/{detached}", _DIRECTORY)
    finally:
        os.close(detached)


@functools.cache
def _takes_layers_one_by_one() -> bool:
    """Tell whether overlayfs knows `lowerdir+` (Linux 6.5). An older one swallows any option until it mounts."""
    context = libc.fsopen("overlay")
    try:
        libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "lowerdir+", "/proc/self/no-such-directory")
    except OSError as error:
        return error.errno != errno.EINVAL
    finally:
        os.close(context)
    return False


def _add_layers(context: int, lower: Sequence[str]) -> bool:
    """Name the layers; False on a kernel before 6.5 where they do not fit (255 bytes) in one string."""
    if _takes_layers_one_by_one():
        for path in lower:
            libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "lowerdir+", path)
        return True
    together = ":".join(lower)
    if len(together) > 255:
        return False
    libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "lowerdir", together)
    return True


def _briefly_attached(lower: Sequence[str], upper: str, work: str) -> int:
    """Mount with mount(2) at a directory of our own, open the root and unmount at once: the descriptor keeps it."""
    options = f"lowerdir={':'.join(lower)}" + (f",upperdir={upper},workdir={work}" if upper else "")
    with tempfile.TemporaryDirectory(prefix="dray-root-") as place:
        libc.mount("overlay", place, "overlay", 0, options)
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


@contextlib.contextmanager
def mapped(mount: Mount, remap: Remap, *, read_only: bool = True) -> Iterator[int]:
    """Yield a detached mount of a snapshot's root that shows the ids that containers in user namespaces have on the
    host. Unsupported where kernel or file system cannot."""
    with owned_fd(_on_a_thread(lambda: mapped_alone(without_upper(mount) if read_only else mount, remap))) as tree:
        yield tree


def check_mapping(folder: str, driver: str, remap: Remap) -> None:
    """Raise Unsupported unless the layers of a storage driver below `folder` can be shown with mapped ids here."""
    if remap.maps is None:
        return
    with tempfile.TemporaryDirectory(prefix="probe-", dir=folder) as place:
        mount = Mount("bind", place, ("rbind",))
        if driver == "overlay2":
            for name in ("lower", "upper", "work"):
                os.mkdir(f"{place}/{name}")
            words = (f"lowerdir={place}/lower", f"upperdir={place}/upper", f"workdir={place}/work")
            mount = Mount("overlay", "overlay", words)
        os.close(_on_a_thread(lambda: mapped_alone(mount, remap)))


def _on_a_thread(action: Callable[[], int]) -> int:
    made: list[int] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            made.append(action())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="mapped root")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return made[0]


def mapped_alone(mount: Mount, remap: Remap) -> int:
    """The same, owned by the caller, on a thread that ends with this: it leaves the process's mount namespace."""
    libc.unshare(libc.CLONE_NEWNS)
    try:
        return mappedroots.tree(
            mount.type, mount.source, mount.options, remap.descriptor, remap.owner, alone=True
        )  # fmt: skip
    except OSError as error:
        raise Unsupported(
            f"userns-remap: layers cannot be shown with mapped ids here ({error.strerror}): that needs Linux 5.19 and a "
            "data root on a file system such as ext4, xfs or btrfs; move the data root, or leave userns-remap away"
        ) from error


def without_upper(mount: Mount) -> Mount:
    """Return a mount of the same root that takes no writes: an overlay's upper directory becomes its top layer."""
    if mount.type != "overlay":
        return mount
    words = dict(word.partition("=")[::2] for word in mount.options)
    upper = words.pop("upperdir", "")
    words.pop("workdir", None)
    if upper:
        words["lowerdir"] = f"{upper}:{words['lowerdir']}"
    if ":" not in words["lowerdir"]:
        return Mount("bind", words["lowerdir"], ("rbind", "ro"))
    return Mount("overlay", "overlay", tuple(f"{key}={value}" if value else key for key, value in words.items()))
