"""The mounts of a spec: the standard ones, the user's, the generated files of /etc (moby `withMounts`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dray.api.models import HostConfig
from dray.base.errors import InvalidParameter
from dray.engine.mounts import parse_idmap
from dray.engine.security import SecurityOptions, defaults
from dray.engine.spec.facts import Facts, ResolvedMount

INIT_PATH = "/sbin/docker-init"

# Stay writable with a read-only root: they are the container's own.
_ALWAYS_WRITABLE = ("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")
_TMPFS_BASE = ("noexec", "nosuid", "nodev")
_OPPOSITES = {"noexec": "exec", "nosuid": "suid", "nodev": "dev"}
_SHARED, _SLAVE = ("shared", "rshared"), ("slave", "rslave")


def build(host: HostConfig, facts: Facts, options: SecurityOptions, *, with_init: bool) -> list[dict[str, Any]]:
    """Return the mounts in the order in which they are made: a parent before what lies in it."""
    asked = {mount.destination: mount for mount in facts.mounts}
    mounts = [*_standard(asked)]
    if "/dev/shm" not in asked and "/dev" not in asked:
        mounts += _shared_memory(host, facts)
    mounts += [_user_mount(mount, facts) for mount in facts.mounts]
    for source, target in (
        (facts.resolv_conf, "/etc/resolv.conf"),
        (facts.hostname, "/etc/hostname"),
        (facts.hosts, "/etc/hosts"),
    ):
        if source and target not in asked:
            words = ["rbind", *(["ro"] if host.readonly_rootfs else []), "rprivate"]
            mounts.append({"destination": target, "type": "bind", "source": source, "options": words})
    if host.readonly_rootfs:
        for mount in mounts:
            if mount["destination"] not in (*_ALWAYS_WRITABLE, *asked) and "ro" not in mount["options"]:
                mount["options"].append("ro")
    writable_cgroups = options.writable_cgroups
    if writable_cgroups is None:
        writable_cgroups = host.privileged or bool(facts.uid_mappings)
    for mount in mounts:
        if (mount["type"] == "cgroup" and writable_cgroups) or (mount["type"] == "sysfs" and host.privileged):
            mount["options"] = [word for word in mount["options"] if word != "ro"]
    if with_init:
        bind = {"destination": INIT_PATH, "type": "bind", "source": facts.init_path, "options": ["bind", "ro"]}
        mounts.append(bind)
    return mounts


def _standard(asked: Mapping[str, ResolvedMount]) -> list[dict[str, Any]]:
    """Copy the default mounts but those that the user's own replace."""
    mounts = []
    for mount in defaults()["mounts"]:
        target = mount["destination"]
        if target in asked or target == "/dev/shm":
            continue
        if "/dev" in asked and target.startswith("/dev/"):
            continue  # what the user's /dev has there is what is wanted
        mounts.append({**mount, "options": list(mount["options"])})
    return mounts


def _shared_memory(host: HostConfig, facts: Facts) -> list[dict[str, Any]]:
    mode = host.ipc_mode
    if mode == "none":
        return []
    source = "/dev/shm" if mode == "host" else facts.shm
    if source:
        words = ["rbind", "rprivate"]
        return [{"destination": "/dev/shm", "type": "bind", "source": source, "options": words}]
    size = f"size={host.shm_size or facts.shm_size}"
    words = ["nosuid", "noexec", "nodev", "mode=1777", size]
    return [{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": words}]


def _user_mount(mount: ResolvedMount, facts: Facts) -> dict[str, Any]:
    if mount.type == "tmpfs":
        return _tmpfs(mount)
    words = ["bind" if "bind" in mount.options else "rbind"]
    if not mount.rw:
        recursive = facts.recursive_read_only and "ro-nonrecursive" not in mount.options
        words.append("rro" if recursive or "rro" in mount.options else "ro")
    if mount.propagation:
        words.append(mount.propagation)
    entry: dict[str, Any] = {
        "destination": mount.destination,
        "type": "bind",
        "source": mount.source,
        "options": words,
    }
    if mount.idmap:
        users, groups = parse_idmap(mount.idmap)
        for key, ranges in (("uidMappings", users), ("gidMappings", groups)):
            # The mapping goes from the ids on the file system to those that are seen (runtime-spec config.md).
            whose = facts.uid_mappings if key == "uidMappings" else facts.gid_mappings
            entry[key] = [
                {"containerID": disk, "hostID": _outside(seen, count, whose, mount), "size": count}
                for seen, disk, count in ranges
            ]
    return entry


def _outside(first: int, count: int, mappings: Sequence[Mapping[str, int]], mount: ResolvedMount) -> int:
    """Return the first id on the host of a range of ids that a container in a user namespace sees."""
    if not mappings:
        return first
    for mapping in mappings:
        if mapping["containerID"] <= first and first + count <= mapping["containerID"] + mapping["size"]:
            return first - mapping["containerID"] + mapping["hostID"]
    raise InvalidParameter(
        f"mapped owners of {mount.destination}: the container's user namespace has no ids {first} to "
        f"{first + count - 1}: map to ids that it has, or add --userns=host"
    )


def _tmpfs(mount: ResolvedMount) -> dict[str, Any]:
    """A tmpfs is noexec, nosuid, nodev unless its own words say otherwise; of two that differ the last counts."""
    own = [word for word in mount.options if word]
    if not mount.rw and "ro" not in own:
        own.append("ro")
    base = [word for word in _TMPFS_BASE if word not in own and _OPPOSITES[word] not in own]
    return {
        "destination": mount.destination,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": [*base, "rprivate", *own],
    }


def root_propagation(mounts: Sequence[ResolvedMount]) -> str:
    """Return `linux.rootfsPropagation`: what a shared or slave mount needs of the root; "" otherwise."""
    wanted = {mount.propagation for mount in mounts if mount.type != "tmpfs"}
    if wanted.intersection(_SHARED):
        return "shared"
    return "rslave" if wanted.intersection(_SLAVE) else ""
