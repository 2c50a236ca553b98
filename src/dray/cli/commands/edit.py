"""`dray edit`: change environment, labels, ports, mounts and name of a container that exists."""

from __future__ import annotations

from dray.cli.ask import mounts
from dray.cli.ask.environment import check_env, check_label, collect, to_map
from dray.cli.ask.ports import parse_publish, sorted_ports
from dray.cli.command import Command, Failure
from dray.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values


def run_edit(app: App, values: Values, arguments: list[str]) -> int:
    """Change a container; a running one is stopped and started."""
    if not values.changed:
        raise Failure("nothing to change: see 'dray edit --help'")
    binds, anonymous = mounts.split_volumes(values["volume"])
    if anonymous:
        raise Failure(f"a new volume needs a name: -v NAME:{next(iter(anonymous))}")
    body: dict[str, Any] = {
        "Env": collect(values["env-file"], values["env"], environment=True),
        "EnvRemove": values["env-rm"],
        "Labels": to_map(collect([], values["label"], environment=False)),
        "LabelsRemove": values["label-rm"],
        "PortBindings": sorted_ports(parse_publish(values["publish"])[1]),
        "PortsRemove": values["publish-rm"],
        "Binds": binds,
        "Mounts": values["mount"],
        "MountsRemove": values["volume-rm"],
        "Name": values["name"],
    }
    answer = app.client.containers.edit(arguments[0], {key: value for key, value in body.items() if value})
    for warning in answer.get("Warnings") or ():
        app.error(f"WARNING: {warning}")
    app.line(values["name"] or arguments[0])
    return 0


COMMANDS = {
    "container edit": Command(
        "[OPTIONS] CONTAINER",
        run_edit,
        flags=(
            Flag("env", "list", "Set an environment variable (NAME=value)", short="e", check=check_env),
            Flag("env-file", "list", "Read environment variables from a file"),
            Flag("env-rm", "list", "Take an environment variable away"),
            Flag("label", "list", "Set a label (name=value)", short="l", check=check_label),
            Flag("label-rm", "list", "Take a label away"),
            Flag(
                "mount",
                "list",
                "Mount something (type=bind,source=…,target=…)",
                check=mounts.parse_mount,
                label="mount",
            ),
            Flag("name", "string", "Give it another name"),
            Flag(
                "publish",
                "list",
                "Publish a port, instead of how it was ([[ip:]host:]container[/proto])",
                short="p",
            ),
            Flag("publish-rm", "list", "Publish a container's port no longer (80, 53/udp)"),
            Flag("volume", "list", "Mount a volume or a host folder (source:target[:options])", short="v"),
            Flag("volume-rm", "list", "Take the mount at this path of the container away"),
        ),
        args=(1, 1),
    ),
}
