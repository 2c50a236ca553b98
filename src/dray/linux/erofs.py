"""Mounting EROFS images that are plain files, without a loop device: Linux 6.12, CONFIG_EROFS_FS_BACKED_BY_FILE.

Every mount has a page cache of its own (unlike two mounts of one block device): whoever wants what is read from an
image to be in memory once has to mount it once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from dray.linux import libc


def mount(image: str, devices: Sequence[str] = ()) -> int:
    """Return a detached, read-only mount of `image`, the caller's to close; it ends with its last user.

    devices: the further files that the image's device table speaks of, in its order. OSError where kernel or file
    system cannot, or where the image is none.
    """
    context = libc.fsopen("erofs")
    try:
        libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "source", image)
        for path in devices:
            libc.fsconfig(context, libc.FSCONFIG_SET_STRING, "device", path)
        libc.fsconfig(context, libc.FSCONFIG_SET_FLAG, "ro")
        libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE)
        return libc.fsmount(context, libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NOATIME)
    finally:
        os.close(context)
