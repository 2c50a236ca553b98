"""From a container's ask to what is wanted of the network: pure.

Port specifications are those of the Engine API's `PortBindings`: `80/tcp` → [{HostIp, HostPort}], HostPort empty
(any), one port, or a range `8000-8010` from which the first free one is taken.
"""

from __future__ import annotations

import ipaddress

from dray.api import models as api
from dray.base.errors import InvalidParameter
from dray.engine.model import ContainerRecord
from dray.engine.remap import UserNamespace
from dray.network.model import EndpointAsk, PortAsk, SandboxAsk

PROTOCOLS = ("tcp", "udp", "sctp")


def parse_port(text: str) -> tuple[str, int]:
    """Read `80/tcp` (or `80`) as (protocol, port)."""
    number, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise InvalidParameter(f"invalid port specification: {text!r}: unknown protocol {protocol!r}")
    return protocol, _port_number(number, text)


def _port_number(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 <= int(text) <= 65535:
        raise InvalidParameter(f"invalid port specification: {whole!r}: a port is a number from 0 to 65535")
    return int(text)


def port_asks(host: api.HostConfig) -> list[PortAsk]:
    """Return the ports to publish."""
    asks = []
    for key, bindings in (host.port_bindings or {}).items():
        protocol, container_port = parse_port(key)
        for binding in bindings or [api.PortBinding()]:
            if binding.host_ip:
                try:
                    ipaddress.ip_address(binding.host_ip)
                except ValueError:
                    raise InvalidParameter(f"invalid host IP address {binding.host_ip!r} for port {key}") from None
            first, _, last = binding.host_port.partition("-")
            low = _port_number(first, binding.host_port) if first else 0
            high = _port_number(last, binding.host_port) if last else low
            if high < low:
                raise InvalidParameter(f"invalid range format for --expose: {binding.host_port}")
            asks.append(
                PortAsk(
                    protocol=protocol, container_port=container_port, host_ip=binding.host_ip, first=low, last=high
                )
            )
    return asks


def endpoint_ask(network: str, settings: api.EndpointSettings | None) -> EndpointAsk:
    """Return what an EndpointSettings wants of a network."""
    settings = settings or api.EndpointSettings()
    addresses = settings.ipam_config or api.EndpointIPAMConfig()
    return EndpointAsk(
        network=network,
        ipv4=addresses.ipv4_address,
        ipv6=addresses.ipv6_address,
        link_local=list(addresses.link_local_ips or []),
        mac=settings.mac_address,
        aliases=list(settings.aliases or []),
        links=list(settings.links or []),
        driver_opts=dict(settings.driver_opts or {}),
        gw_priority=settings.gw_priority,
    )


def sandbox_ask(record: ContainerRecord, user: UserNamespace | None = None) -> SandboxAsk:
    """Return what a container wants of the network; `user` is the namespace its sandbox is to belong to."""
    host, config = record.host_config, record.config
    mode = "none" if config.network_disabled else host.network_mode
    asked = (record.networking.endpoints_config if record.networking else None) or {}
    endpoints = [endpoint_ask(name, settings) for name, settings in asked.items()]
    return SandboxAsk(
        mode=mode,
        name=record.name,
        hostname=config.hostname,
        endpoints=endpoints,
        ports=port_asks(host),
        publish_all=host.publish_all_ports,
        exposed=[parse_port(port) for port in config.exposed_ports or {}],
        mapped=user is not None,
        user_path="" if user is None else user.path,
    )
