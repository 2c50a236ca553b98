"""The fuse-overlayfs storage driver: overlay2's layers, merged by the program fuse-overlayfs instead of the kernel.

For where the kernel's overlayfs cannot be had, or not on the data root's file system. Layout: `overlay`; who runs the
program: `runtime.served`.

fuse-overlayfs marks an opaque directory with a file in it (`.wh..wh..opq`, and `.wh..opq`), where overlayfs has an
attribute: in an upper directory, names that begin with `.wh.` are marks, never a container's files (it shows none).
"""

from __future__ import annotations

import os
import shutil

from dray.base.errors import Unavailable
from dray.base.records import Records
from dray.runtime.served import FUSE_OVERLAY
from dray.store.overlay import Overlay


class FuseOverlay(Overlay):
    """`snapshots.Snapshots` over fuse-overlayfs; Unavailable without the program or /dev/fuse."""

    name = "fuse-overlayfs"
    mount_type = FUSE_OVERLAY
    marks_are_files = True

    def __init__(self, root: str | os.PathLike[str], records: Records) -> None:
        if shutil.which(FUSE_OVERLAY) is None:
            raise Unavailable(
                "storage driver fuse-overlayfs: the program fuse-overlayfs is not installed "
                "(Debian: apt install fuse-overlayfs)"
            )
        if not os.path.exists("/dev/fuse"):
            raise Unavailable("storage driver fuse-overlayfs: there is no /dev/fuse (kernel module fuse)")
        super().__init__(root, records)
        self._options = ()
