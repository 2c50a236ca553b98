"""`dray system df`."""

from __future__ import annotations

import json

from dray.base.units import human_size
from dray.cli.command import Command, Failure
from dray.cli.commands import images, ps, volume
from dray.cli.flags import Flag
from dray.cli.output import Column, Listing, Row, ago, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

    Usage = dict[str, Any]


def _reclaimable(size: int, total: int) -> str:
    return f"{human_size(size, 4)} ({size * 100 // total}%)" if total > 0 else human_size(size, 4)


def summaries(usage: Usage) -> list[dict[str, str]]:
    """Return one row for images, containers, volumes and build cache each."""
    found_images, containers = usage.get("Images") or [], usage.get("Containers") or []
    volumes, caches = usage.get("Volumes") or [], usage.get("BuildCache") or []
    layers = usage.get("LayersSize") or 0
    used = sum(
        one.get("Size", 0) - max(one.get("SharedSize", 0), 0)
        for one in found_images
        if one.get("Containers", 0) != 0 and one.get("Size", -1) != -1 and one.get("SharedSize", -1) != -1
    )
    rows = [
        (
            "Images",
            len(found_images),
            sum(one.get("Containers", 0) > 0 for one in found_images),
            layers,
            _reclaimable(layers - used, layers),
        )
    ]

    def active(one: Usage) -> bool:
        return one.get("State", "") in ("running", "paused", "restarting") or "Up" in one.get("Status", "")

    size = sum(one.get("SizeRw") or 0 for one in containers)
    idle = sum(one.get("SizeRw") or 0 for one in containers if not active(one))
    rows.append(("Containers", len(containers), sum(map(active, containers)), size, _reclaimable(idle, size)))
    data = [one.get("UsageData") or {} for one in volumes]
    size = sum(max(one.get("Size", 0), 0) for one in data)
    idle = sum(max(one.get("Size", 0), 0) for one in data if not one.get("RefCount"))
    rows.append(
        (
            "Local Volumes",
            len(volumes),
            sum(one.get("RefCount", 0) > 0 for one in data),
            size,
            _reclaimable(idle, size),
        )
    )
    size = sum(one.get("Size", 0) for one in caches)
    idle = sum(one.get("Size", 0) for one in caches if not one.get("InUse") and not one.get("Shared"))
    rows.append(
        ("Build Cache", len(caches), sum(bool(one.get("InUse")) for one in caches), size, human_size(idle, 4))
    )
    return [
        {
            "Type": kind,
            "TotalCount": str(total),
            "Active": str(used_count),
            "Size": human_size(amount, 4),
            "Reclaimable": free,
        }
        for kind, total, used_count, amount, free in rows
    ]


def summary_listing() -> Listing:
    """Return the list of summaries."""

    def text(key: str) -> Any:
        return lambda one: one[key]

    headers = {
        "Type": "TYPE",
        "TotalCount": "TOTAL",
        "Active": "ACTIVE",
        "Size": "SIZE",
        "Reclaimable": "RECLAIMABLE",
    }
    columns = {name: Column(header, text(name)) for name, header in headers.items()}
    raw = (
        ("type", "Type"),
        ("total", "TotalCount"),
        ("active", "Active"),
        ("size", "Size"),
        ("reclaimable", "Reclaimable"),
    )
    return Listing("*formatter.diskUsageContext", columns, tuple(headers), raw=raw)


