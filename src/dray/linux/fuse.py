"""File systems served by a process: connect a detached mount with its server's /dev/fuse descriptor (fuse(4)).

The mount is made by us, with fsmount(2), before the server starts; the server gets the other end of the connection
as `/dev/fd/N` in place of a mount point (libfuse 3.3 and later). So a server has no mount point that it could leave
behind, it needs no right to mount, and its life is the mount's: when the last mount of the connection is gone, wherever
it was attached, the kernel ends the connection and with it the server.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from dray.linux import libc

_DEVICE = 3  # the descriptor's number in the server


def connect(source: str, *, read_only: bool = False) -> tuple[int, int]:
    """Return (detached mount, its server's descriptor), both the caller's to close.

    Whoever opens something in the mount waits until the server answers, or has an error once nobody holds the
    server's descriptor any more.
    """
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        context = libc.fsopen("fuse")
        try:
            words = {
                "source": source,
                "subtype": source,
                "fd": str(device),
                "rootmode": "40000",
                "user_id": "0",
                "group_id": "0",
            }
            for key, value in words.items():
                libc.fsconfig(context, libc.FSCONFIG_SET_STRING, key, value)
            for flag in ("default_permissions", "allow_other", *(("ro",) if read_only else ())):
                libc.fsconfig(context, libc.FSCONFIG_SET_FLAG, flag)
            libc.fsconfig(context, libc.FSCONFIG_CMD_CREATE)
            tree = libc.fsmount(context, libc.MOUNT_ATTR_RDONLY if read_only else 0)
        finally:
            os.close(context)
    except BaseException:
        os.close(device)
        raise
    return tree, device


def spawn(arguments: Sequence[str], device: int, said: int) -> int:
    """Start a server, a child in a session of its own; return its pid. What it says goes to the descriptor `said`.

    arguments: the program (looked for in PATH) and its arguments; the mount point is added
    """
    if device == _DEVICE:  # dup2 of a descriptor onto itself would leave it close-on-exec
        device = os.dup(device)
        try:
            return spawn(arguments, device, said)
        finally:
            os.close(device)
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, said, 1),
        (os.POSIX_SPAWN_DUP2, said, 2),
        (os.POSIX_SPAWN_DUP2, device, _DEVICE),
    ]
    return os.posix_spawnp(
        arguments[0],
        [*arguments, f"/dev/fd/{_DEVICE}"],
        os.environ,
        file_actions=actions,
        setsigmask=(),
        setsid=True,
    )
