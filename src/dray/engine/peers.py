"""Names in user-defined networks: tells the resolver what each container may ask, and by which names it is found.

The default bridge has no names, as in Docker: a container that is in no other network has no resolver, and asks the
name servers in its resolv.conf itself. One that was in another network once keeps the resolver until it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path

from dray.engine import links
from dray.engine.creation import Defaults
from dray.engine.layout import Layout
from dray.engine.model import Container, ContainerRecord
from dray.engine.registry import Registry
from dray.network import containerfiles, hostfiles
from dray.network.dns.model import ADDRESS, Member, Membership, Sandbox, Server
from dray.network.dns.service import Service
from dray.network.model import PREDEFINED, Attachment, Endpoint
from dray.network.sandbox import of_process


def named(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Return the endpoints in networks with names."""
    return [one for one in endpoints if one.network_name not in PREDEFINED and one.driver not in ("host", "null")]


def members(endpoints: Sequence[Endpoint]) -> list[Member]:
    """Return the names of endpoints."""
    return [
        Member(one.id, one.network_id, list(dict.fromkeys(one.names)), one.ipv4, one.ipv6)
        for one in named(endpoints)
    ]


def sandbox(container_id: str, endpoints: Sequence[Endpoint], settings: hostfiles.Resolving) -> Sandbox:
    """Return what a container with these endpoints may ask."""
    networks = []
    for one in named(endpoints):
        targets = (links.parse(text) for text in one.links)
        networks.append(Membership(one.network_id, one.network_name, {alias: name for name, alias in targets}))
    return Sandbox(
        id=container_id,
        networks=networks,
        servers=[Server(address, host=host) for address, host in settings.servers],
        forward=any(not one.internal and one.driver not in ("host", "null") for one in endpoints),
        ndots=settings.ndots,
    )


class Peers:
    """Keeps the resolver up to date. Belongs to the event loop."""

    def __init__(self, registry: Registry, layout: Layout, defaults: Defaults, service: Service) -> None:
        self._registry = registry
        self._layout = layout
        self._defaults = defaults
        self._service = service

    # -- files

    def resolving(self, record: ContainerRecord, endpoints: Sequence[Endpoint]) -> hostfiles.Resolving:
        """Return how a container with these endpoints resolves names."""
        host, defaults = record.host_config, self._defaults
        return hostfiles.resolving(
            self._host_resolv_conf(),
            servers=host.dns or defaults.dns,
            search=host.dns_search or defaults.dns_search,
            options=host.dns_options or defaults.dns_options,
            ipv6=any(endpoint.ipv6 for endpoint in endpoints),
            host_mode=host.network_mode == "host",
            source=defaults.resolv_conf,
        )

    def _host_resolv_conf(self) -> str:
        if self._defaults.resolv_conf == hostfiles.RESOLV_CONF:
            return hostfiles.read_host_resolv_conf()
        return Path(self._defaults.resolv_conf).read_text(errors="replace")

    def resolv_conf(self, settings: hostfiles.Resolving, endpoints: Sequence[Endpoint]) -> str:
        """Return resolv.conf: the resolver's address for a container in a network with names."""
        return hostfiles.embedded(settings) if named(endpoints) else hostfiles.plain(settings)

    # -- a run of a container

    def open(
        self, record: ContainerRecord, attachment: Attachment, settings: hostfiles.Resolving
    ) -> asyncio.Task[None] | None:
        """Prepare the resolver of a container that is about to start; await the result before it does."""
        if attachment.netns is None or not named(attachment.endpoints):
            return None
        asks = sandbox(record.id, attachment.endpoints, settings)
        return self._service.open(asks, members(attachment.endpoints), attachment.netns)

    def started(self, container: Container) -> None:
        """A container runs."""
        self._service.started(container.id, container.state.pid)

    def gone(self, container_id: str, endpoints: Sequence[Endpoint]) -> None:
        """A container's run is over, or never began."""
        self._service.close(container_id, [one.id for one in endpoints])

    # -- changes while it runs

    async def connected(self, container: Container, before: Sequence[Endpoint]) -> None:
        """A running container has joined a network."""
        record = container.record
        known = {one.id for one in before}
        new = [one for one in record.endpoints if one.id not in known]
        directory = self._layout.container(record.id)
        names = hostfiles.own_names(record.config.hostname, record.config.domainname)
        containerfiles.add_addresses(directory, new, names)
        settings = self.resolving(record, record.endpoints)
        asks = sandbox(record.id, record.endpoints, settings)
        if self._service.knows(record.id):
            self._service.update(asks, come=members(new))
        elif named(new):
            with of_process(container.state.pid) as netns:
                await self._service.open(asks, members(new), netns)
            self._service.started(record.id, container.state.pid)
        if self._service.knows(record.id):
            containerfiles.replace_resolv_conf(directory, hostfiles.embedded(settings))

    def disconnected(self, container: Container, before: Sequence[Endpoint]) -> None:
        """A running container has left a network."""
        record = container.record
        left = {one.id for one in record.endpoints}
        gone = [one for one in before if one.id not in left]
        containerfiles.remove_addresses(self._layout.container(record.id), gone)
        if self._service.knows(record.id):
            settings = self.resolving(record, record.endpoints)
            asks = sandbox(record.id, record.endpoints, settings)
            self._service.update(asks, gone=[one.id for one in gone])

    def renamed(self, container: Container) -> None:
        """A container's endpoints bear other names."""
        if self._service.knows(container.id):
            self._service.rename(members(container.record.endpoints))

    # -- the daemon's life

    async def adopt(self, halfway: Collection[str] = ()) -> None:
        """The daemon has started: find the resolver's process, and tell it who runs. `halfway` are the containers
        that were joining or leaving a network when the last daemon died."""
        running: dict[str, tuple[Sandbox, int]] = {}
        found: list[Member] = []
        for container in self._registry:
            record = container.record
            if not container.state.running or container.task is None:
                continue
            if record.id in halfway:
                self._rename_itself(record)
            found += members(record.endpoints)
            if named(record.endpoints) or self._resolves(record.id):
                asks = sandbox(record.id, record.endpoints, self.resolving(record, record.endpoints))
                running[record.id] = asks, container.task.pid
        await self._service.adopt(running, found)

    def _rename_itself(self, record: ContainerRecord) -> None:
        """Have a container's own names in its /etc/hosts for the addresses of its record, and for no others."""
        names = hostfiles.own_names(record.config.hostname, record.config.domainname)
        asked = [hostfiles.parse_extra_host(text)[1] for text in record.host_config.extra_hosts or []]
        asked += self._defaults.host_gateways or [one.gateway4 for one in record.endpoints]
        containerfiles.set_addresses(self._layout.container(record.id), record.endpoints, names, others=asked)

    def _resolves(self, container_id: str) -> bool:
        """Whether a container was told to ask the resolver."""
        with contextlib.suppress(OSError):
            path = Path(self._layout.container(container_id), "resolv.conf")
            return f"nameserver {ADDRESS}\n" in path.read_text(errors="replace")
        return False

    def warm(self) -> None:
        """A network with names was made: have the resolver's process before its first container."""
        self._service.warm()
