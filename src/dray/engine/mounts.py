"""Which mounts a container asks for: `-v`, `--mount`, `--tmpfs`, an image's VOLUME, `--volumes-from`.

Pure: from the ask to a list of `MountPoint`, in Docker's own words where the ask makes no sense (moby
`volume/mounts`). A `volume` point without a name is an anonymous volume, still to be created.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence

from dray.api.models import ContainerConfig, HostConfig, Mount
from dray.base.errors import InvalidParameter, Unsupported
from dray.base.patterns import pattern
from dray.engine.model import MountPoint

_PROPAGATION = {"private", "rprivate", "shared", "rshared", "slave", "rslave"}
_VOLUME_NAME = pattern(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", re.ASCII)
IDMAP_LABEL = "dray.bind-idmap."
IdRange = tuple[int, int, int]
_ID_RANGE = pattern(r"([ug]?)([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})", re.ASCII)
_LABELS = {"z", "Z"}  # SELinux relabelling; there is no SELinux to tell, as on every Docker host without it
_CONSISTENCY = {"consistent", "cached", "delegated"}  # Docker Desktop's; no meaning on Linux


def resolve(
    config: ContainerConfig, host: HostConfig, *, mounts_of: Callable[[str], Sequence[MountPoint]]
) -> list[MountPoint]:
    """Return the container's mount points, one per destination.

    `mounts_of` gives the mount points of another container (`--volumes-from`). An explicit ask wins over what an
    image or another container brings; two explicit asks for one destination are an error.
    """
    points: dict[str, MountPoint] = {}
    for text in host.volumes_from or []:
        for point in _from_container(text, mounts_of):
            points[point.destination] = point
    explicit: set[str] = set()
    asked = [_bind(text, host.volume_driver) for text in host.binds or []]
    asked += [_mount(mount) for mount in host.mounts]
    asked += [_tmpfs(path, options) for path, options in (host.tmpfs or {}).items()]
    for point in asked:
        if point.destination in explicit:
            raise InvalidParameter(f"Duplicate mount point: {point.destination}")
        explicit.add(point.destination)
        points[point.destination] = point
    for path in config.volumes or {}:
        destination = _destination(path, path)
        if destination not in points:
            driver = host.volume_driver or "local"
            points[destination] = MountPoint(type="volume", destination=destination, driver=driver, copy=True)
    for label, value in (config.labels or {}).items():
        if label.startswith(IDMAP_LABEL):
            _set_idmap(points, label, value)
    return sorted(points.values(), key=lambda point: (point.destination.count("/"), point.destination))


def _set_idmap(points: dict[str, MountPoint], label: str, value: str) -> None:
    """Give a bind or volume the owners that its label asks for; InvalidParameter if it cannot have them."""
    point = points.get(posixpath.normpath(label.removeprefix(IDMAP_LABEL)))
    if point is None or point.type not in ("bind", "volume"):
        raise InvalidParameter(f"label {label}: the container has no bind or volume there")
    parse_idmap(value, label)
    point.idmap = value


def parse_idmap(text: str, label: str = IDMAP_LABEL) -> tuple[list[IdRange], list[IdRange]]:
    """Return (uids, gids), each a list of (container id, host id, count).

    text: `container:host:count`, several apart by commas, for users and groups alike; with a `u` or `g` before a
        range it is for the one or the other
    """
    users, groups = list[IdRange](), list[IdRange]()
    for part in text.split(","):
        found = _ID_RANGE.fullmatch(part.strip())
        numbers = [int(number) for number in found.groups()[1:]] if found else []
        if not found or not numbers[2] or max(numbers[0], numbers[1]) + numbers[2] > 1 << 32:
            raise InvalidParameter(
                f"label {label}: {part.strip()!r} is not container:host:count (u or g in front for users or groups "
                "alone)"
            )
        for letter, ranges in (("u", users), ("g", groups)):
            if found[1] in ("", letter):
                ranges.append((numbers[0], numbers[1], numbers[2]))
    if not users or not groups:
        raise InvalidParameter(f"label {label}: ranges for both users and groups are needed")
    return users, groups


def _destination(path: str, specification: str) -> str:
    if not path.startswith("/"):
        raise InvalidParameter(
            f"invalid volume specification: '{specification}': invalid mount path: '{path}' mount path must be absolute"
        )
    clean = posixpath.normpath(path).replace("//", "/")
    if clean == "/":
        raise InvalidParameter(
            f"invalid volume specification: '{specification}': invalid mount config for type \"bind\": "
            "invalid specification: destination can't be '/'"
        )
    return clean


def _bind(text: str, volume_driver: str) -> MountPoint:
    pieces = text.split(":")
    if len(pieces) == 1:
        return MountPoint(
            type="volume", destination=_destination(text, text), driver=volume_driver or "local", copy=True
        )
    if len(pieces) > 3 or not pieces[0] or not pieces[1]:
        raise InvalidParameter(f"invalid volume specification: '{text}'")
    source, mode = pieces[0], pieces[2] if len(pieces) == 3 else ""
    point = MountPoint(type="bind", destination=_destination(pieces[1], text), mode=mode)
    copy = _apply_mode(point, mode, text)
    if source.startswith("/"):
        if not copy:
            raise InvalidParameter(f"invalid volume specification: '{text}': invalid mode: nocopy")
        point.source, point.create_source = posixpath.normpath(source), True
        point.propagation = point.propagation or "rprivate"
        return point
    if not _VOLUME_NAME.fullmatch(source):
        raise InvalidParameter(
            f'create {source}: "{source}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )
    if point.propagation:
        raise InvalidParameter(f"invalid volume specification: '{text}': invalid mode: {mode}")
    point.type, point.name, point.driver, point.copy = "volume", source, volume_driver, copy
    if not point.mode:
        point.mode = "z"
    return point


def _apply_mode(point: MountPoint, mode: str, text: str) -> bool:
    """Put a bind's mode words on the point; return whether a volume is filled from the image (no `nocopy`)."""
    copy, seen = True, set[str]()
    for word in mode.split(",") if mode else []:
        group = "rw" if word in ("ro", "rw") else "propagation" if word in _PROPAGATION else word
        if group in seen:
            raise InvalidParameter(f"invalid volume specification: '{text}': invalid mode: {mode}")
        seen.add(group)
        if word in ("ro", "rw"):
            point.rw = word == "rw"
        elif word in _PROPAGATION:
            point.propagation = word
        elif word == "nocopy":
            copy = False
        elif word not in _LABELS | _CONSISTENCY:
            raise InvalidParameter(f"invalid volume specification: '{text}': invalid mode: {mode}")
    return copy


