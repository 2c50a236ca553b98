"""From endpoints to a sandbox whose interfaces carry packets: plugged in, with addresses, routes and published ports.

Between the first step and the last nothing else of ours runs, but where a container publishes many ports: the
caller has its endpoints known as members of their networks by then. Every step has its undo on the caller's stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from dray.base import failpoints
from dray.linux.links import Links
from dray.network import bandwidth, endpoints, live, sandbox, sysctls
from dray.network.model import Attachment, Driver, Endpoint, Network, SandboxAsk
from dray.network.publisher import Publisher
from dray.network.sandbox import Namespace


class Wiring:
    """Wires sandboxes. Borrows everything it is given."""

    def __init__(
        self,
        host: Links,
        publisher: Publisher,
        network: Callable[[str], Network],
        driver: Callable[[Network], Driver],
    ) -> None:
        self._host = host
        self._publisher = publisher
        self._network = network
        self._driver = driver

    async def wire(
        self, ask: SandboxAsk, built: Sequence[Endpoint], namespace: Namespace, undo: ExitStack
    ) -> Attachment:
        """Wire a fresh namespace, and publish what the container asks for. The namespace stays the caller's."""
        made = Attachment()
        undo.callback(made.close)
        for endpoint in built:
            self.plug(endpoint, namespace.netns, undo)
        failpoints.reach("start.plugged")
        sandbox.wire(namespace.inside, built)
        failpoints.reach("start.wired")
        self.ready(built)
        made.endpoints = await self._publisher.publish(built, ask, made, undo)
        failpoints.reach("start.published")
        made.sysctls = endpoints.sysctls(built, ipv6=sysctls.has_ipv6())
        return made

    async def join(
        self,
        inside: Links,
        netns: int,
        built: Endpoint,
        held: Sequence[Endpoint],
        prefixes: Mapping[str, str],
        undo: ExitStack,
    ) -> list[Endpoint]:
        """Wire one more endpoint into a sandbox that lives (`inside` is a socket there); return all its endpoints."""
        failpoints.reach("connect.addressed")
        taken = [link.name for link in inside.links()]
        (built,) = endpoints.name_interfaces([built], self._network, taken, prefixes=prefixes)
        self.plug(built, netns, undo)
        failpoints.reach("connect.plugged")
        undo.callback(live.forget, inside, built)
        settings = endpoints.sysctls([built], ipv6=sysctls.has_ipv6())
        sandbox.inside(netns, lambda: [sysctls.write(key, value) for key, value in settings.items()])
        sandbox.wire(inside, [built], fresh=False)
        failpoints.reach("connect.wired")
        self.ready([built])
        after = await self.reroute(inside, [*held, built])
        failpoints.reach("connect.routed")
        return after

    async def reroute(
        self, inside: Links, held: Sequence[Endpoint], gone: Endpoint | None = None
    ) -> list[Endpoint]:
        """Give default routes and published ports out anew, after an endpoint came or has `gone`."""
        after = endpoints.route(held)
        live.reroute(inside, held, after)
        return await self._publisher.move(after, gone)

    def plug(self, endpoint: Endpoint, netns: int, undo: ExitStack) -> None:
        """Make an endpoint's interface in a namespace, and limit what reaches it."""
        network = self._network(endpoint.network_id)
        driver = self._driver(network)
        undo.callback(driver.unplug, network, endpoint)
        driver.plug(network, endpoint, netns)
        bandwidth.limit_ingress(self._host, endpoint)

    def ready(self, built: Sequence[Endpoint]) -> None:
        """Make sure that packets pass, once the interfaces are up."""
        for endpoint in built:
            network = self._network(endpoint.network_id)
            self._driver(network).ready(network, endpoint)
