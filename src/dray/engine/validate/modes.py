"""Which namespaces are shared with whom, and what cannot go with that (moby `runconfig`)."""

from __future__ import annotations

from dray.api.models import ContainerConfig, HostConfig
from dray.base.errors import InvalidParameter

_IPC_SYSCTLS = frozenset(
    "kernel." + name
    for name in [
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
        "msg_next_id",
        "sem_next_id",
        "shm_next_id",
    ]
)


def check(config: ContainerConfig, host: HostConfig) -> None:
    """Raise InvalidParameter for an unknown mode or a conflict."""
    _known(host)
    _network(config, host)
    if host.uts_mode == "host" and config.hostname:
        raise InvalidParameter("conflicting options: hostname and the UTS mode")
    for name in host.sysctls or {}:
        _sysctl(name, host)


def _is_container(mode: str) -> bool:
    return mode.startswith("container:") and len(mode) > len("container:")


def _known(host: HostConfig) -> None:
    ipc = ("", "none", "host", "private", "shareable")
    if host.ipc_mode not in ipc and not _is_container(host.ipc_mode):
        raise InvalidParameter(f"invalid IPC mode: {host.ipc_mode}")
    if host.pid_mode not in ("", "host", "private") and not _is_container(host.pid_mode):
        raise InvalidParameter(f"invalid PID mode: {host.pid_mode}")
    if host.uts_mode not in ("", "host", "private"):
        raise InvalidParameter(f"invalid UTS mode: {host.uts_mode}")
    if host.cgroupns_mode not in ("", "host", "private"):
        raise InvalidParameter(f"invalid cgroup namespace mode: {host.cgroupns_mode}")
    if host.userns_mode not in ("", "host"):
        raise InvalidParameter(f"invalid user namespace mode: {host.userns_mode}")
    if host.cgroup:
        raise InvalidParameter(
            f"Cgroup {host.cgroup!r}: sharing another container's cgroup does not exist on linux"
        )
    if host.isolation not in ("", "default"):
        raise InvalidParameter(f"Invalid isolation: \"{host.isolation}\" - linux only supports 'default'")


def _network(config: ContainerConfig, host: HostConfig) -> None:
    if host.network_mode == "host" and host.links:
        raise InvalidParameter(
            "conflicting options: host type networking can't be used with links. This would result in undefined "
            "behavior"
        )
    if not host.network_mode.startswith("container:"):
        return
    if not _is_container(host.network_mode):
        raise InvalidParameter("Invalid network mode: invalid container format container:<name|id>")
    for present, words in (
        (config.hostname, "hostname and the network mode"),
        (
            host.links,
            "container type network can't be used with links. This would result in undefined behavior",
        ),
        (host.dns, "dns and the network mode"),
        (host.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (config.mac_address, "mac-address and the network mode"),
        (
            host.port_bindings or host.publish_all_ports,
            "port publishing and the container type network mode",
        ),
        (config.exposed_ports, "port exposing and the container type network mode"),
    ):
        if present:
            raise InvalidParameter(f"conflicting options: {words}")


def _sysctl(name: str, host: HostConfig) -> None:
    """A sysctl must belong to a namespace that is the container's own, or it would change the host (runc)."""
    name = name.replace("/", ".")
    if name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
        if host.ipc_mode == "host":
            raise InvalidParameter(f'sysctl "{name}" is not allowed in the hosts ipc namespace')
    elif name.startswith("net."):
        if host.network_mode == "host":
            raise InvalidParameter(f'sysctl "{name}" not allowed in host network namespace')
    elif name == "kernel.hostname":
        raise InvalidParameter(f'sysctl "{name}" is not allowed as it conflicts with the OCI "hostname" field')
    elif name == "kernel.domainname":
        if host.uts_mode == "host":
            raise InvalidParameter(f'sysctl "{name}" is not allowed in the hosts uts namespace')
    else:
        raise InvalidParameter(f'sysctl "{name}" is not in a separate kernel namespace')
