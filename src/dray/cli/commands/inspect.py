"""`dray inspect` and the inspect verbs of containers, images, volumes and networks.

A template sees the object first as Go's struct (fields left out are empty), then, if that fails, as the JSON that
came, where a missing key is an error. Objects that exist are printed even when others do not.
"""

from __future__ import annotations

import json

from dray.base.errors import DrayError
from dray.cli.command import MANY, Command, Failure, StatusError
from dray.cli.flags import Flag
from dray.client.errors import ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

    Finder = Callable[[str], tuple[str, Any]]

_KINDS = ("config", "container", "image", "network", "node", "plugin", "secret", "service", "task", "volume")
_SWARM_KINDS = frozenset(("config", "node", "plugin", "secret", "service", "task"))


def show(app: App, names: list[str], form: str, find: Finder, *, escape: bool = False) -> int:
    """Print what `find` returns for each name, as JSON (`escape`: fit for HTML) or through a template."""
    template = _template(form) if form and form != "json" else None
    found: list[tuple[str, Any]] = []
    errors: list[str] = []
    for name in names:
        try:
            found.append(find(name))
        except ConnectError:
            raise
        except DrayError as error:
            errors.append(str(error))
    if form == "json":
        app.line(json.dumps([one for _, one in found], separators=(",", ":"), ensure_ascii=False))
    elif template is None:
        text = json.dumps([one for _, one in found], indent=4, ensure_ascii=False)
        if escape:
            from dray.cli.template.functions import escape_html

            text = escape_html(text)
        app.line(text)
    else:
        if not found:
            app.line()
        for kind, one in found:
            app.line(_through(app, template, kind, one))
    if errors:
        raise Failure("\n".join(errors))
    return 0


def _template(form: str) -> Any:
    from dray.cli.template import ParseError, Template

    try:
        return Template(form)
    except ParseError as error:
        raise StatusError(64, f"template parsing error: {error}") from None


def _through(app: App, template: Any, kind: str, value: Any) -> str:
    from dray.cli.template import TemplateError
    from dray.cli.typed import typed

    try:
        return str(template.execute(typed(value, kind)))
    except TemplateError:
        pass
    try:
        return str(template.execute(value, missing_key_error=True))
    except TemplateError as error:
        app.line()
        raise Failure(f"template parsing error: {error}") from None


def _as_run(app: App, names: list[str]) -> int:
    """Print the `run` line of each container."""
    import shlex

    from dray.cli.app import NAME
    from dray.cli.ask.line import run_words

    runtime = str(app.client.system.info().get("DefaultRuntime", ""))
    for name in names:
        container = app.client.containers.inspect(name)
        try:
            image = app.client.images.inspect(container["Image"])["Config"] or {}
        except ConnectError:
            raise
        except DrayError:
            app.error(f"{name}: its image is gone: what the image brought is part of the line")
            image = {}
        words, notes = run_words(container, image, runtime=runtime)
        for note in notes:
            app.error(f"{name}: {note}")
        app.line(f"{NAME} run {shlex.join(words)}")
    return 0


def run_inspect(app: App, values: Values, arguments: list[str]) -> int:
    """Inspect objects of any kind."""
    if values["as-run"]:
        return _as_run(app, arguments)
    wanted, size = values["type"], values["size"]
    if "type" in values.changed and not wanted:
        raise Failure("type is empty: must be one of " + ", ".join(f'"{kind}"' for kind in _KINDS))
    if wanted and wanted not in _KINDS:
        raise Failure(f'unknown type: "{wanted}": must be one of ' + ", ".join(f'"{kind}"' for kind in _KINDS))
    if wanted in _SWARM_KINDS:
        raise Failure(f"--type {wanted} is not supported: this client has no swarm objects and no plugins")
    if size and wanted not in ("", "container"):
        app.error(f"WARNING: --size ignored for {wanted}")
    client = app.client
    readers: dict[str, Callable[[str], Any]] = {
        "container": lambda name: client.containers.inspect(name, size=size),
        "image": client.images.inspect,
        "network": client.networks.inspect,
        "volume": client.volumes.inspect,
    }

    def find(name: str) -> tuple[str, Any]:
        if wanted:
            return wanted, readers[wanted](name)
        for kind, reader in readers.items():
            try:
                return kind, reader(name)
            except ConnectError:
                raise
            except DrayError as error:
                if error.status != 404 and not (kind == "image" and error.status == 400):
                    raise
        raise Failure(f"Error: No such object: {name}")

    return show(app, arguments, values["format"], find)


def run_container_inspect(app: App, values: Values, arguments: list[str]) -> int:
    """Inspect containers."""
    if values["as-run"]:
        return _as_run(app, arguments)
    return show(
        app,
        arguments,
        values["format"],
        lambda name: ("container", app.client.containers.inspect(name, size=values["size"])),
    )


def run_image_inspect(app: App, values: Values, arguments: list[str]) -> int:
    """Inspect images."""
    from dray.cli.commands.images import need_version, parse_platform

    platform = parse_platform(values["platform"]) if values["platform"] else None
    if platform:
        need_version(app, "--platform", "1.49")
    return show(
        app,
        arguments,
        values["format"],
        lambda name: ("image", app.client.images.inspect(name, platform=platform)),
    )


def run_network_inspect(app: App, values: Values, arguments: list[str]) -> int:
    """Inspect networks."""
    return show(
        app,
        arguments,
        values["format"],
        lambda name: ("network", app.client.networks.inspect(name, verbose=values["verbose"])),
    )


def run_volume_inspect(app: App, values: Values, arguments: list[str]) -> int:
    """Inspect volumes."""
    return show(app, arguments, values["format"], lambda name: ("volume", app.client.volumes.inspect(name)))


_FORMAT = Flag("format", "string", "Print with a template: 'json' or a Go template", short="f")
_AS_RUN = Flag("as-run", "bool", "Print the run command that makes such a container")
_SIZE = Flag("size", "bool", "Show a container's sizes too", short="s")

COMMANDS = {
    "inspect": Command(
        "[OPTIONS] NAME|ID [NAME|ID...]",
        run_inspect,
        flags=(_AS_RUN, _FORMAT, _SIZE, Flag("type", "string", "Look only among objects of this type")),
        args=(1, MANY),
    ),
    "container inspect": Command(
        "[OPTIONS] CONTAINER [CONTAINER...]",
        run_container_inspect,
        flags=(_AS_RUN, _FORMAT, _SIZE),
        args=(1, MANY),
    ),
    "image inspect": Command(
        "[OPTIONS] IMAGE [IMAGE...]",
        run_image_inspect,
        flags=(_FORMAT, Flag("platform", "string", "Platform, where the image has several")),
        args=(1, MANY),
    ),
    "network inspect": Command(
        "[OPTIONS] NETWORK [NETWORK...]",
        run_network_inspect,
        flags=(_FORMAT, Flag("verbose", "bool", "Show what helps diagnosis", short="v")),
        args=(1, MANY),
    ),
    "volume inspect": Command(
        "[OPTIONS] VOLUME [VOLUME...]", run_volume_inspect, flags=(_FORMAT,), args=(1, MANY)
    ),
}
