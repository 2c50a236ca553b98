"""The storage drivers there are, and which of them a data root is used with.

    <data root>/<driver>/     what a driver keeps; each has its own, and records of its own kinds

A driver that is asked for by name is used or refused. Without a name it is the one that the data root was used with
before; on a fresh data root the first of `ORDER` that works there (the order of moby's daemon/graphdriver). What
another driver keeps in the data root stays untouched, and the log says what it is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dray.base.errors import Conflict, DrayError, InvalidParameter
from dray.base.records import Records
from dray.linux import libc
from dray.store.ledger import kinds
from dray.store.snapshots import Snapshots

log = logging.getLogger("dray.store")

ORDER = ("overlay2", "fuse-overlayfs", "btrfs", "vfs")  # tried by themselves
NAMES = (*ORDER[:-1], "erofs", ORDER[-1])  # used when they are named
_GONE = {"aufs": "24.0", "overlay": "24.0", "devicemapper": "25.0"}  # https://docs.docker.com/engine/deprecated/
# statfs(2) f_type → the name that `docker info` has for it (moby graphdriver FsNames)
_FILE_SYSTEMS = {
    0xEF53: "extfs",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
    0x6969: "nfs",
    0x65735546: "fuse",
    0xF15F: "ecryptfs",
    0x52654973: "reiserfs",
    0x3153464A: "jfs",
    0x858458F6: "ramfs",
}


class Driver(Snapshots, Protocol):
    """A storage driver with its housekeeping."""

    def settle(self) -> None:
        """Make unpacked layers durable."""

    def empty_trash(self) -> None:
        """Wait until what was removed is deleted."""

    def close(self) -> None:
        """Stop background work."""


def check_name(name: str) -> None:
    """Refuse a driver that there is not; InvalidParameter, with the reason."""
    if name in ("", *NAMES):
        return
    drivers = f"use one of {', '.join(NAMES)}"
    if name in _GONE:
        raise InvalidParameter(
            f"storage driver {name!r} is not supported: Docker itself removed it in {_GONE[name]}; {drivers}"
        )
    if name == "zfs":
        missing = "there is no zfs in /proc/filesystems and no program zfs" if not _has_zfs() else "not built"
        raise InvalidParameter(f"storage driver 'zfs' is not supported here ({missing}); {drivers}")
    raise InvalidParameter(f"storage driver {name!r} is not supported; {drivers}")


def _has_zfs() -> bool:
    return "zfs" in Path("/proc/filesystems").read_text().split()


def check_options(options: Sequence[str]) -> None:
    """Refuse storage options, by name."""
    for option in options:
        key = option.partition("=")[0].strip().lower()
        if key in ("overlay2.size", "btrfs.min_space"):
            reason = "there are no disk quotas for containers (yet)"
        elif key == "overlay2.override_kernel_check":
            reason = "every kernel that dray runs on has what overlay2 needs"
        else:
            reason = f"no storage driver has that option (drivers: {', '.join(NAMES)})"
        raise InvalidParameter(f"storage-opt {option!r} cannot be set: {reason}; take it out")


def open_driver(root: str, records: Records, asked: str = "") -> Driver:
    """Open the driver that the data root `root` is to be used with; the errors of `check_name` and of the driver,
    Conflict if it cannot be known which."""
    used = {name: holds for name in NAMES if (holds := _holdings(name, records))}
    if asked:
        check_name(asked)
        driver = _open(asked, root, records)
    elif len(used) > 1:
        raise Conflict(
            f"{root} was used with several storage drivers ({', '.join(used)}): say which one with --storage-driver"
        )
    elif used:
        (name,) = used
        log.info("storage driver %s, as before in %s", name, root)
        driver = _open(name, root, records)
    else:
        driver = _first(root, records)
    for name, holds in used.items():
        if name != driver.name:
            log.warning(
                "storage driver %s is used; of %s the data root has %s, which stays as it is: start with "
                "--storage-driver=%s to get at it",
                driver.name,
                name,
                holds,
                name,
            )
    return driver


def _holdings(name: str, records: Records) -> str:
    """Return what the records know of a driver, in words; "" if nothing."""
    layers, snapshots = (sum(1 for _ in records.scan(kind)) for kind in kinds(name))
    return f"{layers} layers and {snapshots} containers" if layers or snapshots else ""


def _first(root: str, records: Records) -> Driver:
    """Open the first driver that works."""
    for name in ORDER[:-1]:
        try:
            driver = _open(name, root, records)
        except (DrayError, OSError) as error:
            log.info("storage driver %s does not work here: %s", name, error)
        else:
            log.info("storage driver %s: the first of %s that works on %s", name, ", ".join(ORDER), root)
            return driver
    log.warning("storage driver vfs: no other works here; every layer and container is a whole copy")
    return _open(ORDER[-1], root, records)


def _open(name: str, root: str, records: Records) -> Driver:
    """Open a driver by name. Only its own module is loaded."""
    place = f"{root}/{name}"
    if name == "overlay2":
        from dray.store.overlay import Overlay, probe

        probe(root)
        return Overlay(place, records)
    if name == "fuse-overlayfs":
        from dray.store.fuseoverlay import FuseOverlay

        return FuseOverlay(place, records)
    if name == "erofs":
        from dray.store.erofs.driver import Erofs

        return Erofs(place, records)
    if name == "btrfs":
        from dray.store.btrfs import Btrfs

        return Btrfs(place, records)
    from dray.store.vfs import Vfs

    return Vfs(place, records)


def status(name: str, root: str) -> list[list[str]]:
    """Return `DriverStatus` of `docker info`."""
    found = [["Backing Filesystem", _FILE_SYSTEMS.get(libc.statfs(root).type & 0xFFFFFFFF, "unknown")]]
    if name in ("overlay2", "erofs"):
        # `overlay` turns metacopy and redirect_dir off, and reads changes from the upper directory itself.
        found += [
            ["Supports d_type", "true" if _tells_types(root) else "false"],
            ["Using metacopy", "false"],
            ["Native Overlay Diff", "true"],
            ["userxattr", "false"],
        ]
    return found


def _tells_types(root: str) -> bool:
    """Tell whether the file system says in a directory what its entries are (d_type), which overlayfs relies on."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        entries = libc.getdents64(fd)
    finally:
        os.close(fd)
    at, types = 0, []
    while at < len(entries):
        types.append(entries[at + 18])
        at += int.from_bytes(entries[at + 16 : at + 18], "little")
    return any(types)
