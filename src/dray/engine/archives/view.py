"""A container's file system as one directory descriptor, with what is mounted in it.

Of a running container that is /proc/<pid>/root. Of any other, the root and the mounts of its record are put together
in a mount namespace of their own, as dockerd does it, so that volumes and binds are seen, links lead where they lead
in the container, and the kernel itself keeps read-only mounts read-only. The namespace is made by a thread that
lives only for that (unshare(2) CLONE_NEWNS concerns the calling thread alone), has nothing in it but the container's
mounts, and is held by nothing but a descriptor: when that is closed, or the daemon killed, everything in it is gone.
No program runs in it and nothing is loaded from it (CVE-2019-14271).

What of a running container is not files stays out: nothing is read from or written to kernel file systems (proc,
sysfs, cgroup …), whatever a link or a swapped directory leads to, and a walk from above enters only what the user
has mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Sequence

from msgspec import Struct, field

from dray.base.errors import Conflict, Forbidden, InvalidParameter
from dray.engine import mapped, rootfs
from dray.engine.remap import Remap
from dray.linux import libc, mounts, usernamespaces
from dray.linux.usernamespaces import IdMap
from dray.runtime.model import Mount
from dray.runtime.served import FUSE_OVERLAY

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# linux/magic.h: file systems whose files are the kernel's own doing.
_KERNEL = frozenset(
    {
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0x1CD1,  # devpts
        0x19800202,  # mqueue
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0xCAFE4A11,  # bpf
        0x6165676C,  # pstore
        0x62656570,  # configfs
        0x42494E4D,  # binfmt_misc
        0xDE5E81E4,  # efivarfs
        0xF97CFF8C,  # selinux
        0x6E736673,  # nsfs
    }
)


class Point(Struct, frozen=True):
    """Something mounted in a container: where (absolute, clean), what of the host, and whether it is written to."""

    destination: str
    source: str = ""
    rw: bool = True
    recursive: bool = True


class View(Struct):
    """The file system: `root` is its descriptor, `points` what the user has mounted in it.

    maps: what the ids of its files, which are the host's, are for the container; None: the same. Close it.
    """

    root: int
    points: Sequence[Point]
    maps: IdMap | None = None
    _held: list[int] = field(default_factory=list)

    def adopt(self, fd: int) -> None:
        """Take over a descriptor, to be closed with the view."""
        self._held.append(fd)

    def close(self) -> None:
        """Let go of the root and everything mounted in it."""
        fds, self.root, self._held = [*self._held, self.root], -1, []
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        self.close()  # a response that nobody ever began to read

    def point_of(self, path: str) -> Point | None:
        """Return the mount that a resolved path (from the root) lies in: the longest that matches."""
        inside = [point for point in self.points if f"/{path}/".startswith(f"{point.destination.rstrip('/')}/")]
        return max(inside, key=lambda point: len(point.destination), default=None)

    def enters(self, path: str, fd: int) -> bool:
        """Tell whether a walk from above goes into the mount point `path`: only if the user mounted it."""
        return self.point_of(path) is not None and not is_kernel(fd)


def is_kernel(fd: int) -> bool:
    """Tell whether a file lies on a file system of the kernel's."""
    return libc.statfs(fd).type & 0xFFFFFFFF in _KERNEL


def guard(fd: int) -> None:
    """Refuse a directory on a file system of the kernel's; InvalidParameter."""
    if is_kernel(fd):
        raise InvalidParameter("nothing can be copied to or from a kernel file system such as /proc or /sys")


def of_running(pid: int, container_id: str, points: Sequence[Point]) -> View | None:
    """Look at a running container; None if `pid` is not (or no longer) its process."""
    try:
        process = os.open(f"/proc/{pid}", _DIRECTORY)
    except OSError:
        return None
    try:
        # The descriptor stays with the process, so a pid that was given away meanwhile cannot deceive.
        with open(os.open("cgroup", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process), encoding="utf-8") as file:
            if container_id not in file.read():
                return None
        return View(os.open("root", _DIRECTORY, dir_fd=process), points, usernamespaces.of_process(pid))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.EACCES):
            return None
        raise
    finally:
        os.close(process)


