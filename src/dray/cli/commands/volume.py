"""`dray volume` create, export, import, ls, rename, rm."""

from __future__ import annotations

import sys

from dray.base.errors import DrayError, Unsupported
from dray.base.units import human_size
from dray.cli.app import is_terminal
from dray.cli.ask.environment import check_label, to_map
from dray.cli.command import MANY, Command, Failure
from dray.cli.commands.transfer import Metered, check_output, save_to_file
from dray.cli.flags import Flag
from dray.cli.output import Column, Listing, label_text
from dray.cli.progress import Display
from dray.client.errors import ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

_CLUSTER = [
    "availability",
    "group",
    "limit-bytes",
    "required-bytes",
    "scope",
    "secret",
    "sharing",
    "topology-preferred",
    "topology-required",
    "type",
]


def run_create(app: App, values: Values, arguments: list[str]) -> int:
    """Create a volume."""
    for name in _CLUSTER:
        if name in values.changed:
            raise Unsupported(f"--{name} is for cluster volumes, which this engine does not have")
    body = {
        "Name": arguments[0] if arguments else "",
        "Driver": values["driver"],
        "DriverOpts": values["opt"],
        "Labels": to_map(values["label"]),
    }
    app.line(app.client.volumes.create({key: value for key, value in body.items() if value})["Name"])
    return 0


def listing() -> Listing:
    """Return the list of volumes."""
    columns = {
        "Name": Column("VOLUME NAME", lambda one: one["Name"]),
        "Driver": Column("DRIVER", lambda one: one.get("Driver") or ""),
        "Scope": Column("SCOPE", lambda one: one.get("Scope") or ""),
        "Mountpoint": Column("MOUNTPOINT", lambda one: one.get("Mountpoint") or ""),
        "Labels": Column("LABELS", lambda one: label_text(one.get("Labels"))),
        "Links": Column("LINKS", lambda one: str(one["UsageData"]["RefCount"]) if one.get("UsageData") else "N/A"),
        "Size": Column(
            "SIZE", lambda one: human_size(one["UsageData"]["Size"], 4) if one.get("UsageData") else "N/A"
        ),
        "Group": Column(
            "GROUP", lambda one: ((one.get("ClusterVolume") or {}).get("Spec") or {}).get("Group") or "N/A"
        ),
        "Availability": Column(
            "AVAILABILITY",
            lambda one: ((one.get("ClusterVolume") or {}).get("Spec") or {}).get("Availability") or "N/A",
        ),
        "Status": Column("STATUS", lambda one: "N/A"),
    }
    return Listing(
        "*formatter.volumeContext",
        columns,
        ("Driver", "Name"),
        methods={"Label": lambda one, name: (one.get("Labels") or {}).get(name, "")},
        raw=(("name", "Name"), ("driver", "Driver")),
        quiet="Name",
    )


def natural_key(text: str) -> list[tuple[bool, int, str]]:
    """A sort key in which numbers count as numbers."""
    import re

    return [
        (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.findall(r"[0-9]+|[^0-9]+", text)
    ]


def run_ls(app: App, values: Values, arguments: list[str]) -> int:
    """List volumes."""
    if values["cluster"]:
        raise Unsupported("--cluster: this engine has no cluster volumes")
    form = values["format"]
    if not form and not values["quiet"]:
        form = app.config.text("volumesFormat")
    answer = app.client.volumes.list(values["filter"])
    volumes = sorted(answer.get("Volumes") or [], key=lambda one: natural_key(one["Name"]))
    app.out(listing().render(volumes, form, quiet=values["quiet"]))
    return 0


def run_rm(app: App, values: Values, arguments: list[str]) -> int:
    """Remove volumes."""
    errors = []
    for name in arguments:
        try:
            app.client.volumes.remove(name, force=values["force"])
        except ConnectError:
            raise
        except DrayError as error:
            errors.append(str(error))
            continue
        app.line(name)
    if errors:
        raise Failure("\n".join(errors))
    return 0


def run_rename(app: App, values: Values, arguments: list[str]) -> int:
    """Give a volume another name."""
    app.client.volumes.rename(arguments[0], arguments[1])
    return 0


def run_export(app: App, values: Values, arguments: list[str]) -> int:
    """Write a volume's files as a tar archive."""
    path = values["output"]
    if not path and is_terminal(1):
        raise Failure("refusing to write an archive to a terminal: use -o FILE, or redirect")
    if path:
        check_output(path, what="volume export")
    response = app.client.volumes.export(arguments[0])
    chunks = _shown(response.chunks(), arguments[0])
    if path:
        save_to_file(path, chunks)
        return 0
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()
    return 0


def _shown(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Pass chunks on; at a terminal, show how much there were."""
    display = Display(sys.stderr) if sys.stderr.isatty() else None
    done = 0
    for chunk in chunks:
        done += len(chunk)
        if display is not None:
            display.show({"id": name, "status": "Exporting", "progressDetail": {"current": done}})
        yield chunk


def run_import(app: App, values: Values, arguments: list[str]) -> int:
    """Make a volume of a tar archive."""
    path = arguments[1] if len(arguments) > 1 else "-"
    if path == "-":
        if is_terminal(0):
            raise Failure("requested import from stdin, but stdin is empty")
        app.line(app.client.volumes.import_(arguments[0], sys.stdin.buffer)["Name"])
        return 0
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by the block below
    except OSError as error:
        raise Failure(f"open {path}: {(error.strerror or '').lower()}") from error
    with file:
        body: Any = Metered(file, arguments[0]) if sys.stderr.isatty() else file
        app.line(app.client.volumes.import_(arguments[0], body)["Name"])
    return 0


_HIDDEN_TEXT = ("availability", "group", "scope", "sharing", "type")

COMMANDS = {
    "volume create": Command(
        "[OPTIONS] [VOLUME]",
        run_create,
        flags=(
            Flag("driver", "string", "Volume driver", short="d", default="local"),
            Flag("label", "list", "Set a label (name=value)", check=check_label),
            Flag("opt", "map", "Driver option (name=value)", short="o"),
            *(Flag(name, "string", "Cluster volumes only", hidden=True) for name in _HIDDEN_TEXT),
            *(
                Flag(name, "bytes", "Cluster volumes only", hidden=True)
                for name in ("limit-bytes", "required-bytes")
            ),
            *(
                Flag(name, "list", "Cluster volumes only", hidden=True)
                for name in ("secret", "topology-preferred", "topology-required")
            ),
        ),
        args=(0, 1),
    ),
    "volume ls": Command(
        "[OPTIONS]",
        run_ls,
        flags=(
            Flag("cluster", "bool", "Show cluster volumes only", hidden=True),
            Flag("filter", "filter", "Show only volumes that match (name=value)", short="f"),
            Flag("format", "string", "Print with a template: 'table', 'table TEMPLATE', 'json', or a Go template"),
            Flag("quiet", "bool", "Print names only", short="q"),
        ),
    ),
    "volume export": Command(
        "[OPTIONS] VOLUME",
        run_export,
        flags=(Flag("output", "string", "Write to this file, not to standard output", short="o"),),
        args=(1, 1),
    ),
    "volume import": Command("VOLUME [FILE|-]", run_import, args=(1, 2)),
    "volume rename": Command("OLD NEW", run_rename, args=(2, 2)),
    "volume rm": Command(
        "[OPTIONS] VOLUME [VOLUME...]",
        run_rm,
        flags=(Flag("force", "bool", "Do not fail for a volume that does not exist", short="f"),),
        args=(1, MANY),
    ),
}
