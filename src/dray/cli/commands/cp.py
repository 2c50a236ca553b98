"""`dray cp` and `dray export`."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import posixpath
import sys
import tarfile

from dray.base.errors import DrayError
from dray.base.units import human_size
from dray.cli.app import is_terminal
from dray.cli.buildcontext import TarStream, tar_pieces
from dray.cli.command import MANY, Command, Failure
from dray.cli.copyfiles import GO_DIR, GO_LINK, Unpacker, means_content, plan, source_entries, split_argument
from dray.cli.flags import Flag
from dray.client.errors import ApiError, ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values
    from dray.client.http1 import Response


class _Body:
    """A response's body as a file that tarfile can read, counting bytes."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._buffer = bytearray()
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._buffer) < size:
            data = self._response.read1()
            if not data:
                break
            self._buffer += data
        size = len(self._buffer) if size < 0 else size
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self.count += len(data)
        return data


def _done(app: App, values: Values, count: int, where: str) -> None:
    if not values["quiet"] and is_terminal(2):
        app.error(f"Successfully copied {human_size(count)} to {where}")


def _resolve_link(app: App, container: str, path: str, stat: dict[str, Any]) -> str:
    """Return what a link in a container points to, as a path of that container."""
    target = str(stat.get("linkTarget") or "")
    return target if target.startswith("/") else posixpath.join(posixpath.dirname(path), target)


def copy_out(app: App, values: Values, container: str, source: str, target: str) -> int:
    """Copy from a container to this host, or to standard output as a tar archive."""
    wanted = source
    if values["follow-link"]:
        try:
            stat = app.client.containers.stat_path(container, source)
        except ApiError:
            # What is wrong with the source is told best by the request that reads it.
            stat = {}
        if stat.get("mode", 0) & GO_LINK:
            wanted = _resolve_link(app, container, source, stat)
    if target != "-":
        folder = os.path.dirname(target.rstrip("/"))
        if folder and not os.path.isdir(folder):
            raise Failure(f'invalid output path: directory "{os.path.abspath(folder)}" does not exist')
    response, stat = app.client.containers.get_archive(container, wanted)
    try:
        if target == "-":
            from dray.cli.streams import write_all

            for chunk in response.chunks():
                write_all(1, chunk)
            return 0
        is_dir = bool(stat.get("mode", 0) & GO_DIR)
        place = plan(
            source,
            source_is_dir=is_dir,
            target=target,
            target_exists=os.path.exists(target),
            target_is_dir=os.path.isdir(target),
        )
        body = _Body(response)
        with tarfile.open(fileobj=body, mode="r|") as archive:  # type: ignore[call-overload]
            Unpacker(place, owners=values["archive"] and os.geteuid() == 0).unpack(archive)
        body.read()
        _done(app, values, body.count, target)
    finally:
        response.close()
    return 0


def _stat_target(app: App, container: str, target: str) -> tuple[str, dict[str, Any] | None]:
    """Return a destination in a container, links resolved, with its stat (None: it does not exist)."""
    try:
        stat = app.client.containers.stat_path(container, target)
        if stat.get("mode", 0) & GO_LINK:
            resolved = _resolve_link(app, container, target, stat)
            return resolved, app.client.containers.stat_path(container, resolved)
        return target, stat
    except ApiError:
        # What is wrong with the destination, or the container, is told best by the request that writes there.
        return target, None


def copy_in(app: App, values: Values, source: str, container: str, target: str) -> int:
    """Copy from this host, or a tar archive on standard input, to a container."""
    if source != "-" and not os.path.lexists(source):
        raise Failure(f"lstat {os.path.abspath(source)}: no such file or directory")
    place_path, stat = _stat_target(app, container, target)
    is_dir = bool(stat and stat.get("mode", 0) & GO_DIR)
    if source == "-":
        if not is_dir:
            raise Failure(f'destination "{container}:{target}" must be a directory')
        app.client.containers.put_archive(
            container, place_path, sys.stdin.buffer, no_overwrite=True, copy_uid_gid=values["archive"]
        )
        return 0
    follow = values["follow-link"] or source.endswith("/")
    source_is_dir = os.path.isdir(source) and (follow or means_content(source) or not os.path.islink(source))
    place = plan(
        source,
        source_is_dir=source_is_dir,
        target=place_path,
        target_exists=stat is not None,
        target_is_dir=is_dir,
    )
    body = TarStream(tar_pieces(source_entries(source, place.name, follow=follow)))
    app.client.containers.put_archive(
        container, place.folder, body, no_overwrite=True, copy_uid_gid=values["archive"]
    )
    _done(app, values, body.sent, f"{container}:{target}")
    return 0


