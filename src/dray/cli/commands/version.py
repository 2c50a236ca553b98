"""`dray version`."""

from __future__ import annotations

import platform
import sys

from dray import __version__
from dray.base.errors import DrayError
from dray.cli.command import Command, StatusError
from dray.cli.flags import Flag
from dray.cli.output import align
from dray.client.transport import API_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def architecture() -> str:
    """Return this machine's architecture by Go's name."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def client_versions(app: App) -> dict[str, Any]:
    """Return what is known of the client."""
    from dray.cli.endpoint import context_name

    return {
        "Version": __version__,
        "ApiVersion": API_VERSION,
        "DefaultAPIVersion": API_VERSION,
        "PythonVersion": platform.python_version(),
        "Os": sys.platform,
        "Arch": architecture(),
        "Context": context_name(app),
    }


def _client_lines(client: dict[str, Any]) -> list[str]:
    api = client["ApiVersion"]
    if api != client["DefaultAPIVersion"]:
        api += f" (downgraded from {client['DefaultAPIVersion']})"
    return [
        "Client:\t",
        f" Version:\t{client['Version']}",
        f" API version:\t{api}",
        f" Python version:\t{client['PythonVersion']}",
        f" OS/Arch:\t{client['Os']}/{client['Arch']}",
        f" Context:\t{client['Context']}",
    ]


def build_time(text: str) -> str:
    """Print an RFC 3339 time as C's asctime does; other text as it is."""
    import time

    from dray.cli.output import timestamp

    try:
        return time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(timestamp(text)))
    except (ValueError, IndexError):
        return text


def _server_lines(server: dict[str, Any]) -> list[str]:
    name = (server.get("Platform") or {}).get("Name") or ""
    lines = ["", f"Server: {name}".rstrip()]
    for part in server.get("Components") or ():
        details = part.get("Details") or {}
        lines.append(f" {part.get('Name')}:\t")
        if part.get("Name") == "Engine":
            lines += [
                f"  Version:\t{part.get('Version')}",
                f"  API version:\t{details.get('ApiVersion', '')} (minimum version {details.get('MinAPIVersion', '')})",
            ]
            lines += [
                f"  {shown}:\t{details[key]}"
                for shown, key in (
                    ("Go version", "GoVersion"),
                    ("Python version", "PythonVersion"),
                    ("Git commit", "GitCommit"),
                )
                if key in details
            ]
            lines += [
                f"  Built:\t{build_time(details.get('BuildTime', ''))}",
                f"  OS/Arch:\t{details.get('Os', '')}/{details.get('Arch', '')}",
                f"  Experimental:\t{details.get('Experimental', 'false')}",
            ]
            continue
        lines.append(f"  Version:\t{part.get('Version')}")
        lines += [f"  {key}:\t{value}" for key, value in sorted(details.items())]
    return lines


def run_version(app: App, values: Values, arguments: list[str]) -> int:
    """Print versions; the client's even when no daemon answers."""
    form = values["format"]
    template = None
    if form:
        from dray.cli.template import ParseError, Template

        try:
            template = Template("{{json .}}" if form == "json" else form, name="version")
        except ParseError as error:
            raise StatusError(64, f"template parsing error: {error}") from None
    client = client_versions(app)
    server: dict[str, Any] | None = None
    problem: DrayError | None = None
    try:
        server = app.client.system.version()
        client["ApiVersion"] = app.client.version
    except DrayError as error:
        problem = error
    if template is not None:
        from dray.cli.typed import typed

        app.line(template.execute(typed({"Client": client, "Server": server}, "versionInfo")))
    else:
        lines = _client_lines(client) + (_server_lines(server) if server is not None else [])
        app.line("\n".join(line.rstrip() for line in align(lines, minimum=20, padding=1)))
    if problem is not None:
        raise problem
    return 0


COMMANDS = {
    "version": Command(
        "[OPTIONS]",
        run_version,
        flags=(Flag("format", "string", "Print with a template: 'json' or a Go template", short="f"),),
    ),
}
