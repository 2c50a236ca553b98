"""Verbs that look at a container without changing it: logs, top, port, diff."""

from __future__ import annotations

import time

from dray.base.errors import InvalidParameter
from dray.cli.command import MANY, Command, Failure
from dray.cli.flags import Flag, parse_int
from dray.cli.output import align

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dray.cli.app import App
    from dray.cli.flags import Values


def api_time(text: str, *, now: float | None = None) -> str:
    """Turn a time of the command line into the API's: a duration ago, seconds since 1970, or a date.

    A date without a zone is local time, as with docker.
    """
    import calendar
    import re

    from dray.cli.flags import parse_duration

    if not text:
        return ""
    try:
        nanoseconds = parse_duration(text)
    except InvalidParameter:
        pass
    else:
        if text != "0":
            moment = int((time.time() if now is None else now) * 10**9) - nanoseconds
            return f"{moment // 10**9}.{moment % 10**9:09d}"
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return text
    match = re.fullmatch(
        r"(\d{4})-(\d\d)-(\d\d)(?:T(\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?)?(Z|[+-]\d\d:\d\d)?", text
    )
    if match is None:
        raise InvalidParameter(f'failed to parse value as time or duration: "{text}"')
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    zone = match[8]
    if zone is None:
        seconds = int(time.mktime((year, month, day, hour, minute, second, 0, 0, -1)))
    else:
        seconds = calendar.timegm((year, month, day, hour, minute, second))
        if zone != "Z":
            shift = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
            seconds -= -shift if zone[0] == "-" else shift
    return f"{seconds}.{(match[7] or '').ljust(9, '0')}"


def _moment(values: Values, name: str) -> str | None:
    try:
        return api_time(values[name]) or None
    except InvalidParameter as error:
        raise InvalidParameter(f'invalid value for "{name}": {error}') from None


def run_logs(app: App, values: Values, arguments: list[str]) -> int:
    """Print a container's log."""
    from dray.cli.streams import copy_output

    container = app.client.containers.inspect(arguments[0])
    response = app.client.containers.logs(
        container["Id"],
        stdout=True,
        stderr=True,
        since=_moment(values, "since"),
        until=_moment(values, "until"),
        timestamps=values["timestamps"],
        follow=values["follow"],
        tail=values["tail"],
        details=values["details"],
    )
    try:
        copy_output(response.chunks(), tty=bool((container.get("Config") or {}).get("Tty")))
    finally:
        response.close()
    return 0


def run_top(app: App, values: Values, arguments: list[str]) -> int:
    """Print a container's processes."""
    answer = app.client.containers.top(arguments[0], arguments[1:])
    rows = ["\t".join(answer.get("Titles") or ())] + [
        "\t".join(process) for process in answer.get("Processes") or ()
    ]
    app.line("\n".join(align(rows, minimum=20, padding=3)))
    return 0


def run_port(app: App, values: Values, arguments: list[str]) -> int:
    """Print a container's port bindings."""
    container = app.client.containers.inspect(arguments[0])
    ports = (container.get("NetworkSettings") or {}).get("Ports") or {}
    if len(arguments) > 1:
        wanted = arguments[1]
        port, slash, protocol = wanted.partition("/")
        key = f"{port}/{protocol if slash else 'tcp'}"
        try:
            parse_int(port, 16, signed=False)
        except InvalidParameter as error:
            raise Failure(f"Error: invalid port ({port}): {error}") from None
        bindings = ports.get(key)
        if not bindings:
            raise Failure(f"Error: No public port '{wanted}' published for {arguments[0]}")
        for line in sorted(_address(one) for one in bindings):
            app.line(line)
        return 0
    lines = [f"{key} -> {_address(one)}" for key, bindings in ports.items() for one in bindings or ()]
    for line in sorted(lines, key=_natural):
        app.line(line)
    return 0


def _address(binding: dict[str, str]) -> str:
    host = binding.get("HostIp") or ""
    return f"[{host}]:{binding.get('HostPort')}" if ":" in host else f"{host}:{binding.get('HostPort')}"


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """A sort key in which numbers count as numbers."""
    import re

    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.findall(r"\d+|\D+", text)]


def run_diff(app: App, values: Values, arguments: list[str]) -> int:
    """Print what changed in a container's filesystem."""
    if not arguments[0].strip():
        raise Failure("Container name cannot be empty")
    for change in app.client.containers.changes(arguments[0]):
        app.line(f"{'CAD'[change['Kind']]} {change['Path']}")
    return 0


COMMANDS = {
    "container logs": Command(
        "[OPTIONS] CONTAINER",
        run_logs,
        flags=(
            Flag("details", "bool", "Show the labels and variables the log options name"),
            Flag("follow", "bool", "Go on showing what is written", short="f"),
            Flag("since", "string", "Begin at this time (2013-01-02T13:23:37Z) or this long ago (42m)"),
            Flag("tail", "string", "Number of lines to show from the end", short="n", default="all"),
            Flag("timestamps", "bool", "Show when each line was written", short="t"),
            Flag("until", "string", "End at this time, or this long ago"),
        ),
        args=(1, 1),
    ),
    "container top": Command("CONTAINER [ps OPTIONS]", run_top, args=(1, MANY), interspersed=False),
    "container port": Command("CONTAINER [PRIVATE_PORT[/PROTO]]", run_port, args=(1, 2)),
    "container diff": Command("CONTAINER", run_diff, args=(1, 1)),
}
