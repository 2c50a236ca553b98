"""A root file system with mapped ids: the files on disk have the container's own, the mount shows the host's.

What overlayfs is given is an id-mapped clone of the directory that holds all layers (lower, upper and work alike; the
last two must be of one mount), so nothing on disk ever has a shifted owner: layers are shared by all containers, in
whatever user namespace, and what a container writes can be compared, exported and committed as it is. The overlay itself is
mounted by the host's rights, never by those of the user namespace: `trusted.*` attributes of layers hold.

Linux 5.12 for binds, 5.19 for overlayfs, and a file system that allows it (ext4, xfs, btrfs; tmpfs from 6.3).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Sequence

from dray.linux import libc, mounts
from dray.linux.usernamespaces import acting_as

_HELD = "/proc/"  # `/proc/<pid>/fd/<number>`, a detached mount
_DIRECTORIES = ("upperdir", "workdir")


def tree(
    kind: str, source: str, options: Sequence[str], user: int, owner: tuple[int, int], *, alone: bool = False
) -> int:
    """Return a detached mount of a root file system, its ids mapped by the user namespace of the descriptor `user`.

    kind, source, options: what a snapshot's mount is made of, `overlay` or a bind
    owner: the namespace's root on the host
    alone: the calling thread is in a mount namespace of its own, to be thrown away; a process with threads must be,
        since the alternative, where one is needed, is a fork

    OSError where kernel or file system cannot.
    """
    words = [word for word in options if word not in ("idmap", "ridmap")]
    if kind != "overlay":
        return _bind(source, mounts.parse_options(words), user)
    values = dict(word.partition("=")[::2] for word in words)
    lower = values.pop("lowerdir").split(":")
    paths = [*lower, *(values[name] for name in _DIRECTORIES if name in values)]
    # Layers are named by links; one that is a mount by itself lies in no directory, but behind a descriptor.
    real = {path: os.path.realpath(path) for path in paths if not path.startswith(_HELD)}
    with contextlib.ExitStack() as scope:
        names = {}
        for path in lower:
            if path.startswith(_HELD):
                held = _clone(path, user)
                scope.callback(os.close, held)
                names[path] = mounts.fd_path(held)
        mapped, base = -1, ""
        if real:
            base = os.path.commonpath(list(real.values()))
            mapped = _clone(base, user)
            scope.callback(os.close, mapped)
        for path, place in real.items():
            names[path] = f"{mounts.fd_path(mapped)}/{os.path.relpath(place, base)}"
        with acting_as(*owner):
            try:
                return _overlay(lower, values, names)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            # Before Linux 6.15 overlayfs takes layers of attached mounts only.
            return (_attached if alone else _elsewhere)(mapped, lower, values, names, base)


def _clone(path: str, user: int) -> int:
    cloned = mounts.clone_tree(path)
    try:
        libc.mount_setattr(cloned, "", libc.AT_EMPTY_PATH, attr_set=libc.MOUNT_ATTR_IDMAP, userns_fd=user)
    except BaseException:
        os.close(cloned)
        raise
    return cloned


def _bind(source: str, options: mounts.Options, user: int) -> int:
    cloned = _clone(source, user)
    try:
        mounts.set_tree(cloned, options)
    except BaseException:
        os.close(cloned)
        raise
    return cloned


def _overlay(lower: Sequence[str], values: dict[str, str], names: dict[str, str]) -> int:
    """Mount an overlay of directories by other names of theirs; detached."""
    attributes = 0
    context = libc.fsopen("overlay")
    try:
        libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "source", "overlay")
        for path in lower:
            libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "lowerdir+", names[path])
        for name, value in values.items():
            if name in _DIRECTORIES:
                libc.fsconfig(context, libc.FSCONFIG_SET_STRING, name, names[value])
            elif name == "ro":
                attributes |= libc.MOUNT_ATTR_RDONLY
            elif value:
                libc.fsconfig(context, libc.FSCONFIG_SET_STRING, name, value)
            elif name != "rw":
                libc.fsconfig(context, libc.FSCONFIG_SET_FLAG, name)
        libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE)
        return libc.fsmount(context, attributes)
    finally:
        os.close(context)


def _attached(mapped: int, lower: Sequence[str], values: dict[str, str], names: dict[str, str], place: str) -> int:
    """The same in a mount namespace of one's own, where the mapped directory is attached at `place`."""
    libc.mount("", "/", "", libc.MS_SLAVE | libc.MS_REC)
    libc.move_mount(mapped, "", libc.AT_FDCWD, place, libc.MOVE_MOUNT_F_EMPTY_PATH)
    words = [f"lowerdir={':'.join(names[path] for path in lower)}"]
    for name, value in values.items():
        if name in _DIRECTORIES:
            words.append(f"{name}={names[value]}")
        elif name != "rw":
            words.append(f"{name}={value}" if value else name)
    mounts.mount_filesystem("overlay", "overlay", place, mounts.parse_options(words))  # over the directory itself
    return mounts.clone_tree(place)


def _elsewhere(
    mapped: int, lower: Sequence[str], values: dict[str, str], names: dict[str, str], place: str
) -> int:
    """The same by a child in a mount namespace of its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid, pidfd = libc.clone3(libc.CLONE_NEWNS)
        if pid == 0:
            _serve(theirs, mapped, lower, values, names, place)
        os.close(pidfd)
        theirs.close()
        data, fds, _, _ = socket.recv_fds(ours, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        os.waitpid(pid, 0)
    if not fds:
        code = int(data or b"22")
        raise OSError(code, f"overlay with mapped ids: {os.strerror(code)}", place)
    return fds[0]


def _serve(
    answer: socket.socket,
    mapped: int,
    lower: Sequence[str],
    values: dict[str, str],
    names: dict[str, str],
    place: str,
) -> None:
    try:
        socket.send_fds(answer, [b"0"], [_attached(mapped, lower, values, names, place)])
    except OSError as error:
        answer.send(b"%d" % (error.errno or 22))
    finally:
        os._exit(0)
