"""The OCI runtime spec of a container: `build` is pure, `machine` looks up what it is fed with."""

from dray.engine.security import ALL_CAPABILITIES
from dray.engine.spec.build import DEFAULT_PATH, build, capability_sets, environment
from dray.engine.spec.facts import Device, Facts, Machine
from dray.engine.spec.users import User, resolve_user

__all__ = [
    "ALL_CAPABILITIES",
    "DEFAULT_PATH",
    "Device",
    "Facts",
    "Machine",
    "User",
    "build",
    "capability_sets",
    "environment",
    "resolve_user",
]
