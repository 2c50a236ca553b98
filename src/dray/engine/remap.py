"""`userns-remap`: containers in user namespaces of their own, so that their root is nobody on the host.

Every such container has its own namespace, all with the maps that the daemon is configured with; `--userns host`
keeps one out. Its network namespace belongs to the user namespace, so the zygote makes both together, ahead of time
(`network.sandbox`). A container that joins another's namespaces joins its user namespace as well, or it would have no
rights over them.

On disk nothing is shifted: images and containers' layers keep the containers' ids, and the root is mounted with
mapped ids (`linux.mappedroots`, or by fuse-overlayfs where that is the storage driver). Volumes, which the host may use as well, have the host's ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dray.api.models import HostConfig
from dray.base.errors import Conflict, InvalidParameter
from dray.engine.model import Container, ContainerRecord
from dray.linux import usernamespaces
from dray.linux.usernamespaces import IdMap

ROOT = (0, 0)


class Namespaces(Protocol):
    """Where user namespaces come from (the zygote)."""

    async def new_mapped_network_namespace(self, maps: tuple[str, str]) -> tuple[int, int, int]:
        """See `network.model.NamespaceSource`."""


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """Of a container: its maps, and the path of another container's that it joins ("" for one of its own)."""

    maps: IdMap
    path: str = ""


class Remap:
    """The daemon's setting. maps: None when containers live in the host's user namespace; by_server: roots are shown
    with mapped ids by fuse-overlayfs instead of the kernel.

    `descriptor` is a user namespace with the maps, held open from `open` to `close`: what layers are shown with to
    the daemon itself, when no container runs.
    """

    def __init__(self, maps: IdMap | None = None) -> None:
        self.maps = maps
        self.descriptor = -1
        self.by_server = False

    async def open(self, source: Namespaces) -> None:
        """Make the namespace; the kernel's reason, as OSError's kind, when it lets nobody have one."""
        if self.maps is not None and self.descriptor < 0:
            made = await source.new_mapped_network_namespace((self.maps.uid_map, self.maps.gid_map))
            network, netlink, self.descriptor = made
            os.close(netlink)
            os.close(network)

    def close(self) -> None:
        """Let go of it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    @property
    def owner(self) -> tuple[int, int]:
        """Who owns on the host what is made for containers, such as volumes: (uid, gid)."""
        return ROOT if self.maps is None else self.maps.root

    def maps_of(self, host: HostConfig) -> IdMap | None:
        """Return the maps of a container that joins no other; None if it lives in the host's user namespace."""
        return None if host.userns_mode == "host" else self.maps

    def check(self, host: HostConfig) -> None:
        """Refuse what would take a container out of its user namespace; InvalidParameter in Docker's words."""
        if self.maps_of(host) is None:
            return
        if host.privileged:
            raise InvalidParameter(
                "privileged mode is incompatible with user namespaces.  You must run the container in the host "
                "namespace when running privileged mode"
            )
        if host.network_mode == "host":
            raise InvalidParameter("cannot share the host's network namespace when user namespaces are enabled")
        if host.pid_mode == "host":
            raise InvalidParameter("cannot share the host PID namespace when user namespaces are enabled")
        if host.ipc_mode == "host":
            raise InvalidParameter(
                "cannot share the host's IPC namespace when user namespaces are enabled: its message queues would not "
                "be the container's to mount; add --userns=host"
            )
        if host.runtime != "dray":
            raise InvalidParameter(
                f"runtime {host.runtime} cannot be used when user namespaces are enabled: only the built-in one mounts "
                "layers with mapped ids; leave --runtime away, or add --userns=host"
            )

    def of(self, record: ContainerRecord, find: Callable[[str], Container]) -> UserNamespace | None:
        """Return the user namespace of a container about to start; None for the host's.

        Conflict when it is to join containers of other user namespaces.
        """
        host = record.host_config
        self.check(host)
        maps = self.maps_of(host)
        if maps is None:
            return None
        found: UserNamespace | None = None
        for kind, mode in (("network", host.network_mode), ("IPC", host.ipc_mode), ("PID", host.pid_mode)):
            if mode.startswith("container:"):
                other = find(mode.removeprefix("container:"))
                if other.state.running:  # if not, that is refused where the namespace is looked for
                    found = self._joined(other, kind, found)
        return found or UserNamespace(maps)

    @staticmethod
    def _joined(other: Container, kind: str, before: UserNamespace | None) -> UserNamespace:
        maps = usernamespaces.of_process(other.state.pid)
        if maps is None:
            raise Conflict(
                f"cannot join the {kind} namespace of container {other.id}, which is in the host's user namespace: add "
                "--userns=host"
            )
        path = f"/proc/{other.state.pid}/ns/user"
        if before is not None and os.stat(path).st_ino != os.stat(before.path).st_ino:
            raise Conflict(
                f"cannot join the {kind} namespace of container {other.id}: the namespaces of two containers in "
                "different user namespaces cannot be shared by one"
            )
        return UserNamespace(maps, path)


def mappings(ids: usernamespaces.Ranges) -> list[dict[str, int]]:
    """Return ranges as the OCI spec has them."""
    return [{"containerID": inside, "hostID": outside, "size": size} for inside, outside, size in ids]
