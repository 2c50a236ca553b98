"""`dray registry serve` and `dray registry gc`: dray's own registry. They run in a program of their own
(`dray.registry.server`), which takes the place of this one."""

from __future__ import annotations

import os
import sys

from dray.cli.command import Command
from dray.cli.flags import Flag
from dray.registry.server.options import OPTIONS, Option, check_together

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dray.cli.app import App
    from dray.cli.flags import Values

_LABELS = {"address": "list", "bool": "", "duration": "duration"}


def _flag(option: Option) -> Flag:
    label = _LABELS.get(option.kind, "string")
    if option.kind == "bool":
        return Flag(option.name, "bool", option.help)
    if option.kind == "address":
        return Flag(option.name, "list", f"{option.help} (default {option.default})", check=option.check)
    return Flag(option.name, "string", option.help, default=option.default, check=option.check, label=label)


def _become(verb: str, values: Values) -> int:
    settings = {option.name: option.default for option in OPTIONS} | {
        option.name: "" for option in OPTIONS if option.kind == "bool"
    }
    check_together({**settings, **values})
    words = []
    for name in sorted(values.changed):
        value = values[name]
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}={one}" for one in (value if isinstance(value, list) else [value])]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "dray.registry.server", verb, *words])  # noqa: S606


def run_serve(app: App, values: Values, arguments: list[str]) -> int:
    """Serve a registry until Ctrl-C or SIGTERM."""
    return _become("serve", values)


def run_gc(app: App, values: Values, arguments: list[str]) -> int:
    """Remove what nothing refers to, in the server that runs on the folder if there is one."""
    return _become("gc", values)


COMMANDS = {
    "registry serve": Command("[OPTIONS]", run_serve, flags=tuple(map(_flag, OPTIONS))),
    "registry gc": Command("[OPTIONS]", run_gc, flags=tuple(_flag(option) for option in OPTIONS if option.gc)),
}
