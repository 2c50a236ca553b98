"""`dray daemon status` and `unit`, and `dray system dial-stdio` for clients that come over ssh."""

from __future__ import annotations

import os
import select

from dray.base.errors import DrayError, InvalidParameter
from dray.cli.command import Command
from dray.cli.flags import Flag
from dray.cli.hints import connect_hint
from dray.cli.streams import write_all
from dray.client.errors import ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dray.cli.app import App
    from dray.cli.flags import Values


def run_status(app: App, values: Values, arguments: list[str]) -> int:
    """Say whether a daemon answers and where; exit status 0 when one does, 1 when none does."""
    from dray.cli.endpoint import context_name

    client = app.client
    where = client.transport.address
    app.line(f"Address:      {where.text}")
    app.line(f"Context:      {context_name(app)}")
    try:
        headers = client.system.ping()
        version = client.system.version()
        info = client.system.info()
    except ConnectError as error:
        app.line("Daemon:       does not answer")
        app.line(f"Reason:       {error.cause.strerror if error.cause is not None else error}")
        if hint := connect_hint(error):
            app.line(hint)
        return 1
    except DrayError as error:
        app.line("Daemon:       answers, but refuses")
        app.line(f"Reason:       {error}")
        return 1
    app.line(f"Daemon:       running, {headers.get('server', 'unknown')}")
    app.line(f"Version:      {version.get('Version', '')}")
    app.line(
        f"API version:  {version.get('ApiVersion', '')} (minimum {version.get('MinAPIVersion', '')}), using {client.version}"
    )
    app.line(f"Containers:   {info.get('ContainersRunning', 0)} running, {info.get('Containers', 0)} in all")
    app.line(f"Images:       {info.get('Images', 0)}")
    app.line(f"Data:         {info.get('DockerRootDir', '')}")
    return 0


def run_unit(app: App, values: Values, arguments: list[str]) -> int:
    """Print a systemd unit of the daemon."""
    from dray.cli import units

    kind = arguments[0] if arguments else "service"
    if kind == "service":
        app.out(units.service(socket=values["socket"]))
    elif kind == "socket":
        app.out(units.socket_unit(values["path"], values["group"]))
    else:
        raise InvalidParameter(f"there is no unit {kind!r}: it is service or socket")
    return 0


def run_dial(app: App, values: Values, arguments: list[str]) -> int:
    """Join standard input and output to the daemon's socket until either side ends."""
    import socket

    connection = app.client.system.dial()
    sock, reading = connection.sock, True
    try:
        while True:
            readable, _, _ = select.select([sock.fileno(), 0] if reading else [sock.fileno()], [], [])
            if sock.fileno() in readable:
                data = sock.recv(65536)
                if not data:
                    return 0
                write_all(1, data)
            if 0 in readable:
                data = os.read(0, 65536)
                if data:
                    sock.sendall(data)
                else:
                    reading = False
                    sock.shutdown(socket.SHUT_WR)
    finally:
        connection.close()


COMMANDS = {
    "daemon status": Command("", run_status),
    "daemon unit": Command(
        "[OPTIONS] [service|socket]",
        run_unit,
        flags=(
            Flag("group", "string", "Group that may use the socket (of the socket unit)", default="root"),
            Flag("path", "string", "Path of the socket (of the socket unit)", default="/run/docker.sock"),
            Flag("socket", "bool", "Take the socket from the socket unit (of the service unit)"),
        ),
        args=(0, 1),
    ),
    "system dial-stdio": Command("", run_dial),
}
