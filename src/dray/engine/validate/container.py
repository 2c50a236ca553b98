"""The container's own configuration: names, directories, environment, health check."""

from __future__ import annotations

import re

from dray.api.models import ContainerConfig, HealthConfig
from dray.base.errors import InvalidParameter
from dray.base.patterns import pattern
from dray.engine import signals

_HOSTNAME_MAX = 64  # HOST_NAME_MAX of the kernel, for the domain name too
_MILLISECOND = 1_000_000
_PORT = pattern(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII)


def check(config: ContainerConfig) -> None:
    """Raise InvalidParameter for the first thing that makes no sense."""
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidParameter(
            f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path"
        )
    for word, name in (("hostname", config.hostname), ("domainname", config.domainname)):
        if len(name.encode()) > _HOSTNAME_MAX or any(character in name for character in "\0\n/"):
            raise InvalidParameter(
                f"invalid {word} {name!r}: at most {_HOSTNAME_MAX} bytes, no line break or slash"
            )
    for entry in config.env or ():
        if not entry or entry.startswith("="):
            raise InvalidParameter(f"invalid environment variable: {entry}")
        if "\0" in entry:
            raise InvalidParameter(f"invalid environment variable: {entry!r}: it contains a NUL byte")
    for argument in (*(config.entrypoint or ()), *(config.cmd or ()), config.user, config.working_dir):
        if "\0" in argument:
            raise InvalidParameter(f"invalid argument {argument!r}: it contains a NUL byte")
    if config.stop_signal:
        signals.parse(config.stop_signal)
    for port in config.exposed_ports or ():
        match = _PORT.fullmatch(port)
        if match is None or not 0 <= int(match[1]) <= int(match[2] or match[1]) <= 65535:
            raise InvalidParameter(f'invalid port specification: "{port}"')
    if config.healthcheck is not None:
        _health(config.healthcheck)


def _health(health: HealthConfig) -> None:
    for name, value in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        if value and value < _MILLISECOND:
            raise InvalidParameter(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidParameter("Retries in Healthcheck cannot be negative")
    if health.test and health.test[0] not in ("", "NONE", "CMD", "CMD-SHELL"):
        raise InvalidParameter(f"Unknown healthcheck type: {health.test[0]}: use NONE, CMD or CMD-SHELL")
