"""The Engine API, one method per endpoint, grouped by noun: `Client(...).containers.list(all=True)`.

Answers are the API's own JSON (dicts and lists, as documented for the version in use); streams are a `Response`
or a `Connection` that the caller closes. Errors: `ApiError`, `ConnectError`, `ProtocolError`.
"""

from __future__ import annotations

from dray.client.transport import Transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dray.client.containers import Containers, Execs
    from dray.client.images import Images
    from dray.client.resources import Networks, Volumes
    from dray.client.system import System


class Client:
    """A daemon's API. Each noun's module is imported when it is first asked for."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def clone(self) -> Client:
        """Return a client with a connection of its own, for another thread."""
        return Client(self.transport.clone())

    def close(self) -> None:
        """Close the idle connection."""
        self.transport.close()

    @property
    def version(self) -> str:
        """The API version in use."""
        return self.transport.version

    @property
    def containers(self) -> Containers:
        """`/containers`."""
        from dray.client.containers import Containers

        return Containers(self.transport)

    @property
    def execs(self) -> Execs:
        """`/exec` and `/containers/{id}/exec`."""
        from dray.client.containers import Execs

        return Execs(self.transport)

    @property
    def images(self) -> Images:
        """`/images`, `/build`, `/commit`."""
        from dray.client.images import Images

        return Images(self.transport)

    @property
    def volumes(self) -> Volumes:
        """`/volumes`."""
        from dray.client.resources import Volumes

        return Volumes(self.transport)

    @property
    def networks(self) -> Networks:
        """`/networks`."""
        from dray.client.resources import Networks

        return Networks(self.transport)

    @property
    def system(self) -> System:
        """`/info`, `/version`, `/events`, `/system/df`, `/auth`, `/_ping`."""
        from dray.client.system import System

        return System(self.transport)
