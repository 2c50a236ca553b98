"""Mounting: option words, detached trees, and targets that cannot leave a root.

Invariants
- A target beneath a container's root is resolved by `openat2(RESOLVE_IN_ROOT)` and addressed by descriptor from
  then on, so a link planted (or swapped) by the container's image or a volume leads nowhere else.
- What is missing of a target is created component by component below a descriptor, never by path.
- A bind is a detached clone of its source (open_tree), given its attributes while nobody can see it, then attached.

Needs Linux 5.12 (mount_setattr).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterable, Sequence

from msgspec import Struct

from dray.base.files import remove_tree
from dray.linux import libc

# fstab word → (flag to set, flag to clear): mount(8) and runtime-spec config.md "Linux mount options".
_FLAGS: dict[str, tuple[int, int]] = {
    "defaults": (0, 0),
    "ro": (libc.MS_RDONLY, 0),
    "rw": (0, libc.MS_RDONLY),
    "nosuid": (libc.MS_NOSUID, 0),
    "suid": (0, libc.MS_NOSUID),
    "nodev": (libc.MS_NODEV, 0),
    "dev": (0, libc.MS_NODEV),
    "noexec": (libc.MS_NOEXEC, 0),
    "exec": (0, libc.MS_NOEXEC),
    "sync": (libc.MS_SYNCHRONOUS, 0),
    "async": (0, libc.MS_SYNCHRONOUS),
    "dirsync": (libc.MS_DIRSYNC, 0),
    "remount": (libc.MS_REMOUNT, 0),
    "mand": (libc.MS_MANDLOCK, 0),
    "nomand": (0, libc.MS_MANDLOCK),
    "noatime": (libc.MS_NOATIME, 0),
    "atime": (0, libc.MS_NOATIME),
    "nodiratime": (libc.MS_NODIRATIME, 0),
    "diratime": (0, libc.MS_NODIRATIME),
    "relatime": (libc.MS_RELATIME, 0),
    "norelatime": (0, libc.MS_RELATIME),
    "strictatime": (libc.MS_STRICTATIME, 0),
    "nostrictatime": (0, libc.MS_STRICTATIME),
    "lazytime": (libc.MS_LAZYTIME, 0),
    "nolazytime": (0, libc.MS_LAZYTIME),
    "silent": (libc.MS_SILENT, 0),
    "loud": (0, libc.MS_SILENT),
    "iversion": (libc.MS_I_VERSION, 0),
    "noiversion": (0, libc.MS_I_VERSION),
    "nosymfollow": (libc.MS_NOSYMFOLLOW, 0),
    "symfollow": (0, libc.MS_NOSYMFOLLOW),
    "bind": (libc.MS_BIND, 0),
    "rbind": (libc.MS_BIND | libc.MS_REC, 0),
}
_PROPAGATION: dict[str, int] = {
    "private": libc.MS_PRIVATE,
    "rprivate": libc.MS_PRIVATE | libc.MS_REC,
    "slave": libc.MS_SLAVE,
    "rslave": libc.MS_SLAVE | libc.MS_REC,
    "shared": libc.MS_SHARED,
    "rshared": libc.MS_SHARED | libc.MS_REC,
    "unbindable": libc.MS_UNBINDABLE,
    "runbindable": libc.MS_UNBINDABLE | libc.MS_REC,
}
# The attribute of each mount flag; an access-time attribute also clears the field it lives in.
_ATTRIBUTES: dict[int, int] = {
    libc.MS_RDONLY: libc.MOUNT_ATTR_RDONLY,
    libc.MS_NOSUID: libc.MOUNT_ATTR_NOSUID,
    libc.MS_NODEV: libc.MOUNT_ATTR_NODEV,
    libc.MS_NOEXEC: libc.MOUNT_ATTR_NOEXEC,
    libc.MS_NOATIME: libc.MOUNT_ATTR_NOATIME,
    libc.MS_STRICTATIME: libc.MOUNT_ATTR_STRICTATIME,
    libc.MS_NODIRATIME: libc.MOUNT_ATTR_NODIRATIME,
    libc.MS_NOSYMFOLLOW: libc.MOUNT_ATTR_NOSYMFOLLOW,
}
_ACCESS_TIME = libc.MS_NOATIME | libc.MS_STRICTATIME | libc.MS_RELATIME


class Options(Struct, frozen=True):
    """Option words, sorted by the syscall that takes them.

    flags: MS_* for mount(2)
    attr_set, attr_clear: MOUNT_ATTR_* for the mount (a bind); tree_set, tree_clear: for the whole tree (`rro`…)
    propagation: MS_PRIVATE… (with MS_REC), in the order given
    data: the words that the file system itself must understand, joined by commas
    copy_up: `tmpcopyup`, the tmpfs starts as a copy of what it hides
    idmap: "" | "idmap" | "ridmap"
    """

    flags: int = 0
    attr_set: int = 0
    attr_clear: int = 0
    tree_set: int = 0
    tree_clear: int = 0
    propagation: tuple[int, ...] = ()
    data: str = ""
    copy_up: bool = False
    idmap: str = ""


def attributes(set_flags: int, clear_flags: int) -> tuple[int, int]:
    """Translate MS_* to set and clear into what mount_setattr(2) wants."""
    attr_set = attr_clear = 0
    for flag, attribute in _ATTRIBUTES.items():
        if set_flags & flag:
            attr_set |= attribute
        if clear_flags & flag:
            attr_clear |= attribute
    if (set_flags | clear_flags) & _ACCESS_TIME:
        attr_clear = attr_clear & ~libc.MOUNT_ATTR__ATIME | libc.MOUNT_ATTR__ATIME
    return attr_set, attr_clear & ~attr_set | (attr_clear & libc.MOUNT_ATTR__ATIME)


def parse_options(words: Iterable[str]) -> Options:
    """Sort fstab words. A later word overrides an earlier one (`ro,rw` is `rw`)."""
    flags = cleared = tree_flags = tree_cleared = 0
    propagation: list[int] = []
    data: list[str] = []
    copy_up, idmap = False, ""
    for word in words:
        if word in _FLAGS:
            on, off = _FLAGS[word]
            flags, cleared = flags & ~off | on, cleared & ~on | off
        elif word in _PROPAGATION:
            propagation.append(_PROPAGATION[word])
        elif word[:1] == "r" and word[1:] in _FLAGS:
            on, off = _FLAGS[word[1:]]
            tree_flags, tree_cleared = tree_flags & ~off | on, tree_cleared & ~on | off
        elif word == "tmpcopyup":
            copy_up = True
        elif word in ("idmap", "ridmap"):
            idmap = word
        elif word:
            data.append(word)
    attr_set, attr_clear = attributes(flags, cleared)
    tree_set, tree_clear = attributes(tree_flags, tree_cleared)
    return Options(
        flags, attr_set, attr_clear, tree_set, tree_clear, tuple(propagation), ",".join(data), copy_up, idmap
    )  # fmt: skip


def option_words() -> list[str]:
    """Return every option word that is understood here rather than by a file system."""
    recursive = [f"r{word}" for word in _FLAGS if word not in ("defaults", "bind", "rbind", "remount")]
    return sorted({*_FLAGS, *_PROPAGATION, *recursive, "tmpcopyup", "idmap", "ridmap"})


def fd_path(fd: int) -> str:
    """Return the path by which a syscall without a descriptor argument reaches `fd`'s file."""
    return f"/proc/self/fd/{fd}"


