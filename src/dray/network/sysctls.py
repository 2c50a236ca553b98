"""Kernel settings of the network (`/proc/sys/net`), by their dotted names.

The files show the settings of the calling thread's network namespace.
"""

from __future__ import annotations

import os

from dray.base import files


def path(name: str) -> str:
    """Return the file of a setting. An interface's name may hold a dot, written as a slash (sysctl(8))."""
    return "/proc/sys/" + name.translate(str.maketrans("./", "/."))


def read(name: str) -> str | None:
    """Return a setting's value, or None where the kernel does not have it."""
    try:
        fd = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with files.owned_fd(fd):
        return os.read(fd, 4096).decode("ascii").strip()


def write(name: str, value: str) -> bool:
    """Set a value unless it is so already; return whether it changed. OSError where it cannot be written."""
    if read(name) == value:
        return False
    with files.owned_fd(os.open(path(name), os.O_WRONLY | os.O_CLOEXEC)) as fd:
        try:
            os.write(fd, value.encode())
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), path(name)) from None
    return True


def has_ipv6() -> bool:
    """Tell whether the kernel has IPv6 and it is not switched off for the whole namespace."""
    return read("net.ipv6.conf.all.disable_ipv6") == "0"
