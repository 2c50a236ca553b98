"""Verbs that change a container's state: start, stop, restart, kill, pause, unpause, rm, rename, wait."""

from __future__ import annotations

from dray.base.errors import DrayError, InvalidParameter
from dray.cli.command import MANY, Command, Failure, StatusError
from dray.cli.flags import Flag
from dray.client.errors import ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values
    from dray.client.api import Client

_PARALLEL = 50


def for_each(
    app: App, names: list[str], action: Callable[[Client, str], str | None], *, parallel: bool = True
) -> list[DrayError]:
    """Do something to each object; print what it returns, return the errors, in the order of the names."""
    results: list[str | DrayError | None]
    if len(names) == 1 or not parallel:
        results = [_attempt(app.client, name, action) for name in names]
    else:
        from concurrent.futures import ThreadPoolExecutor

        app.client.transport.version  # noqa: B018 - learn the version once, before the clones

        def one(name: str) -> str | DrayError | None:
            client = app.client.clone()
            try:
                return _attempt(client, name, action)
            finally:
                client.close()

        with ThreadPoolExecutor(min(len(names), _PARALLEL)) as pool:
            results = list(pool.map(one, names))
    errors = []
    for result in results:
        if isinstance(result, DrayError):
            errors.append(result)
        elif result is not None:
            app.line(result)
    return errors


def _attempt(client: Client, name: str, action: Callable[[Client, str], str | None]) -> str | DrayError | None:
    try:
        return action(client, name)
    except ConnectError:
        raise
    except DrayError as error:
        return error


def finish(errors: list[DrayError]) -> int:
    """Raise the errors as one, a line each; 0 when there are none."""
    if errors:
        raise Failure("\n".join(str(error) for error in errors))
    return 0


def _simple(verb: Callable[[Client, str], Any]) -> Callable[[App, Values, list[str]], int]:
    """Return the runner of a verb that takes containers and prints their names."""

    def run(app: App, values: Values, arguments: list[str]) -> int:
        def action(client: Client, name: str) -> str:
            verb(client, name)
            return name

        return finish(for_each(app, arguments, action))

    return run


def run_stop(app: App, values: Values, arguments: list[str]) -> int:
    """Stop containers."""

    def action(client: Client, name: str) -> str:
        client.containers.stop(name, timeout=_timeout(values), signal=values["signal"])
        return name

    return finish(for_each(app, arguments, action))


def run_restart(app: App, values: Values, arguments: list[str]) -> int:
    """Restart containers."""

    def action(client: Client, name: str) -> str:
        client.containers.restart(name, timeout=_timeout(values), signal=values["signal"])
        return name

    return finish(for_each(app, arguments, action))


def _timeout(values: Values) -> int | None:
    if {"time", "timeout"} <= values.changed:
        raise InvalidParameter("conflicting options: cannot specify both --timeout and --time")
    found: int | None = values["timeout"] if "timeout" in values.changed else values.given("time")
    return found


def run_kill(app: App, values: Values, arguments: list[str]) -> int:
    """Send a signal to containers."""

    def action(client: Client, name: str) -> str:
        client.containers.kill(name, signal=values["signal"])
        return name

    return finish(for_each(app, arguments, action))


def run_rm(app: App, values: Values, arguments: list[str]) -> int:
    """Remove containers; with force one that does not exist is no failure."""
    missing: list[DrayError] = []

    def action(client: Client, name: str) -> str | None:
        name = name.strip("/")
        if not name:
            raise Failure("Container name cannot be empty")
        try:
            client.containers.remove(name, force=values["force"], volumes=values["volumes"], link=values["link"])
        except DrayError as error:
            if values["force"] and error.status == 404:
                missing.append(error)
                return None
            raise
        return name

    errors = for_each(app, arguments, action)
    if missing:
        app.error("\n".join(map(str, missing)))
    return finish(errors)


def run_rename(app: App, values: Values, arguments: list[str]) -> int:
    """Rename a container."""
    old, new = (name.strip() for name in arguments)
    if not old or not new:
        raise Failure("Error: Neither old nor new names may be empty")
    try:
        app.client.containers.rename(old, new)
    except ConnectError:
        raise
    except DrayError as error:
        app.error(str(error))
        raise Failure(f"Error: failed to rename container named {old}") from None
    return 0


def run_wait(app: App, values: Values, arguments: list[str]) -> int:
    """Wait for containers one after another, printing each one's status."""

    def action(client: Client, name: str) -> str:
        answer = client.containers.wait(name).json() or {}
        if message := (answer.get("Error") or {}).get("Message"):
            raise Failure(message)
        return str(answer.get("StatusCode", 0))

    return finish(for_each(app, arguments, action, parallel=False))


