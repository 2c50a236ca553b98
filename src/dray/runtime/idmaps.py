"""Id-mapped bind mounts: trees that show other owners than their files have (mount_setattr(2), MOUNT_ATTR_IDMAP).

The mapping is that of a user namespace, which exists only to carry it: a process is forked into a new one, gets the
maps, and ends when the namespace is open. The trees are made by the runtime before it forks init, since only the
user namespace that owns a file system may map its ids; init attaches them by descriptor.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dray.base.errors import InvalidParameter, Unsupported
from dray.linux import libc, mounts, usernamespaces
from dray.runtime import document
from dray.runtime.document import Document


def wanted(spec: Document) -> bool:
    """Tell whether a spec may ask for such a mount, without reading all of it."""
    if isinstance(spec, bytes):
        return b'"uidMappings"' in spec or b'idmap"' in spec
    return any(_asks(entry) for entry in spec.get("mounts") or ())


def _asks(entry: Mapping[str, Any]) -> bool:
    words = entry.get("options") or ()
    return bool(entry.get("uidMappings") or entry.get("gidMappings") or "idmap" in words or "ridmap" in words)


def trees(spec: Document) -> dict[int, int]:
    """Return index in `mounts` → detached tree, owned by the caller, of every id-mapped mount of a spec.

    Raises InvalidParameter for one that makes no sense, Unsupported where the file system or kernel cannot.
    """
    whole = document.parsed(spec)
    linux = whole.get("linux") or {}
    made: dict[int, int] = {}
    try:
        for index, entry in enumerate(whole.get("mounts") or ()):
            if _asks(entry):
                made[index] = _tree(entry, linux)
    except BaseException:
        for tree in made.values():
            os.close(tree)
        raise
    return made


def _tree(entry: Mapping[str, Any], linux: Mapping[str, Any]) -> int:
    target, source = entry.get("destination") or "", str(entry.get("source") or "")
    options = mounts.parse_options(entry.get("options") or ())
    if not options.flags & libc.MS_BIND and entry.get("type") != "bind":
        raise InvalidParameter(f"mounts: {target}: only a bind mount can have its ids mapped")
    uids, gids = entry.get("uidMappings"), entry.get("gidMappings")
    if bool(uids) != bool(gids):
        raise InvalidParameter(f"mounts: {target}: uidMappings and gidMappings must be given together")
    if not uids:
        uids, gids = linux.get("uidMappings"), linux.get("gidMappings")
        if not (uids and gids):
            raise InvalidParameter(
                f"mounts: {target}: option {options.idmap} needs mappings of the mount's own, or a user namespace"
            )
    recursive = bool(options.flags & libc.MS_REC)
    owner = _namespace(uids or (), gids or ())
    tree = -1
    try:
        tree = mounts.clone_tree(source, recursive=recursive)
        deep = libc.AT_RECURSIVE if recursive and options.idmap != "idmap" else 0
        libc.mount_setattr(
            tree, "", libc.AT_EMPTY_PATH | deep, attr_set=libc.MOUNT_ATTR_IDMAP, userns_fd=owner
        )  # fmt: skip
        return tree
    except OSError as error:
        if tree >= 0:
            os.close(tree)
            raise Unsupported(
                f"mounts: {target}: the file system of {source} cannot have its ids mapped here: {error.strerror}"
            ) from error
        raise
    finally:
        os.close(owner)


def _namespace(uids: Sequence[Mapping[str, int]], gids: Sequence[Mapping[str, int]]) -> int:
    """Return the descriptor of a new user namespace with these maps."""
    try:
        uid_map, gid_map = (
            "".join(f"{int(m['containerID'])} {int(m['hostID'])} {int(m['size'])}\n" for m in mapping)
            for mapping in (uids, gids)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidParameter(f"mounts: a mapping needs containerID, hostID and size ({error})") from None
    return usernamespaces.make(uid_map, gid_map)


def namespace_of(linux: Mapping[str, Any]) -> int:
    """Return the descriptor of a new user namespace with the maps of a spec's `linux`, to map mounts with."""
    return _namespace(linux.get("uidMappings") or (), linux.get("gidMappings") or ())


def binds(spec: Document) -> dict[int, int]:
    """Return index in `mounts` → detached tree, owned by the caller, of the other bind mounts of a spec.

    For a container in a user namespace: its root may not walk to where the sources are. One that cannot be had is
    left out; init says why.
    """
    made: dict[int, int] = {}
    for index, entry in enumerate(document.whole(spec)[0].get("mounts") or ()):
        words = entry.get("options") or ()
        if (entry.get("type") == "bind" or "bind" in words or "rbind" in words) and not _asks(entry):
            recursive = "bind" not in words or "rbind" in words
            with contextlib.suppress(OSError):
                made[index] = mounts.clone_tree(str(entry.get("source") or ""), recursive=recursive)
    return made
