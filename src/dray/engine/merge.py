"""What a container gets from its image: the ask with the image's defaults filled in (moby `runconfig.Merge`)."""

from __future__ import annotations

import msgspec

from dray.api.models import ContainerConfig, HealthConfig
from dray.base.errors import InvalidParameter


def merged(ask: ContainerConfig, image: ContainerConfig) -> ContainerConfig:
    """Return the ask completed by the image's configuration; neither argument is changed.

    An entrypoint in the ask, even an emptied one (`--entrypoint ""` is `[""]`), drops the image's command too.
    """
    entrypoint, cmd = ask.entrypoint, ask.cmd
    if not entrypoint:
        if not cmd:
            cmd = image.cmd
        if entrypoint is None:
            entrypoint = image.entrypoint
    if entrypoint == [""]:
        entrypoint = []
    env = list(ask.env or [])
    named = {entry.partition("=")[0] for entry in env}
    env += [entry for entry in image.env or [] if entry.partition("=")[0] not in named]
    return msgspec.structs.replace(
        ask,
        user=ask.user or image.user,
        exposed_ports={**(image.exposed_ports or {}), **(ask.exposed_ports or {})},
        env=env,
        labels={**(image.labels or {}), **(ask.labels or {})},
        entrypoint=entrypoint,
        cmd=cmd,
        healthcheck=_health(ask.healthcheck, image.healthcheck),
        working_dir=ask.working_dir or image.working_dir,
        volumes={**(image.volumes or {}), **(ask.volumes or {})} or None,
        stop_signal=ask.stop_signal or image.stop_signal,
        shell=ask.shell or image.shell,
        on_build=[],
    )


def _health(ask: HealthConfig | None, image: HealthConfig | None) -> HealthConfig | None:
    if ask is None or image is None:
        return ask or image
    return HealthConfig(
        test=ask.test or image.test,
        interval=ask.interval or image.interval,
        timeout=ask.timeout or image.timeout,
        retries=ask.retries or image.retries,
        start_period=ask.start_period or image.start_period,
        start_interval=ask.start_interval or image.start_interval,
    )


def command(config: ContainerConfig) -> tuple[str, list[str]]:
    """Return (path, args) of a merged configuration: entrypoint and command in one line."""
    line = [*(config.entrypoint or []), *(config.cmd or [])]
    if not line:
        raise InvalidParameter("no command specified")
    return line[0], line[1:]
