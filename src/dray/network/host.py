"""The `host` network: the container shares the host's network namespace, nothing is made."""

from __future__ import annotations

from dray.base.errors import Forbidden, InvalidParameter
from dray.network.model import Endpoint, Network


class HostDriver:
    """Driver of the one network `host`."""

    name = "host"

    def interface(self, network: Network) -> str:
        """No interface of its own."""
        return ""

    def share(self, network: Network, other: Network) -> None:
        """Nothing to share."""

    def validate(self, network: Network) -> None:
        """Only the predefined network has this driver, and it has no options."""
        if not network.predefined:
            raise Forbidden(f'only one instance of "{self.name}" network is allowed')
        for option in network.options:
            raise InvalidParameter(f"unknown option {option} of the {self.name} network driver")

    def up(self, network: Network) -> None:
        """Nothing to make."""

    def down(self, network: Network) -> None:
        """Nothing to remove."""

    def plug(self, network: Network, endpoint: Endpoint, netns: int) -> None:
        """Nothing to plug in."""

    def ready(self, network: Network, endpoint: Endpoint) -> None:
        """Nothing to wait for."""

    def unplug(self, network: Network, endpoint: Endpoint) -> None:
        """Nothing to cut off."""