def run_start(app: App, values: Values, arguments: list[str]) -> int:
    """Start containers; with -a or -i one, attached."""
    if values["attach"] or values["interactive"] or (values["detach-keys"] and values["attach"]):
        if len(arguments) > 1:
            raise Failure("you cannot start and attach multiple containers at once")
        return _start_attached(app, values, arguments[0])
    if values["checkpoint"]:
        if len(arguments) > 1:
            raise Failure("you cannot restore multiple containers at once")
        app.client.containers.start(
            arguments[0], checkpoint=values["checkpoint"], checkpoint_dir=values["checkpoint-dir"]
        )
        return 0
    failed = []
    for name in arguments:
        try:
            app.client.containers.start(name)
        except ConnectError:
            raise
        except DrayError as error:
            app.error(str(error))
            failed.append(name)
            continue
        app.line(name)
    if failed:
        raise Failure(f"Error: failed to start containers: {', '.join(failed)}")
    return 0


def _start_attached(app: App, values: Values, name: str) -> int:
    from dray.cli import attached, signals

    container = app.client.containers.inspect(name)
    identifier, config = container["Id"], container.get("Config") or {}
    keys_text, keys = attached.detach_keys(app, values["detach-keys"])
    stdin = values["interactive"] and bool(config.get("OpenStdin"))
    tty = bool(config.get("Tty"))
    attached.check_tty(stdin, tty)
    with signals.SignalHandlers() as handlers:
        connection, _ = app.client.containers.attach(
            identifier, stream=True, stdin=stdin, stdout=True, stderr=True, detachKeys=keys_text
        )
        attachment = attached.Attachment(
            app, identifier, connection, tty=tty, stdin=stdin, keys=keys if stdin else b""
        )
        try:
            if not tty:
                signals.forward(handlers, attachment.kill)
            removes = bool((container.get("HostConfig") or {}).get("AutoRemove"))
            waiting = attached.Waiting(app, identifier, "removed" if removes else "next-exit")
            try:
                app.client.containers.start(
                    identifier, checkpoint=values["checkpoint"], checkpoint_dir=values["checkpoint-dir"]
                )
                attachment.run(handlers)
                status = waiting.status()
            except attached.Detached:
                return 0
            finally:
                waiting.close()
        finally:
            attachment.drain()
    if status:
        raise StatusError(status)
    return 0


_SIGNAL = Flag("signal", "string", "Signal to send", short="s")
_MANY = (1, MANY)
_EACH = "[OPTIONS] CONTAINER [CONTAINER...]"
_TIMEOUT = (
    Flag("timeout", "int", "Seconds to wait before killing it", short="t"),
    Flag("time", "int", "Seconds to wait before killing it", hidden=True),
)

COMMANDS = {
    "container start": Command(
        _EACH,
        run_start,
        flags=(
            Flag("attach", "bool", "Connect standard output and error, and pass signals on", short="a"),
            Flag("checkpoint", "string", "Restore from this checkpoint"),
            Flag("checkpoint-dir", "string", "Where the checkpoint is kept"),
            Flag("detach-keys", "string", "Keys that leave the container running"),
            Flag("interactive", "bool", "Connect standard input", short="i"),
        ),
        args=_MANY,
    ),
    "container stop": Command(_EACH, run_stop, flags=(_SIGNAL, *_TIMEOUT), args=_MANY),
    "container restart": Command(_EACH, run_restart, flags=(_SIGNAL, *_TIMEOUT), args=_MANY),
    "container kill": Command(_EACH, run_kill, flags=(_SIGNAL,), args=_MANY),
    "container pause": Command(
        "CONTAINER [CONTAINER...]", _simple(lambda client, name: client.containers.pause(name)), args=_MANY
    ),
    "container unpause": Command(
        "CONTAINER [CONTAINER...]", _simple(lambda client, name: client.containers.unpause(name)), args=_MANY
    ),
    "container rm": Command(
        _EACH,
        run_rm,
        flags=(
            Flag("force", "bool", "Kill it first if it runs", short="f"),
            Flag("link", "bool", "Remove the link of that name", short="l"),
            Flag("volumes", "bool", "Remove its anonymous volumes too", short="v"),
        ),
        args=_MANY,
    ),
    "container rename": Command("CONTAINER NEW_NAME", run_rename, args=(2, 2)),
    "container wait": Command("CONTAINER [CONTAINER...]", run_wait, args=_MANY),
}
