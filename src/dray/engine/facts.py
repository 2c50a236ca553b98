"""What a container's spec needs that its ask does not say: looked up here, right before each start."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dray.api.models import Ulimit
from dray.base.errors import Conflict
from dray.engine import rootfs, shm
from dray.engine.creation import Defaults
from dray.engine.layout import Layout
from dray.engine.model import ContainerRecord, MountPoint
from dray.engine.registry import Registry
from dray.engine.remap import UserNamespace, mappings
from dray.engine.spec import Facts, Machine, User, machine, resolve_user
from dray.engine.spec.resources import block_device_paths
from dray.network.model import Attachment
from dray.store.snapshots import Snapshots


class FactFinder:
    """Finds the facts of one host and one daemon."""

    def __init__(
        self,
        registry: Registry,
        snapshots: Snapshots,
        layout: Layout,
        defaults: Defaults,
        *,
        cgroup_version: int,
    ) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._layout = layout
        self._defaults = defaults
        self._machine: Machine = machine.read(cgroup_version)
        self._time_namespaces = os.path.exists("/proc/self/ns/time")
        self._profile = _profile(defaults.seccomp_profile)
        self._ulimits = [
            Ulimit(name=name, soft=int(limits["Soft"]), hard=int(limits["Hard"]))
            for name, limits in defaults.ulimits.items()
        ]

    def find(
        self,
        record: ContainerRecord,
        attachment: Attachment,
        *,
        linked_env: Sequence[str] = (),
        mounts: Sequence[MountPoint] | None = None,
        user: UserNamespace | None = None,
    ) -> Facts:
        """Return the facts of a container that is about to start.

        user: the user namespace it is to live in, None for the host's
        mounts: its mounts with the sources that they have on the host now (default: the record's)
        """
        host, defaults = record.host_config, self._defaults
        namespaces = self._namespaces(record)  # first: what it joins runs, so the joining ends somewhere
        files = self._layout.container(self._files_of(record))
        builtin = host.runtime == "dray"
        return Facts(
            id=record.id,
            args=[record.path, *record.args],
            user=self._user(record),
            hosts=f"{files}/hosts",
            hostname=f"{files}/hostname",
            resolv_conf=f"{files}/resolv.conf",
            mounts=record.mounts if mounts is None else mounts,
            linked_env=linked_env,
            namespaces=namespaces | ({"user": user.path} if user and user.path else {}),
            uid_mappings=mappings(user.maps.uids) if user else (),
            gid_mappings=mappings(user.maps.gids) if user else (),
            shm=self._shm(host.ipc_mode, record.id),
            init=defaults.init,
            init_path=defaults.init_path,
            devices=machine.host_devices() if host.privileged else machine.resolve_devices(host.devices),
            block_devices=machine.block_devices(block_device_paths(host)),
            sysctls=attachment.sysctls,
            machine=self._machine,
            cgroup_parent=defaults.cgroup_parent or "/dray",
            ulimits=self._ulimits,
            shm_size=defaults.shm_size,
            no_new_privileges=defaults.no_new_privileges,
            seccomp_profile=self._profile,
            seccomp_unconfined=defaults.seccomp_profile == "unconfined",
            time_namespace=builtin and self._time_namespaces,
            recursive_read_only=builtin and self._machine.kernel >= (5, 12),
        )

    def _files_of(self, record: ContainerRecord) -> str:
        """Return whose hosts, hostname and resolv.conf a container uses: its own, or those of the container whose
        network it shares."""
        mode = record.host_config.network_mode
        if mode.startswith("container:"):
            return self._files_of(self._registry.find(mode.removeprefix("container:")).record)
        return record.id

    def _shm(self, mode: str, container_id: str) -> str:
        """Return the directory on the host that is /dev/shm, for a container that shares it."""
        if mode.startswith("container:"):
            container_id = self._registry.find(mode.removeprefix("container:")).id
        elif mode != "shareable":
            return ""
        return shm.path(self._layout.task(container_id))

    def _user(self, record: ContainerRecord) -> User:
        with rootfs.mounted(self._snapshots.mounts(record.id)) as root:
            passwd = rootfs.read_small_file(root, "/etc/passwd")
            group = rootfs.read_small_file(root, "/etc/group")
        return resolve_user(passwd, group, record.config.user, record.host_config.group_add)

    def _namespaces(self, record: ContainerRecord) -> dict[str, str]:
        """Return the namespaces of other containers that this one joins."""
        host = record.host_config
        found: dict[str, str] = {}
        for kind, mode in (("network", host.network_mode), ("ipc", host.ipc_mode), ("pid", host.pid_mode)):
            if not mode.startswith("container:"):
                continue
            other = self._registry.find(mode.removeprefix("container:"))
            if other.id == record.id:
                raise Conflict(f"cannot join own {kind} namespace: name another container")
            if not other.state.running:
                noun = "non running container" if kind == "network" else "container that is not running"
                raise Conflict(f"cannot join {kind} namespace of a {noun}: {other.id}")
            if kind == "ipc" and other.record.host_config.ipc_mode != "shareable":
                raise Conflict(
                    f"can't join IPC of container {other.id}: non-shareable IPC (hint: use IpcMode:shareable for the "
                    "donor container)"
                )
            name = {"network": "net", "ipc": "ipc", "pid": "pid"}[kind]
            found[kind] = f"/proc/{other.state.pid}/ns/{name}"
        return found


def _profile(setting: str) -> Mapping[str, Any] | None:
    """Read the daemon's own seccomp profile; None for the default one."""
    if setting in ("", "builtin", "unconfined"):
        return None
    document: dict[str, Any] = json.loads(Path(setting).read_text())
    return document
