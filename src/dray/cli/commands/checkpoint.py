"""`dray checkpoint` create, ls, rm."""

from __future__ import annotations

from dray.cli.command import Command
from dray.cli.flags import Flag
from dray.cli.output import Column, Listing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dray.cli.app import App
    from dray.cli.flags import Values


def run_create(app: App, values: Values, arguments: list[str]) -> int:
    """Write a running container down."""
    container, name = arguments
    app.client.containers.write_checkpoint(
        container, name, directory=values["checkpoint-dir"], leave_running=values["leave-running"]
    )
    app.line(name)
    return 0


def run_ls(app: App, values: Values, arguments: list[str]) -> int:
    """List a container's checkpoints."""
    names = app.client.containers.checkpoints(arguments[0], directory=values["checkpoint-dir"])
    columns = {"Name": Column("CHECKPOINT NAME", lambda one: one["Name"])}
    listing = Listing("*checkpoint.formatter", columns, ("Name",))
    app.out(listing.render([{"Name": name} for name in names], ""))
    return 0


def run_rm(app: App, values: Values, arguments: list[str]) -> int:
    """Remove a checkpoint."""
    app.client.containers.remove_checkpoint(arguments[0], arguments[1], directory=values["checkpoint-dir"])
    return 0


_DIRECTORY = Flag(
    "checkpoint-dir", "string", "Where the daemon keeps the checkpoint, instead of with the container"
)

COMMANDS = {
    "checkpoint create": Command(
        "[OPTIONS] CONTAINER CHECKPOINT",
        run_create,
        flags=(_DIRECTORY, Flag("leave-running", "bool", "Do not stop the container")),
        args=(2, 2),
    ),
    "checkpoint ls": Command("[OPTIONS] CONTAINER", run_ls, flags=(_DIRECTORY,), args=(1, 1)),
    "checkpoint rm": Command("[OPTIONS] CONTAINER CHECKPOINT", run_rm, flags=(_DIRECTORY,), args=(2, 2)),
}