def mount_filesystem(fstype: str, source: str, target: str, options: Options) -> None:
    """Mount a file system at `target` (a trusted path, or `fd_path`).

    Its propagation is left to the caller. Options longer than a page go through fsconfig(2), an overlay's layers one by one.
    """
    if len(options.data) < os.sysconf("SC_PAGESIZE"):
        libc.mount(source, target, fstype, options.flags, options.data)
    else:
        _mount_with_fsconfig(fstype, source, target, options)


def _mount_with_fsconfig(fstype: str, source: str, target: str, options: Options) -> None:
    context = libc.fsopen(fstype)
    try:
        if source:
            libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "source", source)
        if options.flags & libc.MS_RDONLY:
            libc.fsconfig(context, libc.FSCONFIG_SET_FLAG, "ro")
        for word in options.data.split(","):
            key, equals, value = word.partition("=")
            if fstype == "overlay" and key == "lowerdir":
                if not add_lower_layers(context, value.split(":")):
                    _mount_with_short_names(source, target, options)
                    return
            elif equals:
                libc.fsconfig(context, libc.FSCONFIG_SET_STRING, key, value)
            else:
                libc.fsconfig(context, libc.FSCONFIG_SET_FLAG, key)
        libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE)
        tree = libc.fsmount(context, options.attr_set)
    finally:
        os.close(context)
    try:
        libc.move_mount(tree, "", libc.AT_FDCWD, target, libc.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


@functools.cache
def takes_layers_one_by_one() -> bool:
    """Tell whether overlayfs knows `lowerdir+`. A kernel that does not may swallow any option until it mounts."""
    context = libc.fsopen("overlay")
    try:
        libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "lowerdir+", "/proc/self/no-such-directory")
    except OSError as error:
        return error.errno != errno.EINVAL
    finally:
        os.close(context)
    return False


