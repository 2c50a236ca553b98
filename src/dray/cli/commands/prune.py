"""The prune verbs: remove what nothing uses, after asking."""

from __future__ import annotations

import sys

from dray.base.units import human_size
from dray.cli.command import Command, Failure
from dray.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

    Filters = dict[str, dict[str, bool]]


def confirm(app: App, question: str) -> bool:
    """Ask; anything but `y` or `yes` is no."""
    app.out(f"{question} [y/N] ")
    sys.stdout.flush()
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("y", "yes")


_SURE = "Are you sure you want to continue?"


def _filters(app: App, values: Values) -> Filters:
    """Return the flags' filters with those that config.json adds to every prune."""
    found: Filters = {key: dict(entry) for key, entry in values["filter"].items()}
    for entry in app.config.data.get("pruneFilters") or ():
        key, _, value = str(entry).partition("=")
        opposite = {"label": "label!", "label!": "label"}.get(key, "")
        if value not in found.get(opposite, {}):
            found.setdefault(key, {})[value] = True
    return found


def _report(app: App, heading: str, names: list[str], *, blank: bool = True) -> None:
    if names:
        app.line(f"{heading}:")
        app.line("\n".join(names))
        if blank:
            app.line()


def _total(app: App, space: int) -> None:
    app.line(f"Total reclaimed space: {human_size(space, 4)}")


def prune_containers(app: App, filters: Filters) -> int:
    """Remove stopped containers; returns the bytes won."""
    answer = app.client.containers.prune(filters)
    _report(app, "Deleted Containers", answer.get("ContainersDeleted") or [])
    return int(answer.get("SpaceReclaimed") or 0)


def prune_networks(app: App, filters: Filters) -> int:
    """Remove unused networks."""
    answer = app.client.networks.prune(filters)
    _report(app, "Deleted Networks", answer.get("NetworksDeleted") or [])
    return 0


def prune_volumes(app: App, filters: Filters) -> int:
    """Remove unused volumes; returns the bytes won."""
    answer = app.client.volumes.prune(filters)
    _report(app, "Deleted Volumes", answer.get("VolumesDeleted") or [])
    return int(answer.get("SpaceReclaimed") or 0)


def prune_images(app: App, filters: Filters, *, everything: bool) -> int:
    """Remove unused images; returns the bytes won."""
    answer = app.client.images.prune({**filters, "dangling": {"false" if everything else "true": True}})
    lines = [
        f"untagged: {one['Untagged']}" if one.get("Untagged") else f"deleted: {one['Deleted']}"
        for one in answer.get("ImagesDeleted") or ()
    ]
    _report(app, "Deleted Images", lines)
    return int(answer.get("SpaceReclaimed") or 0)


def prune_cache(app: App, filters: Filters, *, everything: bool, keep: int = 0) -> int:
    """Remove build cache; returns the bytes won."""
    query: dict[str, Any] = {"all": everything, "filters": filters or None, "keep-storage": keep or None}
    answer = app.client.images.prune_build_cache(query) or {}
    _report(app, "Deleted build cache objects", answer.get("CachesDeleted") or [])
    return int(answer.get("SpaceReclaimed") or 0)


def run_containers(app: App, values: Values, arguments: list[str]) -> int:
    """Prune containers."""
    if not values["force"] and not confirm(app, f"WARNING! This will remove all stopped containers.\n{_SURE}"):
        return 0
    _total(app, prune_containers(app, _filters(app, values)))
    return 0


def run_images(app: App, values: Values, arguments: list[str]) -> int:
    """Prune images."""
    which = "images without at least one container associated to them" if values["all"] else "dangling images"
    if not values["force"] and not confirm(app, f"WARNING! This will remove all {which}.\n{_SURE}"):
        return 0
    _total(app, prune_images(app, _filters(app, values), everything=values["all"]))
    return 0


