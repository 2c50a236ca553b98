"""`dray events`."""

from __future__ import annotations

import json
import sys
import time

from dray.cli.command import Command, StatusError
from dray.cli.commands.observe import api_time
from dray.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dray.cli.app import App
    from dray.cli.flags import Values


def event_line(event: dict[str, Any]) -> str:
    """Return an event as one line: time, kind, action, object, attributes."""
    parts = []
    if event.get("timeNano"):
        seconds, nanoseconds = divmod(event["timeNano"], 10**9)
    else:
        seconds, nanoseconds = event.get("time", 0), 0
    moment = time.localtime(seconds)
    zone = time.strftime("%z", moment)
    zone = "Z" if zone == "+0000" else f"{zone[:-2]}:{zone[-2:]}"
    parts.append(time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{nanoseconds:09d}{zone}")
    actor = event.get("Actor") or {}
    parts += [event.get("Type") or "", event.get("Action") or "", actor.get("ID") or ""]
    line = " ".join(parts)
    if attributes := actor.get("Attributes"):
        line += " (" + ", ".join(f"{key}={value}" for key, value in sorted(attributes.items())) + ")"
    return line


def run_events(app: App, values: Values, arguments: list[str]) -> int:
    """Print events as they happen."""
    form = values["format"]
    template = None
    if form and form != "json":
        from dray.cli.template import ParseError, Template

        try:
            template = Template(form)
        except ParseError as error:
            raise StatusError(64, f"Error parsing format: {error}") from None
    response = app.client.system.events(
        since=api_time(values["since"]), until=api_time(values["until"]), filters=values["filter"]
    )
    try:
        for event in response.documents():
            if form == "json":
                app.line(json.dumps(event, separators=(",", ":"), ensure_ascii=False))
            elif template is not None:
                from dray.cli.typed import typed

                app.line(
                    template.execute(
                        typed(
                            {**event, "ID": event.get("id", ""), "Attributes": None}
                            if "Actor" not in event
                            else event,
                            "event",
                        )
                    )
                )
            else:
                app.line(event_line(event))
            sys.stdout.flush()
    finally:
        response.close()
    return 0


COMMANDS = {
    "system events": Command(
        "[OPTIONS]",
        run_events,
        flags=(
            Flag("filter", "filter", "Show only events that match (name=value)", short="f"),
            Flag("format", "string", "Print with a template: 'json' or a Go template"),
            Flag("since", "string", "Begin with what happened since this time, or this long ago"),
            Flag("until", "string", "End at this time, or this long ago"),
        ),
    ),
}
