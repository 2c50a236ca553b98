"""Containers' roots with mapped ids as the daemon sees them: for archives, copy-up and images as mounts.

See `linux.mappedroots`. The work is done by threads that end with it, since it may need a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from dray.base.aside import aside
from dray.base.errors import Unsupported
from dray.base.files import owned_fd
from dray.engine import rootfs
from dray.engine.remap import Remap
from dray.linux import libc, mappedroots
from dray.runtime.model import Mount


@contextlib.contextmanager
def mounted(mount: Mount, remap: Remap, *, read_only: bool = True) -> Iterator[int]:
    """Yield a detached mount of a snapshot's root that shows the ids that containers in user namespaces have on the
    host. Unsupported where kernel or file system cannot."""
    with owned_fd(
        aside(lambda: alone(rootfs.without_upper(mount) if read_only else mount, remap), "mapped root")
    ) as tree:
        yield tree


def check(folder: str, driver: str, remap: Remap) -> None:
    """Raise Unsupported unless the layers of a storage driver below `folder` can be shown with mapped ids here."""
    if remap.maps is None:
        return
    if driver == "fuse-overlayfs":
        raise Unsupported(
            "userns-remap: storage driver fuse-overlayfs cannot show layers with mapped ids: use overlay2, btrfs, erofs or vfs"
        )
    with tempfile.TemporaryDirectory(prefix="probe-", dir=folder) as place:
        mount = Mount("bind", place, ("rbind",))
        if driver in ("overlay2", "erofs"):
            for name in ("lower", "upper", "work"):
                os.mkdir(f"{place}/{name}")
            words = (f"lowerdir={place}/lower", f"upperdir={place}/upper", f"workdir={place}/work")
            mount = Mount("overlay", "overlay", words)
        os.close(aside(lambda: alone(mount, remap), "mapped root"))


def alone(mount: Mount, remap: Remap) -> int:
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
