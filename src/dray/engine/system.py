"""The `System` backend of the server: ping, version, info, disk usage."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from dray import __version__
from dray.api import models as api
from dray.api import versions
from dray.api.filters import Filters
from dray.api.requests import PingStatus
from dray.engine import clock, host, remote
from dray.engine.containers import Containers
from dray.engine.images import ImageVerbs
from dray.engine.registry import Registry
from dray.engine.volumes import VolumeVerbs
from dray.linux.cgroups.facilities import Capabilities
from dray.plugins.registry import NETWORK, VOLUME, Plugins
from dray.registry.model import Registries
from dray.store import drivers

NETWORK_DRIVERS = ["bridge", "host", "ipvlan", "macvlan", "null", "overlay"]
LOG_DRIVERS = ["json-file", "local", "none"]


class Settings(Struct, frozen=True, kw_only=True):
    """What `info` tells of the daemon's configuration."""

    id: str
    data_root: str
    storage_driver: str
    logging_driver: str
    default_runtime: str
    runtimes: dict[str, Any]
    labels: list[str]
    experimental: bool
    debug: bool
    live_restore: bool
    min_api_version: str
    security_options: list[str] = field(default_factory=list)
    authorization: list[str] = field(default_factory=list)
    cdi_spec_dirs: list[str] = field(default_factory=list)
    address_pools: list[tuple[str, int]] = field(default_factory=list)
    mirrors: list[str] = field(default_factory=list)
    insecure_networks: list[str] = field(default_factory=list)
    insecure_hosts: list[str] = field(default_factory=list)
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""