def cache_listing(*, full: bool) -> Listing:
    """Return the list of build cache records."""

    def since(key: str) -> Any:
        return lambda one: ago(timestamp(one[key])) if one.get(key) else ""

    columns = {
        "ID": Column(
            "CACHE ID", lambda one: one["ID"] if full else one["ID"][:12] + ("*" if one.get("InUse") else "")
        ),
        "Parent": Column("PARENT", lambda one: ",".join(one.get("Parents") or ())),
        "CacheType": Column("CACHE TYPE", lambda one: one.get("Type") or ""),
        "Description": Column("DESCRIPTION", lambda one: one.get("Description") or ""),
        "Size": Column("SIZE", lambda one: human_size(one.get("Size") or 0, 4)),
        "CreatedAt": Column("CREATED AT", lambda one: one.get("CreatedAt") or ""),
        "CreatedSince": Column("CREATED", since("CreatedAt")),
        "LastUsedAt": Column("LAST USED AT", lambda one: one.get("LastUsedAt") or ""),
        "LastUsedSince": Column("LAST USED", since("LastUsedAt")),
        "UsageCount": Column("USAGE", lambda one: str(one.get("UsageCount", 0))),
        "InUse": Column("IN USE", lambda one: str(bool(one.get("InUse"))).lower()),
        "Shared": Column("SHARED", lambda one: str(bool(one.get("Shared"))).lower()),
    }
    return Listing(
        "*formatter.buildCacheContext",
        columns,
        ("ID", "CacheType", "Size", "CreatedSince", "LastUsedSince", "UsageCount", "Shared"),
    )


def _image_rows(usage: Usage) -> list[dict[str, Any]]:
    rows = []
    for one in usage.get("Images") or ():
        tag = (one.get("RepoTags") or [""])[0]
        repository, _, name = tag.rpartition(":")
        digest = (one.get("RepoDigests") or [""])[0].partition("@")[0]
        rows.append(
            {
                **one,
                "_repository": images.familiar(repository or digest) or "<none>",
                "_tag": name or "<none>",
                "_digest": "",
            }
        )
    return rows


def _containers(usage: Usage) -> list[dict[str, Any]]:
    """Return the containers without what their images take: here each kind stands for itself."""
    return [{**one, "SizeRootFs": 0} for one in usage.get("Containers") or ()]


def _verbose(usage: Usage) -> str:
    image_rows = _image_rows(usage)
    out = ["Images space usage:\n\n"]
    out.append(
        images.image_listing(full=False).render(
            image_rows,
            default=("Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "UniqueSize", "Containers"),
        )
    )
    out.append("\nContainers space usage:\n\n")
    out.append(
        ps.listing().render(
            _containers(usage),
            default=("ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names"),
        )
    )
    out.append("\nLocal Volumes space usage:\n\n")
    out.append(volume.listing().render(usage.get("Volumes") or (), default=("Name", "Links", "Size")))
    caches = usage.get("BuildCache") or []
    total = sum(one.get("Size", 0) for one in caches if not one.get("Shared"))
    out.append(f"\nBuild cache usage: {human_size(total, 4)}\n\n")
    out.append(cache_listing(full=False).render(sorted(caches, key=lambda one: one.get("Size", 0), reverse=True)))
    return "".join(out)


def _verbose_json(usage: Usage) -> str:
    parts = []
    for name, listing, rows in (
        ("Images", images.image_listing(full=True), _image_rows(usage)),
        ("Containers", ps.listing(full=True), _containers(usage)),
        ("Volumes", volume.listing(), usage.get("Volumes") or []),
        ("BuildCache", cache_listing(full=True), usage.get("BuildCache") or []),
    ):
        parts.append(f"{json.dumps(name)}:[{','.join(Row(listing, row).json_text() for row in rows)}]")
    return "{" + ",".join(parts) + "}"


def run_df(app: App, values: Values, arguments: list[str]) -> int:
    """Print disk usage."""
    usage = app.client.system.disk_usage()
    form = values["format"]
    if not values["verbose"]:
        app.out(summary_listing().render(summaries(usage), form))
        return 0
    if not form or form == "table":
        app.out(_verbose(usage))
        return 0
    if form != "json":
        raise Failure("the verbose form takes no template: use --format json, or leave --verbose out")
    app.out(_verbose_json(usage))
    return 0


COMMANDS = {
    "system df": Command(
        "[OPTIONS]",
        run_df,
        flags=(
            Flag("format", "string", "Print with a template: 'table', 'table TEMPLATE', 'json', or a Go template"),
            Flag("verbose", "bool", "Show each object", short="v"),
        ),
    ),
}