def of_stopped(
    root: Mount, points: Sequence[Point], place: str, *, writable: bool, remap: Remap | None = None
) -> View:
    """Put a container's file system together that does not run.

    root: what mounts its root; place: an existing directory that nobody else mounts on
    remap: the container lives in a user namespace like this daemon's
    writable: the root takes writes, and mount points that are missing are made; to be had once at a time

    MissingPoints if not writable and a mount point does not exist yet.
    """
    assembly = _Assembly(root, points, place, writable, remap)
    thread = threading.Thread(target=assembly.run, name="view")
    thread.start()
    thread.join()
    if assembly.error is not None:
        raise assembly.error
    return View(assembly.root, points, None if remap is None else remap.maps, [assembly.namespace])


class MissingPoints(Conflict):
    """A mount point is to be made first, in a writable view."""


class _Assembly:
    """The thread's work. Its results are two descriptors, or an error."""

    def __init__(
        self, root: Mount, points: Sequence[Point], place: str, writable: bool, remap: Remap | None
    ) -> None:
        self._mount = root
        self._points = points
        self._place = place
        self._writable = writable
        self._remap = remap
        self.root = self.namespace = -1
        self.error: BaseException | None = None

    def run(self) -> None:
        """Work, and keep what went wrong."""
        try:
            with contextlib.ExitStack() as stack:
                if self._remap is not None:  # the thread ends here: what it makes is its container's root's
                    stack.enter_context(usernamespaces.acting_as(*self._remap.owner))
                self._assemble(stack)
        except BaseException as error:
            self.error = error
            for fd in (self.root, self.namespace):
                if fd >= 0:
                    os.close(fd)

    def _assemble(self, stack: contextlib.ExitStack) -> None:
        # Sources are the host's paths: they are opened before anything of the container is mounted.
        trees = [(point, _clone(stack, point)) for point in self._points]
        mount = self._mount if self._remap is None else mapped.shown(self._mount, self._remap)
        mount = mount if self._writable else rootfs.without_upper(mount)
        if self._remap is not None:
            base = mapped.alone(mount, self._remap)
            stack.callback(os.close, base)
        elif mount.type == FUSE_OVERLAY:
            base = rootfs.served(mount)
            stack.callback(os.close, base)
        else:
            base = _bind(stack, mount) if mount.type != "overlay" else -1
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("none", "/", flags=libc.MS_REC | libc.MS_SLAVE)
        self.namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        if base >= 0:
            target = os.open(self._place, os.O_PATH | os.O_CLOEXEC)
            stack.callback(os.close, target)
            mounts.attach(base, target)
        else:
            mounts.mount_filesystem("overlay", "overlay", self._place, mounts.parse_options(mount.options))
        self.root = os.open(self._place, _DIRECTORY)
        for point, tree in trees:
            if tree >= 0:
                self._attach(point, tree)
        self._leave_host()

    def _attach(self, point: Point, tree: int) -> None:
        directory = stat.S_ISDIR(os.fstat(tree).st_mode)
        try:
            target = rootfs.open_in(self.root, point.destination)
        except FileNotFoundError:
            if not self._writable:
                raise MissingPoints(f"{point.destination} does not exist yet") from None
            target = mounts.make_in_root(self.root, point.destination, directory=directory)
        try:
            if stat.S_ISDIR(os.fstat(target).st_mode) == directory:
                mounts.attach(tree, target)
        finally:
            os.close(target)

    def _leave_host(self) -> None:
        """Make the container's root that of the namespace, so that no mount of the host's is kept from going."""
        os.fchdir(self.root)
        try:
            libc.pivot_root(".", ".")
        except OSError as error:
            if error.errno != errno.EINVAL:  # the host's root is its initramfs, which cannot be left
                raise
            return
        libc.umount2(".", libc.MNT_DETACH)


def _clone(stack: contextlib.ExitStack, point: Point) -> int:
    """Return a detached bind mount of a point's source; -1 if that is not there (any more)."""
    try:
        tree = mounts.clone_tree(point.source, recursive=point.recursive)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    stack.callback(os.close, tree)
    if not point.rw:
        mounts.set_tree(tree, mounts.parse_options(["ro"]))
    return tree


def _bind(stack: contextlib.ExitStack, mount: Mount) -> int:
    tree = mounts.clone_tree(mount.source)
    stack.callback(os.close, tree)
    return tree


def check_writable(view: View, path: str, *, read_only_root: bool) -> None:
    """Refuse to write where the container itself may not; Forbidden in Docker's words."""
    point = view.point_of(path)
    if point is not None:
        if not point.rw:
            raise Forbidden("mounted volume is marked read-only")
    elif read_only_root:
        raise Forbidden("container rootfs is marked read-only")