def run_volumes(app: App, values: Values, arguments: list[str]) -> int:
    """Prune volumes."""
    from dray.cli.commands.images import need_version
    from dray.client.transport import version_key

    filters = _filters(app, values)
    if values["all"]:
        need_version(app, "--all", "1.42")
        if "all" in filters:
            raise Failure("conflicting options: cannot specify both --all and --filter all=1")
        filters["all"] = {"true": True}
    anonymous = "anonymous " if not values["all"] and version_key(app.client.version) >= (1, 42) else ""
    warning = f"WARNING! This will remove {anonymous + 'local' if anonymous else 'all local'} volumes not used by at least one container."
    if not values["force"] and not confirm(app, f"{warning}\n{_SURE}"):
        return 0
    _total(app, prune_volumes(app, filters))
    return 0


def run_networks(app: App, values: Values, arguments: list[str]) -> int:
    """Prune networks."""
    warning = "WARNING! This will remove all custom networks not used by at least one container."
    if not values["force"] and not confirm(app, f"{warning}\n{_SURE}"):
        return 0
    prune_networks(app, _filters(app, values))
    return 0


def run_cache(app: App, values: Values, arguments: list[str]) -> int:
    """Prune the build cache."""
    which = "all" if values["all"] else "all dangling"
    if not values["force"] and not confirm(app, f"WARNING! This will remove {which} build cache. {_SURE}"):
        return 0
    _total(app, prune_cache(app, values["filter"], everything=values["all"], keep=values["keep-storage"]))
    return 0


def run_system(app: App, values: Values, arguments: list[str]) -> int:
    """Prune everything."""
    filters = _filters(app, values)
    if values["volumes"] and "until" in filters:
        raise Failure('ERROR: The "until" filter is not supported with "--volumes"')
    lines = ["all stopped containers", "all networks not used by at least one container"]
    if values["volumes"]:
        lines.append("all anonymous volumes not used by at least one container")
    lines.append(
        "all images without at least one container associated to them" if values["all"] else "all dangling images"
    )
    lines.append("all build cache" if values["all"] else "unused build cache")
    if filters:
        shown = sorted(f"{key}={value}" for key, entry in filters.items() for value in entry)
        lines.append("")
        lines.append(f"Items to be pruned will be filtered with:\n  - {', '.join(shown)}")
    text = "".join(
        f"\n  - {line}" if line and not line.startswith("Items") else f"\n{'  ' if line else ''}{line}"
        for line in lines
    )
    if not values["force"] and not confirm(app, f"WARNING! This will remove:{text}\n\n{_SURE}"):
        return 0
    space = prune_containers(app, filters)
    prune_networks(app, filters)
    if values["volumes"]:
        space += prune_volumes(app, filters)
    space += prune_images(app, filters, everything=values["all"])
    # Labels say nothing of build cache; of the filters only the age does.
    cache_filters = {key: entry for key, entry in filters.items() if key == "until"}
    if cache_filters or not filters:
        space += prune_cache(app, cache_filters, everything=values["all"])
    _total(app, space)
    return 0


_FILTER = Flag("filter", "filter", "Remove only what matches (such as until=24h or label=…)")
_FORCE = Flag("force", "bool", "Do not ask", short="f")

COMMANDS = {
    "container prune": Command("[OPTIONS]", run_containers, flags=(_FILTER, _FORCE)),
    "image prune": Command(
        "[OPTIONS]",
        run_images,
        flags=(
            Flag("all", "bool", "Remove all unused images, not just untagged ones", short="a"),
            _FILTER,
            _FORCE,
        ),
    ),
    "volume prune": Command(
        "[OPTIONS]",
        run_volumes,
        flags=(Flag("all", "bool", "Remove named volumes too", short="a"), _FILTER, _FORCE),
    ),
    "network prune": Command("[OPTIONS]", run_networks, flags=(_FILTER, _FORCE)),
    "builder prune": Command(
        "[OPTIONS]",
        run_cache,
        flags=(
            Flag("all", "bool", "Remove all unused build cache, not just dangling", short="a"),
            _FILTER,
            _FORCE,
            Flag("keep-storage", "bytes", "Leave this much"),
        ),
    ),
    "system prune": Command(
        "[OPTIONS]",
        run_system,
        flags=(
            Flag("all", "bool", "Remove all unused images, not just untagged ones", short="a"),
            _FILTER,
            _FORCE,
            Flag("volumes", "bool", "Remove anonymous volumes too"),
        ),
    ),
}
