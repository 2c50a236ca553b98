"""Images in and out: pull, push, load, save, import."""

from __future__ import annotations

import os
import sys

from dray.base.errors import InvalidParameter
from dray.cli.app import is_terminal
from dray.cli.command import MANY, Command, Failure
from dray.cli.commands.images import parse_platform, platform_texts
from dray.cli.flags import Flag
from dray.cli.progress import follow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

    from dray.cli.app import App
    from dray.cli.flags import Values


def check_output(path: str, *, what: str) -> None:
    """Refuse an output path that cannot be a file, before the daemon is asked for anything."""
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        raise Failure(f"{what}: invalid output path: stat {folder}: no such file or directory")
    if os.path.isdir(path):
        raise Failure(f"{what}: cannot write to a directory")


def save_to_file(path: str, chunks: Any) -> None:
    """Write a stream to a file that appears only when it is whole; a device or pipe is written directly."""
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb", buffering=0) as device:
            for chunk in chunks:
                device.write(chunk)
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            for chunk in chunks:
                file.write(chunk)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def run_pull(app: App, values: Values, arguments: list[str]) -> int:
    """Pull an image."""
    from dray.base.reference import parse
    from dray.cli.credentials import header_for

    reference = parse(arguments[0])
    if values["all-tags"] and (reference.tag or reference.digest):
        raise Failure("tag can't be used with --all-tags/-a")
    if not values["all-tags"] and not reference.tag and not reference.digest:
        reference = reference.tagged()
        if not values["quiet"]:
            app.line("Using default tag: latest")
    platform = values["platform"] or os.environ.get("DOCKER_DEFAULT_PLATFORM", "")
    response = app.client.images.pull(
        reference.familiar,
        platform=platform,
        auth=header_for(app.config, arguments[0]),
        all_tags=values["all-tags"],
    )
    sys.stdout.flush()
    if values["quiet"]:
        with open(os.devnull, "w", encoding="utf-8") as sink:
            follow(response, sink)
    else:
        follow(response)
    app.line(reference.canonical)
    return 0


def run_push(app: App, values: Values, arguments: list[str]) -> int:
    """Push an image."""
    from dray.base.reference import parse
    from dray.cli.credentials import header_for

    reference = parse(arguments[0])
    if values["all-tags"] and (reference.tag or reference.digest):
        raise Failure("tag can't be used with --all-tags/-a")
    if not values["all-tags"] and not reference.tag and not reference.digest:
        reference = reference.tagged()
        if not values["quiet"]:
            app.line(f"Using default tag: {reference.tag}")
    response = app.client.images.push(
        reference.familiar_name,
        tag="" if values["all-tags"] else reference.tag or "",
        auth=header_for(app.config, arguments[0]),
        platform=parse_platform(values["platform"]) if values["platform"] else None,
    )
    if values["quiet"]:
        with open(os.devnull, "w", encoding="utf-8") as sink:
            follow(response, sink)
        app.line(reference.canonical)
    else:
        follow(response)
    return 0


