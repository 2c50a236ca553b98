"""Which containers `docker ps` shows: filters, order and limit (moby `daemon/list.go`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from dray.api.filters import Filters
from dray.base.errors import InvalidParameter
from dray.engine.model import Container
from dray.engine.registry import Registry

STATUSES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
HEALTHS = ("none", "starting", "healthy", "unhealthy")


def select(
    registry: Registry,
    *,
    show_all: bool,
    limit: int,
    filters: Filters,
    ancestors: Callable[[str], set[str]],
) -> list[Container]:
    """Return the containers to show, newest first.

    `ancestors` gives the image ids that an `ancestor` filter's value stands for (descendants included).
    """
    _check(filters)
    containers = sorted(registry, key=lambda one: one.record.created, reverse=True)
    containers = _between(registry, containers, filters)
    if not (show_all or limit > 0 or "status" in filters):  # no other filter brings those that do not run
        containers = [one for one in containers if one.state.running]
    wanted_images = set[str]().union(*(ancestors(name) for name in filters.values_of("ancestor")))
    shown = [one for one in containers if _matches(one, filters, wanted_images)]
    return shown[:limit] if limit > 0 else shown


def _check(filters: Filters) -> None:
    for status in filters.values_of("status"):
        if status not in STATUSES:
            raise InvalidParameter(
                f"invalid filter 'status={status}': invalid value for state ({status}): must be one of "
                + ", ".join(STATUSES)
            )
    for health in filters.values_of("health"):
        if health not in HEALTHS:
            raise InvalidParameter(f"invalid filter 'health={health}': must be one of " + ", ".join(HEALTHS))
    for code in filters.values_of("exited"):
        if not re.fullmatch(r"-?\d+", code, re.ASCII):
            raise InvalidParameter(f"invalid filter 'exited={code}': it must be a number")
    for pattern in filters.values_of("name"):
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidParameter(f"invalid filter 'name={pattern}': {error}") from error
    filters.boolean("is-task", False)


def _between(registry: Registry, containers: Sequence[Container], filters: Filters) -> list[Container]:
    chosen = list(containers)
    for name in filters.values_of("before"):
        limit = registry.find(name).record.created
        chosen = [one for one in chosen if one.record.created < limit]
    for name in filters.values_of("since"):
        limit = registry.find(name).record.created
        chosen = [one for one in chosen if one.record.created > limit]
    return chosen


def _matches(container: Container, filters: Filters, wanted_images: set[str]) -> bool:
    record, state = container.record, container.state
    ended = state.status in ("exited", "dead") and state.started_at != 0
    exact = {
        "status": state.status,
        "health": state.health.status if state.health else "none",
        "isolation": record.host_config.isolation or "default",
        "volume": [word for point in record.mounts for word in (point.name, point.destination, point.source)],
    }
    if not all(filters.matches_exactly(key, candidates) for key, candidates in exact.items()):
        return False
    if not filters.matches_text("id", record.id) or not _name_matches(record.name, filters):
        return False
    checks: dict[str, Callable[[str], bool]] = {
        "exited": lambda value: ended and state.exit_code == int(value),
        "is-task": lambda _: not filters.boolean("is-task", False),  # no container is one without a swarm
        "network": lambda value: _on_network(container, value),
        "publish": lambda value: _ports_match(value, _published(container)),
        "expose": lambda value: _ports_match(value, set(record.config.exposed_ports or {})),
    }
    for key, check in checks.items():
        if (values := filters.values_of(key)) and not any(check(value) for value in values):
            return False
    if filters.values_of("ancestor") and record.image_id not in wanted_images:
        return False
    return filters.matches_labels(record.config.labels)


def _name_matches(name: str, filters: Filters) -> bool:
    """Match expressions against a name with and without its slash."""
    return filters.matches_text("name", name) or filters.matches_text("name", f"/{name}")


def _on_network(container: Container, value: str) -> bool:
    record = container.record
    if any(value == one.network_name or one.network_id.startswith(value) for one in record.endpoints):
        return True
    asked = (record.networking.endpoints_config if record.networking else None) or {}
    return value in asked or record.host_config.network_mode == value


def _published(container: Container) -> set[str]:
    return {
        f"{binding.host_port}/{binding.protocol}"
        for endpoint in container.record.endpoints
        for binding in endpoint.ports
    } | {
        f"{binding.container_port}/{binding.protocol}"
        for endpoint in container.record.endpoints
        for binding in endpoint.ports
    }


def _ports_match(value: str, present: set[str]) -> bool:
    """Match `80`, `80/udp` or `8000-8010/tcp` against ports such as `80/tcp`."""
    ports, _, protocol = value.partition("/")
    first, _, last = ports.partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        raise InvalidParameter(f"invalid port filter {value!r}: use <port>[-<port>][/<protocol>]")
    wanted = {f"{port}/{protocol or 'tcp'}" for port in range(int(first), int(last or first) + 1)}
    return not wanted.isdisjoint(present)
