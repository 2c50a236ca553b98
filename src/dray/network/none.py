"""The `none` network: a sandbox with nothing but its loopback interface."""

from __future__ import annotations

from dray.network.host import HostDriver


class NoneDriver(HostDriver):
    """Driver of the one network `none` (its driver is called `null`)."""

    name = "null"
