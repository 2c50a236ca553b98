"""The local volume driver: directories that outlive containers.

    <root>/<name>/_data      a volume's files; its mount point
    <root>/.trash/<random>   a volume on its way out

Volumes are records (kind `volume`, key name). A volume made with options (`type`, `o`, `device`, as for mount(8)) is
mounted on its `_data` when a container first needs it, so that all containers share one mount, and unmounted when
the last one is gone; what its words say (ro, nosuid …) holds for every container, which binds that mount. A volume
with `size` and nothing else is a directory with a project quota (`linux.quotas`).

Invariants: a record is written after its directory is there, and is marked before the directory goes, so that after
a crash a half-removed volume is removed, and data whose record was lost is shown again, never deleted. Who uses a
volume is the engine's knowledge; it is told to `remove` and `release` by the caller.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from dray.base import failpoints
from dray.base.errors import Conflict, InvalidParameter, NotFound
from dray.base.files import owned_fd
from dray.base.patterns import pattern
from dray.base.records import Change, Records
from dray.base.units import parse_bytes
from dray.linux import libc, mounts, quotas, trees
from dray.runtime.model import Mount

ANONYMOUS = "com.docker.volume.anonymous"
_KIND = "volume"
_NAME = pattern(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
_OPTIONS = ("type", "o", "device", "size")
_NEEDED = {"device": ("type",), "type": ("device",), "o": ("device", "type")}
_MODE = 0o755


class Volume(msgspec.Struct, frozen=True, omit_defaults=True):
    """A volume. `created` is unix nanoseconds; `removing` marks one whose removal has begun; `before` is the name
    that its directory has still, while it is being renamed."""

    name: str
    mountpoint: str = ""
    driver: str = "local"
    created: int = 0
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    removing: bool = False
    before: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Volume).decode


def check_name(name: str) -> None:
    """Refuse a name in Docker's words."""
    if len(name) == 1:
        raise InvalidParameter(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if not _NAME.fullmatch(name) or len(name) > 255:
        raise InvalidParameter(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )


def check_options(name: str, options: Mapping[str, str], *, quota: bool) -> None:
    """Refuse options that the local driver does not know, or cannot do, in Docker's words.

    quota: whether the file system below has project quotas
    """
    for option in options:
        if option not in _OPTIONS:
            raise InvalidParameter(f'create {name}: invalid option: "{option}"')
    for option, needed in _NEEDED.items():
        for other in needed:
            if option in options and other not in options:
                raise InvalidParameter(f'create {name}: missing required option: "{other}"')
    if _quota(name, options) and not quota:
        raise InvalidParameter(
            f"create {name}: quota size requested but no quota support: the data root's file system needs project "
            "quotas (xfs or ext4 mounted with prjquota)"
        )


def _quota(name: str, options: Mapping[str, str]) -> int:
    """Return the bytes of the option `size`, 0 for no limit."""
    try:
        return parse_bytes(options["size"]) if options.get("size") else 0
    except InvalidParameter as error:
        raise InvalidParameter(f"create {name}: invalid size {options['size']!r}: {error}") from error


class Volumes:
    """All local volumes below `root`. Thread-safe; methods that touch files belong off the event loop."""

    def __init__(self, root: str | os.PathLike[str], records: Records, *, owner: tuple[int, int] = (0, 0)) -> None:
        self._root = Path(root).absolute()
        self._records = records
        self._owner = owner  # of new volumes: who the containers' root is on the host
        self._lock = threading.RLock()
        self._mounting: dict[str, threading.Lock] = {}  # a mount may hang: it holds up its own volume alone
        self._root.mkdir(mode=0o701, parents=True, exist_ok=True)
        os.chmod(self._root, 0o701)  # a container's own user may pass through to its volume, not list them
        self._trash = self._root / ".trash"
        self._trash.mkdir(mode=0o700, exist_ok=True)
        self._volumes = {key: _decode(value) for key, value in records.scan(_KIND)}
        self._recover()

    def _recover(self) -> None:
        """Finish removals, remake directories that were lost, adopt data without a record."""
        for volume in list(self._volumes.values()):
            if volume.removing:
                self._discard(volume)
            elif volume.before:
                self._move(volume)
            else:
                self._data(volume.name).mkdir(mode=_MODE, parents=True, exist_ok=True)
        for entry in os.scandir(self._root):
            if entry.name in self._volumes or not _NAME.fullmatch(entry.name):
                continue
            data = self._data(entry.name)
            if not data.is_dir() or not any(data.iterdir()):
                self._throw(entry.name)
            else:
                self._save(Volume(entry.name, str(data), created=time.time_ns()))
        self._empty_trash()

    def _data(self, name: str) -> Path:
        return self._root / name / "_data"

    def _save(self, volume: Volume) -> None:
        self._records.write([Change(_KIND, volume.name, _encode(volume))])
        self._volumes[volume.name] = volume

    # --- the verbs

    def create(
        self,
        name: str = "",
        *,
        driver: str = "local",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume:
        """Make a volume, or return the one that has the name. Without a name it is anonymous: 64 hex digits.

        InvalidParameter for a bad name or option, NotFound for an unknown driver, Conflict for another driver's name.
        """
        labels, options = dict(labels or {}), dict(options or {})
        if not name:
            name = secrets.token_hex(32)
            labels.setdefault(ANONYMOUS, "")
        check_name(name)
        if driver not in ("", "local"):
            raise NotFound(
                f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found'
            )  # fmt: skip
        with self._lock:
            existing = self._volumes.get(name)
            if existing is not None:
                if options and options != existing.options:
                    raise Conflict(
                        f"create {name}: volume already exists with other options ({_words(existing.options)}): "
                        "remove it first, or ask for it without options"
                    )
                return existing
            check_options(name, options, quota="size" in options and quotas.is_enforced(self._root))
            try:
                return self._make(name, options, labels)
            except BaseException:
                self._throw(name)  # a full disk: nothing of it stays
                raise

    def _make(self, name: str, options: dict[str, str], labels: dict[str, str]) -> Volume:
        data = self._data(name)
        data.parent.mkdir(mode=0o701, exist_ok=True)
        data.mkdir(mode=_MODE, exist_ok=True)
        data.chmod(_MODE)
        os.chown(data, *self._owner)
        if size := _quota(name, options):
            taken = {quotas.project_of(path) for path in self._root.glob("*/_data")}
            quotas.limit(data, quotas.free_project(taken), size)
        volume = Volume(name, str(data), created=time.time_ns(), labels=labels, options=options)
        failpoints.reach("volume-create.made")
        self._save(volume)
        failpoints.reach("volume-create.recorded")
        return volume

    def exists(self, name: str) -> bool:
        """Tell whether there is a volume of that name."""
        return name in self._volumes

    def inspect(self, name: str) -> Volume:
        """Return a volume; NotFound in Docker's words if there is none."""
        volume = self._volumes.get(name)
        if volume is None:
            raise NotFound(f"get {name}: no such volume")
        return volume

    def is_anonymous(self, name: str) -> bool:
        """Tell whether a volume was made without a name (prune takes these first)."""
        volume = self._volumes.get(name)
        return volume is not None and ANONYMOUS in volume.labels

    def remove(self, name: str, *, force: bool = False, in_use: Sequence[str] = ()) -> None:
        """Remove a volume and all its files.

        NotFound if it is not there (with `force`: nothing happens); Conflict while containers (`in_use`, their ids)
        have it, in Docker's words, or while something holds its mount busy.
        """
        with self._lock:
            if name not in self._volumes and force:
                return
            volume = self.inspect(name)
            if in_use:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(in_use)}]")
            self.release(name)
            self._save(msgspec.structs.replace(volume, removing=True))
            failpoints.reach("volume-remove.marked")
            self._discard(volume)
            failpoints.reach("volume-remove.done")
        self._empty_trash()

    def _discard(self, volume: Volume) -> None:
        self._unmount(volume)
        if _quota(volume.name, volume.options):
            with contextlib.suppress(OSError):  # the quota was switched off since
                quotas.resize(self._data(volume.name), 0)
        self._throw(volume.name)
        self._records.write([Change(_KIND, volume.name, None)])
        self._volumes.pop(volume.name, None)

    def _throw(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._root / name, self._trash / secrets.token_hex(8))

    def _empty_trash(self) -> None:
        lift = os.open(self._trash, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while names := os.listdir(lift):
                before = set(names)
                for name in names:
                    with contextlib.suppress(OSError):
                        trees.remove_at(lift, os.fsencode(name), lift=lift)
                if set(os.listdir(lift)) >= before:
                    return  # what cannot be removed now is tried again with the next removal
        finally:
            os.close(lift)

    def rename(self, name: str, new: str, others: Sequence[Change]) -> Volume:
        """Give a volume that is not mounted another name, together with the `others` in one write of the records.

        NotFound, InvalidParameter for a bad name, Conflict if the new name is taken.
        """
        check_name(new)
        with self._lock:
            volume = self.inspect(name)
            if new in self._volumes:
                raise Conflict(f"rename {name}: there is a volume {new} already")
            self.release(name)
            renamed = msgspec.structs.replace(volume, name=new, mountpoint=str(self._data(new)), before=name)
            changes = [Change(_KIND, name, None), Change(_KIND, new, _encode(renamed)), *others]
            self._records.write(changes)  # from here on it has the new name, whatever happens
            del self._volumes[name]
            self._volumes[new] = renamed
            return self._move(renamed)

    def _move(self, volume: Volume) -> Volume:
        """Have a renamed volume's directory follow."""
        old, new = self._root / volume.before, self._root / volume.name
        if old.exists() and not new.exists():
            os.rename(old, new)
        self._data(volume.name).mkdir(mode=_MODE, parents=True, exist_ok=True)
        settled = msgspec.structs.replace(volume, before="")
        self._save(settled)
        return settled

    def size(self, name: str) -> int:
        """Return the apparent bytes of a volume's files (walks them)."""
        return trees.tree_usage(self.inspect(name).mountpoint)[0]

    # --- what containers see

    def mounts_for(self, name: str) -> Mount:
        """Return the bind mount that shows a volume, after mounting what its options say (blocking).

        InvalidParameter, in Docker's words and naming the device, if that cannot be mounted.
        """
        volume = self.inspect(name)
        words = [word for word in volume.options.get("o", "").split(",") if word]
        if needs_mount(volume):
            with self._mount_lock(name):
                if not mounts.is_mounted(volume.mountpoint):
                    self._mount(volume, words)
                    failpoints.reach("volume-mount.mounted")
        return Mount("bind", volume.mountpoint, ("rbind", "ro" if "ro" in words else "rw"))

    def _mount_lock(self, name: str) -> threading.Lock:
        with self._lock:
            return self._mounting.setdefault(name, threading.Lock())

    @staticmethod
    def _mount(volume: Volume, words: list[str]) -> None:
        kind, device = volume.options["type"], volume.options["device"]
        words = _resolved(words)
        options = mounts.parse_options(words)
        try:
            if options.flags & libc.MS_BIND:
                _bind(device, volume.mountpoint, options)
            else:
                mounts.mount_filesystem(kind, device, volume.mountpoint, options)
                for propagation in options.propagation:
                    libc.mount("", volume.mountpoint, "", propagation)
        except OSError as error:
            raise _failed(volume, os.strerror(error.errno or 0).lower(), options) from error

    def release(self, name: str) -> None:
        """Unmount what `mounts_for` has mounted; to be called when no running container has the volume any more."""
        volume = self.inspect(name)
        if needs_mount(volume):
            with self._mount_lock(name):
                self._unmount(volume)

    def release_unused(self, used: Collection[str]) -> None:
        """At start: unmount every volume but those that running containers have (by name)."""
        with self._lock:
            for volume in self._volumes.values():
                if volume.name not in used:
                    with contextlib.suppress(Conflict):
                        self._unmount(volume)

    def _unmount(self, volume: Volume) -> None:
        if needs_mount(volume) and mounts.is_mounted(volume.mountpoint):
            try:
                libc.umount2(volume.mountpoint, libc.UMOUNT_NOFOLLOW)
            except OSError as error:
                raise Conflict(f"remove {volume.name}: volume is busy: {error.strerror}") from error

    def list(self) -> list[Volume]:
        """Return all volumes, by name."""
        return [self._volumes[name] for name in sorted(self._volumes)]


def copy_up(volume: str, source: str | os.PathLike[str] | int) -> bool:
    """Fill a volume that is still empty with what the image has in its place; tell whether it was.

    volume: its directory; source: the image's, by path or by descriptor (opened beneath the container's root by the
    caller). Owners, modes, times, xattrs, links and devices are kept; the volume's own root takes those of `source`.
    """
    with owned_fd(os.open(volume, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as data:
        with _filling, os.scandir(data) as entries:
            if any(entry.name != "lost+found" for entry in entries):
                return False
            trees.copy_tree(source, data)
    return True


_filling = threading.Lock()  # two containers may find the same volume empty


def needs_mount(volume: Volume) -> bool:
    """Tell whether a volume's options name something to be mounted."""
    return "device" in volume.options


def _bind(device: str, target: str, options: mounts.Options) -> None:
    """Show a directory or file of the host's at a volume's place, with the words' attributes."""
    with owned_fd(mounts.clone_tree(device, recursive=bool(options.flags & libc.MS_REC))) as tree:
        mounts.set_tree(tree, options)
        with owned_fd(os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as place:
            mounts.attach(tree, place)


def _words(options: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(options.items())) or "none"


def _failed(volume: Volume, reason: str, options: mounts.Options) -> InvalidParameter:
    flags = f", flags: {options.flags:#x}" if options.flags else ""
    data = f", data: {options.data}" if options.data else ""
    return InvalidParameter(
        f"error while mounting volume '{volume.mountpoint}': failed to mount local volume: "
        f"mount {volume.options['device']}:{volume.mountpoint}{flags}{data}: {reason}"
    )


def _resolved(words: Sequence[str]) -> list[str]:
    """Replace a host name in `addr=` by its address: nfs and cifs in the kernel know only addresses."""
    import socket

    resolved = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "addr" and value and not re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]+", value):
            try:
                value = str(socket.getaddrinfo(value, None, type=socket.SOCK_STREAM)[0][4][0])
            except OSError as error:
                raise InvalidParameter(
                    f"error resolving passed in network volume address: {value}: {error}"
                ) from error
        resolved.append(f"addr={value}" if key == "addr" else word)
    return resolved
