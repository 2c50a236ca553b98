"""Containers' roots with mapped ids as the daemon sees them: for archives, copy-up and images as mounts.

See `linux.mappedroots`. The work is done by threads that end with it, since it may need a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from msgspec.structs import replace

from dray.base.aside import aside
from dray.base.errors import Unsupported
from dray.base.files import owned_fd
from dray.engine import rootfs
from dray.engine.remap import Remap
from dray.linux import libc, mappedroots
from dray.runtime.model import Mount
from dray.runtime.served import FUSE_OVERLAY, mapping_words


@contextlib.contextmanager
def mounted(mount: Mount, remap: Remap, *, read_only: bool = True) -> Iterator[int]:
    """Yield a detached mount of a snapshot's root that shows the ids that containers in user namespaces have on the
    host. Unsupported where kernel or file system cannot."""
    mount = shown(mount, remap)
    with owned_fd(
        aside(lambda: alone(rootfs.without_upper(mount) if read_only else mount, remap), "mapped root")
    ) as tree:
        yield tree


def shown(mount: Mount, remap: Remap) -> Mount:
    """Return a snapshot's mount with what its server must know of the ids, if a server shows them."""
    if not remap.by_server or remap.maps is None:
        return mount
    words = mapping_words(remap.maps)
    if mount.type == FUSE_OVERLAY:
        return replace(mount, options=(*mount.options, *words))
    return Mount(FUSE_OVERLAY, FUSE_OVERLAY, (f"lowerdir={mount.source}", "ro", *words))


def check(folder: str, driver: str, remap: Remap) -> None:
    """Raise Unsupported unless the layers of a storage driver below `folder` can be shown with mapped ids here."""
    if remap.maps is None:
        return
    remap.by_server = driver == FUSE_OVERLAY
    with tempfile.TemporaryDirectory(prefix="probe-", dir=folder) as place:
        mount = Mount("bind", place, ("rbind",))
        if driver in ("overlay2", "erofs"):
            for name in ("lower", "upper", "work"):
                os.mkdir(f"{place}/{name}")
            words = (f"lowerdir={place}/lower", f"upperdir={place}/upper", f"workdir={place}/work")
            mount = Mount("overlay", "overlay", words)
        with mounted(mount, remap) as tree:
            found = os.stat(f"/proc/self/fd/{tree}")
        if (found.st_uid, found.st_gid) != remap.owner:
            raise Unsupported(
                f"userns-remap: storage driver {driver} shows layers with their own ids: use a newer {driver}"
            )


def alone(mount: Mount, remap: Remap) -> int:
    """The same, owned by the caller, on a thread that ends with this: it leaves the process's mount namespace."""
    if mount.type == FUSE_OVERLAY:
        return rootfs.served(mount)
    libc.unshare(libc.CLONE_NEWNS)
    try:
        return mappedroots.tree(
            mount.type, mount.source, mount.options, remap.descriptor, remap.owner, alone=True
        )  # fmt: skip
    except OSError as error:
        raise Unsupported(
            f"userns-remap: layers cannot be shown with mapped ids here ({error.strerror}): that needs Linux 5.19 and a "
            "data root on a file system such as ext4, xfs or btrfs; move the data root, use --storage-driver "
            "fuse-overlayfs, or leave userns-remap away"
        ) from error
