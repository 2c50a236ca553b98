"""`dray run` and `dray create`.

Order of a run: create (pulling a missing image), attach, register the wait, start, copy streams, read the status.
Exit status: the container's own; 125 the engine failed, 126 the command cannot be executed, 127 it is not found.
"""

from __future__ import annotations

import os
import re
import sys

from dray.base.errors import DrayError, InvalidParameter
from dray.cli import attached, signals, terminal
from dray.cli.app import NAME
from dray.cli.ask.body import build
from dray.cli.ask.flags import SHARED_FLAGS
from dray.cli.command import MANY, Command, Failure, StatusError
from dray.cli.flags import Flag
from dray.client.errors import ApiError, ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

_SIMPLE_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*(?::\w[\w.-]{0,127})?", re.ASCII)


def check_image(image: str) -> str:
    """Return an image name with its tag; one that is malformed is an error before the daemon is asked."""
    if _SIMPLE_NAME.fullmatch(image) and not re.fullmatch("[0-9a-f]{64}", image):
        return image if ":" in image else f"{image}:latest"
    from dray.base.reference import parse

    if re.fullmatch("sha256:[0-9a-f]{64}|[0-9a-f]{64}", image):
        return image
    return parse(image).tagged().familiar


def pull(app: App, image: str, *, platform: str, quiet: bool) -> None:
    """Pull an image, with its progress on standard error."""
    from dray.cli.credentials import header_for
    from dray.cli.progress import follow

    response = app.client.images.pull(image, platform=platform, auth=header_for(app.config, image))
    if quiet:
        with open(os.devnull, "w", encoding="utf-8") as sink:
            follow(response, sink)
        return
    follow(response, sys.stderr)


class _IdFile:
    """The `--cidfile`: refused when it exists, removed when no container came of it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._written = False
        self._file = -1
        if not path:
            return
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            raise Failure(
                f"container ID file found, make sure the other container isn't running or delete {path}"
            ) from None
        except OSError as error:
            raise Failure(
                f"failed to create the container ID file: open {path}: {(error.strerror or '').lower()}"
            ) from error

    def write(self, identifier: str) -> None:
        if self._file >= 0:
            os.write(self._file, identifier.encode())
            self._written = True

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            if not self._written:
                os.unlink(self._path)


def _default_platform(app: App, values: Values) -> str:
    return str(values["platform"] or os.environ.get("DOCKER_DEFAULT_PLATFORM", "")).lower()


def _apply_proxies(app: App, body: dict[str, Any]) -> None:
    """Add the proxy variables that config.json sets for containers, unless the user set them."""
    proxies = app.config.mapping("proxies")
    if not proxies:
        return
    found = proxies.get(app.client.transport.address.text) or proxies.get("default")
    if not isinstance(found, dict):
        return
    names = {
        "httpProxy": "HTTP_PROXY",
        "httpsProxy": "HTTPS_PROXY",
        "ftpProxy": "FTP_PROXY",
        "noProxy": "NO_PROXY",
        "allProxy": "ALL_PROXY",
    }
    have = {entry.partition("=")[0] for entry in body["Env"] or ()}
    extra = [
        f"{name}={found[key]}"
        for key, upper in names.items()
        if found.get(key)
        for name in (upper, upper.lower())
        if name not in have
    ]
    if extra:
        body["Env"] = (body["Env"] or []) + extra


_WINDOWS_ONLY = ("cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops")


def _refuse_windows(values: Values) -> None:
    """Refuse the flags that only mean something on Windows."""
    lines = [
        f'"--{name}" is only supported on a Docker daemon running on windows, but the Docker daemon is running on linux'
        for name in _WINDOWS_ONLY
        if name in values.changed
    ]
    if lines:
        raise Failure("\n".join(lines))


def create(app: App, values: Values, image: str, command: list[str], body: dict[str, Any]) -> dict[str, Any]:
    """Create the container, pulling as the policy says; returns the daemon's answer."""
    policy = values["pull"]
    if policy not in ("always", "missing", "never"):
        raise InvalidParameter(f'invalid pull option: \'{policy}\': must be one of "always", "missing" or "never"')
    reference = check_image(image)
    platform = _default_platform(app, values)
    id_file = _IdFile(values["cidfile"])
    try:
        if policy == "always":
            pull(app, reference, platform=platform, quiet=values["quiet"])
        _apply_proxies(app, body)
        try:
            answer = app.client.containers.create(body, name=values["name"], platform=platform)
        except ApiError as error:
            if error.status != 404 or policy != "missing" or not _is_missing_image(error):
                raise
            if not values["quiet"]:
                app.error(f"Unable to find image '{reference}' locally")
            pull(app, reference, platform=platform, quiet=values["quiet"])
            answer = app.client.containers.create(body, name=values["name"], platform=platform)
        for warning in answer.get("Warnings") or ():
            app.error(f"WARNING: {warning}")
        id_file.write(answer["Id"])
    finally:
        id_file.close()
    return answer


def _is_missing_image(error: ApiError) -> bool:
    text = error.message.lower()
    return (
        "no such image" in text
        or ("image" in text and "not found" in text)
        or "does not match the specified platform" in text
    )


