"""Requests of older clients in the newest version's terms (moby `postContainersCreate`)."""

from __future__ import annotations

from dray.api.models import ContainerConfig, ContainerUpdateRequest, EndpointSettings, HostConfig, NetworkingConfig
from dray.api.versions import Version
from dray.base.errors import InvalidParameter

_FIXED_NETWORKS = frozenset({"host", "none"})


def create_request(
    version: Version, config: ContainerConfig, host_config: HostConfig, networking_config: NetworkingConfig
) -> list[str]:
    """Change a creation's parts in place to what the newest version would have said; return warnings."""
    if version < (1, 25):
        host_config.auto_remove = False  # was the client's business
    if version < (1, 40):
        if not host_config.ipc_mode:
            host_config.ipc_mode = "shareable"
        for mount in host_config.mounts:
            if mount.bind_options is not None:
                mount.bind_options.non_recursive = False
        host_config.kernel_memory_tcp = 0
    if version < (1, 41) and not host_config.cgroupns_mode:
        host_config.cgroupns_mode = "host"  # what these versions always did
    if version < (1, 42):
        host_config.console_size = [0, 0]
        for mount in host_config.mounts:
            if mount.bind_options is not None:
                mount.bind_options.create_mountpoint = False
    if version >= (1, 42):
        host_config.kernel_memory = 0
    if version < (1, 43):
        host_config.annotations = {}
    if version < (1, 44):
        _before_1_44(config, host_config, networking_config)
    if host_config.pids_limit is not None and host_config.pids_limit <= 0:
        host_config.pids_limit = None
    return _move_mac_address(version, config, host_config, networking_config)


def update_request(version: Version, request: ContainerUpdateRequest) -> None:
    """Change an update in place to what the newest version would have said (moby `postContainerUpdate`)."""
    if version < (1, 40):
        request.pids_limit = None
    if request.pids_limit is not None and request.pids_limit <= 0:
        request.pids_limit = 0  # every such number has always meant "no limit"


def _before_1_44(config: ContainerConfig, host_config: HostConfig, networking_config: NetworkingConfig) -> None:
    if config.healthcheck is not None:
        config.healthcheck.start_interval = 0
    for mount in host_config.mounts:
        if mount.bind_options is not None and mount.read_only:
            mount.bind_options.read_only_non_recursive = True  # they were read-only at the top only
            mount.bind_options.read_only_force_recursive = False
    endpoints = networking_config.endpoints_config or {}
    if len(endpoints) > 1:
        names = ", ".join(sorted(endpoints))
        raise InvalidParameter(
            f"Container cannot be created with multiple network endpoints: {names}; the API version is too old for it"
        )
    for endpoint in endpoints.values():
        endpoint.mac_address = ""


def _move_mac_address(
    version: Version, config: ContainerConfig, host_config: HostConfig, networking_config: NetworkingConfig
) -> list[str]:
    """Put the container-wide MAC address, which is gone since 1.44, on the endpoint of its main network."""
    mode = host_config.network_mode or "default"
    address = config.mac_address
    fixed = mode in _FIXED_NETWORKS or mode.startswith("container:")
    if not address and fixed:  # where clients put it since 1.44
        asked = (networking_config.endpoints_config or {}).get(mode)
        address = asked.mac_address if asked is not None else ""
    if not address:
        return []
    if fixed:
        raise InvalidParameter("conflicting options: mac-address and the network mode")
    endpoints = networking_config.endpoints_config
    if endpoints is None:
        endpoints = networking_config.endpoints_config = {}
    name = next(iter(endpoints)) if len(endpoints) == 1 and mode in {"default", "bridge"} else mode
    endpoint = endpoints.setdefault(name, EndpointSettings())
    if endpoint.mac_address and endpoint.mac_address != address:
        raise InvalidParameter(
            "the container-wide MAC address must match the endpoint-specific MAC address for the main network, "
            "or be left empty"
        )
    endpoint.mac_address = address
    if version < (1, 44):
        return []
    return [
        "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."
    ]
