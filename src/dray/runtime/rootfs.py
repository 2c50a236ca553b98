"""The root file system as a plan: a list of operations, computed from the spec alone, printable, then executed.

`plan()` is a pure function of the OCI spec; `dray-runtime --debug create` and the tests print it with `describe()`.
`execute()` (see `operations`) runs in the container's init, which holds a `Stage`: the root's descriptor and what
earlier operations left for later ones.

    prepare   before pivot_root: propagation, the root, every mount, devices, links, the working directory
    finish    after pivot_root: console, read-only and masked paths, the root made read-only

Sources: runtime-spec config.md "Mounts", config-linux.md; behaviours beyond them are runc's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dray.base.errors import InvalidParameter
from dray.linux import libc, mounts
from dray.runtime.devices import BindDevice, MakeDevices, devices_of
from dray.runtime.model import Mount
from dray.runtime.operations import (
    ROOT,
    BindMount,
    JoinCgroup,
    MakeDirectory,
    MaskPath,
    MountCgroup,
    MountFilesystem,
    MountRoot,
    Operation,
    Propagate,
    ReadonlyPath,
    Remount,
    RootAttributes,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Operations before and after pivot_root."""

    prepare: tuple[Operation, ...]
    finish: tuple[Operation, ...]

    def describe(self) -> str:
        """Return the plan, one operation a line."""
        lines = [operation.describe() for operation in self.prepare]
        lines += ["pivot_root"]
        lines += [operation.describe() for operation in self.finish]
        return "\n".join(lines)


@dataclass(slots=True)
class _Lists:
    prepare: list[Operation] = field(default_factory=list)
    late: list[Operation] = field(default_factory=list)  # end of prepare: what must not hinder later mounts


def plan(
    spec: dict[str, Any], root: str, root_mounts: Sequence[Mount] = (), trees: Mapping[int, int] | None = None
) -> Plan:
    """Return the plan of a spec.

    root: absolute path where the root file system is, or is to be mounted by `root_mounts`
    trees: index of a mount, or ROOT → its detached tree, if that was made before (`idmaps`)
    Raises InvalidParameter for a mount without destination or an unknown propagation.
    """
    linux = spec.get("linux") or {}
    own = {entry["type"] for entry in linux.get("namespaces") or ()}
    lists = _Lists()
    word = linux.get("rootfsPropagation") or ""
    propagation = mounts.parse_options([word]).propagation if word else ()
    if word and (not propagation or "unbindable" in word):
        raise InvalidParameter(f"linux.rootfsPropagation: {word!r} is none of private, slave, shared (or r…)")
    # A shared root is asked for by its parent: mounts propagate as soon as they are made below it.
    inherited = propagation[0] | libc.MS_REC if propagation else libc.MS_SLAVE | libc.MS_REC
    lists.prepare.append(Propagate(inherited))
    shared = bool(inherited & libc.MS_SHARED)
    lists.prepare.append(MountRoot(root, tuple(root_mounts), (trees or {}).get(ROOT, -1), shared))
    lists.prepare.append(JoinCgroup("cgroup" in own and not _joined(linux, "cgroup")))
    entries = spec.get("mounts") or []
    for index, entry in enumerate(entries):
        _plan_mount(entry, lists, (trees or {}).get(index, -1), cgroup_namespace="cgroup" in own)
    if not any(_destination(entry) == "/dev" and _is_bind(entry) for entry in entries):
        lists.prepare.extend(_plan_devices(spec, linux, user_namespace="user" in own))
    cwd = (spec.get("process") or {}).get("cwd") or "/"
    lists.prepare.append(MakeDirectory(_clean(cwd)))
    finish: list[Operation] = [ReadonlyPath(path) for path in linux.get("readonlyPaths") or ()]
    finish += [MaskPath(path) for path in linux.get("maskedPaths") or ()]
    readonly = bool((spec.get("root") or {}).get("readonly"))
    finish.append(RootAttributes(readonly, propagation[0] if propagation else 0))
    return Plan((*lists.prepare, *lists.late), tuple(finish))


def _joined(linux: dict[str, Any], kind: str) -> bool:
    return any(entry["type"] == kind and entry.get("path") for entry in linux.get("namespaces") or ())


def _destination(entry: dict[str, Any]) -> str:
    destination = entry.get("destination")
    if not destination:
        raise InvalidParameter("mounts: an entry has no destination")
    return _clean(str(destination))


def _clean(path: str) -> str:
    """Return an absolute path without `..` (normpath keeps two leading slashes)."""
    return os.path.normpath("/" + path.lstrip("/"))


def _is_bind(entry: dict[str, Any]) -> bool:
    words = entry.get("options") or ()
    return entry.get("type") == "bind" or "bind" in words or "rbind" in words


def _plan_mount(entry: dict[str, Any], lists: _Lists, tree: int, *, cgroup_namespace: bool) -> None:
    target = _destination(entry)
    if target == "/":
        raise InvalidParameter("mounts: destination / would hide the root file system")
    options = mounts.parse_options(entry.get("options") or ())
    kind = entry.get("type") or ""
    if _is_bind(entry):
        if options.data:
            raise InvalidParameter(f"mounts: {target}: a bind mount cannot have option {options.data!r}")
        recursive = "bind" not in (entry.get("options") or ()) or "rbind" in (entry.get("options") or ())
        lists.prepare.append(BindMount(str(entry.get("source") or ""), target, options, recursive, tree))
    elif options.flags & libc.MS_REMOUNT:
        lists.prepare.append(Remount(target, options.attr_set, options.attr_clear))
    elif kind in {"cgroup", "cgroup2"}:
        lists.prepare.append(MountCgroup(target, options, cgroup_namespace))
    elif not kind:
        raise InvalidParameter(f"mounts: {target}: no type, and no option bind or rbind")
    else:
        source = str(entry.get("source") or kind)
        if kind == "tmpfs" and options.flags & libc.MS_RDONLY:
            writable = mounts.Options(
                options.flags & ~libc.MS_RDONLY,
                propagation=options.propagation,
                data=options.data,
                copy_up=options.copy_up,
            )
            lists.prepare.append(MountFilesystem(kind, source, target, writable))
            lists.late.append(Remount(target, libc.MOUNT_ATTR_RDONLY))
        else:
            lists.prepare.append(MountFilesystem(kind, source, target, options))


def _plan_devices(spec: dict[str, Any], linux: dict[str, Any], *, user_namespace: bool) -> list[Operation]:
    devices = devices_of(linux)
    if user_namespace:  # mknod needs the initial user namespace: show the host's nodes instead
        return [BindDevice(device) for device in devices] + [MakeDevices(())]
    return [MakeDevices(tuple(devices))]