class Metered:
    """A file whose reading shows as a bar at a terminal."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        from dray.cli.progress import Display

        self._file = file
        self._name = name
        self._read = 0
        self._total = os.fstat(file.fileno()).st_size
        self._display = Display(sys.stderr)

    def read(self, size: int, /) -> bytes:
        """Read, and show how far the reading has come."""
        data = self._file.read(size)
        self._read += len(data)
        detail = {"current": self._read, "total": self._total}
        self._display.show({"id": self._name, "status": "Reading", "progressDetail": detail})
        return data


def run_load(app: App, values: Values, arguments: list[str]) -> int:
    """Load images from an archive."""
    path = values["input"]
    if not path and is_terminal(0):
        raise Failure("requested load from stdin, but stdin is empty")
    file: BinaryIO = sys.stdin.buffer
    if path:
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below, where standard input is not
        except OSError as error:
            raise Failure(f"open {path}: {(error.strerror or '').lower()}") from error
    try:
        quiet = values["quiet"] or not sys.stdout.isatty()
        body: Any = file
        if path and not quiet and os.path.isfile(path):
            body = Metered(file, os.path.basename(path))
        response = app.client.images.load(body, quiet=quiet, platforms=platform_texts(values["platform"]))
        follow(response)
    finally:
        if path:
            file.close()
    return 0


def run_save(app: App, values: Values, arguments: list[str]) -> int:
    """Write images to an archive."""
    if not values["output"] and is_terminal(1):
        raise Failure("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    if values["output"]:
        check_output(values["output"], what="failed to save image")
    response = app.client.images.save(arguments, platforms=platform_texts(values["platform"]))
    try:
        if values["output"]:
            save_to_file(values["output"], response.chunks())
            return 0
        from dray.cli.streams import write_all

        for chunk in response.chunks():
            write_all(1, chunk)
    finally:
        response.close()
    return 0


def run_import(app: App, values: Values, arguments: list[str]) -> int:
    """Make an image of a filesystem archive: a file, an address for the daemon to fetch, or standard input."""
    from dray.base.reference import parse

    if len(arguments) > 2:
        raise Failure("too many arguments: an archive and at most one name are expected")
    source = arguments[0]
    name = arguments[1] if len(arguments) > 1 else ""
    if name:
        parse(name)
    body: Any = None
    from_source = source
    opened = False
    if source == "-":
        body = sys.stdin.buffer
    elif not source.startswith(("http://", "https://")):
        try:
            body = open(source, "rb", buffering=0)  # noqa: SIM115 - closed below, where standard input is not
        except OSError as error:
            raise InvalidParameter(f"open {source}: {(error.strerror or '').lower()}") from error
        from_source, opened = "-", True
    try:
        response = app.client.images.import_(
            from_source,
            body,
            repo=name,
            tag="",
            message=values["message"],
            changes=values["change"],
            platform=values["platform"],
        )
        follow(response)
    finally:
        if opened:
            body.close()
    return 0


_QUIET = Flag("quiet", "bool", "Show no progress", short="q")
_PLATFORMS = Flag("platform", "strings", "Only these platforms (os/architecture[/variant])")

COMMANDS = {
    "image pull": Command(
        "[OPTIONS] NAME[:TAG|@DIGEST]",
        run_pull,
        flags=(
            Flag("all-tags", "bool", "Pull every tag of the repository", short="a"),
            Flag("disable-content-trust", "bool", "Do not verify signatures", default=True, hidden=True),
            Flag("platform", "string", "Platform, where the image has several"),
            _QUIET,
        ),
        args=(1, 1),
    ),
    "image push": Command(
        "[OPTIONS] NAME[:TAG]",
        run_push,
        flags=(
            Flag("all-tags", "bool", "Push every tag of the repository", short="a"),
            Flag("disable-content-trust", "bool", "Do not sign", default=True, hidden=True),
            Flag("platform", "string", "Push only this platform's image"),
            _QUIET,
        ),
        args=(1, 1),
    ),
    "image load": Command(
        "[OPTIONS]",
        run_load,
        flags=(
            Flag("input", "string", "Read from this file instead of standard input", short="i"),
            _PLATFORMS,
            _QUIET,
        ),
    ),
    "image save": Command(
        "[OPTIONS] IMAGE [IMAGE...]",
        run_save,
        flags=(Flag("output", "string", "Write to this file instead of standard output", short="o"), _PLATFORMS),
        args=(1, MANY),
    ),
    "image import": Command(
        "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
        run_import,
        flags=(
            Flag("change", "list", "Apply a Dockerfile instruction to the image", short="c"),
            Flag("message", "string", "Comment of the image", short="m"),
            Flag("platform", "string", "Platform to record in the image"),
        ),
        args=(1, MANY),
    ),
}
