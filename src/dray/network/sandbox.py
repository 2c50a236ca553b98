"""Sandboxes: network namespaces held by descriptor, a pool of empty ones, and what is set up inside.

A namespace lives as long as somebody holds a descriptor of it or a process in it; nothing is pinned to a path, so
a killed daemon leaks none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import TypeVar

from dray.base import files
from dray.base.aside import aside
from dray.base.errors import DrayError, Internal, NotFound
from dray.linux import libc, links, namespaces, routes
from dray.linux.links import Links
from dray.linux.netlink import Request
from dray.network import bandwidth
from dray.network.model import Endpoint, NamespaceSource, SandboxAsk

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
_LOOPBACK = 1
_IDLE_SECONDS = 0.05


class Namespace:
    """A network namespace and an rtnetlink socket inside it; owns both descriptors, and that of the user namespace
    to which it belongs if that is not the host's."""

    def __init__(self, netns: int, inside: Links, user: int = -1) -> None:
        self.netns = netns
        self.inside = inside
        self.user = user

    def detach(self) -> tuple[int, int | None]:
        """Close the socket and give the namespace's descriptor, and the user namespace's, to the caller."""
        self.inside.close()
        netns, self.netns = self.netns, -1
        user, self.user = self.user, -1
        return netns, user if user >= 0 else None

    def close(self) -> None:
        """Close all descriptors."""
        if self.netns >= 0:
            self.inside.close()
            os.close(self.netns)
            self.netns = -1
        if self.user >= 0:
            os.close(self.user)
            self.user = -1


class NamespacePool:
    """A few empty namespaces made while nothing else is to do.

    maps: each belongs to a user namespace of its own with these maps
    """

    def __init__(self, source: NamespaceSource, size: int = 4, *, maps: tuple[str, str] | None = None) -> None:
        self._source = source
        self._maps = maps
        self._size = size
        self._ready: deque[Namespace] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._last_take = 0.0
        self._closed = False

    async def take(self) -> Namespace:
        """Return an empty namespace, from the pool if it holds one."""
        self._last_take = asyncio.get_running_loop().time()
        namespace = self._ready.popleft() if self._ready else await self._make()
        self.fill()
        return namespace

    def fill(self) -> None:
        """Fill the pool in the background, once nobody has asked for a moment."""
        if self._filling is None and not self._closed and len(self._ready) < self._size:
            self._filling = asyncio.get_running_loop().create_task(self._fill())

    async def close(self) -> None:
        """Stop filling and give the namespaces up."""
        self._closed = True
        if self._filling is not None:
            self._filling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._filling
        while self._ready:
            self._ready.popleft().close()

    async def _fill(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while len(self._ready) < self._size and not self._closed:
                wait = self._last_take + _IDLE_SECONDS - loop.time()
                if wait > 0:
                    await asyncio.sleep(wait)
                    continue
                self._ready.append(await self._make())
                await asyncio.sleep(_IDLE_SECONDS / 5)
        except (OSError, DrayError):
            pass  # the next container makes its own, and reports why it could not
        finally:
            self._filling = None

    async def _make(self) -> Namespace:
        if self._maps is None:
            netns, sock = await self._source.new_network_namespace()
            return Namespace(netns, Links.adopt(sock))
        netns, sock, user = await self._source.new_mapped_network_namespace(self._maps)
        return Namespace(netns, Links.adopt(sock), user)


class Sandboxes:
    """Where sandboxes come from: pools of those that most containers want, and the others made to measure."""

    def __init__(self, source: NamespaceSource, maps: tuple[str, str] | None) -> None:
        self._source = source
        self._pool = NamespacePool(source, maps=maps)
        # Beside mapped ones, those of the host's user namespace are the exception: made when they are wanted.
        self._unmapped = NamespacePool(source, 0) if maps else self._pool

    async def take(self, ask: SandboxAsk) -> Namespace:
        """Return an empty namespace that belongs to the user namespace that is asked for."""
        if ask.user_path:
            return await _belonging_to(self._source, ask.user_path)
        return await (self._pool if ask.mapped else self._unmapped).take()

    def fill(self) -> None:
        """See `NamespacePool.fill`."""
        self._pool.fill()

    async def close(self) -> None:
        """See `NamespacePool.close`."""
        await self._pool.close()


async def _belonging_to(source: NamespaceSource, path: str) -> Namespace:
    """Return an empty namespace that belongs to the user namespace at `path`; NotFound if that is gone."""
    try:
        user = namespaces.open_path(path)
    except (FileNotFoundError, ProcessLookupError):
        raise NotFound(f"the container whose user namespace is to be joined is gone ({path})") from None
    try:
        netns, sock = await source.new_network_namespace_in(user)
    except BaseException:
        os.close(user)
        raise
    return Namespace(netns, Links.adopt(sock), user)


def wire(inside: Links, endpoints: Sequence[Endpoint], *, fresh: bool = True) -> None:
    """Bring up loopback (in a fresh namespace) and the endpoints' interfaces with addresses and routes.

    One batch; OSError names the step that failed.
    """
    requests: list[Request] = [links.up_request(_LOOPBACK)] if fresh else []
    for endpoint in endpoints:
        if not endpoint.interface:
            continue
        link = inside.find(endpoint.interface)
        if link is None:
            raise Internal(f"interface {endpoint.interface} is missing in its sandbox")
        requests.append(links.up_request(link.index, link_local=bool(endpoint.ipv6)))
        requests += [links.address_request(link.index, interface) for interface in endpoint.interfaces()]
        requests += [links.address_request(link.index, ip_interface(text)) for text in endpoint.link_local]
        requests += default_routes(endpoint, link.index)
        requests += static_routes(endpoint, link.index)
        requests += bandwidth.egress_requests(endpoint, link.index)
        requests.append(links.settle_request(endpoint.interface))
    inside.apply(requests)


def default_routes(endpoint: Endpoint, index: int, *, remove: bool = False) -> list[Request]:
    """Return the requests that add (or remove) the default routes that the endpoint carries."""
    carried = ((4, endpoint.default4, endpoint.gateway4), (6, endpoint.default6, endpoint.gateway6))
    return [
        routes.default_route_request(index, ip_address(gateway) if gateway else None, version, remove=remove)
        for version, carries, gateway in carried
        if carries and (gateway or endpoint.on_link)
    ]


def static_routes(endpoint: Endpoint, index: int) -> list[Request]:
    """Return the requests that add a plugin's routes, those on the link first: others may lead by them."""
    return [
        routes.route_request(index, ip_network(to.destination), ip_address(to.gateway) if to.gateway else None)
        for to in sorted(endpoint.routes, key=lambda to: bool(to.gateway))
    ]


@contextlib.contextmanager
def of_process(pid: int) -> Iterator[int]:
    """Open the network namespace of a process; NotFound if the process is gone."""
    try:
        netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise NotFound(f"process {pid} of the container is gone") from None
    with files.owned_fd(netns):
        yield netns


def inside(netns: int, action: Callable[[], T]) -> T:
    """Run `action` in a namespace: on a thread made for it, whose only namespace it ever is.

    For a running container's sandbox only (the start path has its socket from the zygote). Blocking; the
    calling thread's own namespace never changes.
    """

    def enter() -> T:
        libc.setns(netns, CLONE_NEWNET)
        return action()

    return aside(enter, "sandbox")
