"""`dray ps` (`dray container ls`)."""

from __future__ import annotations

import time

from dray.base.units import human_duration, human_size
from dray.cli.command import Command
from dray.cli.flags import Flag
from dray.cli.output import Column, Listing, ellipsis, label_text, local_time, short_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

    Summary = dict[str, Any]


def display_image(name: str, image_id: str) -> str:
    """Return an image as a short table shows it: no digest beside a tag, a short ID for an ID."""
    if not name:
        return "<no image>"
    if short_id(image_id) == short_id(name):
        return short_id(image_id)
    if "@" not in name and not name.startswith(("docker.io/", "index.docker.io/")):
        return name
    from dray.base.errors import InvalidParameter
    from dray.base.reference import parse

    try:
        reference = parse(name)
    except InvalidParameter:
        return name
    return reference.familiar_name + (f":{reference.tag}" if reference.tag else "")


def display_names(names: list[str], *, full: bool) -> str:
    """Return a container's names without slashes; without `full`, those that other containers' links made go."""
    plain = [name.removeprefix("/") for name in names]
    return ",".join(plain if full else [name for name in plain if "/" not in name])


def display_ports(ports: list[dict[str, Any]]) -> str:
    """Return published ports as `0.0.0.0:80->80/tcp`, neighbours joined as a range.

    A run of ports is joined while host and container port are the same; a port published under another number
    stands alone, behind the others.
    """
    ordered = sorted(
        ports,
        key=lambda one: (
            one.get("PrivatePort", 0),
            one.get("IP", ""),
            one.get("PublicPort", 0),
            one.get("Type", ""),
        ),
    )
    spans: dict[str, tuple[int, int]] = {}
    done: list[str] = []
    alone: list[str] = []
    for port in ordered:
        private, public, key, address = (
            port.get("PrivatePort", 0),
            port.get("PublicPort", 0),
            port.get("Type", ""),
            port.get("IP", ""),
        )
        if address:
            if public != private:
                host = f"[{address}]" if ":" in address else address
                alone.append(f"{host}:{public}->{private}/{key}")
                continue
            key = f"{address}/{key}"
        if key in spans and private == spans[key][1] + 1:
            spans[key] = (spans[key][0], private)
            continue
        if key in spans:
            done.append(_span(key, spans[key]))
        spans[key] = (private, private)
    done += [_span(key, span) for key, span in spans.items()]
    return ", ".join(done + alone)


def _span(key: str, span: tuple[int, int]) -> str:
    address, _, kind = key.rpartition("/")
    text = str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"
    if not address:
        return f"{text}/{kind}"
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{text}->{text}/{kind}"


def display_size(item: Summary) -> str:
    """Return the writable layer's size, and with the image's when that is known."""
    text = human_size(item.get("SizeRw") or 0)
    virtual = item.get("SizeRootFs") or 0
    return f"{text} (virtual {human_size(virtual)})" if virtual > 0 else text


def _mounts(item: Summary, *, full: bool) -> str:
    names = [mount.get("Name") or mount.get("Source") or "" for mount in item.get("Mounts") or ()]
    return ",".join(name if full else ellipsis(name, 15) for name in names)


def _platform(item: Summary) -> Any:
    return (item.get("ImageManifestDescriptor") or {}).get("platform")


def _command(item: Summary, *, full: bool) -> str:
    from dray.cli.template.values import quote

    text = item.get("Command") or ""
    return quote(text if full else ellipsis(text, 20))


def listing(*, full: bool = False) -> Listing:
    """Return the list of containers; `full` shortens nothing."""
    now = time.time()
    columns = {
        "ID": Column("CONTAINER ID", lambda one: one["Id"] if full else short_id(one["Id"])),
        "Image": Column(
            "IMAGE",
            lambda one: (
                (one.get("Image") or "<no image>")
                if full
                else display_image(one.get("Image") or "", one.get("ImageID") or "")
            ),
        ),
        "Command": Column("COMMAND", lambda one: _command(one, full=full)),
        "CreatedAt": Column("CREATED AT", lambda one: local_time(one["Created"])),
        "RunningFor": Column("CREATED", lambda one: human_duration(now - one["Created"]) + " ago"),
        "Ports": Column("PORTS", lambda one: display_ports(one.get("Ports") or [])),
        "State": Column("STATE", lambda one: one.get("State") or ""),
        "Status": Column("STATUS", lambda one: one.get("Status") or ""),
        "Size": Column("SIZE", display_size),
        "Names": Column("NAMES", lambda one: display_names(one.get("Names") or [], full=full)),
        "Labels": Column("LABELS", lambda one: label_text(one.get("Labels"))),
        "Mounts": Column("MOUNTS", lambda one: _mounts(one, full=full)),
        "LocalVolumes": Column(
            "LOCAL VOLUMES",
            lambda one: str(sum(mount.get("Driver") == "local" for mount in one.get("Mounts") or ())),
        ),
        "Networks": Column(
            "NETWORKS", lambda one: ",".join(sorted((one.get("NetworkSettings") or {}).get("Networks") or {}))
        ),
        "Platform": Column("PLATFORM", _platform),
    }
    return Listing(
        "*formatter.ContainerContext",
        columns,
        ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"),
        methods={"Label": lambda one, name: (one.get("Labels") or {}).get(name, "")},
        raw=(
            ("container_id", "ID"),
            ("image", "Image"),
            ("command", "Command"),
            ("created_at", "CreatedAt"),
            ("state", "State"),
            ("status", "Status"),
            ("names", "Names"),
            ("labels", "Labels"),
            ("ports", "Ports"),
        ),
        quiet="ID",
    )


def run_ps(app: App, values: Values, arguments: list[str]) -> int:
    """List containers."""
    form, quiet = values["format"], values["quiet"]
    if form and quiet:
        app.error("WARNING: Ignoring custom format, because both --format and --quiet are set.")
        form = ""
    if not form and not quiet:
        form = app.config.text("psFormat")
    last = 1 if values["latest"] and values["last"] == -1 else values["last"]
    size = values["size"] or ("size" not in values.changed and ".Size" in form)
    items = app.client.containers.list(
        all=values["all"], limit=last if last > 0 else None, size=size, filters=values["filter"]
    )
    default = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names") + (
        ("Size",) if values["size"] else ()
    )
    app.out(listing(full=values["no-trunc"]).render(items, form, quiet=quiet, default=default))
    return 0


COMMANDS = {
    "container ls": Command(
        "[OPTIONS]",
        run_ps,
        flags=(
            Flag("all", "bool", "Show stopped containers too", short="a"),
            Flag("filter", "filter", "Show only containers that match (name=value)", short="f"),
            Flag("format", "string", "Print with a template: 'table', 'table TEMPLATE', 'json', or a Go template"),
            Flag("last", "int", "Show the n containers created last, in any state", short="n", default=-1),
            Flag("latest", "bool", "Show the container created last, in any state", short="l"),
            Flag("no-trunc", "bool", "Shorten nothing"),
            Flag("quiet", "bool", "Print IDs only", short="q"),
            Flag("size", "bool", "Show sizes too", short="s"),
        ),
    ),
}
