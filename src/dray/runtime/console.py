"""The terminal of a container: a pty of its own devpts, never of the host's.

Everything goes by descriptor: the slave comes from its master (TIOCGPTPEER), not from a path that the container's
image or a volume could have made a link (CVE-2025-52565).
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios

from dray.linux import mounts

_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_DEVPTS_SUPER_MAGIC = 0x1CD1


def open_pty(root: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return (master, slave) of a new pty of the devpts mounted at /dev/pts; `size` is (rows, columns)."""
    multiplexer = mounts.open_in_root(root, "dev/pts/ptmx")
    try:
        mounts.require_magic(multiplexer, _DEVPTS_SUPER_MAGIC, "/dev/pts/ptmx")
        master = os.open(mounts.fd_path(multiplexer), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(multiplexer)
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        if size is not None:
            set_size(master, size)
    except BaseException:
        os.close(master)
        raise
    return master, slave


def set_size(terminal: int, size: tuple[int, int]) -> None:
    """TIOCSWINSZ; `size` is (rows, columns)."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))


def bind_console(root: int, slave: int) -> None:
    """Show the slave as /dev/console."""
    target = mounts.make_in_root(root, "/dev/console", directory=False, mode=0o600)
    try:
        tree = mounts.clone_tree(slave)
        try:
            mounts.attach(tree, target)
        finally:
            os.close(tree)
    finally:
        os.close(target)


def control(slave: int) -> None:
    """Make the slave the controlling terminal of this session leader."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
