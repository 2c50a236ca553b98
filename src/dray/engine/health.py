"""Health checks: a probe run in the container at intervals, its last five results, and the state they add up to.

Source of the behaviour: Dockerfile reference, HEALTHCHECK; moby `daemon/health.go` (defaults: interval 30 s,
timeout 30 s, 3 retries, no start period, start interval 5 s; 4096 bytes of output kept).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from dray.api import models as api
from dray.base.errors import DrayError
from dray.engine import clock, restart
from dray.engine.events import Events
from dray.engine.execs import ExecTable
from dray.engine.model import Container, Health, HealthProbe, event_attributes
from dray.engine.registry import Registry
from dray.shim.model import AttachRequest

SECOND = 10**9
KEPT_PROBES = 5
KEPT_OUTPUT = 4096


def probe_command(config: api.ContainerConfig) -> list[str] | None:
    """Return the probe's argv, or None when there is none (`NONE`, or no health check at all)."""
    check = config.healthcheck
    if check is None or not check.test or check.test[0] == "NONE":
        return None
    if check.test[0] == "CMD-SHELL":
        return [*(config.shell or ["/bin/sh", "-c"]), *check.test[1:]]
    return list(check.test[1:]) if check.test[0] == "CMD" else None


def after_probe(health: Health, probe: HealthProbe, *, retries: int, in_start_period: bool) -> None:
    """Fold one probe's result into the state."""
    health.log = [*health.log, probe][-KEPT_PROBES:]
    if probe.exit_code == 0:
        health.failing_streak, health.status = 0, "healthy"
        return
    if in_start_period and health.status == "starting":
        return
    health.failing_streak += 1
    if health.failing_streak >= retries:
        health.status = "unhealthy"


async def _nothing(container: Container) -> None:
    del container


def _go_duration(seconds: float) -> str:
    """Write a duration as Go does, near enough for a message: `100ms`, `1.5s`, `1m30s`."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    return (f"{minutes:.0f}m" if minutes else "") + f"{rest:g}s"


class HealthChecks:
    """One loop per running container that has a health check."""

    def __init__(self, registry: Registry, execs: ExecTable, events: Events) -> None:
        self._registry = registry
        self._execs = execs
        self._events = events
        self.restart: Callable[[Container], Coroutine[Any, Any, None]] = _nothing

    def start(self, container: Container, *, found: bool = False) -> None:
        """Begin probing a container that just started or (`found`) was found running: its health is what it was."""
        command = probe_command(container.record.config)
        if command is None or container.health_loop is not None:
            return
        if container.state.health is None or not found:
            container.state.health = Health()
        container.health_loop = asyncio.create_task(self._loop(container, command))

    def _give_up(self, container: Container) -> None:
        """Have an unhealthy container that wants it restarted; no further probe of this run comes in between."""
        if container.giving_up is None or container.giving_up.done():
            container.giving_up = asyncio.create_task(self.restart(container))

    def stop(self, container: Container) -> None:
        """Stop probing."""
        loop, container.health_loop = container.health_loop, None
        if loop is not None:
            loop.cancel()

    async def _loop(self, container: Container, command: list[str]) -> None:
        check = container.record.config.healthcheck
        assert check is not None
        interval = (check.interval or 30 * SECOND) / SECOND
        start_interval = (check.start_interval or 5 * SECOND) / SECOND
        timeout = (check.timeout or 30 * SECOND) / SECOND
        retries = check.retries or 3
        started = container.state.started_at
        while True:
            health = container.state.health
            if health is None:
                return
            starting = health.status == "starting" and clock.now() - started < check.start_period
            await asyncio.sleep(min(interval, start_interval) if starting else interval)
            if container.state.status != "running":
                continue
            probe = await self._probe(container, command, timeout)
            before = health.status
            in_start_period = probe.start - started < check.start_period
            after_probe(health, probe, retries=retries, in_start_period=in_start_period)
            self._registry.save(container)
            if health.status == "unhealthy" and restart.restarts_unhealthy(container.record.config):
                self._give_up(container)
            if health.status != before:
                self._events.publish(
                    "container", f"health_status: {health.status}", container.id, event_attributes(container)
                )

    async def _probe(self, container: Container, command: list[str], timeout: float) -> HealthProbe:
        start = clock.now()
        try:
            run = self._execs.create(
                container, api.ExecConfig(cmd=command, attach_stdout=True, attach_stderr=True)
            )
            ours, theirs = socket.socketpair()
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                await self._execs.start(run, attach=AttachRequest(framed=False), fd=os.dup(theirs.fileno()))
                theirs.close()
                output, in_time = await self._collect(reader, run.finished, timeout)
                if not in_time and container.task is not None and run.running:
                    await container.task.kill_exec(run.id, 9)
            finally:
                theirs.close()
                writer.close()
        except DrayError as error:
            return HealthProbe(start=start, end=clock.now(), exit_code=-1, output=str(error))
        if not in_time:
            output = f"Health check exceeded timeout ({_go_duration(timeout)})"
            return HealthProbe(start=start, end=clock.now(), exit_code=-1, output=output)
        return HealthProbe(start=start, end=clock.now(), exit_code=run.exit_code or 0, output=output)

    @staticmethod
    async def _collect(reader: asyncio.StreamReader, finished: asyncio.Event, timeout: float) -> tuple[str, bool]:
        """Return what the probe printed (cut to 4096 bytes) and whether it ended in time."""
        kept = bytearray()

        async def read() -> None:
            while data := await reader.read(4096):
                if len(kept) < KEPT_OUTPUT:
                    kept.extend(data)
            await finished.wait()

        try:
            await asyncio.wait_for(read(), timeout)
            in_time = True
        except TimeoutError:
            in_time = False
        return bytes(kept[:KEPT_OUTPUT]).decode(errors="replace"), in_time