def add_lower_layers(context: int, layers: Sequence[str]) -> bool:
    """Name an overlay's lower layers; False where they do not fit (255 bytes) in the one string that an old kernel
    takes."""
    if takes_layers_one_by_one():
        for layer in layers:
            libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "lowerdir+", layer)
        return True
    together = ":".join(layers)
    if len(together) > 255:
        return False
    libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "lowerdir", together)
    return True


def _mount_with_short_names(source: str, target: str, options: Options) -> None:
    """Mount an overlay whose options exceed mount(2)'s page: layers are named below descriptors of their directories.

    About 200 layers fit; OSError (E2BIG) beyond.
    """
    with contextlib.ExitStack() as scope:
        directories: dict[str, int] = {}

        def short(path: str) -> str:
            directory, _, name = path.rpartition("/")
            if directory not in directories:
                directories[directory] = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                scope.callback(os.close, directories[directory])
            return f"{fd_path(directories[directory])}/{name}"

        words = []
        for word in options.data.split(","):
            key, equals, value = word.partition("=")
            layers = ":".join(map(short, value.split(":"))) if key == "lowerdir" else value
            words.append(f"{key}{equals}{layers}")
        libc.mount(source, target, "overlay", options.flags, ",".join(words))


def clone_tree(source: str | int, *, recursive: bool = False) -> int:
    """Return a detached bind mount of a path or of an open file."""
    flags = libc.OPEN_TREE_CLONE | (libc.AT_RECURSIVE if recursive else 0)
    if isinstance(source, int):
        return libc.open_tree(source, "", flags | libc.AT_EMPTY_PATH)
    return libc.open_tree(libc.AT_FDCWD, source, flags)


def set_tree(tree: int, options: Options) -> None:
    """Give a detached bind mount its attributes and propagation."""
    if options.attr_set or options.attr_clear:
        libc.mount_setattr(
            tree, "", libc.AT_EMPTY_PATH, attr_set=options.attr_set, attr_clear=options.attr_clear
        )  # fmt: skip
    if options.tree_set or options.tree_clear:
        libc.mount_setattr(
            tree,
            "",
            libc.AT_EMPTY_PATH | libc.AT_RECURSIVE,
            attr_set=options.tree_set,
            attr_clear=options.tree_clear,
        )
    set_propagation(tree, options)


def set_propagation(tree: int, options: Options) -> None:
    """Give the mount at whose root `tree` is open its propagation."""
    for propagation in options.propagation:
        recursive = libc.AT_RECURSIVE if propagation & libc.MS_REC else 0
        libc.mount_setattr(tree, "", libc.AT_EMPTY_PATH | recursive, propagation=propagation & ~libc.MS_REC)


def attach(tree: int, target: int) -> None:
    """Attach a detached mount to an open directory or file; close neither."""
    flags = libc.MOVE_MOUNT_F_EMPTY_PATH | libc.MOVE_MOUNT_T_EMPTY_PATH
    libc.move_mount(tree, "", target, "", flags)


def open_in_root(root: int, path: str, flags: int = os.O_PATH, *, mode: int = 0) -> int:
    """Open `path` as a process chrooted to the descriptor `root` would, whatever links say."""
    return libc.openat2(root, path.lstrip("/") or ".", flags, mode=mode, resolve=libc.RESOLVE_IN_ROOT)


def make_in_root(root: int, path: str, *, directory: bool = True, mode: int = 0o755) -> int:
    """Open (O_PATH) `path` within `root`, creating what is missing of it; the last component is a directory or an
    empty file. Links are followed within the root, dangling ones too, as a chrooted `mkdir -p` could not."""
    for _ in range(40):
        try:
            return open_in_root(root, path)
        except FileNotFoundError:
            pass
        rest = [part for part in path.split("/") if part not in ("", ".")]
        made = _create_missing(root, rest, directory=directory, mode=mode)
        if isinstance(made, int):
            return made
        path = made
    raise OSError(errno.ELOOP, f"openat2: {os.strerror(errno.ELOOP)}", path)