def _matches(app: App, container: str, pattern: str) -> list[str]:
    """Return the paths in a container that a shell's pattern stands for; a path that exists as it is written is itself.

    The API lists no directory: the names are read off the archive of the last directory before the first wildcard.
    """
    if not any(mark in pattern for mark in "*?["):
        return [pattern]
    with contextlib.suppress(ApiError):
        app.client.containers.stat_path(container, pattern)
        return [pattern]
    parts = [part for part in pattern.split("/") if part]
    first = next(index for index, part in enumerate(parts) if any(mark in part for mark in "*?["))
    folder, wanted = "/" + "/".join(parts[:first]), parts[first:]
    response, _ = app.client.containers.get_archive(container, folder.rstrip("/") + "/.")
    try:
        with tarfile.open(fileobj=_Body(response), mode="r|") as archive:  # type: ignore[call-overload]
            names = [member.name.removeprefix("./").strip("/").split("/") for member in archive]
    finally:
        response.close()
    found = sorted("/".join([folder.rstrip("/"), *name]) for name in names if _fits(name, wanted))
    if not found:
        raise Failure(f"{container}:{pattern}: nothing there matches")
    return found


def _fits(name: list[str], wanted: list[str]) -> bool:
    """Whether each part of a path fits its pattern; a leading dot wants to be written, as in a shell."""
    return len(name) == len(wanted) and all(
        fnmatch.fnmatchcase(part, pattern) and part.startswith(".") <= pattern.startswith(".")
        for part, pattern in zip(name, wanted, strict=True)
    )


def _copy_several(app: App, values: Values, sources: list[tuple[str, str]], container: str, target: str) -> int:
    """Copy more than one source, into a directory that exists; one that fails does not keep the others from it."""
    if target == "-" or any(source == "-" for _, source in sources):
        raise Failure("- stands for one archive: give one source alone")
    if container:
        _, stat = _stat_target(app, container, target)
        is_dir = bool(stat and stat.get("mode", 0) & GO_DIR)
    else:
        is_dir = os.path.isdir(target)
    if not is_dir:
        raise Failure(
            f'destination "{container + ":" if container else ""}{target}" must be a directory that exists'
        )
    errors = []
    for origin, source in sources:
        try:
            if container:
                copy_in(app, values, source, container, target)
            else:
                copy_out(app, values, origin, source, target)
        except ConnectError:
            raise
        except DrayError as error:
            errors.append(str(error))
    if errors:
        raise Failure("\n".join(errors))
    return 0


def run_cp(app: App, values: Values, arguments: list[str]) -> int:
    """Copy between a container and this host."""
    if not all(arguments[:-1]):
        raise Failure("source can not be empty")
    if not arguments[-1]:
        raise Failure("destination can not be empty")
    given = [split_argument(text) for text in arguments[:-1]]
    to_container, target = split_argument(arguments[-1])
    if to_container and any(container for container, _ in given):
        raise Failure("copying between containers is not supported")
    if not to_container and not all(container for container, _ in given):
        raise Failure("must specify at least one container source")
    sources = [
        (container, path)
        for container, source in given
        for path in (_matches(app, container, source) if container else [source])
    ]
    if len(sources) > 1:
        return _copy_several(app, values, sources, to_container, target)
    [(from_container, source)] = sources
    if from_container:
        return copy_out(app, values, from_container, source, target)
    return copy_in(app, values, source, to_container, target)


def run_export(app: App, values: Values, arguments: list[str]) -> int:
    """Write a container's filesystem as a tar archive."""
    from dray.cli.commands.transfer import check_output, save_to_file
    from dray.cli.streams import write_all

    if not values["output"] and is_terminal(1):
        raise Failure("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    if values["output"]:
        check_output(values["output"], what="failed to export container")
    response = app.client.containers.export(arguments[0])
    try:
        if values["output"]:
            save_to_file(values["output"], response.chunks())
            return 0
        for chunk in response.chunks():
            write_all(1, chunk)
    finally:
        response.close()
    return 0


COMMANDS = {
    "container cp": Command(
        "[OPTIONS] CONTAINER:SRC_PATH [CONTAINER:SRC_PATH...] DEST_PATH|-\n"
        "\tdray cp [OPTIONS] SRC_PATH|- [SRC_PATH...] CONTAINER:DEST_PATH",
        run_cp,
        flags=(
            Flag("archive", "bool", "Keep user and group of what is copied", short="a"),
            Flag("follow-link", "bool", "Follow a link at the source", short="L"),
            Flag("quiet", "bool", "Say nothing of what was copied", short="q"),
        ),
        args=(2, MANY),
    ),
    "container export": Command(
        "[OPTIONS] CONTAINER",
        run_export,
        flags=(Flag("output", "string", "Write to this file instead of standard output", short="o"),),
        args=(1, 1),
    ),
}
