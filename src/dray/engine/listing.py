"""Which containers `docker ps` shows: filters, order and limit (moby `daemon/list.go`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from dray.base.errors import InvalidParameter
from dray.engine.model import Container
from dray.engine.registry import Registry

Filters = Mapping[str, Sequence[str]]
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
    if not (
        show_all or limit > 0 or any(key in filters for key in ("status", "exited", "since", "before", "is-task"))
    ):
        containers = [one for one in containers if one.state.running]
    wanted_images = set[str]().union(*(ancestors(name) for name in filters.get("ancestor", ())))
    shown = [one for one in containers if _matches(one, filters, wanted_images)]
    return shown[:limit] if limit > 0 else shown


def _check(filters: Filters) -> None:
    for status in filters.get("status", ()):
        if status not in STATUSES:
            raise InvalidParameter(
                f"invalid filter 'status={status}': invalid value for state ({status}): must be one of "
                + ", ".join(STATUSES)
            )
    for health in filters.get("health", ()):
        if health not in HEALTHS:
            raise InvalidParameter(f"invalid filter 'health={health}': must be one of " + ", ".join(HEALTHS))
    for code in filters.get("exited", ()):
        if not re.fullmatch(r"-?\d+", code, re.ASCII):
            raise InvalidParameter(f"invalid filter 'exited={code}': it must be a number")
    for task in filters.get("is-task", ()):
        if task.lower() not in ("true", "false", "1", "0"):
            raise InvalidParameter(f"invalid filter 'is-task={task}': it must be true or false")


def _between(registry: Registry, containers: Sequence[Container], filters: Filters) -> list[Container]:
    chosen = list(containers)
    for name in filters.get("before", ()):
        limit = registry.find(name).record.created
        chosen = [one for one in chosen if one.record.created < limit]
    for name in filters.get("since", ()):
        limit = registry.find(name).record.created
        chosen = [one for one in chosen if one.record.created > limit]
    return chosen


def _matches(container: Container, filters: Filters, wanted_images: set[str]) -> bool:
    record, state = container.record, container.state
    checks: dict[str, Callable[[str], bool]] = {
        "id": lambda value: record.id.startswith(value) or re.search(value, record.id) is not None,
        "name": lambda value: _name_matches(value, record.name),
        "status": lambda value: state.status == value,
        "exited": lambda value: (
            state.status in ("exited", "dead") and state.started_at != 0 and state.exit_code == int(value)
        ),
        "health": lambda value: (state.health.status if state.health else "none") == value,
        "network": lambda value: _on_network(container, value),
        "volume": lambda value: any(
            value in (point.name, point.destination, point.source) for point in record.mounts
        ),
        "publish": lambda value: _ports_match(value, _published(container)),
        "expose": lambda value: _ports_match(value, set(record.config.exposed_ports or {})),
        "isolation": lambda value: (record.host_config.isolation or "default") == value,
        "is-task": lambda value: value.lower() in ("false", "0"),
    }
    for key, check in checks.items():
        values = filters.get(key)
        if values and not any(check(value) for value in values):
            return False
    if filters.get("ancestor") and record.image_id not in wanted_images:
        return False
    return labels_match(record.config.labels or {}, filters.get("label", ()))


def labels_match(labels: Mapping[str, str], wanted: Iterable[str]) -> bool:
    """Tell whether every `key` or `key=value` in `wanted` holds."""
    for entry in wanted:
        key, equals, value = entry.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def _name_matches(pattern: str, name: str) -> bool:
    try:
        return any(re.search(pattern, candidate) for candidate in (name, f"/{name}"))
    except re.error as error:
        raise InvalidParameter(f"invalid filter 'name={pattern}': {error}") from error


def _on_network(container: Container, value: str) -> bool:
    record = container.record
    if any(value in (endpoint.network_name, endpoint.network_id) for endpoint in record.endpoints):
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
