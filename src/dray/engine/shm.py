"""/dev/shm of containers that share it (`--ipc shareable`): a tmpfs on the host, bound into all that join.

Every other container's is a tmpfs of its own, inside its mount namespace. This one must be seen from outside, so it
is mounted at <task directory>/shm for as long as the container runs.
"""

from __future__ import annotations

import os

from dray.linux import libc


def path(run_dir: str) -> str:
    """Return where a shareable container's /dev/shm is on the host."""
    return f"{run_dir}/shm"


def mount(run_dir: str, size: int, owner: tuple[int, int] = (0, 0)) -> None:
    """Mount it, `size` bytes large; it is the root's of the container, who is `owner` on the host."""
    os.mkdir(path(run_dir), 0o700)
    flags = libc.MS_NOSUID | libc.MS_NOEXEC | libc.MS_NODEV
    libc.mount("shm", path(run_dir), "tmpfs", flags, f"mode=1777,size={size},uid={owner[0]},gid={owner[1]}")


def unmount(run_dir: str) -> None:
    """Unmount it, if it is mounted; containers that have joined keep theirs."""
    if os.path.ismount(path(run_dir)):
        libc.umount2(path(run_dir), libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)