class System:
    """What the engine tells of itself."""

    def __init__(
        self,
        registry: Registry,
        containers: Containers,
        images: ImageVerbs,
        volumes: VolumeVerbs,
        plugins: Plugins,
        settings: Settings,
        registries: Registries,
        *,
        limits: Capabilities,
        listeners: Callable[[], int],
    ) -> None:
        self._registry = registry
        self._containers = containers
        self._images = images
        self._plugins = plugins
        self._volumes = volumes
        self.settings = settings
        self._registries = registries
        self._limits = limits
        self._listeners = listeners
        self.layers_status: Callable[[], list[list[str]]] = list  # what else is to be told of the storage driver

    def ping(self) -> PingStatus:
        """Return what `_ping` tells: the classic builder is what clients are to use."""
        return PingStatus(builder_version="1", swarm="inactive", experimental=self.settings.experimental)

    async def version(self) -> api.SystemVersion:
        """Name the engine's version and its parts'."""
        kernel, architecture = os.uname().release, host.go_architecture()
        newest = versions.text(versions.NEWEST)
        details = {
            "ApiVersion": newest,
            "Arch": architecture,
            "Experimental": "true" if self.settings.experimental else "false",
            "KernelVersion": kernel,
            "MinAPIVersion": self.settings.min_api_version,
            "Os": "linux",
            "Python": platform.python_version(),
        }
        return api.SystemVersion(
            platform=api.VersionPlatform(name="dray"),
            components=[api.ComponentVersion(name="Engine", version=__version__, details=details)],
            version=__version__,
            api_version=newest,
            min_api_version=self.settings.min_api_version,
            os="linux",
            arch=architecture,
            kernel_version=kernel,
            experimental=self.settings.experimental,
        )

    async def info(self) -> api.SystemInfo:
        """Describe the engine and its host."""
        settings, release = self.settings, host.os_release()
        states = [container.state.status for container in self._registry]
        running, paused = states.count("running"), states.count("paused")
        limits = self._limits
        return api.SystemInfo(
            id=settings.id,
            containers=len(states),
            containers_running=running,
            containers_paused=paused,
            containers_stopped=len(states) - running - paused,
            images=self._images.count(),
            driver=settings.storage_driver,
            driver_status=drivers.status(settings.storage_driver, settings.data_root) + self.layers_status(),
            docker_root_dir=settings.data_root,
            plugins=api.PluginsInfo(
                volume=sorted({"local", *self._plugins.active(VOLUME)}),
                network=sorted([*NETWORK_DRIVERS, *self._plugins.active(NETWORK)]),
                authorization=list(settings.authorization) or None,
                log=LOG_DRIVERS,
            ),
            memory_limit=limits.memory_limit,
            swap_limit=limits.swap_limit,
            cpu_cfs_period=limits.cpu_cfs_period,
            cpu_cfs_quota=limits.cpu_cfs_quota,
            cpu_shares=limits.cpu_shares,
            cpu_set=limits.cpuset,
            pids_limit=limits.pids_limit,
            oom_kill_disable=limits.oom_kill_disable,
            ipv4_forwarding=host.flag("/proc/sys/net/ipv4/ip_forward"),
            debug=settings.debug,
            nfd=len(os.listdir("/proc/self/fd")),
            ngoroutines=len(asyncio.all_tasks()),
            system_time=clock.rfc3339(clock.now()),
            logging_driver=settings.logging_driver,
            cgroup_driver=limits.driver,
            cgroup_version=str(limits.version),
            nevents_listener=self._listeners(),
            kernel_version=os.uname().release,
            operating_system=release.get("PRETTY_NAME", "Linux"),
            os_version=release.get("VERSION_ID", ""),
            os_type="linux",
            architecture=os.uname().machine,
            ncpu=len(os.sched_getaffinity(0)),
            mem_total=host.memory_total(),
            index_server_address="https://index.docker.io/v1/",
            http_proxy=settings.http_proxy,
            https_proxy=settings.https_proxy,
            no_proxy=settings.no_proxy,
            registry_config=remote.described(
                settings.insecure_networks, settings.insecure_hosts, settings.mirrors
            ),
            name=os.uname().nodename,
            labels=settings.labels,
            experimental_build=settings.experimental,
            server_version=__version__,
            runtimes={
                name: api.Runtime(path=spec.get("path", name), runtime_args=list(spec.get("runtimeArgs", [])))
                for name, spec in settings.runtimes.items()
            },
            default_runtime=settings.default_runtime,
            init_binary="docker-init",
            swarm=api.SwarmInfo(local_node_state="inactive"),
            live_restore_enabled=settings.live_restore,
            security_options=settings.security_options,
            default_address_pools=[api.AddressPool(base=base, size=size) for base, size in settings.address_pools],
            firewall_backend=api.FirewallInfo(driver="nftables"),
            warnings=_warnings(limits),
            cdi_spec_dirs=settings.cdi_spec_dirs,
            discovered_devices=await asyncio.to_thread(_devices, settings.cdi_spec_dirs),
        )

    async def disk_usage(self, *, types: tuple[str, ...], verbose: bool) -> api.DiskUsage:
        """Tell what takes disk space."""
        usage = api.DiskUsage()
        wanted = set(types) or {"container", "image", "volume", "build-cache"}
        if "container" in wanted:
            items = await self._containers.list_containers(all=True, limit=0, size=True, filters=Filters())
            active = [item for item in items if item.state in ("running", "paused", "restarting")]
            total = sum(item.size_rw or 0 for item in items)
            usage.container_usage = api.ContainersDiskUsage(
                active_count=len(active),
                total_count=len(items),
                reclaimable=total - sum(item.size_rw or 0 for item in active),
                total_size=total,
                items=items if verbose else [],
            )
        if "image" in wanted:
            usage.image_usage = await self._images.disk_usage(verbose=verbose)
        if "volume" in wanted:
            usage.volume_usage = await self._volumes.disk_usage(verbose=verbose)
        return usage

    async def authenticate(self, auth: api.AuthConfig) -> api.AuthResponse:
        """Try credentials against their registry."""
        given = remote.credentials(auth)
        status, token = await asyncio.to_thread(self._registries.login, auth.serveraddress, given)
        return api.AuthResponse(status=status, identity_token=token)


def _devices(directories: list[str]) -> list[api.DeviceInfo]:
    """Return the devices that CDI specs name."""
    if not any(os.path.isdir(directory) for directory in directories):
        return []
    from dray.engine import cdi

    return [api.DeviceInfo(source="cdi", id=name) for name in sorted(cdi.read(directories).devices)]


def _warnings(limits: Capabilities) -> list[str] | None:
    missing = [
        (limits.memory_limit, "WARNING: No memory limit support"),
        (limits.swap_limit, "WARNING: No swap limit support"),
        (limits.cpu_cfs_quota, "WARNING: No cpu cfs quota support"),
        (limits.cpu_shares, "WARNING: No cpu shares support"),
        (limits.cpuset, "WARNING: No cpuset support"),
        (limits.pids_limit, "WARNING: No pids limit support"),
        (host.flag("/proc/sys/net/ipv4/ip_forward"), "WARNING: IPv4 forwarding is disabled"),
    ]
    return [text for present, text in missing if not present] or None
