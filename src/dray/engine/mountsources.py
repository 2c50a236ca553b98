"""Where a container's mounts come from, made ready on the host right before it starts.

A bind's source is a path, a volume's the directory its driver has it at. Two kinds are no path that could be handed
to a runtime as it is: a part of a volume (`volume-subpath`), which must be resolved inside the volume while its
users may be swapping links, and the files of an image (`type=image`). They are *pinned*: mounted at

    <task directory>/mounts/<number of the mount>

from a descriptor that was resolved by openat2(2) RESOLVE_IN_ROOT, so what was checked is what is mounted (and any
OCI runtime can take it by its path). The container's own mount namespace clones the pin; it is taken away as soon as
the container runs, and before the task directory is removed, so that nothing is ever deleted through it.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Sequence

import msgspec

from dray.base.errors import InvalidParameter
from dray.base.files import owned_fd
from dray.engine import mapped as mapped_roots
from dray.engine import rootfs
from dray.engine.model import ContainerRecord, MountPoint
from dray.engine.remap import Remap
from dray.linux import libc, mounts, usernamespaces
from dray.store.snapshots import Snapshots
from dray.volumes.table import VolumeTable


def view_key(container_id: str, index: int) -> str:
    """Return the key of the snapshot behind the image mount that is a container's mount number `index`."""
    return f"{container_id}-image-{index}"


def owner_of_key(key: str) -> str:
    """Return the container that a snapshot's key belongs to."""
    return key.partition("-image-")[0]


_PEERS = ("shared", "rshared", "slave", "rslave")


class MountSources:
    """Makes the sources of containers' mounts ready, and lets go of them."""

    def __init__(self, volumes: VolumeTable, snapshots: Snapshots, remap: Remap) -> None:
        self._volumes = volumes
        self._snapshots = snapshots
        self._remap = remap

    async def prepare(self, record: ContainerRecord) -> None:
        """Make binds' missing directories as `-v` does, mount volumes; `taken` tells what to `give_back`.

        InvalidParameter for a bind source that is missing.
        """
        for point in record.mounts:
            if point.type == "bind" and not os.path.lexists(point.source):
                if not point.create_source:
                    raise InvalidParameter(
                        f'invalid mount config for type "bind": bind source path does not exist: {point.source}'
                    )
                with usernamespaces.acting_as(*self._remap.owner):
                    os.makedirs(point.source, mode=0o755, exist_ok=True)
            elif point.type == "volume":
                point.mount_id = secrets.token_hex(32)
                point.source = await self._volumes.mount(point.name, point.mount_id, user=record.id)
            if point.propagation in _PEERS:
                _check_propagation(point)

    def taken(self, record: ContainerRecord) -> list[tuple[str, str]]:
        """Let go of the volumes of a container's run, which is over; return those that must be unmounted (name,
        mount id), for `give_back`."""
        found = []
        for point in record.mounts:
            if point.mount_id:
                if not self._volumes.let_go_at_once(point.name, point.mount_id):
                    found.append((point.name, point.mount_id))
                point.mount_id = ""
        return found

    async def give_back(self, taken: Sequence[tuple[str, str]]) -> None:
        """Give volumes back. A plugin that hangs is waited for here: not for anybody to wait with."""
        for name, mount_id in taken:
            await self._volumes.unmount(name, mount_id)

    async def release(self, record: ContainerRecord) -> None:
        """Give back what `prepare` took, at once."""
        await self.give_back(self.taken(record))

    def pinned(self, record: ContainerRecord, run_dir: str, *, mapped: bool = False) -> Sequence[MountPoint]:
        """Pin what needs it below the task directory; return the mounts with the sources that the spec is to name.

        mapped: images show the ids of the daemon's user namespaces

        Does nothing and returns the record's own list for a container without such mounts.
        """
        if not any(point.type == "image" or point.subpath for point in record.mounts):
            return record.mounts
        found = []
        for index, point in enumerate(record.mounts):
            if point.type == "image" or point.subpath:
                pin = f"{run_dir}/mounts/{index}"
                os.makedirs(f"{run_dir}/mounts", 0o700, exist_ok=True)
                if point.type == "image":
                    self._pin_image(pin, view_key(record.id, index), point, mapped=mapped)
                else:
                    _pin_part(pin, point.source, point.subpath, shown=point.source)
                found.append(msgspec.structs.replace(point, source=pin))
            else:
                found.append(point)
        return found

    def _pin_image(self, pin: str, key: str, point: MountPoint, *, mapped: bool) -> None:
        mount = self._snapshots.mounts(key)[0]
        os.mkdir(pin, 0o700)
        if mapped:
            with mapped_roots.mounted(mount, self._remap) as tree, owned_fd(os.open(pin, _PLACE)) as place:
                mounts.attach(tree, place)
        elif mount.type == "bind":
            with owned_fd(mounts.clone_tree(mount.source)) as tree, owned_fd(os.open(pin, _PLACE)) as place:
                mounts.attach(tree, place)
        else:
            mounts.mount_filesystem(mount.type, mount.source, pin, mounts.parse_options(mount.options))
        if point.subpath:
            os.mkdir(f"{pin}.whole", 0o700)
            with owned_fd(mounts.clone_tree(pin)) as tree, owned_fd(os.open(f"{pin}.whole", _PLACE)) as place:
                mounts.attach(tree, place)
            libc.umount2(pin, libc.UMOUNT_NOFOLLOW)
            os.rmdir(pin)
            _pin_part(pin, f"{pin}.whole", point.subpath, shown=point.source)


_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def _pin_part(pin: str, base: str, subpath: str, *, shown: str) -> None:
    """Mount what lies at `subpath` in the directory `base` on `pin`, however links are swapped meanwhile.

    shown: what messages call the base
    """
    with owned_fd(os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        try:
            part = rootfs.open_in(root, subpath)
        except OSError as error:
            raise InvalidParameter(
                f"cannot access path {shown}/{subpath}: {os.strerror(error.errno or 0).lower()} (a subpath is resolved "
                "inside its volume or image, and must exist)"
            ) from error
    with owned_fd(part):
        kind = stat.S_IFMT(os.fstat(part).st_mode)
        if kind not in (stat.S_IFDIR, stat.S_IFREG):
            raise InvalidParameter(f"cannot mount {shown}/{subpath}: it is neither a directory nor a file")
        if kind == stat.S_IFDIR:
            os.mkdir(pin, 0o700)
        else:
            os.close(os.open(pin, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        with owned_fd(mounts.clone_tree(part)) as tree, owned_fd(os.open(pin, _PLACE)) as place:
            mounts.attach(tree, place)


def unpin(run_dir: str) -> None:
    """Take all pins of a task directory away; to be called before anything in it is deleted."""
    folder = f"{run_dir}/mounts"
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        path = f"{folder}/{name}"
        while mounts.is_mounted(path):
            libc.umount2(path, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)
        if os.path.isdir(path):
            os.rmdir(path)
        else:
            os.unlink(path)
    os.rmdir(folder)


def _check_propagation(point: MountPoint) -> None:
    """Mounts travel only between peers: what is to be shared must be shared on the host (dockerd says the same)."""
    mount_point, shared, slave = mounts.propagation_of(point.source)
    if shared or (slave and point.propagation.endswith("slave")):
        return
    wanted = "shared or slave" if point.propagation.endswith("slave") else "shared"
    raise InvalidParameter(
        f"path {point.source} is mounted on {mount_point} but it is not a {wanted} mount: "
        f"make it one (mount --make-shared {mount_point}), or leave out the propagation {point.propagation}"
    )
