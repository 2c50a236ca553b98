"""Kernel settings of the network (`/proc/sys/net`), by their dotted names.

The files show the settings of the calling thread's network namespace.
"""

from __future__ import annotations

import os


def path(name: str) -> str:
    """Return the file of a setting. An interface's name may hold a dot, written as a slash (sysctl(8))."""
    return "/proc/sys/" + name.translate(str.maketrans("./", "/."))


def read(name: str) -> str | None:
    """Return a setting's value, or None where the kernel does not have it."""
    try:
        with open(path(name), encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def write(name: str, value: str) -> bool:
    """Set a value unless it is so already; return whether it changed. OSError where it cannot be written."""
    if read(name) == value:
        return False
    fd = os.open(path(name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path(name)) from None
    finally:
        os.close(fd)
    return True


def has_ipv6() -> bool:
    """Tell whether the kernel has IPv6 and it is not switched off for the whole namespace."""
    return read("net.ipv6.conf.all.disable_ipv6") == "0"