def _mount(mount: Mount) -> MountPoint:
    kind = mount.type

    def refuse(why: str) -> InvalidParameter:
        return InvalidParameter(f'invalid mount config for type "{kind}": {why}')

    if kind not in ("bind", "volume", "tmpfs", "image"):
        if kind in ("npipe", "cluster"):
            raise Unsupported(f"mount type {kind} does not exist on this platform: use bind, volume or tmpfs")
        raise refuse("mount type unknown")
    if not mount.target:
        raise refuse("field Target must not be empty")
    if not mount.target.startswith("/"):
        raise refuse(f"invalid mount path: '{mount.target}' mount path must be absolute")
    destination = posixpath.normpath(mount.target)
    if destination == "/":
        raise refuse("invalid specification: destination can't be '/'")
    for field, owner in (
        ("bind", mount.bind_options),
        ("volume", mount.volume_options),
        ("tmpfs", mount.tmpfs_options),
        ("image", mount.image_options),
    ):
        if owner is not None and field != kind:
            raise refuse(f"field {field.capitalize()}Options must not be specified")
    point = MountPoint(type=kind, destination=destination, rw=not mount.read_only)
    if kind == "bind":
        _bind_options(point, mount, refuse)
    elif kind == "volume":
        _volume_options(point, mount, refuse)
    elif kind == "tmpfs":
        if mount.source:
            raise refuse("field Source must not be specified")
        point.options = _tmpfs_words(mount)
    else:
        if not mount.source:
            raise refuse("field Source must not be empty")
        point.source, point.rw = mount.source, False
        if mount.image_options:
            point.subpath = _subpath(mount.image_options.subpath, refuse)
    return point


