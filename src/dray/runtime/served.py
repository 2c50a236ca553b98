"""Root file systems that a process serves: `fuse-overlayfs`.

The mount is made here, detached, and its server started here, by the shim (or the daemon, for a look into a stopped
container), with the host's view of the layers; init, in the container's mount namespace, only attaches it. Nobody
has to end the server: it goes with the mount (see `linux.fuse`), so with the container's mount namespace, whoever was
killed before. It is a child of the caller, which reaps it when it ends.

It can show other owners than the files on disk have (`mapping_words`), on any kernel and file system.

A mount that is ready to be attached has the type `detached`, its source is the descriptor's number.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from dray.base.errors import Internal, Unavailable
from dray.linux import fuse, mounts
from dray.linux.usernamespaces import IdMap
from dray.runtime.model import Mount

FUSE_OVERLAY = "fuse-overlayfs"
DETACHED = "detached"
_MOUNT_WORDS = frozenset(mounts.option_words())


def serve(mount: Mount) -> tuple[int, int]:
    """Mount an overlay by fuse-overlayfs; return (detached mount, the caller's to close; pid of the server).

    The options are overlayfs's own (`lowerdir=…`). Unavailable if the program or /dev/fuse is missing, Internal with
    the program's words if it fails.
    """
    words = [word for word in mount.options if word not in _MOUNT_WORDS]
    said = os.memfd_create("said", os.MFD_CLOEXEC)
    try:
        try:
            tree, device = fuse.connect(FUSE_OVERLAY, read_only="ro" in mount.options)
        except FileNotFoundError:
            raise Unavailable(
                "storage driver fuse-overlayfs: there is no /dev/fuse (kernel module fuse)"
            ) from None
        try:
            try:
                pid = fuse.spawn([FUSE_OVERLAY, "-f", "-o", ",".join(words)], device, said)
            except FileNotFoundError:
                raise Unavailable(
                    "storage driver fuse-overlayfs: the program fuse-overlayfs is not installed"
                ) from None
            finally:
                os.close(device)
            _await(tree, said)
        except BaseException:
            os.close(tree)
            raise
    finally:
        os.close(said)
    return tree, pid


def _await(tree: int, said: int) -> None:
    """Return when the server answers."""
    try:
        os.stat(mounts.fd_path(tree))
    except OSError as error:
        words = os.pread(said, 4096, 0).decode(errors="replace").strip().splitlines()
        raise Internal(f"fuse-overlayfs: {words[-1] if words else error}") from error


@contextlib.contextmanager
def attachable(layers: Sequence[Mount]) -> Iterator[tuple[Mount, ...]]:
    """Yield mounts of which those that a process serves are detached ones; within the block they can be attached,
    here or in a process forked meanwhile."""
    with contextlib.ExitStack() as scope:
        found = []
        for mount in layers:
            if mount.type == FUSE_OVERLAY:
                tree, _ = serve(mount)
                scope.callback(os.close, tree)
                found.append(replace(mount, type=DETACHED, source=str(tree), options=()))
            else:
                found.append(mount)
        yield tuple(found)


def mapping_words(maps: IdMap) -> tuple[str, str]:
    """Return the options by which fuse-overlayfs shows the files of a container in a user namespace."""
    uids, gids = (":".join(f"{a}:{b}:{count}" for a, b, count in ids) for ids in (maps.uids, maps.gids))
    return f"uidmapping={uids}", f"gidmapping={gids}"


def descriptors(layers: Sequence[Mount]) -> set[int]:
    """Return the descriptors that the mounts stand for: a forked process has to keep them."""
    return {int(mount.source) for mount in layers if mount.type == DETACHED}
