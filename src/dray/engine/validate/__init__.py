"""Is this ask one that can be kept? In Docker's own words (moby `daemon/container.go`, `daemon_unix.go`).

`validate` is pure but for one thing: a limit that this machine cannot enforce, and that Docker discards with a
warning, is cleared in the given HostConfig, so that what `inspect` shows is what is in force.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dray.api.models import ContainerConfig, HostConfig
from dray.base.errors import InvalidParameter
from dray.engine.restart import restarts_unhealthy
from dray.engine.validate import container, modes, options
from dray.engine.validate.resources import validate_resources

if TYPE_CHECKING:
    from dray.linux.cgroups.facilities import Capabilities

__all__ = ["validate", "validate_resources"]


def validate(config: ContainerConfig, host: HostConfig, capabilities: Capabilities, *, cpus: int) -> list[str]:
    """Check a container's ask; return warnings for the user.

    capabilities: what this machine's cgroups can limit; cpus: how many CPUs it has
    Raises InvalidParameter or Unsupported with the words that Docker uses.
    """
    container.check(config)
    modes.check(config, host)
    options.check(host)
    if restarts_unhealthy(config) and host.auto_remove:
        raise InvalidParameter("can't create 'AutoRemove' container that is restarted when unhealthy")
    return [*validate_resources(host, capabilities, cpus=cpus), *options.warnings(host)]