def _subpath(text: str, refuse: Callable[[str], InvalidParameter]) -> str:
    """Return a subpath, clean; it must be local: relative, without a way out (moby `validateLocality`)."""
    clean = posixpath.normpath(text) if text else ""
    if text.startswith("/") or clean == ".." or clean.startswith("../") or "\0" in text:
        raise refuse("subpath must be a relative path within the volume")
    return "" if clean == "." else clean


def _bind_options(point: MountPoint, mount: Mount, refuse: Callable[[str], InvalidParameter]) -> None:
    if not mount.source:
        raise refuse("field Source must not be empty")
    if not mount.source.startswith("/"):
        raise refuse(f"invalid mount path: '{mount.source}' mount path must be absolute")
    point.source = posixpath.normpath(mount.source)
    options = mount.bind_options
    point.propagation = (options.propagation if options else "") or "rprivate"
    if point.propagation not in _PROPAGATION:
        raise refuse(f"invalid propagation mode: {point.propagation}")
    if options:
        point.create_source = options.create_mountpoint
        if options.non_recursive:
            point.options.append("bind")
        if options.read_only_non_recursive and options.read_only_force_recursive:
            raise refuse("ReadOnlyNonRecursive and ReadOnlyForceRecursive are mutually exclusive")
        if (options.read_only_non_recursive or options.read_only_force_recursive) and not mount.read_only:
            raise refuse("ReadOnlyNonRecursive and ReadOnlyForceRecursive need ReadOnly")
        if options.read_only_non_recursive:
            point.options.append("ro-nonrecursive")
        if options.read_only_force_recursive:
            if point.propagation != "rprivate":
                raise refuse("ReadOnlyForceRecursive needs the propagation rprivate")
            point.options.append("rro")


def _volume_options(point: MountPoint, mount: Mount, refuse: Callable[[str], InvalidParameter]) -> None:
    options = mount.volume_options
    if mount.source and not _VOLUME_NAME.fullmatch(mount.source):
        raise refuse(
            f'create {mount.source}: "{mount.source}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )
    point.name, point.driver, point.copy = mount.source, "" if mount.source else "local", True
    point.mode = "z"
    if options:
        point.copy = not options.no_copy
        point.subpath = _subpath(options.subpath, refuse)
        if point.subpath and not mount.source:
            raise refuse("must not set Subpath when using anonymous volumes")
        if options.driver_config and options.driver_config.name:
            point.driver = options.driver_config.name


def _tmpfs_words(mount: Mount) -> list[str]:
    words = []
    options = mount.tmpfs_options
    if options:
        if options.size_bytes:
            words.append(f"size={options.size_bytes}")
        if options.mode:
            words.append(f"mode={options.mode:o}")
        words += ["=".join(pair) for pair in options.options]
    return words


def _tmpfs(path: str, options: str) -> MountPoint:
    point = MountPoint(type="tmpfs", destination=_destination(path, path), tmpfs_flag=True)
    point.options = [word for word in options.split(",") if word]
    point.rw = "ro" not in point.options
    return point


def _from_container(text: str, mounts_of: Callable[[str], Sequence[MountPoint]]) -> list[MountPoint]:
    identity, _, mode = text.partition(":")
    if mode not in ("", "ro", "rw", "z", "Z"):
        raise InvalidParameter(f"invalid mode: {mode}")
    points = []
    for point in mounts_of(identity):
        if point.type in ("bind", "volume"):
            points.append(
                MountPoint(
                    type=point.type,
                    destination=point.destination,
                    source=point.source,
                    name=point.name,
                    driver=point.driver,
                    mode=point.mode,
                    rw=point.rw and mode != "ro",
                    propagation=point.propagation,
                    options=list(point.options),
                    subpath=point.subpath,
                    idmap=point.idmap,
                )
            )
    return points
