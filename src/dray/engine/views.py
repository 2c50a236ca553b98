"""Containers as the API shows them: pure functions from a record to `inspect` and `ps` structures.

Shapes are the newest API version's; `api.versions` cuts them to what older clients expect.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dray.api import models as api
from dray.base import digest, units
from dray.engine import apparmor, clock, security
from dray.engine.host import has_apparmor
from dray.engine.layout import Layout
from dray.engine.model import Container, ContainerRecord, Health, MountPoint, State
from dray.network.model import Endpoint
from dray.runtime.model import Mount


def status_text(state: State, *, now: int) -> str:
    """Return the STATUS column: `Up 5 minutes (healthy)`, `Exited (0) 2 hours ago`, `Created`."""

    def since(moment: int) -> str:
        return units.human_duration((now - moment) / 1e9)

    if state.status == "paused":
        return f"Up {since(state.started_at)} (Paused)"
    if state.status == "running":
        health = ""
        if state.health is not None:
            health = " (health: starting)" if state.health.status == "starting" else f" ({state.health.status})"
        return f"Up {since(state.started_at)}{health}"
    if state.status == "restarting":
        return f"Restarting ({state.exit_code}) {since(state.finished_at)} ago"
    if state.status == "removing":
        return "Removal In Progress"
    if state.status == "dead":
        return "Dead"
    if state.started_at == 0:
        return "Created"
    return f"Exited ({state.exit_code}) {since(state.finished_at)} ago"


def health(state: Health | None) -> api.Health | None:
    """Return `State.Health` of inspect."""
    if state is None:
        return None
    return api.Health(
        status=state.status,
        failing_streak=state.failing_streak,
        log=[
            api.HealthcheckResult(
                start=clock.rfc3339(probe.start),
                end=clock.rfc3339(probe.end),
                exit_code=probe.exit_code,
                output=probe.output,
            )
            for probe in state.log
        ],
    )


def mount(point: MountPoint) -> api.MountPoint:
    """Return an entry of `Mounts`."""
    return api.MountPoint(
        type=point.type,
        name=point.name,
        source=point.source,
        destination=point.destination,
        driver=point.driver,
        mode=point.mode,
        rw=point.rw,
        propagation=point.propagation,
    )


def endpoint_settings(record: ContainerRecord, endpoint: Endpoint) -> api.EndpointSettings:
    """Return an entry of `NetworkSettings.Networks` for a connected network."""
    asked = (record.networking.endpoints_config if record.networking else None) or {}
    ask = asked.get(endpoint.network_name) or asked.get(endpoint.network_id) or api.EndpointSettings()
    return api.EndpointSettings(
        ipam_config=ask.ipam_config,
        links=ask.links,
        mac_address=endpoint.mac,
        aliases=endpoint.aliases or None,
        driver_opts=ask.driver_opts,
        gw_priority=ask.gw_priority,
        network_id=endpoint.network_id,
        endpoint_id=endpoint.id,
        gateway=endpoint.gateway4,
        ip_address=endpoint.ipv4,
        ip_prefix_len=endpoint.prefix4,
        ipv6_gateway=endpoint.gateway6,
        global_ipv6_address=endpoint.ipv6,
        global_ipv6_prefix_len=endpoint.prefix6,
        dns_names=endpoint.names or None,
    )


def networks(record: ContainerRecord) -> dict[str, api.EndpointSettings]:
    """Return `NetworkSettings.Networks`: what is connected, or what will be once the container starts."""
    if record.endpoints:
        return {endpoint.network_name: endpoint_settings(record, endpoint) for endpoint in record.endpoints}
    asked = dict((record.networking.endpoints_config if record.networking else None) or {})
    mode = record.host_config.network_mode
    if not asked and mode and not mode.startswith("container:"):
        asked[mode] = api.EndpointSettings()
    return asked


def ports(record: ContainerRecord) -> dict[str, list[api.PortBinding] | None]:
    """Return `NetworkSettings.Ports` of a running container: bindings by `80/tcp`, None for exposed only."""
    if not record.state.running or record.host_config.network_mode in ("none", "host"):
        return {}
    shown: dict[str, list[api.PortBinding] | None] = dict.fromkeys(record.config.exposed_ports or {})
    for endpoint in record.endpoints:
        for binding in endpoint.ports:
            key = f"{binding.container_port}/{binding.protocol}"
            bindings = shown.get(key) or []
            bindings.append(api.PortBinding(host_ip=binding.host_ip, host_port=str(binding.host_port or "")))
            shown[key] = bindings
    return shown


def port_summaries(record: ContainerRecord) -> list[api.PortSummary]:
    """Return the PORTS column's data."""
    summaries = []
    for key, bindings in ports(record).items():
        number, _, protocol = key.partition("/")
        if not bindings:
            summaries.append(api.PortSummary(private_port=int(number), type=protocol))
        for binding in bindings or []:
            summaries.append(
                api.PortSummary(
                    ip=binding.host_ip,
                    private_port=int(number),
                    public_port=int(binding.host_port or 0),  # 0, left out: a routed network
                    type=protocol,
                )
            )
    return summaries