def _create_missing(root: int, parts: list[str], *, directory: bool, mode: int) -> int | str:
    """Create below the longest existing prefix; the descriptor, or the path to try instead (a dangling link)."""
    for depth in range(len(parts) - 1, -1, -1):
        try:
            parent = open_in_root(root, "/".join(parts[:depth]), os.O_PATH | os.O_DIRECTORY)
            break
        except FileNotFoundError:
            continue
    else:
        raise OSError(errno.ENOENT, f"openat2: {os.strerror(errno.ENOENT)}", "/".join(parts))
    try:
        for index in range(depth, len(parts)):
            name = parts[index]
            if name == "..":
                raise OSError(errno.ENOENT, f"openat2: {os.strerror(errno.ENOENT)}", "/".join(parts))
            last = index == len(parts) - 1
            try:
                _create(parent, name, directory=directory or not last, mode=mode if last else 0o755)
            except FileExistsError:
                link = _read_link(parent, name)
                if link is not None:
                    before = [] if link.startswith("/") else parts[:index]
                    return "/".join([*before, link, *parts[index + 1 :]])
            kind = 0 if last else os.O_DIRECTORY
            child = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=parent)
            os.close(parent)
            parent = child
        result, parent = parent, -1
        return result
    finally:
        if parent >= 0:
            os.close(parent)


def _create(parent: int, name: str, *, directory: bool, mode: int) -> None:
    if directory:
        os.mkdir(name, mode, dir_fd=parent)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode & 0o666, dir_fd=parent))


def _read_link(parent: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise


def change_root(root: int, *, pivot: bool = True) -> None:
    """Make the root's mount the root of this mount namespace and let go of the host's tree (pivot_root(2))."""
    if not pivot:
        os.fchdir(root)
        libc.mount(".", "/", "", libc.MS_MOVE)
        os.chroot(".")
        os.chdir("/")
        return
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(root)
    libc.pivot_root(".", ".")
    os.fchdir(old)
    libc.mount("", ".", "", libc.MS_SLAVE | libc.MS_REC)  # the detach must not propagate to the host
    libc.umount2(".", libc.MNT_DETACH)
    os.close(old)
    os.chdir("/")


def is_device(fd: int, major: int, minor: int) -> bool:
    """Tell whether `fd` is the character device major:minor."""
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(major, minor)


def mount_id(fd: int) -> int:
    """Return the id of the mount on which `fd` was opened (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    raise OSError(errno.ENOSYS, "the kernel tells no mnt_id in fdinfo", f"/proc/self/fdinfo/{fd}")


def is_mounted(path: str) -> bool:
    """Tell whether something is mounted on a directory or file: a bind of the same file system too, which the device
    numbers that os.path.ismount compares do not show."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        here = os.open(path, flags)
    except FileNotFoundError:
        return False
    try:
        parent = os.open(os.path.dirname(path), flags)
        try:
            return mount_id(here) != mount_id(parent)
        finally:
            os.close(parent)
    finally:
        os.close(here)


def propagation_of(path: str) -> tuple[str, bool, bool]:
    """Return the mount that `path` lies on: its mount point, whether it is shared, whether it is a slave
    (mount_namespaces(7))."""
    inside = os.path.realpath(path)
    found = ("/", False, False)
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            words = line.split(b" ")
            point = os.fsdecode(words[4].decode("unicode_escape").encode("latin-1"))
            if point in ("/", inside) or inside.startswith(point + "/"):
                tags = words[6 : words.index(b"-")]  # a later mount covers an earlier one
                if len(point) >= len(found[0]):
                    kinds = [tag.partition(b":")[0] for tag in tags]
                    found = (point, b"shared" in kinds, b"master" in kinds)
    return found


def detach_below(path: str | os.PathLike[str]) -> None:
    """Detach (umount2(2) MNT_DETACH) every mount at or beneath `path`, the latest first."""
    top = os.fsencode(os.path.realpath(path))
    with open("/proc/self/mountinfo", "rb") as file:
        # Blanks and the like are written as \040: octal escapes, byte for byte.
        points = [line.split(b" ")[4].decode("unicode_escape").encode("latin-1") for line in file]
    for point in reversed(points):
        if point == top or point.startswith(top + b"/"):
            libc.umount2(os.fsdecode(point), libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)


def remove_run_dir(path: str | os.PathLike[str]) -> None:
    """Remove a task directory. What is mounted in it (parts of volumes, images, a shared /dev/shm, the root of an
    external runtime) is detached, and nothing is deleted through it."""
    try:
        remove_tree(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        detach_below(path)
        remove_tree(path)


def require_magic(fd: int, magic: int, path: str) -> None:
    """Raise OSError(EXDEV) unless `fd` lies on a file system of that type (linux/magic.h)."""
    if libc.statfs(fd).type != magic:
        raise OSError(errno.EXDEV, "not on the file system expected: something is mounted over it", path)