def run_create(app: App, values: Values, arguments: list[str]) -> int:
    """Create a container."""
    _refuse_windows(values)
    try:
        body = build(values, arguments[0], arguments[1:])
        answer = create(app, values, arguments[0], arguments[1:], body)
    except (ConnectError, StatusError):
        raise
    except InvalidParameter as error:
        raise StatusError(125, with_help(error, app.path)) from None
    app.line(answer["Id"])
    return 0


def with_help(error: DrayError, path: str) -> str:
    """Return an error as `run` and `create` show it."""
    return f"{NAME}: {error}\n\nRun '{NAME} {path} --help' for more information"


def start_status(error: DrayError) -> int:
    """Return the exit status that a failed start stands for."""
    text = str(error)
    for words in (
        "executable file not found",
        "no such file or directory",
        "system cannot find the file specified",
    ):
        if words in text:
            return 127
    return 126 if "permission denied" in text or "is a directory" in text else 125


def run_run(app: App, values: Values, arguments: list[str]) -> int:
    """Create and run a container."""
    _refuse_windows(values)
    detached = values["detach"]
    if detached and values["attach"]:
        raise Failure("conflicting options: cannot specify both --attach and --detach")
    needs_terminal = False
    try:
        body = build(values, arguments[0], arguments[1:])
        if detached:
            body |= {"AttachStdin": False, "AttachStdout": False, "AttachStderr": False, "StdinOnce": False}
        else:
            needs_terminal = body["AttachStdin"] and body["Tty"]
        if body["Tty"]:
            body["HostConfig"]["ConsoleSize"] = list(terminal.size())
        keys_text, keys = attached.detach_keys(app, values["detach-keys"])
    except DrayError as error:
        raise StatusError(125, with_help(error, app.path)) from None
    attached.check_tty(needs_terminal, body["Tty"])
    try:
        identifier = create(app, values, arguments[0], arguments[1:], body)["Id"]
    except ConnectError as error:
        from dray.cli.hints import connect_hint

        hint = connect_hint(error)
        raise StatusError(125, with_help(error, app.path) + (f"\n\n{hint}" if hint else "")) from None
    except DrayError as error:
        raise StatusError(start_status(error), with_help(error, app.path)) from None
    return _Run(app, values, body, identifier).go(keys_text, keys)


class _Run:
    """A created container on its way from attach to exit status."""

    def __init__(self, app: App, values: Values, body: dict[str, Any], identifier: str) -> None:
        self._app = app
        self._body = body
        self._values = values
        self._id = identifier
        self._removes = body["HostConfig"]["AutoRemove"]
        self._attach = body["AttachStdin"] or body["AttachStdout"] or body["AttachStderr"]

    def go(self, keys_text: str | None, keys: bytes) -> int:
        if not self._attach:
            self._start(None)
            self._app.line(self._id)
            return 0
        with signals.SignalHandlers() as handlers:
            attachment = self._attachment(keys_text, keys)
            waiting = None
            try:
                if self._values["sig-proxy"]:
                    signals.forward(handlers, attachment.kill)
                # The wait is registered before the start, so that no end is too quick for it.
                waiting = attached.Waiting(self._app, self._id, "removed" if self._removes else "next-exit")
                self._start(waiting)
                attachment.run(handlers)
                return waiting.status()
            except attached.Detached:
                return 0
            finally:
                attachment.drain()
                if waiting is not None:
                    waiting.close()

    def _start(self, waiting: attached.Waiting | None) -> None:
        try:
            self._app.client.containers.start(self._id)
        except DrayError as error:
            if waiting is not None and self._removes:
                # What did not start is removed all the same; end when it is gone.
                waiting.status()
            raise StatusError(start_status(error), with_help(error, self._app.path)) from None

    def _attachment(self, keys_text: str | None, keys: bytes) -> attached.Attachment:
        body = self._body
        connection, _ = self._app.client.containers.attach(
            self._id,
            stream=True,
            stdin=body["AttachStdin"],
            stdout=body["AttachStdout"],
            stderr=body["AttachStderr"],
            detachKeys=keys_text,
        )
        return attached.Attachment(
            self._app,
            self._id,
            connection,
            tty=body["Tty"],
            stdin=body["AttachStdin"],
            stdout=body["AttachStdout"],
            stderr=body["AttachStderr"],
            keys=keys if body["AttachStdin"] else b"",
        )


COMMANDS = {
    "container create": Command(
        "[OPTIONS] IMAGE [COMMAND] [ARG...]", run_create, flags=SHARED_FLAGS, args=(1, MANY), interspersed=False
    ),
    "container run": Command(
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        run_run,
        flags=(
            *SHARED_FLAGS,
            Flag("detach", "bool", "Run in the background and print the container's ID", short="d"),
            Flag("detach-keys", "string", "Keys that leave the container running (such as ctrl-p,ctrl-q)"),
            Flag("sig-proxy", "bool", "Pass signals on to the container", default=True),
        ),
        args=(1, MANY),
        interspersed=False,
    ),
}
