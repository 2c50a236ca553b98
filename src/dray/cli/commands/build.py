"""`dray build`: sends the context to the daemon, shows the build as it goes.

The context is a folder, a tar archive or Dockerfile on standard input (`-`), or an address that the daemon fetches.
"""

from __future__ import annotations

import json
import os
import sys

from dray.base.errors import InvalidParameter
from dray.base.units import human_size
from dray.cli.ask.environment import check_label, to_map
from dray.cli.ask.flags import check_extra_host
from dray.cli.ask.limits import parse_ulimit
from dray.cli.buildcontext import TarStream, context_entries, load_ignore, tar_pieces
from dray.cli.command import Command, Failure, StatusError
from dray.cli.flags import Flag
from dray.client.errors import StreamError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

_ARCHIVES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_REMOTE = ("http://", "https://", "git://", "github.com/", "git@")


class _Given:
    """Standard input as a request body, with what was read of it to see what it is."""

    def __init__(self, head: bytes) -> None:
        self._head = head

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return sys.stdin.buffer.read(size)


def _is_archive(head: bytes) -> bool:
    return head.startswith(_ARCHIVES) or head[257:262] == b"ustar"


def _from_stdin(values: Values) -> tuple[Any, str]:
    if values["file"] == "-":
        raise Failure("invalid argument: can't use stdin for both build context and dockerfile")
    head = sys.stdin.buffer.read(512)
    if _is_archive(head):
        return _Given(head), values["file"]
    if values["file"]:
        raise Failure("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
    content = head + sys.stdin.buffer.read()
    return TarStream(tar_pieces(iter(()), {"Dockerfile": content})), "Dockerfile"


def _dockerfile(folder: str, given: str) -> tuple[str, bytes | None]:
    """Return the Dockerfile's name in the context, and its content when it lies outside."""
    if given == "-":
        return ".dockerfile.stdin", sys.stdin.buffer.read()
    if not given:
        path = os.path.join(folder, "Dockerfile")
        # An old spelling that docker accepts when the usual name is absent.
        if not os.path.lexists(path) and os.path.lexists(os.path.join(folder, "dockerfile")):
            path = os.path.join(folder, "dockerfile")
    else:
        path = given if os.path.isabs(given) or os.path.exists(given) else os.path.join(folder, given)
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if not os.path.exists(real):
        raise Failure(
            f"unable to prepare context: unable to evaluate symlinks in Dockerfile path: lstat {os.path.abspath(path)}: no such file or directory"
        )
    inside = os.path.relpath(real, root)
    if inside.startswith(".."):
        with open(real, "rb") as file:
            return ".dockerfile.outside", file.read()
    return inside.replace(os.sep, "/"), None


def _from_folder(folder: str, values: Values) -> tuple[TarStream, str]:
    if not os.path.isdir(folder):
        what = "is not a directory" if os.path.exists(folder) else "not found"
        raise Failure(f'unable to prepare context: path "{folder}" {what}')
    name, content = _dockerfile(folder, values["file"])
    patterns = load_ignore(folder, name)
    entries = context_entries(folder, patterns, (name, ".dockerignore"))
    return TarStream(tar_pieces(entries, {name: content} if content is not None else None, own=False)), name


def _query(values: Values, *, remote: str, dockerfile: str) -> dict[str, Any]:
    arguments = {}
    for text in values["build-arg"]:
        name, equals, value = text.partition("=")
        arguments[name] = value if equals else os.environ.get(name)
    query: dict[str, Any] = {
        "t": values["tag"] or None,
        "q": values["quiet"],
        "nocache": values["no-cache"],
        "rm": None if values["rm"] else "0",
        "forcerm": values["force-rm"],
        "pull": values["pull"],
        "isolation": values["isolation"] or None,
        "cpusetcpus": values["cpuset-cpus"] or None,
        "cpusetmems": values["cpuset-mems"] or None,
        "cpushares": values["cpu-shares"] or None,
        "cpuquota": values["cpu-quota"] or None,
        "cpuperiod": values["cpu-period"] or None,
        "memory": values["memory"] or None,
        "memswap": values["memory-swap"] or None,
        "cgroupparent": values["cgroup-parent"] or None,
        "shmsize": values["shm-size"] or None,
        "dockerfile": dockerfile or None,
        "networkmode": values["network"] or None,
        "target": values["target"] or None,
        "platform": values["platform"].lower() or None,
        "squash": values["squash"],
        "remote": remote or None,
        "extrahosts": values["add-host"] or None,
        "securityopt": values["security-opt"] or None,
        "version": "1",
    }
    for key, value in (
        ("buildargs", arguments),
        ("labels", to_map(values["label"])),
        ("ulimits", values["ulimit"]),
        ("cachefrom", values["cache-from"]),
    ):
        if value:
            query[key] = json.dumps(value, separators=(",", ":"))
    return query


def _registry_config(app: App) -> str | None:
    from dray.cli.credentials import Credentials
    from dray.client.images import encode_auth

    found = Credentials(app.config).all()
    return encode_auth(found) if found else None


def run_build(app: App, values: Values, arguments: list[str]) -> int:
    """Build an image."""
    from dray.cli.progress import follow

    source, remote, body = arguments[0], "", None
    if values["iidfile"] and os.path.exists(values["iidfile"]):
        os.unlink(values["iidfile"])
    if values["compress"]:
        raise Failure("--compress is not supported: the context is sent as it is; leave the flag out")
    for tag in values["tag"]:
        from dray.base.reference import parse

        parse(tag)
    if source == "-":
        body, dockerfile = _from_stdin(values)
    elif source.startswith(_REMOTE):
        remote, dockerfile = source, values["file"]
    else:
        body, dockerfile = _from_folder(source, values)
    platform = values["platform"] or os.environ.get("DOCKER_DEFAULT_PLATFORM", "")
    values["platform"] = platform
    response = app.client.images.build(
        body, _query(values, remote=remote, dockerfile=dockerfile), registry_config=_registry_config(app)
    )
    if not values["quiet"] and isinstance(body, TarStream):
        app.line(f"Sending build context to Docker daemon  {human_size(body.sent, 4)}")
        sys.stdout.flush()
    return _follow(app, values, response, follow)


def _follow(app: App, values: Values, response: Any, follow: Any) -> int:
    import io

    identifier = ""

    def on_aux(record: dict[str, Any]) -> None:
        nonlocal identifier
        identifier = str((record["aux"] or {}).get("ID") or identifier)

    quiet = io.StringIO()
    try:
        follow(response, quiet if values["quiet"] else None, on_aux=on_aux)
    except StreamError as error:
        if values["quiet"]:
            app.error(quiet.getvalue().rstrip("\n"))
        raise StatusError(error.code or 1, str(error)) from None
    if values["quiet"]:
        identifier = quiet.getvalue().strip() or identifier
        app.line(identifier)
    if values["iidfile"]:
        if not identifier:
            raise Failure(f"server did not provide an image ID. Cannot write {values['iidfile']}")
        with open(values["iidfile"], "w", encoding="utf-8") as file:
            file.write(identifier)
    return 0


def _arg(text: str) -> str:
    if not text.partition("=")[0]:
        raise InvalidParameter(f"invalid build argument: {text}")
    return text


_BUILD = Command(
    "[OPTIONS] PATH | URL | -",
    run_build,
    flags=(
        Flag("add-host", "list", "Add a line to /etc/hosts (host:ip)", check=check_extra_host),
        Flag("build-arg", "list", "Set a build argument (NAME=value, or NAME to pass ours on)", check=_arg),
        Flag("cache-from", "strings", "Images whose layers may be reused"),
        Flag("cgroup-parent", "string", "Cgroup that the steps' cgroups are made in"),
        Flag("compress", "bool", "Compress the context", hidden=True),
        Flag("cpu-period", "int", "Period of the CFS quota, in microseconds"),
        Flag("cpu-quota", "int", "CPU time in each CFS period, in microseconds"),
        Flag("cpu-shares", "int", "Relative share of CPU time", short="c"),
        Flag("cpuset-cpus", "string", "CPUs the steps may run on (0-3, 0,1)"),
        Flag("cpuset-mems", "string", "Memory nodes the steps may use (0-3, 0,1)"),
        Flag("disable-content-trust", "bool", "Do not verify signatures", default=True, hidden=True),
        Flag("file", "string", "Dockerfile (default PATH/Dockerfile)", short="f"),
        Flag("force-rm", "bool", "Remove the steps' containers even when the build fails"),
        Flag("iidfile", "string", "Write the image's ID to this file"),
        Flag("isolation", "string", "Isolation technology"),
        Flag("label", "list", "Set a label (name=value)", check=check_label),
        Flag("memory", "bytes", "Limit of memory", short="m"),
        Flag("memory-swap", "swap", "Limit of memory and swap together; -1 for no limit"),
        Flag("network", "string", "Network of RUN instructions", default="default"),
        Flag("no-cache", "bool", "Build every step anew"),
        Flag("platform", "string", "Platform to build for"),
        Flag("pull", "bool", "Look for newer base images"),
        Flag("quiet", "bool", "Print the image's ID only", short="q"),
        Flag("rm", "bool", "Remove the steps' containers", default=True),
        Flag("security-opt", "strings", "Security option"),
        Flag("shm-size", "bytes", "Size of /dev/shm"),
        Flag("squash", "bool", "Make one layer of all new ones"),
        Flag("tag", "list", "Name of the image (name:tag)", short="t"),
        Flag("target", "string", "Stage to build"),
        Flag("ulimit", "list", "Resource limit (name=soft[:hard])", check=parse_ulimit, label="ulimit"),
    ),
    args=(1, 1),
)

COMMANDS = {"image build": _BUILD, "builder build": _BUILD}