def container_state(state: State) -> api.ContainerState:
    """Return `State` of inspect."""
    return api.ContainerState(
        status=state.status,
        running=state.running or state.status == "restarting",
        paused=state.status == "paused",
        restarting=state.status == "restarting",
        oom_killed=state.oom_killed,
        dead=state.status == "dead",
        pid=state.pid,
        exit_code=state.exit_code,
        error=state.error,
        started_at=clock.rfc3339(state.started_at),
        finished_at=clock.rfc3339(state.finished_at),
        health=health(state.health),
    )


def _apparmor_profile(host: api.HostConfig) -> str:
    return apparmor.chosen(host, security.security_options(host.security_opt)) if has_apparmor() else ""


def inspect(
    container: Container, layout: Layout, *, links: list[str] | None = None
) -> api.ContainerInspectResponse:
    """Return what `GET /containers/{id}/json` answers, without sizes and the image's descriptor; `links` as
    `engine.links.shown` has them."""
    record = container.record
    directory = layout.container(record.id)
    started = record.state.started_at != 0
    sandbox = digest.of(record.id.encode() + str(record.state.started_at).encode())[7:]
    running_execs = [run.id for run in container.execs.values() if run.running or not run.started]
    return api.ContainerInspectResponse(
        id=record.id,
        created=clock.rfc3339(record.created),
        path=record.path,
        args=record.args,
        state=container_state(record.state),
        image=record.image_id,
        resolv_conf_path=f"{directory}/resolv.conf" if started else "",
        hostname_path=f"{directory}/hostname" if started else "",
        hosts_path=f"{directory}/hosts" if started else "",
        log_path=record.log_path if started else "",
        name=f"/{record.name}",
        restart_count=record.restart_count,
        driver=record.driver,
        platform=record.platform,
        app_armor_profile=_apparmor_profile(record.host_config),
        exec_ids=running_execs or None,
        host_config=_shown(record.host_config, links),
        mounts=[mount(point) for point in record.mounts if point.type != "tmpfs" or not point.tmpfs_flag],
        config=record.config,
        network_settings=api.NetworkSettings(
            sandbox_id=sandbox if record.state.running else "",
            sandbox_key=f"/proc/{record.state.pid}/ns/net" if record.state.running else "",
            ports=ports(record),
            networks=networks(record),
        ),
    )


def _shown(host: api.HostConfig, links: list[str] | None) -> api.HostConfig:
    """Return a host configuration with its links, and the hidden paths that it comes to."""
    if host.privileged or "systempaths=unconfined" in (host.security_opt or []):
        return msgspec.structs.replace(host, links=links, masked_paths=None, readonly_paths=None)
    known = security.defaults()
    masked, readonly = host.masked_paths, host.readonly_paths
    return msgspec.structs.replace(
        host,
        links=links,
        masked_paths=list(known["masked_paths"]) if masked is None else masked,
        readonly_paths=list(known["readonly_paths"]) if readonly is None else readonly,
    )


def command_line(record: ContainerRecord) -> str:
    """Return the COMMAND column: path and arguments, quoted where they hold a space."""
    words = [record.path, *record.args]
    return " ".join(f"'{word}'" if " " in word else word for word in words)


def summary(container: Container, *, now: int, further: Sequence[str] = ()) -> api.ContainerSummary:
    """Return an entry of `GET /containers/json`; `further` names it has by links."""
    record = container.record
    state = record.state
    return api.ContainerSummary(
        id=record.id,
        names=[f"/{record.name}", *further],
        image=record.image_ref,
        image_id=record.image_id,
        command=command_line(record),
        created=record.created // 10**9,
        ports=port_summaries(record),
        labels=record.config.labels or {},
        state=state.status,
        status=status_text(state, now=now),
        host_config=api.SummaryHostConfig(
            network_mode=record.host_config.network_mode,
            annotations=record.host_config.annotations,
        ),
        network_settings=api.SummaryNetworkSettings(networks=networks(record)),
        mounts=[mount(point) for point in record.mounts if point.type != "tmpfs" or not point.tmpfs_flag],
        health=api.HealthSummary(
            status=state.health.status if state.health else "none",
            failing_streak=state.health.failing_streak if state.health else 0,
        ),
    )


def with_sizes(
    shown: api.ContainerInspectResponse | api.ContainerSummary, *, writable: int, image: int
) -> api.ContainerInspectResponse | api.ContainerSummary:
    """Fill in SizeRw and SizeRootFs."""
    return msgspec.structs.replace(shown, size_rw=writable, size_rootfs=writable + image)


def graph_data(mounts: Sequence[Mount]) -> dict[str, str] | None:
    """Return `GraphDriver.Data`: the directories of an overlay."""
    for mount in mounts:
        if mount.type in ("overlay", "fuse-overlayfs"):
            words = dict(word.partition("=")[::2] for word in mount.options)
            found = {"LowerDir": "lowerdir", "UpperDir": "upperdir", "WorkDir": "workdir"}
            return {name: words[word] for name, word in found.items() if word in words}
    return None
