"""`dray attach` and `dray exec`."""

from __future__ import annotations

import os

from dray.base.errors import DrayError
from dray.cli import attached, signals, terminal
from dray.cli.ask.environment import check_env, collect
from dray.cli.command import MANY, Command, Failure, StatusError
from dray.cli.flags import Flag
from dray.cli.streams import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values


def _check_state(container: dict[str, Any]) -> None:
    state = container.get("State") or {}
    if not state.get("Running"):
        raise Failure("You cannot attach to a stopped container, start it first")
    if state.get("Paused"):
        raise Failure("You cannot attach to a paused container, unpause it first")
    if state.get("Restarting"):
        raise Failure("You cannot attach to a restarting container, wait until it is running")


def run_attach(app: App, values: Values, arguments: list[str]) -> int:
    """Attach to a running container; ends with its exit status."""
    container = app.client.containers.inspect(arguments[0])
    _check_state(container)
    config, identifier = container.get("Config") or {}, container["Id"]
    keys_text, keys = attached.detach_keys(app, values["detach-keys"])
    tty, stdin = bool(config.get("Tty")), not values["no-stdin"] and bool(config.get("OpenStdin"))
    attached.check_tty(stdin, tty)
    with signals.SignalHandlers() as handlers:
        waiting = attached.Waiting(app, identifier)
        try:
            connection, _ = app.client.containers.attach(
                identifier, stream=True, stdin=stdin, stdout=True, stderr=True, detachKeys=keys_text
            )
            attachment = attached.Attachment(
                app, identifier, connection, tty=tty, stdin=stdin, keys=keys if stdin else b""
            )
            if values["sig-proxy"] and not tty:
                signals.forward(handlers, attachment.kill)
            if tty:
                attachment.redraw()
            attachment.run(handlers)
            status = waiting.status()
        finally:
            waiting.close()
    return status


def _exec_body(values: Values, command: list[str], *, keys: str | None) -> dict[str, Any]:
    attach = not values["detach"]
    body: dict[str, Any] = {
        "User": values["user"],
        "Privileged": values["privileged"],
        "Tty": values["tty"],
    }
    if values["tty"] and attach and any(size := terminal.size()):
        body["ConsoleSize"] = list(size)
    return body | {
        "AttachStdin": attach and values["interactive"],
        "AttachStderr": attach,
        "AttachStdout": attach,
        "DetachKeys": keys or "",
        "Env": collect(values["env-file"], values["env"], environment=True) or None,
        "WorkingDir": values["workdir"],
        "Cmd": command,
    }


def run_exec(app: App, values: Values, arguments: list[str]) -> int:
    """Run a command in a container; ends with its exit status."""
    name, command = arguments[0], arguments[1:]
    keys_text, keys = attached.detach_keys(app, values["detach-keys"])
    body = _exec_body(values, command, keys=keys_text if values["detach-keys"] or keys_text else None)
    # Asked first, so that a container that is missing is the error, and not that stdin is no terminal.
    app.client.containers.inspect(name)
    if not values["detach"]:
        attached.check_tty(body["AttachStdin"], body["Tty"])
    exec_id = app.client.execs.create(name, body)
    start = {"Detach": values["detach"], "Tty": values["tty"]}
    if "ConsoleSize" in body:
        start["ConsoleSize"] = body["ConsoleSize"]
    if values["detach"]:
        app.client.execs.start(exec_id, start)
        return 0
    return _exec_attached(app, exec_id, start, body, keys)


def _exec_attached(app: App, exec_id: str, start: dict[str, Any], body: dict[str, Any], keys: bytes) -> int:
    connection, _ = app.client.execs.attach(exec_id, start)
    stdin, tty = body["AttachStdin"], body["Tty"]

    def resize(height: int, width: int) -> None:
        side = app.client.clone()
        try:
            side.execs.resize(exec_id, height, width)
        finally:
            side.close()

    with signals.SignalHandlers() as handlers:
        try:
            if tty and os.isatty(1):
                signals.follow_size(handlers, resize)
            with terminal.RawMode(attached.STDIN if stdin and tty else -1):
                Session(
                    connection,
                    tty=tty,
                    stdin=attached.STDIN if stdin else None,
                    detach_keys=keys if stdin else b"",
                ).run()
        finally:
            connection.close()
    try:
        status = int(app.client.execs.inspect(exec_id).get("ExitCode") or 0)
    except DrayError as error:
        raise StatusError(1, str(error)) from None
    return status


_DETACH_KEYS = Flag("detach-keys", "string", "Keys that leave it running (such as ctrl-p,ctrl-q)")

COMMANDS = {
    "container attach": Command(
        "[OPTIONS] CONTAINER",
        run_attach,
        flags=(
            _DETACH_KEYS,
            Flag("no-stdin", "bool", "Do not connect standard input"),
            Flag("sig-proxy", "bool", "Pass signals on to the container", default=True),
        ),
        args=(1, 1),
    ),
    "container exec": Command(
        "[OPTIONS] CONTAINER COMMAND [ARG...]",
        run_exec,
        flags=(
            Flag("detach", "bool", "Run in the background", short="d"),
            _DETACH_KEYS,
            Flag("env", "list", "Set an environment variable", short="e", check=check_env),
            Flag("env-file", "list", "Read environment variables from a file"),
            Flag("interactive", "bool", "Keep standard input open", short="i"),
            Flag("privileged", "bool", "Give it every privilege"),
            Flag("tty", "bool", "Give it a terminal", short="t"),
            Flag("user", "string", "User and group (name or id[:group])", short="u"),
            Flag("workdir", "string", "Working directory", short="w"),
        ),
        args=(2, MANY),
        interspersed=False,
    ),
}
